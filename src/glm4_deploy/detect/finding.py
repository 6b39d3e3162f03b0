"""What the detector says of one document, and how far an exact loop goes on after it was found."""

from dataclasses import dataclass, replace
from enum import StrEnum

from glm4_deploy.result import Result, fail, ok

# What the detector says: one finding a document.


class LoopVerdict(StrEnum):
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
class LoopFinding:
    """What was found in one document.

    start: offset, in code points of the text as given, of the first copy of what repeats; None when clean.
    unit: what repeats (at most 200 characters of it). Untrusted text: escape it where it is shown.
    period: its length in characters; the distance between two copies for loops that are not exact.
    repeats: length of the run over the period.
    confidence: 0 to 1 that the verdict holds. Ordinal: a rank from the rules, not a measured probability.
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


UNIT_SHOWN = 200


def clean(why: str, *, confidence: float = 0.9) -> LoopFinding:
    """A document in which nothing is wrong, and why what looked wrong is not."""
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
        unit=unit[:UNIT_SHOWN],
        period=period,
        repeats=None if repeats is None else round(repeats, 2),
        confidence=confidence,
        why=why,
    )


def with_repeats(found: LoopFinding, repeats: float) -> LoopFinding:
    """The same finding when the run has grown; its sentence ends with the new number."""
    told = found.why.split(";")[0]
    return replace(found, repeats=round(repeats, 2), why=f"{told}; in the end {repeats:.4g} times")


# The kept tail of a text, addressed by offsets of the whole.


class Text:
    """turned: the characters that are kept, from the last to the first; end: the offset at which they end."""

    def __init__(self, turned: str, end: int) -> None:
        self.turned, self.end = turned, end

    @property
    def begin(self) -> int:
        """The offset of the first character that is kept."""
        return self.end - len(self.turned)

    def between(self, start: int, end: int) -> str:
        """What is kept of the text from `start` to `end`."""
        return self.turned[max(self.end - end, 0) : max(self.end - start, 0)][::-1]


class Growth:
    """Compares what comes next with the loop's own cycle; keeps that one cycle and nothing else."""

    def __init__(self, found: LoopFinding, text: Text) -> None:
        self._found = found
        self._cycle = text.turned[: found.period][::-1]
        self._more = 0
        self._over = not self._cycle or found.repeats is None

    def take(self, chunk: str) -> None:
        """Take the text that follows."""
        if self._over or not chunk:
            return
        period, size = len(self._cycle), len(chunk)
        phase = self._more % period
        expected = (self._cycle * ((phase + size) // period + 1))[phase : phase + size]
        if chunk == expected:
            self._more += size
            return
        self._over = True
        self._more += next(at for at, (got, want) in enumerate(zip(chunk, expected, strict=True)) if got != want)

    def finding(self) -> LoopFinding:
        """The finding with all its copies counted."""
        if self._found.repeats is None or not self._more:
            return self._found
        return with_repeats(self._found, self._found.repeats + self._more / len(self._cycle))
