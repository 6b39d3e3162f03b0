"""What a start and a whole deployment came to, and the errors that a failed one ends in."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from glm4_deploy.deploy.endpoint import Endpoint, Started
from glm4_deploy.deploy.releases import BOOT_LOG
from glm4_deploy.deploy.state import Record
from glm4_deploy.errors import DeployError, Judged, RollbackFailed, RolledBack
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.logs.finding import LogFinding
from glm4_deploy.report_model import Report
from glm4_deploy.result import Result, Status, verdict


@dataclass(slots=True, kw_only=True)
class StartResult:
    """What one start showed, filled in as it proceeds. Times are in seconds."""

    endpoint: Endpoint
    files: tuple[str, ...]
    kept: bool = False
    """Whether it already ran from these very files, so that it was only gated again."""
    serving: bool = False
    """Whether other replicas keep serving, whatever becomes of this start."""
    started: Started | None = None
    results: tuple[Result, ...] = ()
    facts: EngineFacts = field(default_factory=EngineFacts)
    findings: tuple[LogFinding, ...] = ()
    log: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    """From the start to each phase."""
    ready_seconds: float | None = None
    """From the start to /health."""
    gate_seconds: float | None = None
    """From /health to the verdict."""
    planned: tuple[Result, ...] = ()
    """The memory plan compared with the engine's log: information that does not count for the verdict."""
    seconds: float = 0.0
    """In total, from stopping the old engine on."""
    error: DeployError | None = None
    """What ended it, before the gate or at it."""
    release: str = ""
    """The id under which it was recorded; '' where it could not be."""
    unrecorded: DeployError | None = None
    """Why it could not be recorded."""
    stopped: bool = False
    """Whether it failed and was stopped."""

    @property
    def verdict(self) -> Status:
        """That of its checks; an engine that never reached them has failed."""
        if self.error is not None and not isinstance(self.error, Judged):
            return Status.FAIL
        return verdict(self.results)

    @property
    def good(self) -> bool:
        return self.error is None and self.verdict in (Status.OK, Status.WARN)

    @property
    def record(self) -> Record:
        return Record(
            endpoint=self.endpoint,
            files=self.files,
            started=self.started,
            verdict=self.verdict,
            ready_seconds=self.ready_seconds,
            release=self.release if self.error is None else "",
        )

    def wire(self) -> dict[str, Any]:
        """As `--json` shows it: without the log, which is kept with the release."""
        hidden = ("endpoint", "files", "started", "log", "planned", "unrecorded")
        shown = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in hidden}
        error = self.error or self.unrecorded
        return {"verdict": self.verdict, "record": self.record, **shown, "error": error}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentResult:
    """One `up` or `rollback` from beginning to end."""

    start: StartResult
    restored: StartResult | None = None
    """The last good release, put back after the start failed, and judged in the same way."""
    error: DeployError | None = None
    """The error that the command ends in."""

    @property
    def serves(self) -> StartResult | None:
        """The start that serves now, if any does."""
        return next((one for one in (self.start, self.restored) if one is not None and one.good), None)

    def report(self, what: str) -> Report:
        """The keys that every `--json` begins with. what: `up` or `rollback`."""
        code = self.error.exit_code if self.error else 0
        rows = (*self.start.results, *self.start.planned)
        return Report(kind=what, verdict=self.start.verdict, exit_code=code, results=rows)

    def wire(self) -> dict[str, Any]:
        return {**self.start.wire(), "restored": self.restored}


# The errors that a command ends in after a failed start. first: that start's own error.


def left_alone(first: DeployError, good: str) -> DeployError:
    """Nothing was put back, either on request or because no release is good. good: the last good one, or ''."""
    way = f"put the last good release back with `glm4-deploy rollback {good}`" if good else "no earlier release is good"
    return first.advise("it is stopped and its log is kept: glm4-deploy diagnose", way)


def rolled_back(first: DeployError, good: str, seconds: float, directory: Path, failed: str) -> RolledBack:
    """failed: the release that recorded the failure; '' where it could not be recorded."""
    log = directory / "releases" / failed / BOOT_LOG if failed else directory / "failed.log"
    compare = (f"what differs: glm4-deploy diff {good} {failed}",) if failed else ()
    return RolledBack(
        f"{first.message}; release {good} runs again, gated ({seconds:.0f} s after the failure)",
        details=first.details,
        hint=(*first.hints, f"why it failed: glm4-deploy diagnose {log}", *compare),
    )


def rollback_failed(first: DeployError, good: str, second: DeployError) -> RollbackFailed:
    return RollbackFailed(
        f"{first.message}; and release {good} could not be put back: {second.message}; nothing serves now",
        details=(*first.details, *second.details),
        hint=(*(second.hints or ("see why with: glm4-deploy diagnose",)), f"then: glm4-deploy rollback {good}"),
    )
