"""What was found in a log, and in which order the findings are believed to be the cause."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from glm4_deploy.catalog.rows import Role
from glm4_deploy.result import Result, Severity, Status

# Levels as the signatures name them; an engine does not survive a fatal one.
LEVELS = {"fatal": Severity.CRITICAL, "error": Severity.HIGH, "warn": Severity.MEDIUM, "info": Severity.LOW}
_STATUS = {Severity.MEDIUM: Status.WARN, Severity.LOW: Status.OK}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFinding:
    """A line of the log that means something, with its cause and fix.

    Attributes:
        line: the line, without control characters and secrets.
        role: whether it names the cause, or only where or that something failed.
        count: how often it occurred.
        number, last: line numbers of the quoted and of the last occurrence, from 1.
    """

    id: str
    severity: Severity
    line: str
    cause: str
    fix: str
    source: str = ""
    role: Role = Role.CAUSE
    count: int = 1
    number: int = 0
    last: int = 0

    @property
    def wrapper(self) -> bool:
        return self.role is Role.WRAPPER

    @property
    def level(self) -> str:
        """fatal, error, warn or info."""
        return next(level for level, severity in LEVELS.items() if severity is self.severity)

    @property
    def status(self) -> Status:
        return _STATUS.get(self.severity, Status.FAIL)

    def result(self) -> Result:
        """The finding as a row of a report, with the line as `observed` and the cause as `reason`."""
        return Result(
            check=self.id,
            status=self.status,
            severity=self.severity,
            observed=self.line,
            remedy=self.fix,
            reason=self.cause,
            source=self.source,
            line=self.number or None,
        )

    def wire(self) -> dict[str, object]:
        """The finding in JSON, with the log's level as its severity."""
        return asdict(self) | {"severity": self.level}


UNKNOWN_EXCEPTION, UNKNOWN_ERROR = "unknown-exception", "unknown-error"


def in_order(findings: Iterable[LogFinding]) -> tuple[LogFinding, ...]:
    """The likely cause first.

    Among failures: known causes, the fatal ones first; then known places; then symptoms and unknown exceptions; then
    unknown errors; then lines that only say that something else failed. After them warnings, then information. Equal
    ones in the order of their lines, because a failure causes what comes after it.
    """
    return tuple(sorted(findings, key=_rank))


def _rank(finding: LogFinding) -> tuple[int, int, int]:
    if finding.status is not Status.FAIL:
        generic = finding.id in (UNKNOWN_ERROR, UNKNOWN_EXCEPTION)
        return 5 + finding.severity.rank, 9 if generic else finding.role, finding.number
    if finding.id == UNKNOWN_ERROR:
        return 3, 0, finding.number
    if finding.wrapper:
        return 4, 0, finding.number
    if finding.id == UNKNOWN_EXCEPTION or finding.role is Role.SYMPTOM:
        return 2, 0, finding.number
    if finding.role is Role.PLACE:
        return 1, 0, finding.number
    return 0, finding.severity.rank, finding.number
