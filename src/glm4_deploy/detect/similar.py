"""Near duplicates: the same sentences over and over with small changes, or the same words written differently."""

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from glm4_deploy.detect.exact import copies_needed
from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, count_of, degenerate
from glm4_deploy.detect.prompt import (
    Ending,
    PromptRequest,
    Shape,
    columns_of,
    has_different_records,
    is_verse,
    shape_of,
    weight_of,
)
from glm4_deploy.detect.tail import Run, Tail, tail_runs
from glm4_deploy.detect.thresholds import (
    DRIFT,
    FOLDED,
    FOLDED_LETTERS,
    HOT_TOKENS,
    NEAR,
    ONE_SLOT,
    REACH,
    SHINGLE,
    STALL,
    TOKENS,
)
from glm4_deploy.detect.tokens import STAMP, TokenWindow, value_of

# Small changes. A token is *covered* when it stands in a shingle (SHINGLE consecutive tokens) that occurred before;
# else it is new. A score rises by one for each covered token and falls for each new one, so it stays above zero exactly
# while new tokens are rare, and the place where it was last zero is where the repetition began. Quotations, refrains
# and boilerplate score too, but only for the length of one copy; a loop goes on for three or more.

_REMEMBERED = 4096  # new tokens and distances remembered per region


class Region:
    """The stretch of tokens up to now in which new ones are rarer than one in 1 + cost.

    Attributes:
        start: number of its first token, from the beginning of the text.
        length: tokens in it.
        new: new tokens in it.
        numerals: those of them that are numbers.
        lags: distance of each covered token from what covers it.
        before_new: the token before each row of new ones.
        trailing: new tokens since the last covered one.
        next_look: length at which it is due for a look.
    """

    def __init__(self, cost: float) -> None:
        self._cost = cost
        self._score = 0.0
        self._restart(0)

    def _restart(self, start: int) -> None:
        self.start, self.length = start, 0
        self.new = self.numerals = 0
        self.lags: deque[int] = deque(maxlen=_REMEMBERED)
        self.before_new: deque[str] = deque(maxlen=_REMEMBERED)
        self.trailing = 0
        self.next_look = NEAR.tokens

    @property
    def goes_on(self) -> bool:
        """Whether the text has not gone on differently since."""
        return self._score > 0 and self.trailing <= NEAR.trailing

    def take(
        self, first: int, tokens: Sequence[str], lags: Sequence[int], rows: Sequence[tuple[bool, int, int]]
    ) -> None:
        """Take the next tokens.

        Args:
            first: number of the first of them.
            tokens: the tokens, preceded by the one before them.
            lags: the distance of each from what covers it; 0 if it is new, -1 if it is uninformative.
            rows: rows of tokens that are covered, and that are not: from and to which.
        """
        for covered, begin, end in rows:
            if covered:
                if self._score <= 0:
                    self._score = 0.0
                    self._restart(first + begin)
                self._score = min(self._score + end - begin, NEAR.ceiling)
                self.length += end - begin
                self.lags.extend(lags[begin:end])
                self.trailing = 0
            elif self._score > 0:
                self._take_rest(tokens, lags, begin, end)

    def _take_rest(self, tokens: Sequence[str], lags: Sequence[int], begin: int, end: int) -> None:
        """Take a row of tokens that are not covered, until the new ones use up the score."""
        score, at = self._score, begin
        while score > 0 and at < end:
            if not lags[at]:
                score -= self._cost
                self._take_new(tokens[at], tokens[at + 1])
            at += 1
        self._score = score
        self.length += at - begin

    def _take_new(self, before: str, token: str) -> None:
        self.new += 1
        self.numerals += value_of(token) is not None
        if not self.trailing:
            self.before_new.append(before)
        self.trailing += 1


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """A stretch at the end of the text that says little new.

    Attributes:
        window: the tokens, of which the first copy begins with token `first` and the last copy ends with `last`.
        tokens: length in tokens, without the first copy.
        lag: tokens from copy to copy.
        novelty: share of new tokens.
        numerals: share of the new tokens that are numbers.
        spread: share of the changes that come after different tokens.
        changes: rows of new tokens.
    """

    window: TokenWindow
    first: int
    last: int
    tokens: int
    lag: int
    novelty: float
    numerals: float
    spread: float
    changes: int

    @property
    def copies(self) -> float:
        return self.tokens / self.lag + 1

    @cached_property
    def start(self) -> int:
        """Offset of the first copy."""
        return self.window.start(self.first)

    @cached_property
    def end(self) -> int:
        """Offset just after the last token."""
        return self.window.end(self.last)


class Shingles:
    """Follows the tokens of a stream and reports which stretch at its end nearly repeats itself."""

    def __init__(self) -> None:
        # Hash of a shingle -> 4 × the number of the token where it last began, + 0: not judged yet, 1: says nothing,
        # 2: distinctive.
        self._last: dict[int, int] = {}
        self._next = 0  # number of the next token to judge
        self._covered_to = -1  # number of the last token of the last known shingle
        self._lag = 0
        self._regions = tuple(Region(cost) for cost in NEAR.costs)

    def feed(self, tokens: TokenWindow) -> None:
        """Take the tokens that are new in the window."""
        # A token can be judged once every shingle that contains it is complete.
        first = self._next - tokens.dropped
        recent = tokens.kept[first:]
        if len(recent) < SHINGLE:
            return
        lags = self._lags(recent)
        rows = _rows(lags)
        recent.insert(0, tokens.kept[first - 1] if first else "")
        for region in self._regions:
            region.take(self._next, recent, lags, rows)
        self._next += len(lags)
        if len(self._last) >= TOKENS * 5 // 4:
            oldest = 4 * (self._next - TOKENS)
            self._last = {key: known for key, known in self._last.items() if known >= oldest}

    def _lags(self, tokens: Sequence[str]) -> list[int]:
        """The distance back of each token but the last few, 0 for new ones. (One loop: it runs for every token.)"""
        last, seen = self._last, self._last.setdefault
        covered_to, lag, lags = self._covered_to, self._lag, list[int]()
        add, first = lags.append, self._next
        shingles = zip(*(tokens[back:] for back in range(SHINGLE)), strict=False)
        for number, key in enumerate(map(hash, shingles), start=first):
            new = 4 * number
            known = seen(key, new)
            if known == new:
                add(lag if covered_to >= number else 0)
                continue
            kind = known & 3 or (2 if _distinctive(tokens[number - first : number - first + SHINGLE]) else 1)
            last[key] = new + kind
            if kind == 2 and number - (known >> 2) >= SHINGLE:
                covered_to, lag = number + SHINGLE - 1, number - (known >> 2)
            add(lag if covered_to >= number else -1)
        self._covered_to, self._lag = covered_to, lag
        return lags

    @property
    def hot(self) -> bool:
        """Whether a repetition may have begun: hardly a token is new, and has not been for long."""
        return any(region.goes_on and NEAR.tokens <= region.length <= HOT_TOKENS for region in self._regions)

    def repetitions(self, tokens: TokenWindow, *, ended: bool) -> list[Repetition]:
        """The regions that grew by a quarter since the last look; once the text has ended, all that are long enough."""
        due = [
            region
            for region in self._regions
            if region.goes_on and region.length >= (NEAR.tokens if ended else region.next_look)
        ]
        for region in due:
            region.next_look = region.length * 5 // 4
        found = (_repetition(region, tokens) for region in due)
        return [repetition for repetition in found if repetition is not None]


def _rows(lags: Sequence[int]) -> list[tuple[bool, int, int]]:
    """Rows of tokens that are covered, and that are not: from and to which."""
    rows, begin = list[tuple[bool, int, int]](), 0
    for covered, row in groupby(lags, key=(0).__lt__):
        end = begin + len(list(row))
        rows.append((covered, begin, end))
        begin = end
    return rows


def _distinctive(shingle: Sequence[str]) -> bool:
    """Not made of a few symbols, as a bit string, a game board or `na na na` are."""
    if len(set(shingle)) < SHINGLE - 1:
        return False
    kinds = sum(map(_KINDS.__getitem__, shingle))
    words, stamps = kinds % _STAMP, kinds // _STAMP
    return words >= SHINGLE - 1 or (words >= SHINGLE // 2 and stamps < 2)


_STAMP = 8  # more than the words of a shingle


class _Kinds(dict[str, int]):
    """1 for a word, _STAMP for a stamp, 0 for any other token: a plain dictionary of recent tokens."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _CACHED:
            self.clear()
        is_word = word.isalpha() and (len(word) > 1 or word >= "\u0900")
        return self.setdefault(word, _STAMP if word[0] == STAMP else int(is_word))


_CACHED = 8192
_KINDS = _Kinds()


def _repetition(region: Region, tokens: TokenWindow) -> Repetition | None:
    """None if it has too few copies for any limit."""
    lag = sorted(region.lags)[(len(region.lags) - 1) // 2]
    if region.length < (DRIFT.copies - 1) * lag:
        return None
    return Repetition(
        window=tokens,
        first=region.start - lag - tokens.dropped,
        last=len(tokens.kept) - 1,
        tokens=region.length,
        lag=lag,
        novelty=region.new / region.length,
        numerals=region.numerals / max(region.new, 1),
        changes=len(region.before_new),
        spread=len(set(region.before_new)) / max(len(region.before_new), 1),
    )


def find_near_duplicate(
    repetitions: Iterable[Repetition], tail: Tail, *, ending: Ending, request: PromptRequest
) -> LoopFinding | None:
    """The first of these repetitions that is a loop and that nothing excuses."""
    for repetition in repetitions:
        one_slot = ending is Ending.CUT and not request.count and _has_one_slot(repetition)
        if not one_slot and not _is_loop(repetition, tail, ending):
            continue
        start, copies = repetition.start, repetition.copies
        unit = tail.between(start, start + round((repetition.end - start) / copies))
        if request.allows(copies) or request.allows_words(copies, unit.split()):
            continue
        if ending is Ending.CUT or not has_different_records(tail.between(start, repetition.end)):
            return _changed_copies(repetition, tail)
    return None


_SAMPLE = 4000  # characters
_SPACES_OF_PROSE = 25  # characters for each space, at most
_NUMBER = re.compile(r"(?<!\d)\d{1,9}(?!\d)")
_WORD = re.compile(r"[^\W\d_]{2,}|[\u2e80-\ud7ff]")


def _is_loop(repetition: Repetition, tail: Tail, ending: Ending) -> bool:
    if not _repeats_enough(repetition, ending):
        return False
    sample = tail.between(repetition.start, min(repetition.end, repetition.start + _SAMPLE))
    if repetition.numerals >= 0.8 and ending is not Ending.CUT and _counts_down(repetition, tail):
        return False  # towards an end
    if sample.isascii() and _SPACES_OF_PROSE * sample.count(" ") < len(sample):
        return False  # selectors, paths
    return shape_of(sample) is Shape.PROSE and not is_verse(sample) and _has_words(sample)


def _has_words(sample: str) -> bool:
    different = set[str]()
    for word in _WORD.finditer(sample):
        different.add(word[0])
        if len(different) >= NEAR.words:
            return True
    return False


def _has_one_slot(repetition: Repetition) -> bool:
    """Of any shape: structure too."""
    return (
        repetition.lag >= ONE_SLOT.unit
        and repetition.copies >= ONE_SLOT.copies
        and repetition.novelty <= ONE_SLOT.novelty
        and repetition.spread <= ONE_SLOT.spread
    )


def _counts_down(repetition: Repetition, tail: Tail) -> bool:
    first = _NUMBER.findall(tail.between(repetition.start, repetition.start + _SAMPLE))
    last = _NUMBER.findall(tail.between(repetition.end - _SAMPLE, repetition.end))
    return bool(first and last) and int(first[0]) > int(last[-1])


def _repeats_enough(repetition: Repetition, ending: Ending) -> bool:
    lag, copies, novelty = repetition.lag, repetition.copies, repetition.novelty
    # A long paragraph whose changes fall anywhere is not a template being filled in: fewer copies suffice.
    drifts = lag >= DRIFT.unit and repetition.changes >= DRIFT.changes and repetition.spread >= DRIFT.spread
    if copies < (DRIFT.copies if drifts else NEAR.copies[ending]):
        return False
    if novelty and repetition.numerals >= 0.8:
        # Only numbers change, as in rows and records. Counters have their own rule.
        enough = NEAR.text_copies if lag >= NEAR.text_unit else NEAR.numeral_copies
        return lag >= NEAR.long_unit and novelty <= NEAR.few and (ending is Ending.CUT or copies >= enough)
    if novelty <= NEAR.few:
        return True
    if lag < NEAR.short_unit or copies < (DRIFT.copies if drifts else NEAR.varied_copies):
        return False
    # More changes than that are a template being filled in (a litany, a form letter), unless they fall anywhere or it
    # never ends.
    anywhere = novelty <= NEAR.some and repetition.spread >= NEAR.spread
    return anywhere or (novelty <= NEAR.slots and copies >= NEAR.slot_copies)


def _changed_copies(repetition: Repetition, tail: Tail) -> LoopFinding:
    start, end, copies = repetition.start, repetition.end, repetition.copies
    period = max(round((end - start) / copies), 1)
    return degenerate(
        LoopVerdict.NEAR_DUPLICATE,
        f"about the same {period} characters repeat {copies:.1f} times; {repetition.novelty:.1%} of its words are new",
        confidence=round(min(0.95, 0.6 + 0.03 * copies + (NEAR.some - repetition.novelty)), 2),
        start=start,
        unit=tail.between(start, end)[:period],
        period=period,
        repeats=copies,
    )


def find_stalled(tokens: TokenWindow, tail: Tail, *, request: PromptRequest) -> LoopFinding | None:
    """Long lines of words that the token limit cut off, and that had long said nothing new, in whatever order.

    Short lines do so in good texts: moves of a puzzle, tables of truth, tablature, boards.
    """
    last = tokens.kept[-STALL.tokens :]
    if request.repeat or request.count or sum(map(str.isalpha, last)) < STALL.words * STALL.tokens:
        return None
    sample = tail.between(tokens.start(len(tokens.kept) - len(last)), tail.end)
    if columns_of(sample) < STALL.width * len(sample.strip().split("\n")) or "</" in sample:
        return None
    late, first = _new_at_end(tokens.kept, STALL.tokens)
    if late > STALL.novelty:
        return None
    why = f"{late:.1%} of the last {STALL.tokens} words and marks are new, until the token limit"
    return degenerate(LoopVerdict.NEAR_DUPLICATE, why, confidence=0.85, start=tokens.start(first))


def _new_at_end(tokens: Sequence[str], length: int) -> tuple[float, int]:
    """The share of new tokens among the last `length`, and the first token after the last new one before those."""
    if len(tokens) < length + SHINGLE:
        return 1.0, 0
    seen, new = set[tuple[str, ...]](), list[int]()
    for end, shingle in enumerate(zip(*(tokens[back:] for back in range(SHINGLE)), strict=False), start=SHINGLE):
        if shingle not in seen:
            seen.add(shingle)
            new.append(end)
    late = sum(end > len(tokens) - length for end in new)
    return late / length, new[-late - 1] if late < len(new) else 0


# The same words in capitals, with hyphens, with other spaces and marks: the search for exact loops, over the letters
# and digits alone.


def find_folded(reversed_folded: str, tail: Tail, *, ending: Ending, request: PromptRequest) -> LoopFinding | None:
    """A loop of words written differently.

    Args:
        reversed_folded: the folded end of the text, last character first.
    """
    for run in tail_runs(reversed_folded, reach=REACH):
        reversed_unit = reversed_folded[: run.period]
        weight = weight_of(reversed_unit)
        if (
            len(set(reversed_unit)) < FOLDED_LETTERS
            or run.length * weight < FOLDED.span
            or run.repeats < copies_needed(FOLDED, run.period * weight, continuous=True)
            or request.allows(run.repeats, reversed_unit[::-1])
        ):
            continue
        sample = _unfolded(tail, run)
        # Rows and marks repeat their words in good texts; the search for exact loops has limits for them.
        if shape_of(sample) is Shape.PROSE and len(sample) < 2 * run.length:
            return _rewritten_copies(run, sample, tail.end, ending)
    return None


def _unfolded(tail: Tail, run: Run) -> str:
    """The end of the text that contains the run's letters and digits."""
    left = run.length
    for at, char in enumerate(tail.reversed):
        left -= char.isalnum()
        if not left:
            return tail.reversed[: at + 1][::-1]
    return tail.reversed[::-1]


def _rewritten_copies(run: Run, sample: str, end: int, ending: Ending) -> LoopFinding:
    period = max(round(len(sample) / run.repeats), 1)
    return degenerate(
        LoopVerdict.NEAR_DUPLICATE,
        f"the same words repeat {count_of(run.repeats)} times, with different case, spacing or punctuation",
        confidence=0.85 if ending is Ending.CUT else 0.8,
        start=end - len(sample),
        unit=sample[:period],
        period=period,
        repeats=run.repeats,
    )
