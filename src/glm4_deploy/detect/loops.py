"""Exact loops: which periodic tails are loops, given what repeats, how the text ended and what was asked for."""

import math
import re

from glm4_deploy.detect.context import Ending, Request, Shape, is_refrain, shape_of, weight_of
from glm4_deploy.detect.limits import (
    ALL_BANGS,
    BANGS,
    LONG_UNIT,
    LOOPS,
    NEWLINES,
    REACH,
    REFRAIN,
    SPACES,
    WHOLE,
    WRAPPED,
    Loop,
)
from glm4_deploy.detect.model import Finding, Verdict, degenerate
from glm4_deploy.detect.periods import Run, tail_runs
from glm4_deploy.detect.text import Text


def find_loop(text: Text, *, ending: Ending, request: Request) -> Finding | None:
    """The loop that this tail ends in, if any."""
    return find_or_due(text, ending=ending, request=request)[0]


def find_or_due(text: Text, *, ending: Ending, request: Request) -> tuple[Finding | None, float]:
    """The loop, if any; else where one of the runs that the text ends in will be one, should it go on (an offset)."""
    turned, end, due = text.turned, text.end, math.inf
    if blank := _whitespace(turned, end, ending):
        return blank, due
    for run in tail_runs(turned, reach=REACH):
        unit = turned[run.length - run.period : run.length][::-1]
        if is_blank(unit):
            continue
        if unit == "!" and run.length >= (ALL_BANGS if run.length == end else BANGS[ending]):
            return _collapse(run, end), due
        needed = _needed(run, unit, ending)
        if run.length < needed and not (run.length == end and _is_all(run, unit, ending)):
            due = min(due, end - run.length + math.ceil(needed))
        elif not request.allows(run.repeats):
            return _loop(run, unit, end, ending), due
    return None, due


_BLANK = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*")


def is_blank(text: str) -> bool:
    """Nothing that can be seen: whitespace and characters of no width."""
    return text.isspace() or _BLANK.fullmatch(text) is not None


def _whitespace(turned: str, end: int, ending: Ending) -> Finding | None:
    if not is_blank(turned[:1]):
        return None
    blank = _length(_BLANK.match(turned))
    if blank < SPACES[ending] and turned[:blank].count("\n") < NEWLINES:
        return None
    return degenerate(
        Verdict.WHITESPACE,
        f"nothing but whitespace for {blank} characters",
        confidence=0.97,
        start=end - blank,
        unit=turned[0],
        period=1,
        repeats=float(blank),
    )


def _length(found: re.Match[str] | None) -> int:
    return found.end() if found else 0


def _needed(run: Run, unit: str, ending: Ending) -> float:
    """How many characters a run of this unit must have to be a loop."""
    shape = shape_of(unit)
    if shape is Shape.ZEROS and run.period in WRAPPED:
        ending = Ending.STOPPED  # lines of base64, however the text ended
    limit = LOOPS[shape, ending]
    weight = weight_of(unit)
    flows = shape is Shape.PROSE and "\n" not in unit
    copies = _copies(limit, run.period * weight, flows=flows)
    if is_refrain(unit):
        copies = max(copies, REFRAIN[ending])
    return max(limit.span / weight, copies * run.period)


def _copies(limit: Loop, size: float, *, flows: bool) -> float:
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


def _loop(run: Run, unit: str, end: int, ending: Ending) -> Finding:
    what = "the same character comes" if run.period == 1 else f"the same {run.period} characters come"
    cut = ", and the token limit cut it off" if ending is Ending.CUT else ""
    return degenerate(
        Verdict.EXACT_LOOP,
        f"{what} {run.repeats:.4g} times in a row{cut}",
        confidence=round(min(0.99, 0.75 + 0.02 * run.repeats + (0.1 if ending is Ending.CUT else 0)), 2),
        start=end - run.length,
        unit=unit,
        period=run.period,
        repeats=run.repeats,
    )


def _collapse(run: Run, end: int) -> Finding:
    return degenerate(
        Verdict.NAN_COLLAPSE,
        f"'!' comes {run.length} times in a row: token 0 of GLM-4's vocabulary, which NaN logits yield",
        confidence=0.9,
        start=end - run.length,
        unit="!",
        period=1,
        repeats=run.repeats,
    )
