"""Repeated lines: the same few sentences or lines in any order, whatever they are made of.

A text in which hardly a line is new says nothing new. Prose, code, tool calls and transcripts of subtitles are judged
alike; dates, times and identifiers do not make a line new, and in a line of several words no numeral does. Blank, short
and purely symbolic lines (braces, bars of music, rows of digits) are evidence for neither.
"""

import re
from collections import Counter, deque
from functools import lru_cache
from operator import itemgetter

from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, degenerate
from glm4_deploy.detect.prompt import Ending, PromptRequest, Shape, fold, shape_of
from glm4_deploy.detect.tail import Tail
from glm4_deploy.detect.thresholds import LINES, ROWS
from glm4_deploy.detect.tokens import NUMERAL, STAMP, STAMPS

# A line, a sentence, or a field of a URL's query.
_LINE = re.compile(
    r"[^\n.!?。！？；&]+(?:(?:[.!?]+(?=[^\s.!?。！？；])|&(?!\w{1,40}=))[^\n.!?。！？；&]*)*[.!?。！？；\n&]*"
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_WIDE = re.compile("[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff]")


class Lines:
    """Follows the lines and sentences of a stream, and which stretch at its end consists of known ones.

    Attributes:
        recent: the informative lines of the stretch, each with its offset and whether a newline ended it.
        broken_off: the text ended in the middle of a known line,
        cut_short: and of a word.
        deeper: how often the indentation (or quotation) of the lines has grown without falling.
    """

    def __init__(self) -> None:
        self._carry = ""
        self._count = 0
        self._known: dict[str, int] = {}
        self._score = 0.0
        self._trailing = 0  # new lines since the last known one
        self.recent: deque[tuple[str, int, bool]] = deque(maxlen=LINES.memory)
        self.broken_off = self.cut_short = False
        self._indent = self.deeper = 0

    def feed(self, text: str, end: int, *, last: bool = False) -> None:
        """Take the text up to offset `end`; if it is not the last, its last line may continue."""
        text = self._carry + text
        lines: list[str] = _LINE.findall(text)
        offset = end - sum(map(len, lines))  # only marks before the first line are in none
        self._carry = ""
        if lines and not last:
            self._carry = lines.pop()[-LINES.longest :]
        if lines and last and not text.endswith("\n"):
            final = _masked(lines[-1].strip())
            start = _NUMERAL.sub(NUMERAL, final)  # too short, maybe, for its numerals to be masked
            if final not in self._known:
                continued = {
                    known[len(one)] for known in self._known for one in (final, start) if known.startswith(one)
                }
                self.broken_off = bool(continued) and final.strip("`") != ""  # three close any fence
                self.cut_short = final[-1:].isalnum() and any(map(str.isalnum, continued))
        for line in lines:
            self._take(line, offset)
            offset += len(line)

    def _take(self, text: str, offset: int) -> None:
        indent = len(text) - len(text.lstrip(" \t>"))
        if indent != self._indent:
            self.deeper = self.deeper + 1 if indent > self._indent else 0
            self._indent = indent
        line, informs = _reduced(text.strip())
        if not informs:
            if line not in self._known and _WORD.search(line):
                self._score -= LINES.word_cost
                self._remember(line)
            return
        known = self._known.pop(line, None)
        self._remember(line)
        self._count += 1
        if known is not None and self._count - known <= LINES.memory:
            if self._score <= 0:
                self._score = 0.0
                self.recent.clear()
            self._score = min(self._score + 1, LINES.ceiling)
            self._trailing = 0
        else:
            self._score -= LINES.cost
            self._trailing += 1
        self.recent.append((line, offset, text.endswith("\n")))

    def _remember(self, line: str) -> None:
        self._known[line] = self._count
        if len(self._known) > LINES.memory:
            del self._known[next(iter(self._known))]

    @property
    def stalled(self) -> bool:
        """Whether the last lines are known ones."""
        return self._score > 0 and self._trailing <= 1


_DIGIT = re.compile(r"\d")
_NUMERAL = re.compile(r"\d+")
_STAMPED = re.compile(r"\d[:-]\d|\d[A-Za-z]{1,16}\d")


def _masked(line: str) -> str:
    if _DIGIT.search(line) is None:
        return line
    line = STAMPS.sub(STAMP, line) if _STAMPED.search(line) else line
    return _NUMERAL.sub(NUMERAL, line) if len(_WORD.findall(line)) >= LINES.sentence else line


@lru_cache(maxsize=128)  # records and code write the same lines again and again
def _reduced(line: str) -> tuple[str, bool]:
    """The line as it is compared with others, and whether it informs."""
    line = _masked(line)
    if len(line) > LINES.kept:
        line = f"{line[: LINES.kept]}{hash(line)}"
    return line, _informs(line)


def _informs(line: str) -> bool:
    """Enough words, and more words than dates and identifiers, which are data."""
    if len(line) < LINES.shortest:
        return False
    if len(line) > LINES.long and STAMP not in line:
        return _WORD.search(line) is not None
    words = len(_WORD.findall(line))
    return words >= max(LINES.words, line.count(STAMP) + 1) or len(_WIDE.findall(line)) >= LINES.ideographs


def _is_sentence(line: str) -> bool:
    """Not a field of a form, a record or a line of a song."""
    if STAMP in line or NUMERAL in line:
        return False
    return len(_WORD.findall(line)) >= LINES.sentence or len(_WIDE.findall(line)) >= 2 * LINES.sentence


def find_repeated_lines(lines: Lines, end: int, *, ending: Ending, request: PromptRequest) -> LoopFinding | None:
    """The last lines are a few, over and over, or each is nested in the one before."""
    if lines.deeper >= LINES.deeper:
        why = f"the indentation of the last lines has grown {lines.deeper} times and never fallen"
        return degenerate(LoopVerdict.NEAR_DUPLICATE, why, confidence=0.85, start=None)
    if not lines.stalled:
        return None
    kinds = Counter(map(itemgetter(0), lines.recent))
    repeats = len(lines.recent) / len(kinds)
    if ending is Ending.UNKNOWN:
        ending = Ending.CUT if lines.broken_off or all(map(_is_sentence, kinds)) else Ending.STOPPED
    if ending is Ending.STOPPED and sum(is_row for _, _, is_row in lines.recent) > len(lines.recent) / 2:
        return None  # complete rows: a form, a log, a litany
    if len(lines.recent) < LINES.lines[ending] or repeats < LINES.repeats[ending]:
        return None
    # A list of any length was requested: what counts in it may go on, the same items over and over may not.
    counts = request.limit is None and any(NUMERAL in line or STAMP in line for line in kinds)
    listed = request.count and (counts or request.lists(len(lines.recent)))
    unit, _ = kinds.most_common(1)[0]
    if listed or request.allows(repeats, unit):
        return None
    start = lines.recent[0][1]
    few = "one line" if len(kinds) == 1 else f"{len(kinds)} different ones"
    return degenerate(
        LoopVerdict.NEAR_DUPLICATE,
        f"the last {len(lines.recent)} lines and sentences are only {few}, apart from numerals and times",
        confidence=0.85,
        start=start,
        unit=unit,
        period=max(round((end - start) / repeats), 1),
        repeats=repeats,
    )


_SPLITS = (re.compile(r"[.!?\n]+"), re.compile(r"[.!?\n,;]+"))


def find_one_slot(tail: Tail, *, request: PromptRequest) -> LoopFinding | None:
    """Sentences, lines or items of a text that was cut off, equal but for one word: `May you be blessed with fire.`"""
    text = tail.reversed[: ROWS.tail][::-1]
    if request.count or shape_of(text[-LINES.slot_tail :]) is not Shape.PROSE:
        return None
    for split in _SPLITS:
        items = [words for item in split.split(text)[1:-1] if (words := item.split())]
        first = items[-1] if items else []
        copies, slots = 0, set[int]()
        for words in reversed(items):
            slots |= {at for at, (one, other) in enumerate(zip(first, words, strict=False)) if one != other}
            if len(words) != len(first) or len(slots) > 1:
                break
            copies += 1
        changing = {items[-1 - copy][at] for at in slots for copy in range(copies)}
        enough = LINES.slots if len(first) > 2 else LINES.short_slots
        if len(first) < 2 or copies < enough or not all(map(_is_word, changing)) or request.allows(copies):
            continue
        named = sum(fold(word) in request.words for word in changing)
        if len(changing) > LINES.slot_words * copies or named > len(changing) / 2:
            continue  # a list of different things, or labels of what the prompt gave
        why = f"the last {copies} sentences, lines or items are the same but for one word, until the token limit"
        return degenerate(LoopVerdict.NEAR_DUPLICATE, why, confidence=0.85, unit=" ".join(first), repeats=copies)
    return None


def _is_word(word: str) -> bool:
    return word.strip("'\"*_()-").isalpha()


_NUMBERED = re.compile(r"\W{0,4}\d{1,4}[.):、]\W{0,4}(.*)")
_TO_FILL_IN = re.compile(r"[_.…-]{3}|\[ ?\]|[□☐]")


def find_numbered_copies(tail: Tail, *, request: PromptRequest) -> LoopFinding | None:
    """A numbered list of different items that ends in the same one over and over."""
    lines = tail.reversed[: ROWS.tail][::-1].strip().split("\n")
    items = [match[1].strip() if (match := _NUMBERED.fullmatch(line.strip())) else "" for line in lines if line.strip()]
    item = items[-2] if len(items) > 1 else ""  # the last one may be cut off
    copies = 1
    while copies < len(items) - 1 and items[-2 - copies] == item:
        copies += 1
    if copies < LINES.numbered or len(_WORD.findall(item)) < LINES.item or _TO_FILL_IN.search(item):
        return None
    before = [item for item in items[: -1 - copies] if item]
    if request.allows(copies, item) or len(before) < LINES.before or len(set(before)) < 0.9 * len(before):
        return None  # labels of what was classified, or a plan
    why = f"the last {copies} items of a numbered list are the same"
    return degenerate(LoopVerdict.EXACT_LOOP, why, confidence=0.85, unit=item, repeats=copies)


def find_keyless_rows(tail: Tail, *, request: PromptRequest) -> LoopFinding | None:
    """A table that the token limit cut off, whose rows recur and have no key: each column has a few values only."""
    lines = tail.reversed[: ROWS.tail][::-1].split("\n")[1:-1]
    mark = max(_CELL_MARKS, key=lines[-1].count) if lines else ""
    rows: list[list[str]] = []
    for line in reversed(lines):
        cells = [cell.strip() for cell in line.strip().strip(mark).split(mark)]
        if len(cells) < 2 or (rows and len(cells) != len(rows[0])):
            break
        rows.append(cells)
    if len(rows) < ROWS.rows or request.lists(len(rows)):
        return None
    kinds = len(set(map(tuple, rows)))
    values = max(len(set(column)) for column in zip(*rows, strict=True))
    said = sum(len(cell) for row in rows for cell in row)
    if kinds > ROWS.kinds * len(rows) or values > ROWS.values * len(rows) or said < ROWS.said * len(rows):
        return None
    why = f"the last {len(rows)} rows are {kinds} different ones, and no column has more than {values} values"
    return degenerate(LoopVerdict.NEAR_DUPLICATE, why, confidence=0.8, start=None)


_CELL_MARKS = "|\t;,"
