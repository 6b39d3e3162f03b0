"""Loops whose copies are written differently: in capitals, with hyphens, with other spaces and marks."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, Text, degenerate
from glm4_deploy.detect.prompt import (
    Ending,
    PromptRequest,
    Shape,
    ends_a_row,
    is_refrain,
    is_row,
    is_verse,
    shape_of,
    weight_of,
)
from glm4_deploy.detect.thresholds import (
    ALL_BANGS,
    BANGS,
    FOLDED,
    FOLDED_LETTERS,
    GAP,
    GAPPED,
    GAPS,
    LONG_UNIT,
    LOOPS,
    NEWLINES,
    REACH,
    REFRAIN,
    ROWS,
    SPACES,
    STRAY,
    TAILS,
    VERSES,
    WHOLE,
    WIDE_VERSE,
    WRAPPED,
    Loop,
)

# Periodic tails: the runs that a text ends in.
#
# A text ends in a run of period p and length n when its last n characters satisfy t[i] == t[i - p]. Turned round, the
# tail's overlap with itself at distance p is a prefix match, so `str.find` (two-way search, linear in the worst case,
# in C) gives the smallest p at which the last m characters recur. Longer periods need a longer needle, and the needle
# can jump past every overlap already ruled out: by Fine and Wilf's theorem the search doubles, so that all runs of a
# tail cost a constant number of passes over it.

FLOOR = 6  # characters of overlap below which no run is looked at


@dataclass(frozen=True, slots=True)
class Run:
    """The last `length` characters have this `period` (both in characters)."""

    period: int
    length: int

    @property
    def repeats(self) -> float:
        return self.length / self.period


def tail_runs(turned: str, *, reach: int) -> Iterator[Run]:
    """Every run that the text ends in, of at least three copies and a period up to `reach`, shortest period first.

    turned: the text (or its tail) from its last character to its first.
    """
    period, overlap = 1, FLOOR
    while overlap + period <= len(turned):
        period = turned.find(turned[:overlap], period, reach + overlap)
        if period < 0:
            return
        found = _overlap(turned, period, overlap)
        if found >= 2 * period:
            yield Run(period, found + period)
        # A longer run of three copies needs twice its period, and more than what already failed to go on.
        period += 1
        overlap = max(found + 1, 2 * period)


def runs_before_tail(turned: str, *, reach: int, tails: Iterable[int]) -> Iterator[tuple[Run, int]]:
    """Runs that go through a place so many characters before the end, each with how far before the end it stops."""
    for tail in tails:
        for run in tail_runs(turned[tail:], reach=reach):
            stop = tail
            while stop and turned[stop - 1] == turned[stop - 1 + run.period]:
                stop -= 1
            if stop:
                yield Run(run.period, run.length + tail - stop), stop


def over_breaks(turned: str, run: Run) -> tuple[Run, int]:
    """Follow a run back over breaks as long as they stay few: all that is whole of it, and its length with breaks."""
    needle = turned[: run.period] * -(-FLOOR // run.period)
    whole = end = run.length
    while (at := turned.find(needle, end, end + run.period + GAP + len(needle))) >= 0:
        while at > end and turned[at - 1] == turned[at - 1 + run.period]:
            at -= 1
        length = _overlap(turned, run.period, at, at) + run.period - at
        if at - whole > GAPS * (whole + length):
            break
        whole, end = whole + length, at + length
    return Run(run.period, whole), end


def _overlap(turned: str, period: int, known: int, begin: int = 0) -> int:
    """Where characters from `begin` on stop to equal those at distance `period`; those up to `known` are known to."""
    low, step, most = known, max(known - begin, 16), len(turned) - period
    while low < most:
        high = min(low + step, most)
        if turned[low:high] != turned[low + period : high + period]:
            break
        low, step = high, step * 2
    else:
        return most
    while high - low > 1:
        middle = (low + high) // 2
        if turned[low:middle] == turned[low + period : middle + period]:
            low = middle
        else:
            high = middle
    return low


# Exact loops: which periodic tails are loops, given what repeats, how the text ended and what was asked for.


def find_loop(text: Text, *, ending: Ending, request: PromptRequest) -> LoopFinding | None:
    """The loop that this tail ends in, if any."""
    found = find_or_due(text, ending=ending, request=request)[0]
    return found if found is not None or ending is Ending.RUNNING else _find_before_tail(text, ending, request)


def find_or_due(text: Text, *, ending: Ending, request: PromptRequest) -> tuple[LoopFinding | None, float]:
    """The loop, if any; else where one of the runs that the text ends in will be one, should it go on (an offset)."""
    due = math.inf
    if blank := _whitespace(text.turned, text.end, ending):
        return blank, due
    for run in tail_runs(text.turned, reach=REACH):
        unit = text.turned[run.length - run.period : run.length][::-1]
        if is_blank(unit):
            continue
        found, needed = _judge(run, unit, text, ending, request)
        if found is not None:
            return found, due
        if run.length < needed:
            due = min(due, text.end - run.length + math.ceil(needed))
    return None, due


_END_MARKS = re.compile(r"(?:>\|\w{1,20}\|<\s*|>s/<|>soe<)+")  # turned: `<|endoftext|>`, `</s>`, `<eos>`


def _find_before_tail(text: Text, ending: Ending, request: PromptRequest) -> LoopFinding | None:
    """A loop that something short follows: marks of the end after any; after prose a stray token or a few words.

    Rows and symbols that something else follows were closed by it.
    """
    if marks := _length(_END_MARKS.match(text.turned)):
        found, _ = find_or_due(Text(text.turned[marks:], text.end - marks), ending=ending, request=request)
        if found is not None:
            return found
    for run, tail in runs_before_tail(text.turned, reach=REACH, tails=TAILS):
        before = Text(text.turned[tail:], text.end - tail)
        unit = before.turned[run.length - run.period : run.length][::-1]
        shape = Shape.PROSE if unit == "!" else shape_of(unit)
        cut_there = shape is not Shape.ZEROS and ending is Ending.CUT and tail <= STRAY
        if is_blank(unit) or not (shape is Shape.PROSE or cut_there):
            continue
        # What goes on after its loop was not cut off in it.
        how = Ending.UNKNOWN if ending is Ending.CUT and tail > STRAY else ending
        found, _ = _judge(run, unit, before, how, request)
        if found is not None:
            return found
    return None


def _judge(run: Run, unit: str, text: Text, ending: Ending, request: PromptRequest) -> tuple[LoopFinding | None, float]:
    """What a run that `text` ends in is, and how many characters it must have to be a loop."""
    if unit == "!" and run.length >= (ALL_BANGS if run.length == text.end else BANGS[ending]):
        return _collapse(run, text.end), 0
    needed = _needed(run, unit, text.turned, ending)
    if run.length >= needed or (run.length >= text.end - STRAY and _is_all(run, unit, ending)):
        if request.allows(run.repeats) or (request.lists(run.repeats) and shape_of(unit) is not Shape.PROSE):
            return None, needed
        return _loop(run, run.length, unit, text.end, ending), needed
    if shape_of(unit) is Shape.PROSE:
        whole, length = over_breaks(text.turned, run)
        factor = VERSES if is_verse(text.turned[:length], width=WIDE_VERSE) else 1
        if whole.length >= factor * GAPPED * needed and not request.allows(whole.repeats):
            return _loop(whole, length, unit, text.end, ending), needed
    return None, needed


_BLANK = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*")


def is_blank(text: str) -> bool:
    """Nothing that can be seen: whitespace and characters of no width."""
    return text.isspace() or _BLANK.fullmatch(text) is not None


def _whitespace(turned: str, end: int, ending: Ending) -> LoopFinding | None:
    if not is_blank(turned[:1]):
        return None
    blank = _length(_BLANK.match(turned))
    if blank < SPACES[ending] and turned[:blank].count("\n") < NEWLINES:
        return None
    return degenerate(
        LoopVerdict.WHITESPACE,
        f"nothing but whitespace for {blank} characters",
        confidence=0.97,
        start=end - blank,
        unit=turned[0],
        period=1,
        repeats=float(blank),
    )


def _length(found: re.Match[str] | None) -> int:
    return found.end() if found else 0


def _needed(run: Run, unit: str, turned: str, ending: Ending) -> float:
    """How many characters a run of this unit must have to be a loop."""
    shape = shape_of(unit)
    if shape is Shape.ZEROS and run.period in WRAPPED:
        ending = Ending.STOPPED  # lines of base64, however the text ended
    row = shape in (Shape.STRUCTURE, Shape.SYMBOLS) and is_row(unit)
    if row and ending is Ending.UNKNOWN and ends_a_row(turned[0], turned[run.period - 1]):
        ending = Ending.STOPPED
    limit = ROWS[ending] if row else LOOPS[shape, ending]
    weight = weight_of(unit)
    flows = row or (shape is Shape.PROSE and "\n" not in unit)
    copies = copies_needed(limit, run.period * weight, flows=flows)
    if is_refrain(unit):
        copies = max(copies, REFRAIN[ending])
    return max(limit.span / weight, copies * run.period)


def copies_needed(limit: Loop, size: float, *, flows: bool) -> float:
    """Running prose needs ever fewer from where they just make up the span up to a long unit; lines do not."""
    if size >= LONG_UNIT or not flows:
        return limit.long if size >= LONG_UNIT else limit.short
    least = limit.span / limit.short
    share = max(size - least, 0) / (LONG_UNIT - least)
    return limit.short + share * (limit.long - limit.short)


def _is_all(run: Run, unit: str, ending: Ending) -> bool:
    """Said of a run that is the whole text."""
    limit = WHOLE[ending]
    enough = run.repeats >= limit.short and run.length * weight_of(unit) >= limit.span
    return enough and shape_of(unit) is Shape.PROSE


def _loop(run: Run, length: int, unit: str, end: int, ending: Ending) -> LoopFinding:
    """length: of the run with its breaks."""
    what = "the same character comes" if run.period == 1 else f"the same {run.period} characters come"
    row = "in a row" if length == run.length else "with a few others between"
    cut = ", and the token limit cut it off" if ending is Ending.CUT else ""
    return degenerate(
        LoopVerdict.EXACT_LOOP,
        f"{what} {run.repeats:.4g} times {row}{cut}",
        confidence=round(min(0.99, 0.75 + 0.02 * run.repeats + (0.1 if ending is Ending.CUT else 0)), 2),
        start=end - length,
        unit=unit,
        period=run.period,
        repeats=run.repeats,
    )


def _collapse(run: Run, end: int) -> LoopFinding:
    return degenerate(
        LoopVerdict.NAN_COLLAPSE,
        f"'!' comes {run.length} times in a row: token 0 of GLM-4's vocabulary, which NaN logits yield",
        confidence=0.9,
        start=end - run.length,
        unit="!",
        period=1,
        repeats=run.repeats,
    )


_UNSAID = re.compile(r"[\W_]+")


def fold(text: str) -> str:
    """The letters and digits of a text, in lower case."""
    return _UNSAID.sub("", text).lower()


def find_folded(turned: str, text: Text, *, ending: Ending, request: PromptRequest) -> LoopFinding | None:
    """turned: the folded tail of `text`, from its last character to its first."""
    for run in tail_runs(turned, reach=REACH):
        weight = weight_of(turned[: run.period])
        if (
            len(set(turned[: run.period])) < FOLDED_LETTERS
            or run.length * weight < FOLDED.span
            or run.repeats < copies_needed(FOLDED, run.period * weight, flows=True)
            or request.allows(run.repeats)
        ):
            continue
        sample = _unfolded(text, run)
        # Rows and marks repeat their words in good texts; the search for exact loops has limits for them.
        if shape_of(sample) is Shape.PROSE and len(sample) < 2 * run.length:
            return _finding(run, sample, text.end, ending)
    return None


def _unfolded(text: Text, run: Run) -> str:
    """The end of the text that these letters and digits stand in."""
    left = run.length
    for at, char in enumerate(text.turned):
        left -= char.isalnum()
        if not left:
            return text.turned[: at + 1][::-1]
    return text.turned[::-1]


def _finding(run: Run, sample: str, end: int, ending: Ending) -> LoopFinding:
    period = max(round(len(sample) / run.repeats), 1)
    return degenerate(
        LoopVerdict.NEAR_DUPLICATE,
        f"the same words come {run.repeats:.4g} times, differently written",
        confidence=0.85 if ending is Ending.CUT else 0.8,
        start=end - len(sample),
        unit=sample[:period],
        period=period,
        repeats=run.repeats,
    )
