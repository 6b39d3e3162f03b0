"""Exact loops: which periodic tails are loops, given what repeats, how the text ended and what was asked for."""

from collections.abc import Iterator

from glm4_deploy.detect.context import Ending, Request, Shape, shape_of, weight_of
from glm4_deploy.detect.limits import BANGS, LONG_UNIT, LOOPS, NEWLINES, REACH, SPACES, WHOLE_COPIES, WHOLE_SPAN
from glm4_deploy.detect.model import Finding, Verdict, degenerate
from glm4_deploy.detect.periods import Run, tail_runs
from glm4_deploy.detect.text import Text


def find_loop(text: Text, *, ending: Ending, request: Request) -> Finding | None:
    """The loop that this tail ends in, if any."""
    turned, end = text.turned, text.end
    return _whitespace(turned, end, ending) or next(_loops(turned, end, ending, request), None)


def _whitespace(turned: str, end: int, ending: Ending) -> Finding | None:
    if not turned[:1].isspace():
        return None
    blank = len(turned) - len(turned.lstrip())
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


def _loops(turned: str, end: int, ending: Ending, request: Request) -> Iterator[Finding]:
    for run in tail_runs(turned, reach=REACH):
        unit = turned[run.length - run.period : run.length][::-1]
        if unit.isspace():
            continue
        if unit == "!" and run.length >= BANGS:
            yield _collapse(run, end)
        elif (_is_loop(run, unit, ending) or (run.length == end and _is_all(run, unit, ending))) and not request.allows(
            run.repeats
        ):
            yield _loop(run, unit, end, ending)


def _is_loop(run: Run, unit: str, ending: Ending) -> bool:
    limit = LOOPS[shape_of(unit), ending]
    weight = weight_of(unit)
    copies = limit.long if run.period * weight >= LONG_UNIT else limit.short
    return run.length * weight >= limit.span and run.repeats >= copies


def _is_all(run: Run, unit: str, ending: Ending) -> bool:
    """Said of a run that is the whole text."""
    if ending is not Ending.CUT or shape_of(unit) is not Shape.PROSE:
        return False
    return run.repeats >= WHOLE_COPIES and run.length * weight_of(unit) >= WHOLE_SPAN


def _loop(run: Run, unit: str, end: int, ending: Ending) -> Finding:
    cut = " and was cut off by the token limit" if ending is Ending.CUT else ""
    return degenerate(
        Verdict.EXACT_LOOP,
        f"the same {run.period} characters come {run.repeats:.4g} times in a row{cut}",
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
