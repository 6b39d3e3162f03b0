"""The one result model: what a check, a doctor's row or a finding says, and the one place that decides a verdict."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


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
