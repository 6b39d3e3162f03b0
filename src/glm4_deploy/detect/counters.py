"""Counter loops: a text that repeats itself but for a number that goes on by the same step."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from glm4_deploy.detect.context import Ending, Request, Shape, shape_of, weight_of
from glm4_deploy.detect.limits import COUNTERS, SENTENCE, STEADY, STEPPING, STRAY_TOKENS, WORD_REACH, Count
from glm4_deploy.detect.model import Finding, Verdict, degenerate
from glm4_deploy.detect.periods import Run, runs_before_tail, tail_runs
from glm4_deploy.detect.text import Text
from glm4_deploy.detect.words import NUMERAL, Words, roman_of, value_of


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


def find_counter(found: Iterator[Counting], *, ending: Ending, request: Request) -> Finding | None:
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


def _limit(item: Counting, shape: Shape, ending: Ending, request: Request) -> Count:
    if shape is Shape.ZEROS:
        shape = Shape.SYMBOLS
    row = "\n" in item.unit or len(item.unit) * weight_of(item.unit) < SENTENCE
    if ending is Ending.RUNNING and shape is Shape.PROSE and not row and request == Request():
        # Rows count in good texts; a sentence within a paragraph hardly does, least of all unasked.
        ending = Ending.UNKNOWN
    return COUNTERS[shape, ending]


def _beyond(item: Counting, request: Request) -> bool:
    """It was asked to count so far, and went on."""
    if not request.count or not request.limit or item.step <= 0:
        return False
    return item.values[-1] > 1.2 * request.limit + 20 and item.copies > 1.2 * request.limit + 20


def _asked(item: Counting, shape: Shape, request: Request) -> bool:
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


def _finding(item: Counting, ending: Ending, *, beyond: bool) -> Finding:
    length = item.end - item.start
    period = round(length / item.copies)
    told = "past what was asked for" if beyond else "and nothing else changes"
    cut = "; the token limit cut it off" if ending is Ending.CUT else ""
    return degenerate(
        Verdict.COUNTER_LOOP,
        f"a number goes from {item.values[0]} to {item.values[-1]} by {item.step} {told}{cut}",
        confidence=round(min(0.98, 0.7 + 0.01 * item.copies + (0.1 if ending is Ending.CUT else 0)), 2),
        start=item.start,
        unit=item.unit,
        period=period,
        repeats=item.copies,
    )
