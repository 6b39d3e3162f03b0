"""Counter loops: a text that repeats itself but for a number that goes on by the same step."""

import re
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import islice, pairwise
from operator import itemgetter
from string import ascii_letters
from typing import Final
from zlib import crc32

from glm4_deploy.detect.exact import Run, runs_before_tail, tail_runs
from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, Text, degenerate
from glm4_deploy.detect.prompt import Ending, PromptRequest, Shape, shape_of, weight_of
from glm4_deploy.detect.thresholds import COUNTERS, SENTENCE, STEADY, STEPPING, STRAY_TOKENS, WORD_REACH, Count

# Text into tokens of its own (words, numbers, marks), each with its offset and with a mask that hides numerals.
#
# One ideograph is one token, a numeral in any script or spelling has the same mask (the letters A to Z too, since lists
# count with them), and a space is none. So `Step 9`, `Step 10` and `Step ten` have the same masks, which is what the
# search for counters needs.

NUMERAL: Final = "#"
_LONGEST = 64  # characters of one token: what is longer comes in pieces, so that a cut text needs little kept back
_HAN_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10000}
_HAN = "".join(_HAN_DIGITS) + "".join(_HAN_UNITS)
_TOKEN = re.compile(
    # Plain letters come first because they are most of most texts; a word with others in it is then two tokens.
    rf"[A-Za-z]{{1,{_LONGEST}}}|\d{{1,{_LONGEST}}}|[{_HAN}]{{1,{_LONGEST}}}|[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    rf"|[^\W\d_]{{1,{_LONGEST}}}|\n|[^\w\s]|_"
)
_CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_TENS = "thirty forty fifty sixty seventy eighty ninety hundred"
_SPELT = (
    {word: value for value, word in enumerate(_CARDINALS.split())}
    | {word: value for value, word in enumerate(_ORDINALS.split())}
    | {word: 10 * value for value, word in enumerate(_TENS.split(), start=3)}
)
_ROMAN = re.compile(r"[IVXLC]{1,9}")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}


@lru_cache(maxsize=8192)
def value_of(token: str) -> int | None:
    """The number that a token stands for, None if it is none. A single letter counts from a (or A) = 1."""
    if token.isdecimal():
        return int(token) if len(token) <= 18 else None
    if token[0] in _HAN_DIGITS or token[0] in _HAN_UNITS:
        return _han(token)
    lower = token.lower()
    if lower in _SPELT:
        return _SPELT[lower]
    if len(token) > 1 and (roman := roman_of(token)) is not None:
        return roman
    return ord(lower) - 96 if len(token) == 1 and token in ascii_letters else None


def _han(token: str) -> int:
    if not any(char in _HAN_UNITS for char in token):
        return int("".join(str(_HAN_DIGITS[char]) for char in token[:18]))
    total = digit = 0
    for char in token:
        if char in _HAN_DIGITS:
            digit = _HAN_DIGITS[char]
        else:
            total, digit = total + max(digit, 1) * _HAN_UNITS[char], 0
    return total + digit


def roman_of(token: str) -> int | None:
    """The value of a Roman numeral in capitals, None if it is none."""
    if not _ROMAN.fullmatch(token):
        return None
    values = [_ROMAN_VALUES[char] for char in token]
    after = [*values[1:], 0]
    return sum(-value if value < next_ else value for value, next_ in zip(values, after, strict=True))


@lru_cache(maxsize=8192)
def mask_of(token: str) -> str:
    """One character: NUMERAL, or one that stands for the token (two words share one about once in a million).

    By a checksum, not by hash(): the verdict must be the same in every process.
    """
    if value_of(token) is not None or token.isdecimal():
        return NUMERAL
    if len(token) == 1:
        return token if token != NUMERAL else "\ue000"
    return chr(0x10000 + crc32(token.encode("utf-8", "surrogatepass")) % 0x100000)


class Words:
    """The tokens of the last `most` to 2 × `most` of a stream that comes in blocks.

    Offsets are worked out when they are asked for, from the kept blocks: a sane text never needs one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._carry = ""
        self.dropped = 0  # tokens that are no longer kept
        self.tokens: list[str] = []
        self._turned: deque[str] = deque(maxlen=most)  # masks of each block, the newest first, each from its last
        self._texts: list[tuple[int, int, str]] = []  # (index of its first token from the beginning, offset, text)

    def feed(self, block: str, offset: int) -> None:
        """Take the next block, which begins at `offset` of the text; keep back a token that may go on."""
        text, base = self._carry + block, offset - len(self._carry)
        found = _TOKEN.findall(text)
        self._carry = ""
        if found and text.endswith(found[-1]) and len(found[-1]) < _LONGEST:
            self._carry = found.pop()
        self._take(found, text[: len(text) - len(self._carry)], base)
        if len(self.tokens) >= 2 * self._most:
            self._drop(len(self.tokens) - self._most)

    def finish(self, rest: str, offset: int) -> None:
        """Take the end of the text."""
        text = self._carry + rest
        self._take(_TOKEN.findall(text), text, offset - len(self._carry))
        self._carry = ""

    def _take(self, found: list[str], text: str, base: int) -> None:
        self._texts.append((self.dropped + len(self.tokens), base, text))
        self.tokens += found
        self._turned.appendleft("".join(map(mask_of, found))[::-1])

    def _drop(self, count: int) -> None:
        self.dropped += count
        del self.tokens[:count]
        del self._texts[: bisect_right(self._texts, self.dropped, key=itemgetter(0)) - 1]

    def turned_masks(self, blocks: int) -> str:
        """The masks of the last so many blocks, from the last token to the first."""
        return "".join(islice(self._turned, blocks))[: len(self.tokens)]

    def start(self, index: int) -> int:
        """Offset of a kept token; a token that is no longer kept stands where the first kept one does."""
        wanted = max(index, 0) + self.dropped
        first, base, text = self._texts[bisect_right(self._texts, wanted, key=itemgetter(0)) - 1]
        return base + next(islice(_TOKEN.finditer(text), wanted - first, None)).start()

    def end(self, index: int) -> int:
        """Offset just after a kept token."""
        return self.start(index) + len(self.tokens[index])


class Field(StrEnum):
    """How a numeral changes from copy to copy."""

    SAME = "same"
    STEP = "step"
    DATA = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """A tail of the text that is the same but for its numerals.

    start: offset of its first copy; unit: the text of one copy; period: tokens in it; copies: how many there are.
    values: the numbers of its first counting field, as far as they could be read; step: from one to the next.
    whole: its last copy lacks no word.
    """

    start: int
    end: int
    unit: str
    period: int
    copies: float
    values: tuple[int, ...]
    step: int
    whole: bool


def counting(words: Words, turned: str, text: Text, *, ended: bool) -> Iterator[Counting]:
    """Ways in which the kept tokens end in a count, shortest unit first.

    turned: their masks, from the last to the first. ended: a few stray tokens, or half a word, may follow the count.
    """
    last = len(words.tokens)
    for run in tail_runs(turned, reach=WORD_REACH):
        if (item := _counting(words, run, turned, last, text)) is not None:
            yield item
    for run, after in runs_before_tail(turned, reach=WORD_REACH, tails=(1, STRAY_TOKENS)) if ended else ():
        if (item := _counting(words, run, turned[after:], last - after, text)) is not None:
            yield item


def _counting(words: Words, run: Run, turned: str, last: int, text: Text) -> Counting | None:
    """What counts in a run of masks, where anything does; last: how many tokens there are up to its end."""
    begin = last - run.length
    unit = turned[run.length - run.period : run.length][::-1]
    if NUMERAL not in unit or run.repeats < 4:
        return None
    fields = [index for index, mask in enumerate(unit) if mask == NUMERAL]
    columns = [words.tokens[begin + index : last : run.period] for index in fields]
    kinds = [kind_of(column) for column in columns]
    if Field.DATA in kinds or Field.STEP not in kinds:
        return None
    values = _values(columns[kinds.index(Field.STEP)])
    start, second = words.start(begin), words.start(begin + run.period)
    rest = words.tokens[last - run.period : last - run.length % run.period]
    return Counting(
        start=start,
        end=words.end(last - 1),
        unit=text.between(start, second),
        period=run.period,
        copies=run.repeats,
        values=tuple(values),
        step=_mode(values)[0],
        whole=not any(token.isalnum() for token in rest),
    )


def kind_of(column: Sequence[str]) -> Field:
    """SAME if next to all differences are 0, STEP if most are one other number (some skip, clocks wrap), else DATA."""
    if len(set(column)) == 1:
        return Field.SAME
    values = _values(column)
    if len(values) < len(column):
        return Field.DATA
    step, share = _mode(values)
    if share < (STEPPING if step else STEADY):
        return Field.DATA
    return Field.STEP if step else Field.SAME


def _values(column: Sequence[str]) -> list[int]:
    # A lone I, V or X is a letter of the alphabet, unless its neighbours are Roman.
    roman = any(len(token) > 1 and roman_of(token) is not None for token in column)
    read = (roman_of(token) if roman else value_of(token) for token in column)
    return [value for value in read if value is not None]


def _mode(values: Sequence[int]) -> tuple[int, float]:
    steps = Counter(after - before for before, after in pairwise(values))
    if not steps:
        return 0, 0.0
    step, times = steps.most_common(1)[0]
    return step, times / (len(values) - 1)


def find_counter(found: Iterator[Counting], *, ending: Ending, request: PromptRequest) -> LoopFinding | None:
    """The first of these that nothing excuses."""
    for item in found:
        shape = shape_of(item.unit)
        limit = _limit(item, shape, ending, request)
        beyond = _beyond(item, request)
        if not beyond:
            if item.copies < limit.copies or (item.end - item.start) * weight_of(item.unit) < limit.span:
                continue
            if _asked(item, shape, request) or _over(item, shape, ending):
                continue
        return _finding(item, ending, beyond=beyond)
    return None


def _limit(item: Counting, shape: Shape, ending: Ending, request: PromptRequest) -> Count:
    if shape is Shape.ZEROS:
        shape = Shape.SYMBOLS
    row = "\n" in item.unit or len(item.unit) * weight_of(item.unit) < SENTENCE
    if ending is Ending.RUNNING and shape is Shape.PROSE and not row and request == PromptRequest():
        # Rows count in good texts; a sentence within a paragraph hardly does, least of all unasked.
        ending = Ending.UNKNOWN
    return COUNTERS[shape, ending]


def _beyond(item: Counting, request: PromptRequest) -> bool:
    """It was asked to count so far, and went on."""
    if not request.count or not request.limit or item.step <= 0:
        return False
    return item.values[-1] > 1.2 * request.limit + 20 and item.copies > 1.2 * request.limit + 20


def _asked(item: Counting, shape: Shape, request: PromptRequest) -> bool:
    allowed = None if request.limit is None else max(1.2 * request.limit + 2, 24)
    if shape is Shape.PROSE and not request.repeat and (allowed is None or request.limit == 0):
        return False
    if not (request.repeat or request.count):
        return False
    return allowed is None or item.copies <= allowed or max(map(abs, item.values)) <= allowed


_ENDS = frozenset({12, 24, 26, 31, 52, 99, 365, 366})  # hours, letters, days, weeks; besides tens and powers of two


def _over(item: Counting, shape: Shape, ending: Ending) -> bool:
    """It came to a natural end: down to 0 or 1, or (where it is no prose) up to a round number."""
    if ending in (Ending.RUNNING, Ending.CUT) or not item.whole:
        return False
    last = item.values[-1]
    if item.step < 0 and last in (0, 1):
        return True
    return shape is not Shape.PROSE and (last % 10 == 0 or last & (last - 1) == 0 or last in _ENDS)


def _finding(item: Counting, ending: Ending, *, beyond: bool) -> LoopFinding:
    length = item.end - item.start
    period = round(length / item.copies)
    told = "past what was asked for" if beyond else "and nothing else changes"
    cut = "; the token limit cut it off" if ending is Ending.CUT else ""
    return degenerate(
        LoopVerdict.COUNTER_LOOP,
        f"a number goes from {item.values[0]} to {item.values[-1]} by {item.step} {told}{cut}",
        confidence=round(min(0.98, 0.7 + 0.01 * item.copies + (0.1 if ending is Ending.CUT else 0)), 2),
        start=item.start,
        unit=item.unit,
        period=period,
        repeats=item.copies,
    )
