"""What the detector says: one finding a document."""

from dataclasses import dataclass, replace
from enum import StrEnum


class Verdict(StrEnum):
    """Each verdict has its own cause and its own mend (docs/how-to/detect.md)."""

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
class Finding:
    """What was found in one document.

    start: offset, in code points of the text as given, of the first copy of what repeats; None when clean.
    unit: what repeats (at most 200 characters of it). Untrusted text: escape it where it is shown.
    period: its length in characters; the distance between two copies for loops that are not exact.
    repeats: length of the run over the period.
    confidence: 0 to 1 that the verdict holds. Ordinal: a rank from the rules, not a measured probability.
    why: one sentence for a person.
    """

    verdict: Verdict
    degenerate: bool
    start: int | None
    unit: str
    period: int | None
    repeats: float | None
    confidence: float
    why: str


UNIT_SHOWN = 200


def clean(why: str, *, confidence: float = 0.9) -> Finding:
    """A document in which nothing is wrong, and why what looked wrong is not."""
    return Finding(
        verdict=Verdict.CLEAN,
        degenerate=False,
        start=None,
        unit="",
        period=None,
        repeats=None,
        confidence=confidence,
        why=why,
    )


def degenerate(
    verdict: Verdict,
    why: str,
    *,
    confidence: float,
    start: int | None = None,
    unit: str = "",
    period: int | None = None,
    repeats: float | None = None,
) -> Finding:
    """A finding that fails a document."""
    return Finding(
        verdict=verdict,
        degenerate=True,
        start=start,
        unit=unit[:UNIT_SHOWN],
        period=period,
        repeats=None if repeats is None else round(repeats, 2),
        confidence=confidence,
        why=why,
    )


def with_repeats(found: Finding, repeats: float) -> Finding:
    """The same finding when the run has grown; its sentence ends with the new number."""
    told = found.why.split(";")[0]
    return replace(found, repeats=round(repeats, 2), why=f"{told}; in the end {repeats:.4g} times")
