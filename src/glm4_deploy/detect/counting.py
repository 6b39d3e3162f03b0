"""Counter loops: a text that repeats itself except for a number that advances by the same step."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, degenerate
from glm4_deploy.detect.prompt import Ending, PromptRequest, Shape, shape_of, weight_of
from glm4_deploy.detect.tail import Run, Tail, runs_before_end, tail_runs
from glm4_deploy.detect.thresholds import (
    CONSTANT_SHARE,
    COUNTER_LIMITS,
    EARLY_COUNT,
    RECORD_LIMIT,
    RECORD_WORDS,
    SENTENCE,
    STEP_SHARE,
    STRAY_TOKENS,
    TOKEN_REACH,
    CounterLimit,
)
from glm4_deploy.detect.tokens import NUMERAL, STAMP, TokenWindow, roman_of, value_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CountingRun:
    """A run whose copies differ only in their numerals.

    Attributes:
        start: offset of the first copy.
        end: offset just after the last one.
        unit: text of the first copy.
        period: tokens of one copy.
        copies: number of copies.
        values: the numbers of the first column that counts, as far as they could be read.
        step: from one of them to the next.
        complete: the last copy lacks no word.
        bare: there is nothing but numerals and marks.
    """

    start: int
    end: int
    unit: str
    period: int
    copies: float
    values: tuple[int, ...]
    step: int
    complete: bool
    bare: bool


def counting_runs(tokens: TokenWindow, reversed_masks: str, tail: Tail, *, ended: bool) -> Iterator[CountingRun]:
    """The counts that the text ends in, shortest unit first.

    Args:
        reversed_masks: masks of the last tokens, last one first.
        ended: the text has ended, so half a word or a few stray tokens may follow the count.
    """
    last = len(tokens.kept)
    for run in tail_runs(reversed_masks, reach=TOKEN_REACH):
        if (count := _counting_run(tokens, run, reversed_masks, last, tail)) is not None:
            yield count
    if not ended:
        return
    for run, distance in runs_before_end(reversed_masks, reach=TOKEN_REACH, distances=(1, STRAY_TOKENS)):
        count = _counting_run(tokens, run, reversed_masks[distance:], last - distance, tail)
        if count is not None:
            yield count


_FIRST_WORD = "\U00010000"  # masks of words are these and higher ones


def _counting_run(tokens: TokenWindow, run: Run, reversed_masks: str, last: int, tail: Tail) -> CountingRun | None:
    """The count in a run of masks that ends before token `last`, if its numerals count."""
    begin = last - run.length
    unit = run.unit(reversed_masks)
    if NUMERAL not in unit or run.repeats < 4:
        return None
    if unit.count(STAMP) > sum(mask >= _FIRST_WORD for mask in unit):
        return None  # data
    places = [index for index, mask in enumerate(unit) if mask == NUMERAL]
    columns = [tokens.kept[begin + place : last : run.period] for place in places]
    kinds = [kind_of(column) for column in columns]
    if Column.DATA in kinds or Column.STEP not in kinds:
        return None
    values = _values(columns[kinds.index(Column.STEP)])
    start, second = tokens.start(begin), tokens.start(begin + run.period)
    lacking = tokens.kept[last - run.period : last - run.length % run.period]
    return CountingRun(
        start=start,
        end=tokens.end(last - 1),
        unit=tail.between(start, second),
        period=run.period,
        copies=run.repeats,
        values=tuple(values),
        step=_common_step(values)[0],
        complete=not any(token.isalnum() for token in lacking),
        bare=not any(mask.isalnum() or mask >= _FIRST_WORD for mask in unit if mask != NUMERAL),
    )


class Column(StrEnum):
    """How a numeral changes from copy to copy."""

    SAME = "same"
    STEP = "step"
    DATA = "data"


def kind_of(column: Sequence[str]) -> Column:
    """SAME if nearly all differences are 0, STEP if most are one other number (some skip, clocks wrap), else DATA."""
    if len(set(column)) == 1:
        return Column.SAME
    values = _values(column)
    if len(values) < len(column):
        return Column.DATA
    step, share = _common_step(values)
    if share < (STEP_SHARE if step else CONSTANT_SHARE):
        return Column.DATA
    return Column.STEP if step else Column.SAME


def _values(column: Sequence[str]) -> list[int]:
    # A lone I, V or X is a letter of the alphabet, unless its neighbours are Roman.
    roman = any(len(token) > 1 and roman_of(token) is not None for token in column)
    read = (roman_of(token) if roman else value_of(token) for token in column)
    return [value for value in read if value is not None]


def _common_step(values: Sequence[int]) -> tuple[int, float]:
    """The most frequent difference, and its share of all differences."""
    steps = Counter(after - before for before, after in pairwise(values))
    if not steps:
        return 0, 0.0
    step, times = steps.most_common(1)[0]
    return step, times / (len(values) - 1)


def find_counter(
    counts: Iterable[CountingRun], *, ending: Ending, request: PromptRequest, early: bool = False
) -> LoopFinding | None:
    """The first of these counts that is long enough and that nothing excuses.

    Args:
        early: for a provisional alarm; it ends with the count.
    """
    asked = request.repeat or request.count or request.limit
    for count in counts:
        shape = Shape.SYMBOLS if count.bare else shape_of(count.unit)
        limit = EARLY_COUNT if early and shape is Shape.PROSE and not asked else _limit(count, shape, ending, request)
        beyond = _beyond_request(count, request)
        if not beyond:
            if count.copies < limit.copies or (count.end - count.start) * weight_of(count.unit) < limit.span:
                continue
            if count.step < 0 <= count.values[-1] and ending is not Ending.CUT:
                continue  # towards an end
            if _requested(count, shape, request) or _finished(count, shape, ending):
                continue
        return _finding(count, ending, beyond=beyond)
    return None


def may_be_early(count: CountingRun) -> bool:
    """Whether an early alarm may be raised at a count when it goes on."""
    return not count.bare and count.copies < 2 * EARLY_COUNT.copies and shape_of(count.unit) is Shape.PROSE


_WORD = re.compile(r"[^\W\d_]{2,}")


def _limit(count: CountingRun, shape: Shape, ending: Ending, request: PromptRequest) -> CounterLimit:
    if shape is Shape.ZEROS:
        shape = Shape.SYMBOLS
    row = "\n" in count.unit or len(count.unit) * weight_of(count.unit) < SENTENCE
    if (
        ending is Ending.RUNNING
        and shape is Shape.PROSE
        and not row
        and not (request.repeat or request.count or request.limit)
    ):
        # Rows count in good texts; a sentence within a paragraph hardly ever does, least of all unasked.
        ending = Ending.UNKNOWN
    if (shape, ending) == (Shape.STRUCTURE, Ending.CUT) and len(set(_WORD.findall(count.unit))) >= RECORD_WORDS:
        return RECORD_LIMIT
    return COUNTER_LIMITS[shape, ending]


def _beyond_request(count: CountingRun, request: PromptRequest) -> bool:
    """The prompt asked for a count up to a number, and the text went on past it."""
    if not request.count or not request.limit or count.step <= 0:
        return False
    return count.values[-1] > 1.2 * request.limit + 20 and count.copies > 1.2 * request.limit + 20


def _requested(count: CountingRun, shape: Shape, request: PromptRequest) -> bool:
    allowed = None if request.limit is None else max(1.2 * request.limit + 2, 24)
    if shape is Shape.PROSE and not request.repeat and (allowed is None or request.limit == 0):
        return False
    if not (request.repeat or request.count):
        return False
    return allowed is None or count.copies <= allowed or max(map(abs, count.values)) <= allowed


_NATURAL_ENDS = frozenset({12, 24, 26, 31, 52, 99, 365, 366})  # hours, letters, days, weeks


def _finished(count: CountingRun, shape: Shape, ending: Ending) -> bool:
    """The count reached a natural end: down to 0 or 1, or, unless it is prose, up to a round number."""
    if ending in (Ending.RUNNING, Ending.CUT) or not count.complete:
        return False
    last = count.values[-1]
    if count.step < 0 and last in (0, 1):
        return True
    return shape is not Shape.PROSE and (last % 10 == 0 or last & (last - 1) == 0 or last in _NATURAL_ENDS)


def _finding(count: CountingRun, ending: Ending, *, beyond: bool) -> LoopFinding:
    context = "past the number requested" if beyond else "and nothing else changes"
    cut = ", until the token limit" if ending is Ending.CUT else ""
    return degenerate(
        LoopVerdict.COUNTER_LOOP,
        f"a number runs from {count.values[0]} to {count.values[-1]} in steps of {count.step}, {context}{cut}",
        confidence=round(min(0.98, 0.7 + 0.01 * count.copies + (0.1 if ending is Ending.CUT else 0)), 2),
        start=count.start,
        unit=count.unit,
        period=round((count.end - count.start) / count.copies),
        repeats=count.copies,
    )
