"""What the detector reports: one finding per document."""

from dataclasses import dataclass
from enum import StrEnum

from glm4_deploy.result import Result, fail, ok

MAX_UNIT = 200  # characters of the repeated unit that a finding carries


class LoopVerdict(StrEnum):
    """Each verdict has its own cause and fix: see docs/how-to/detect.md."""

    CLEAN = "CLEAN"
    NAN_COLLAPSE = "NAN_COLLAPSE"
    EXACT_LOOP = "EXACT_LOOP"
    COUNTER_LOOP = "COUNTER_LOOP"
    NEAR_DUPLICATE = "NEAR_DUPLICATE"
    SALAD = "SALAD"
    WHITESPACE = "WHITESPACE"
    EMPTY = "EMPTY"
    RUNAWAY_NO_STOP = "RUNAWAY_NO_STOP"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopFinding:
    """The verdict on one document.

    Attributes:
        start: offset, in code points of the text as given, of the first copy of what repeats; None when clean.
        unit: what repeats, at most MAX_UNIT characters. Untrusted text: escape it before showing it.
        period: length of the unit in characters; for loops that are not exact, the distance between two copies.
        repeats: length of the run divided by the period.
        confidence: 0 to 1 that the verdict is right. Ordinal: a rank derived from the rules, not a probability.
        why: one sentence for a person.
    """

    verdict: LoopVerdict
    degenerate: bool
    start: int | None
    unit: str
    period: int | None
    repeats: float | None
    confidence: float
    why: str

    def result(self, check: str = "loops") -> Result:
        """The finding as a row of a report; `code` is its verdict."""
        judge = fail if self.degenerate else ok
        return judge(self.why, "no loop and no garbage", check=check, code=self.verdict.value)


def count_of(repeats: float) -> str:
    """A number of copies as people read it: `115.7`, or `90` rather than `90.0`."""
    return f"{repeats:.1f}".removesuffix(".0")


def clean(why: str, *, confidence: float = 0.9) -> LoopFinding:
    """A finding that passes a document."""
    return LoopFinding(
        verdict=LoopVerdict.CLEAN,
        degenerate=False,
        start=None,
        unit="",
        period=None,
        repeats=None,
        confidence=confidence,
        why=why,
    )


def degenerate(
    verdict: LoopVerdict,
    why: str,
    *,
    confidence: float,
    start: int | None = None,
    unit: str = "",
    period: int | None = None,
    repeats: float | None = None,
) -> LoopFinding:
    """A finding that fails a document."""
    return LoopFinding(
        verdict=verdict,
        degenerate=True,
        start=start,
        unit=unit[:MAX_UNIT],
        period=period,
        repeats=None if repeats is None else round(repeats, 2),
        confidence=confidence,
        why=why,
    )
