"""Loops whose copies are written differently: in capitals, with hyphens, with other spaces and marks."""

import re

from glm4_deploy.detect.context import Ending, Request, Shape, shape_of, weight_of
from glm4_deploy.detect.limits import FOLDED, FOLDED_LETTERS, REACH
from glm4_deploy.detect.loops import copies_needed
from glm4_deploy.detect.model import Finding, Verdict, degenerate
from glm4_deploy.detect.periods import Run, tail_runs
from glm4_deploy.detect.text import Text

_UNSAID = re.compile(r"[\W_]+")


def fold(text: str) -> str:
    """The letters and digits of a text, in lower case."""
    return _UNSAID.sub("", text).lower()


def find_folded(turned: str, text: Text, *, ending: Ending, request: Request) -> Finding | None:
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


def _finding(run: Run, sample: str, end: int, ending: Ending) -> Finding:
    period = max(round(len(sample) / run.repeats), 1)
    return degenerate(
        Verdict.NEAR_DUPLICATE,
        f"the same words come {run.repeats:.4g} times, differently written",
        confidence=0.85 if ending is Ending.CUT else 0.8,
        start=end - len(sample),
        unit=sample[:period],
        period=period,
        repeats=run.repeats,
    )
