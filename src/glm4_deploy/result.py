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
    """A piece of what was observed: a prompt, an answer, a log line. Untrusted text: escape it before showing it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of any report.

    Attributes:
        check: stable kebab-case id of the check. A rule that fires in several places has a row for each.
        severity: None where findings are not ranked.
        observed: a short phrase with the value found ("503 after 2.1 s").
        expected: a short phrase with the value or limit required.
        remedy: the next action, imperative; empty when there is nothing to do.
        reason: why the check was skipped or undecided; for a finding in a log, the cause.
        seconds: wall time of the check; None where it was not timed.
        code: the kind of finding, where one check has several ("EXACT_LOOP").
        source: where it was found: a service, a file, a URL.
        line: line number in the source, from 1; None where it is not known.
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
    """The worst status: fail, then unknown, then warn, then ok.

    A report in which nothing was judged (empty, or all skipped) is UNKNOWN: no evidence is not a pass.
    """
    statuses = {result.status for result in results}
    for status in (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK):
        if status in statuses:
            return status
    return Status.UNKNOWN


def exit_code(status: Status) -> int:
    """0 for a pass, else 1: a verdict that could not be reached is not a pass."""
    return 0 if status.passed else Judged.exit_code


# Constructors. The caller that runs a check adds its id if the check has not.

Named: TypeAlias = tuple[str, str]
WHY = "why"  # name of the evidence that explains a finding
PLACES = "places"  # name of the evidence that lists every occurrence


class Origin(TypedDict, total=False):
    """The optional fields of a `Result` that its constructors pass on."""

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
    """The check does not apply: the server does not offer it, or it was not requested."""
    named: Origin = {"check": "", **origin}
    return Result(status=Status.SKIPPED, reason=reason, remedy=remedy, expected=expected, **named)


def unknown(
    reason: str, remedy: str = "", *, observed: str = "", expected: str = "", **origin: Unpack[Origin]
) -> Result:
    """The check should have been decided and could not be: never a pass."""
    named: Origin = {"check": "", **origin}
    return Result(status=Status.UNKNOWN, reason=reason, remedy=remedy, observed=observed, expected=expected, **named)


def because(why: str, places: Sequence[str] = ()) -> tuple[Named, ...]:
    """Evidence for a warning or failure: what it means, and every place where it was found."""
    return ((WHY, why), (PLACES, "\n".join(places))) if places else ((WHY, why),)


def _judged(
    status: Status, observed: str, expected: str, evidence: Iterable[Named], remedy: str, origin: Origin
) -> Result:
    named: Origin = {"check": "", **origin}
    pieces = tuple(Evidence(name=name, text=bound(text)) for name, text in evidence)
    return Result(status=status, observed=observed, expected=expected, remedy=remedy, evidence=pieces, **named)
