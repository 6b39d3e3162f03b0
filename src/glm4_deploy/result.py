"""What a check found, and the one place that decides a verdict. May import nothing."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from glm4_deploy.text import bound

# The one result model: what a check, a doctor's row or a finding says, and the one place that decides a verdict.


class Status(StrEnum):
    """What a check found. UNKNOWN means that it could not be judged; it is never reported as fine."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A piece of what was seen: a prompt, an answer, a log line. Untrusted text: escape it where it is shown."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of any report.

    check: kebab-case id, stable, unique in its report.
    observed, expected: short phrases with the value and its limit ("unit of 14 characters 37 times").
    remedy: the next action, imperative; empty when there is nothing to do.
    reason: why it was skipped or could not be judged.
    seconds: wall time of the check, None where it was not timed.
    """

    check: str
    status: Status
    observed: str = ""
    expected: str = ""
    remedy: str = ""
    reason: str = ""
    seconds: float | None = None
    evidence: tuple[Evidence, ...] = field(default=())


def verdict(results: Iterable[Result]) -> Status:
    """The worst of what was found: fail, then unknown, then warn, then ok.

    A report in which nothing was judged (empty, or all skipped) is UNKNOWN: no evidence is not a pass.
    """
    seen = {result.status for result in results}
    for status in (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK):
        if status in seen:
            return status
    return Status.UNKNOWN


def _evidence(pairs: Iterable[tuple[str, str]]) -> tuple[Evidence, ...]:
    return tuple(Evidence(name=name, text=bound(text)) for name, text in pairs)


def ok(observed: str, expected: str = "", *evidence: tuple[str, str]) -> Result:
    return Result(check="", status=Status.OK, observed=observed, expected=expected, evidence=_evidence(evidence))


def warn(observed: str, expected: str = "", *evidence: tuple[str, str], remedy: str = "") -> Result:
    return Result(
        check="",
        status=Status.WARN,
        observed=observed,
        expected=expected,
        remedy=remedy,
        evidence=_evidence(evidence),
    )


def fail(observed: str, expected: str = "", *evidence: tuple[str, str], remedy: str = "") -> Result:
    return Result(
        check="",
        status=Status.FAIL,
        observed=observed,
        expected=expected,
        remedy=remedy,
        evidence=_evidence(evidence),
    )


def skipped(reason: str, remedy: str = "") -> Result:
    """It could not apply here: the server does not offer it, or nobody asked for it."""
    return Result(check="", status=Status.SKIPPED, reason=reason, remedy=remedy)


def unknown(reason: str, remedy: str = "") -> Result:
    """It should have been judged and could not be: never a pass."""
    return Result(check="", status=Status.UNKNOWN, reason=reason, remedy=remedy)
