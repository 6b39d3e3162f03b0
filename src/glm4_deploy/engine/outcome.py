"""What a deployment came to, as `--json` tells it, and the error that it ends in."""

from dataclasses import dataclass
from pathlib import Path

from glm4_deploy.engine.bringup import Seen
from glm4_deploy.engine.state import Record
from glm4_deploy.errors import DeployError, RollbackFailed, RolledBack
from glm4_deploy.facts.enginelog import EngineFacts, LogFinding
from glm4_deploy.result import Result, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """An error as data."""

    message: str
    hint: str
    details: tuple[str, ...]
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One start and what followed. Times are seconds.

    release: the id under which it was recorded, '' where it could not be. kept: it ran already, and was gated again.
    ready_seconds: from start to /health; gate_seconds: from there to the verdict; seconds: all of it, from the stop of
    the old one on. restored: the last good release put back after this one failed, judged in the same way.
    """

    verdict: Status
    results: tuple[Result, ...]
    facts: EngineFacts
    findings: tuple[LogFinding, ...]
    record: Record
    release: str
    kept: bool
    ready_seconds: float | None
    gate_seconds: float | None
    seconds: float
    error: Trouble | None = None
    restored: "Outcome | None" = None

    @property
    def good(self) -> bool:
        return self.verdict in (Status.OK, Status.WARN)


def outcome(seen: Seen, record: Record, *, kept: bool, seconds: float) -> Outcome:
    return Outcome(
        verdict=seen.verdict,
        results=seen.results,
        facts=seen.facts,
        findings=seen.findings,
        record=record,
        release=record.release,
        kept=kept,
        ready_seconds=seen.ready_seconds,
        gate_seconds=seen.gate_seconds,
        seconds=round(seconds, 1),
        error=trouble(seen.error),
    )


def trouble(error: DeployError | None) -> Trouble | None:
    if error is None:
        return None
    return Trouble(message=error.message, hint=error.hint, details=error.details, exit_code=error.exit_code)


def left_alone(first: DeployError, good: str) -> DeployError:
    """Nothing was put back: because nobody wished it, or because there is nothing."""
    way = f"put the last good release back with `glm4-deploy rollback {good}`" if good else "no earlier release is good"
    return _with(first, f"it is stopped, its log is kept (glm4-deploy diagnose); {way}")


def rolled_back(first: DeployError, good: str, whole: Outcome, log: Path) -> RolledBack:
    seconds = whole.restored.seconds if whole.restored else 0.0
    where = f"its log: glm4-deploy diagnose {log}; what differs: glm4-deploy diff {good} {whole.release}"
    more = where if whole.release else f"its log: glm4-deploy diagnose {log.parents[1] / 'failed.log'}"
    return RolledBack(
        f"{first.message}; release {good} runs again, gated ({seconds:.0f} s after the failure)",
        details=first.details,
        hint=f"{first.hint}; {more}" if first.hint else more,
    )


def rollback_failed(first: DeployError, good: str, second: DeployError) -> RollbackFailed:
    return RollbackFailed(
        f"{first.message}; and release {good} could not be put back: {second.message}",
        details=(*first.details, *second.details),
        hint=f"nothing serves now. {second.hint or 'See why with: glm4-deploy diagnose'}; "
        f"then: glm4-deploy rollback {good}",
    )


def unrecorded(error: DeployError) -> DeployError:
    return _with(error, "the engine runs and passed its gate; free some room, then `glm4-deploy up` records it")


def _with(error: DeployError, more: str) -> DeployError:
    """The same error with a word more on what to do."""
    hint = f"{error.hint}; {more}" if error.hint else more
    return type(error)(error.message, hint=hint, details=error.details)
