"""The one result model: what a finding says, how to make one, and the verdict over many. May import nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias, TypedDict, Unpack

from glm4_deploy.errors import Judged
from glm4_deploy.text import bound


class Status(StrEnum):
    """What a check found. UNKNOWN means that it could not be judged; it is never reported as fine."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"

    @property
    def passed(self) -> bool:
        """Whether a report with this verdict ends with exit code 0."""
        return self in (Status.OK, Status.WARN)


class Severity(StrEnum):
    """How bad a finding is, worst first, where its source ranks its findings. Whether it fails is its status."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return tuple(Severity).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A piece of what was seen: a prompt, an answer, a log line. Untrusted text: escape it where it is shown."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of any report.

    check: kebab-case id of what was judged, stable. A rule that fires at several places has a row for each of them.
    severity: None where the findings are not ranked.
    observed, expected: short phrases with the value and its limit ("unit of 14 characters 37 times").
    remedy: the next action, imperative; empty when there is nothing to do.
    reason: why it was skipped or could not be judged; for a finding in a log, the cause.
    seconds: wall time of the check, None where it was not timed.
    code: the kind of finding, where one check tells several apart ("EXACT_LOOP").
    source: where it was found: a service, a file, a URL. line: the line there, from 1; None where it is not known.
    """

    check: str
    status: Status
    severity: Severity | None = None
    observed: str = ""
    expected: str = ""
    remedy: str = ""
    reason: str = ""
    seconds: float | None = None
    evidence: tuple[Evidence, ...] = field(default=())
    code: str = ""
    source: str = ""
    line: int | None = None


def verdict(results: Iterable[Result]) -> Status:
    """The worst of what was found: fail, then unknown, then warn, then ok.

    A report in which nothing was judged (empty, or all skipped) is UNKNOWN: no evidence is not a pass.
    """
    seen = {result.status for result in results}
    for status in (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK):
        if status in seen:
            return status
    return Status.UNKNOWN


def exit_code(status: Status) -> int:
    """0 for a pass, else 1: a verdict that could not be reached is not a pass."""
    return 0 if status.passed else Judged.exit_code


# The constructors. Whoever runs a check fills in its name, where the check does not give it itself.

Named: TypeAlias = tuple[str, str]
WHY = "why"  # the evidence that says what a finding means
PLACES = "places"  # the evidence that lists every place


class Origin(TypedDict, total=False):
    """What a result says about where it comes from; see `Result`."""

    check: str
    severity: Severity | None
    code: str
    source: str
    line: int | None
    seconds: float | None


def ok(observed: str, expected: str = "", *evidence: Named, remedy: str = "", **origin: Unpack[Origin]) -> Result:
    return _judged(Status.OK, observed, expected, evidence, remedy, origin)


def warn(observed: str, expected: str = "", *evidence: Named, remedy: str = "", **origin: Unpack[Origin]) -> Result:
    return _judged(Status.WARN, observed, expected, evidence, remedy, origin)


def fail(observed: str, expected: str = "", *evidence: Named, remedy: str = "", **origin: Unpack[Origin]) -> Result:
    return _judged(Status.FAIL, observed, expected, evidence, remedy, origin)


def skipped(reason: str, remedy: str = "", *, expected: str = "", **origin: Unpack[Origin]) -> Result:
    """It could not apply here: the server does not offer it, or nobody asked for it."""
    named: Origin = {"check": "", **origin}
    return Result(status=Status.SKIPPED, reason=reason, remedy=remedy, expected=expected, **named)


def unknown(
    reason: str, remedy: str = "", *, observed: str = "", expected: str = "", **origin: Unpack[Origin]
) -> Result:
    """It should have been judged and could not be: never a pass."""
    named: Origin = {"check": "", **origin}
    return Result(status=Status.UNKNOWN, reason=reason, remedy=remedy, observed=observed, expected=expected, **named)


def because(why: str, places: Sequence[str] = ()) -> tuple[Named, ...]:
    """Evidence of a warning or failure: what it means, and every place where it was found."""
    return ((WHY, why), (PLACES, "\n".join(places))) if places else ((WHY, why),)


def _judged(
    status: Status, observed: str, expected: str, evidence: Iterable[Named], remedy: str, origin: Origin
) -> Result:
    named: Origin = {"check": "", **origin}
    pieces = tuple(Evidence(name=name, text=bound(text)) for name, text in evidence)
    return Result(status=status, observed=observed, expected=expected, remedy=remedy, evidence=pieces, **named)
