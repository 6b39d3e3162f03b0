"""The one state machine of a deployment: `up` and `rollback` are this and nothing else.

    prepare ──▶ start ──▶ gate ──▶ record ──▶ done: it serves
       │          │         │         ▲ │
       │          └──failed─┴─────────┘ │ what failed is recorded too, and stopped
       ▼                                ▼
    refused:                         restore: the last good release, by the same way
    nothing has changed                 │     (start ──▶ gate ──▶ record)
                                        ▼
                                     done: the good release serves, or nothing does

`prepare` writes the files, takes the disk space that the record will need, and pulls the image; nothing that runs is
touched before all of that is done. From then on the journal says on disk which stage was entered last, so that the
next command can say what a killed one left. The methods of `Transaction` stand in the order of events.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from glm4_deploy import __version__
from glm4_deploy.deploy.boot import Boot
from glm4_deploy.deploy.candidates import Candidate, check_release, recorded_engine, release_candidate
from glm4_deploy.deploy.docker import BACK_SECONDS, PullState, connect, find_image, pull, wait_for_docker
from glm4_deploy.deploy.endpoint import Endpoint, Started
from glm4_deploy.deploy.engines import Engine
from glm4_deploy.deploy.keys import secret_key
from glm4_deploy.deploy.releases import LOG_BYTES, Release, ReleaseDraft, ReleaseImage, Store
from glm4_deploy.deploy.state import Journal, JournalStage, Record, load_record, save_record
from glm4_deploy.errors import DeployError, DockerMissing, Judged, RollbackFailed, RolledBack, StorageError
from glm4_deploy.files import write_text
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.logs.reader import LogFinding
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report.wire import dumps, to_wire
from glm4_deploy.report_model import Report, Suite
from glm4_deploy.result import Result, Status, verdict
from glm4_deploy.text import head_and_tail, redact

BOOT_LOG, REPORT = "boot.log", "smoke.json"


class Listener(Protocol):
    """Shows progress; prints nothing to stdout."""

    def note(self, text: str) -> None: ...
    def expect(self, ready_seconds: float | None) -> None: ...
    def pull(self, state: PullState) -> None: ...
    def phase(self, facts: EngineFacts, seconds: float) -> None: ...
    def check_started(self, check: str) -> None: ...
    def check_done(self, result: Result) -> None: ...


@dataclass(slots=True, kw_only=True)
class StartResult:
    """What one start showed, filled as it goes. Times are seconds."""

    endpoint: Endpoint
    files: tuple[str, ...]
    kept: bool = False
    """It ran already, from these very files, and was gated again."""
    serving: bool = False
    """Other replicas serve meanwhile, whatever comes of this start."""
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
    """From there to the verdict."""
    seconds: float = 0.0
    """All of it, from stopping the old engine on."""
    error: DeployError | None = None
    """What ended it, before the gate or at it."""
    release: str = ""
    """The id under which it was recorded; '' where it could not be."""
    stopped: bool = False
    """It failed, and was stopped."""
    unrecorded: DeployError | None = None
    """Why it could not be."""

    @property
    def verdict(self) -> Status:
        """Judged by its checks; an engine that never came to be checked has failed."""
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
        """As `--json` shows it: everything but the log, which is kept with the release."""
        inside = ("endpoint", "files", "started", "log", "unrecorded")
        shown = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in inside}
        error = self.error or self.unrecorded
        return {"verdict": self.verdict, "record": self.record, **shown, "error": error}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentResult:
    """One `up` or `rollback` from its beginning to its end."""

    start: StartResult
    restored: StartResult | None = None
    """The last good release, put back after the start failed and judged in the same way."""
    error: DeployError | None = None
    """What the command ends in."""
    planned: tuple[Result, ...] = ()
    """The memory plan compared with the engine's log: it informs and does not judge."""

    @property
    def serves(self) -> StartResult | None:
        """The start that serves now, if any does."""
        return next((one for one in (self.start, self.restored) if one is not None and one.good), None)

    def report(self, what: str) -> Report:
        """The keys that every `--json` begins with. what: `up` or `rollback`."""
        code = self.error.exit_code if self.error else 0
        rows = (*self.start.results, *self.planned)
        return Report(kind=what, verdict=self.start.verdict, exit_code=code, results=rows)

    def wire(self) -> dict[str, Any]:
        return {**self.start.wire(), "restored": self.restored}


class Transaction:
    """One candidate started in one state directory, whose lock the caller holds.

    It is what an engine is brought up by (`engines.Steps`): one engine asks for one `start_and_gate`, a set of
    replicas for one each and a `gate_router`.
    """

    def __init__(
        self,
        directory: Path,
        candidate: Candidate,
        listener: Listener,
        *,
        timeout: float | None = None,
        journal: Journal | None = None,
    ) -> None:
        """
        Args:
            timeout: seconds until /health must answer; None: the deployment's own start_period.
            journal: that of the transaction which failed and of which this is the `restore`.
        """
        self._directory = directory
        self._candidate = candidate
        self._listener = listener
        self._timeout = timeout
        self._restoring = journal is not None
        self._journal = journal
        self._store = Store(directory)
        self._image: ReleaseImage | None = None
        self._draft: ReleaseDraft | None = None
        self.result = StartResult(
            endpoint=candidate.endpoint, files=tuple(str(path) for path in candidate.engine.files)
        )

    def run(self, what: str, *, rollback: bool = True) -> DeploymentResult:
        """From `prepare` to the end.

        Args:
            what: `up` or `rollback`, for the journal.
            rollback: whether the last good release is put back after a failure.

        Raises:
            StorageError, ImageMissing, DockerMissing: nothing was touched.
        """
        good = self._store.last_good()
        self._journal = Journal(self._directory, what, good.id if good else "")
        try:
            self._prepare()
        except BaseException:
            self._journal.abandon()
            raise
        self._bring_up()
        self._record()
        done = DeploymentResult(start=self.result, error=self.result.error or self.result.unrecorded)
        if self.result.error is not None:
            done = self._restore(self.result.error, rollback=rollback)
        self._journal.end()
        return done

    def _enter(self, stage: JournalStage, *, must: bool = False) -> None:
        """Into the journal. All stages of a restoring transaction are its parent's one stage `restore`."""
        if self._journal is not None:
            self._journal.stage(JournalStage.RESTORE if self._restoring else stage, must=must)

    # prepare: whatever can be refused is refused here.

    def _prepare(self) -> None:
        engine = self._candidate.engine
        try:
            self._draft = self._make_draft()
            self._enter(JournalStage.PULL)
            self._image = self._pull(engine.image)
            self.result.kept = not self._restoring and engine.keeps()
            self._enter(JournalStage.START if self.result.kept else JournalStage.STOP, must=not self._restoring)
        except BaseException:
            if self._draft is not None:
                self._draft.discard()
            raise

    def _make_draft(self) -> ReleaseDraft | None:
        """Files and room for the record. Without room a good release is put back all the same."""
        try:
            return self._store.draft(self._candidate.files)
        except StorageError as error:
            if not self._restoring:
                raise
            self.note(f"going on without a record: {error.message}")
            return None

    def _pull(self, reference: str) -> ReleaseImage | None:
        """The image, fetched where it is not here; None for a process."""
        if not reference:
            return None
        found = find_image(connect(), reference)
        if found is None:
            self.note(f"pulling {reference}")
            pull(reference, self._listener.pull)
            found = find_image(connect(), reference)
        return found

    # start and gate: from here on nothing raises but an interrupt; what fails is in the result.

    def _bring_up(self) -> None:
        begin = time.monotonic()
        try:
            self.result.serving = self._candidate.engine.rolls()
            if not self.result.kept and not self.result.serving:
                self._stop_old()
            self._enter(JournalStage.START)
            self._announce()
            self._candidate.engine.bring_up(self)
        except DeployError as error:
            self.result.error = error
        self.result.seconds = round(time.monotonic() - begin, 1)

    def _stop_old(self) -> None:
        """What this directory runs now, under whatever name, makes room: one GPU holds one engine."""
        record, engine = load_record(self._directory), self._candidate.engine
        if record is not None and not record.endpoint.same_engines(self._candidate.endpoint):
            old = recorded_engine(record, self._directory)
            if old.state().started is not None:
                self.note(f"stopping {old.state().detail}")
                old.remove()
        now = engine.state()
        if now.running:
            self.note(f"stopping {now.detail}")
            engine.stop()

    def _announce(self) -> None:
        """What is about to start is on record before it starts: `status` and `down` must find it whatever happens."""
        with suppress(StorageError):
            save_record(replace(self.result.record, release=self._kept_release()), self._directory)
        self._listener.expect(self._store.usual_ready_seconds(self._candidate.endpoint.model_dir))

    def start_and_gate(self, engine: Engine, *, name: str = "", fresh: bool = False) -> None:
        """Start one engine, wait for /health, prove its identity, and gate it. name: which of several.

        Raises:
            DeployError: it does not serve sanely; what was seen is in the result all the same.
        """
        endpoint = self._candidate.endpoint
        started = engine.start(fresh=fresh)
        self.result.started = self.result.started or started
        self.note(f"started {engine.kind} {started.id[:12]}")
        base_url = engine.address() or endpoint.base_url
        boot = Boot(engine, started, base_url, self._listener.phase, logs_requests=endpoint.logs_requests)
        try:
            timeout = self._timeout if self._timeout is not None else float(endpoint.start_period)
            ready = round(boot.wait_ready(timeout), 1)
            self.result.ready_seconds = max(self.result.ready_seconds or 0.0, ready)
            self._enter(JournalStage.GATE)
            proof = boot.prove_identity()
            self._listener.check_done(proof)
            rows = self._add(name, proof)
            rows += self._add(name, *self._ask(base_url))
            boot.check()
            require_pass(rows)
        finally:
            # Of several engines the last one's: where one fails, it is the last.
            self.result.facts, self.result.findings = boot.reader.facts, tuple(boot.reader.findings)
            self.result.log, self.result.phases = boot.log, boot.phases

    def gate_router(self, name: str, only: tuple[str, ...]) -> None:
        """Gate the address that clients use; the engines behind it have passed.

        Raises:
            Judged
        """
        require_pass(self._add(name, *self._ask(self._candidate.endpoint.base_url, only)))

    def _add(self, name: str, *rows: Result) -> tuple[Result, ...]:
        named = tuple(replace(row, check=f"{name}/{row.check}") for row in rows) if name else rows
        self.result.results += named
        return named

    def _ask(self, base_url: str, only: tuple[str, ...] = ()) -> tuple[Result, ...]:
        """The gate's checks. No start time is needed: the identity is proved by something better than clocks."""
        endpoint = self._candidate.endpoint
        key, limit = secret_key(endpoint.api_key_file), endpoint.max_model_len
        target = ProbeTarget(base_url=base_url, model=endpoint.model, max_model_len=limit, api_key=key)
        started, done = self._listener.check_started, self._listener.check_done
        report = asyncio.run(run_suite(target, suite=Suite.GATE, only=only, on_start=started, on_result=done))
        self.result.gate_seconds = round((self.result.gate_seconds or 0.0) + report.seconds, 1)
        return report.results

    # record: good or not, it is a release; what failed does not go on serving.

    def _record(self) -> None:
        result = self.result
        self._enter(JournalStage.RECORD)
        result.release, result.unrecorded = self._publish()
        if result.error is not None:
            self.note(f"failed after {result.seconds:.1f} s: {result.error.message}")
            if not result.serving:
                result.stopped = self.stop(self._candidate.engine)
        try:
            save_record(result.record, self._directory)
        except StorageError as error:
            result.unrecorded = result.unrecorded or error
        if result.unrecorded is not None:
            self.note(f"not recorded: {result.unrecorded.message}")
            runs = "the engine runs and passed its gate: free some room, and `glm4-deploy up` records it"
            result.unrecorded = result.unrecorded.advise(runs)

    def _publish(self) -> tuple[str, DeployError | None]:
        """The release's id, and what kept it from being recorded."""
        result = self.result
        secrets = self._candidate.secrets if result.started else frozenset()
        log = head_and_tail(redact("\n".join(result.log) + "\n", secrets), LOG_BYTES)
        if result.error is not None and result.log:
            with suppress(StorageError):  # where `glm4-deploy diagnose` looks; the release holds it too
                write_text(self._directory / "failed.log", log)
        before = self._kept_release() if result.error is None else ""
        if self._draft is None:
            return before, None
        if before:
            self._draft.discard()
            return before, None
        release = self._release(self._draft)
        report = {"verdict": result.verdict, "results": result.results, "findings": result.findings}
        try:
            self._draft.publish(release, {BOOT_LOG: log, REPORT: redact(dumps(report), secrets) + "\n"})
        except StorageError as error:
            return "", error
        self._store.prune()
        return release.id, None

    def _release(self, draft: ReleaseDraft) -> Release:
        result, weights = self.result, self._candidate.weights
        return Release(
            id=self._store.next_id(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            kit=__version__,
            verdict=result.verdict,
            reason=redact(result.error.message) if result.error else "",
            restores=self._candidate.restores,
            endpoint=result.endpoint,
            image=self._image,
            fingerprint=weights.fingerprint if weights else None,
            stamp=weights.stamp if weights else None,
            files=draft.files,
            settings=dict(self._candidate.settings),
            engine=to_wire(result.facts),
            phases=dict(result.phases),
            ready_seconds=result.ready_seconds,
            gate_seconds=result.gate_seconds,
        )

    def _kept_release(self) -> str:
        """The good release that runs already and is the same as the candidate; '' where there is none."""
        record = load_record(self._directory) if self.result.kept else None
        if record is None:
            return ""
        mine = (one for one in self._store.releases() if one.id == record.release)
        return next((one.id for one in mine if one.good and one.content == self._candidate.content(self._image)), "")

    # restore: the last good release takes the place of what failed.

    def _restore(self, error: DeployError, *, rollback: bool) -> DeploymentResult:
        # Not the configuration that has just failed, unless it was already running and only degraded later.
        good = self._store.last_good(but="" if self.result.kept else self._candidate.content(self._image))
        if good is None or not rollback:
            return DeploymentResult(start=self.result, error=left_alone(error, good.id if good else ""))
        self.note(f"putting release {good.id} back")
        self._enter(JournalStage.RESTORE)
        try:
            if isinstance(error, DockerMissing):
                self.note(f"the Docker engine does not answer: waiting for it, at most {BACK_SECONDS:.0f} s")
                wait_for_docker()
            restored = self._start_again(good)
        except DeployError as second:
            return DeploymentResult(start=self.result, error=rollback_failed(error, good.id, second))
        if not restored.good:
            failed = rollback_failed(error, good.id, restored.error or error)
            return DeploymentResult(start=self.result, restored=restored, error=failed)
        back = rolled_back(error, good.id, restored.seconds, self._directory, self.result.release)
        return DeploymentResult(start=self.result, restored=restored, error=back)

    def _start_again(self, good: Release) -> StartResult:
        """
        Raises:
            DeployError: it could not be prepared.
        """
        failed = self._candidate
        if (failed.endpoint.project, failed.endpoint.runner) != (good.endpoint.project, good.endpoint.runner):
            failed.engine.remove()  # its log is kept, and its container's name may be the one that is needed
        candidate = release_candidate(good, self._store, self._directory, self._listener.pull)
        candidate = check_release(candidate, good, self._directory, force=False, note=self.note)
        again = Transaction(self._directory, candidate, self._listener, timeout=self._timeout, journal=self._journal)
        again._prepare()
        again._bring_up()
        again._record()
        return again.result

    # What an engine may ask for at any time (`engines.Steps`).

    @property
    def fresh(self) -> bool:
        return self._restoring

    @property
    def rolling(self) -> bool:
        return self.result.serving

    def note(self, text: str) -> None:
        self._listener.note(text)

    def stop(self, engine: Engine) -> bool:
        """What failed must not serve; where it cannot be stopped that is said, and the work goes on."""
        try:
            engine.stop()
        except DeployError as error:
            self.note(f"could not stop it: {error.message}")
            return False
        return True


def require_pass(results: tuple[Result, ...]) -> None:
    """Raises Judged where a check failed or could not be judged."""
    failed = [row for row in results if row.status in (Status.FAIL, Status.UNKNOWN)]
    if failed or verdict(results) is Status.UNKNOWN:
        what = f"{failed[0].check}: {failed[0].observed or failed[0].reason}" if failed else "nothing could be judged"
        raise Judged(
            f"the engine came up but did not pass: {what}",
            details=[f"{row.check}: {row.observed or row.reason}" for row in failed[1:]],
            hint=failed[0].remedy if failed else "",
        )


# The errors that a deployment ends in.


def left_alone(first: DeployError, good: str) -> DeployError:
    """Nothing was put back: because that was not asked for, or because there is nothing."""
    way = f"put the last good release back with `glm4-deploy rollback {good}`" if good else "no earlier release is good"
    return first.advise("it is stopped and its log is kept: glm4-deploy diagnose", way)


def rolled_back(first: DeployError, good: str, seconds: float, directory: Path, failed: str) -> RolledBack:
    """failed: the release that is the evidence; '' where it could not be recorded."""
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
