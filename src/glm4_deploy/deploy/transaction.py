"""Replace what runs by a candidate, judge it, record it; where it fails, put the last good release back and judge that.

Nothing that runs is touched before the files are written, room for the record is taken and the image is here. From
then on the journal says how far it went, so that a kit that is killed leaves no riddle.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from glm4_deploy import __version__
from glm4_deploy.deploy.boot import Listener, StartResult, start_and_gate, stop
from glm4_deploy.deploy.candidates import Candidate, check_release, release_candidate, runner_of
from glm4_deploy.deploy.docker import connect, find_image, pull
from glm4_deploy.deploy.engines import ComposeRunner
from glm4_deploy.deploy.releases import LOG_BYTES, Release, ReleaseDraft, ReleaseImage, Store, content_of
from glm4_deploy.deploy.replicas import ReplicaSet, bring_up_replicas
from glm4_deploy.deploy.state import Journal, JournalStage, Record, load_record, save_record
from glm4_deploy.errors import DeployError, DockerMissing, RollbackFailed, RolledBack, StorageError
from glm4_deploy.files import write_text
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.logs.reader import LogFinding
from glm4_deploy.report.wire import dumps, to_wire
from glm4_deploy.result import Result, Status
from glm4_deploy.text import head_and_tail, redact

# What a deployment came to, as `--json` tells it, and the error that it ends in.


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReport:
    """An error as data."""

    message: str
    hint: str
    details: tuple[str, ...]
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentResult:
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
    error: ErrorReport | None = None
    restored: "DeploymentResult | None" = None

    @property
    def good(self) -> bool:
        return self.verdict in (Status.OK, Status.WARN)


def outcome(seen: StartResult, record: Record, *, kept: bool, seconds: float) -> DeploymentResult:
    return DeploymentResult(
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


def trouble(error: DeployError | None) -> ErrorReport | None:
    if error is None:
        return None
    return ErrorReport(message=error.message, hint=error.hint, details=error.details, exit_code=error.exit_code)


def left_alone(first: DeployError, good: str) -> DeployError:
    """Nothing was put back: because nobody wished it, or because there is nothing."""
    way = f"put the last good release back with `glm4-deploy rollback {good}`" if good else "no earlier release is good"
    return _with(first, f"it is stopped, its log is kept (glm4-deploy diagnose); {way}")


def rolled_back(first: DeployError, good: str, whole: DeploymentResult, log: Path) -> RolledBack:
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


DOCKER_BACK_SECONDS = 60.0
BOOT_LOG, REPORT = "boot.log", "smoke.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start to come. kept: the candidate runs already; restoring: it is the good one, put back after a failure."""

    candidate: Candidate
    image: ReleaseImage | None
    draft: ReleaseDraft | None
    kept: bool = False
    restoring: bool = False

    @property
    def content(self) -> str:
        candidate, weights = self.candidate, self.candidate.weights
        fingerprint = weights.fingerprint if weights else None
        return content_of(candidate.files.kept(), self.image, fingerprint, candidate.settings)


class Transaction:
    """One `up` or `rollback` in one state directory. The caller holds its lock."""

    def __init__(self, directory: Path, listener: Listener, *, timeout: float | None) -> None:
        self.store = Store(directory)
        self._directory = directory
        self._listener = listener
        self._timeout = timeout

    def run(self, candidate: Candidate, *, what: str, rollback: bool) -> tuple[DeploymentResult, DeployError | None]:
        """Deploy the candidate; the error is what the command ends in.

        Raises:
            StorageError, ImageMissing, DockerMissing: before anything was touched.
        """
        good = self.store.last_good()
        journal = Journal(self._directory, what, good.id if good else "")
        draft: ReleaseDraft | None = None
        try:
            draft = self.store.draft(candidate.files)
            journal.stage(JournalStage.PULL)
            image = self._image(candidate)
            attempt = Attempt(candidate=candidate, image=image, draft=draft, kept=candidate.runner.keeps())
            journal.stage(JournalStage.START if attempt.kept else JournalStage.STOP, must=True)
        except BaseException:
            if draft is not None:
                draft.discard()
            journal.abandon()
            raise
        result, error = self._attempt(attempt, journal)
        if error is not None and not result.good:
            result, error = self._after_failure(attempt, result, error, journal, rollback=rollback)
        journal.end()
        return result, error

    def _image(self, candidate: Candidate) -> ReleaseImage | None:
        """The image that the candidate names, fetched where it is not here."""
        if not isinstance(candidate.runner, ComposeRunner | ReplicaSet):
            return None
        reference = candidate.runner.image
        found = find_image(connect(), reference)
        if found is None:
            self._listener.note(f"pulling {reference}")
            pull(reference, self._listener.pull)
            found = find_image(connect(), reference)
        return found

    def _attempt(self, attempt: Attempt, journal: Journal) -> tuple[DeploymentResult, DeployError | None]:
        """Start, gate, record; what failed is stopped. Nothing raises but an interrupt."""
        candidate = attempt.candidate
        begin = time.monotonic()
        seen = self._start(attempt, journal)
        took = time.monotonic() - begin
        _enter(JournalStage.RECORD, attempt, journal)
        release, unkept = self._keep(attempt, seen)
        if seen.error is not None:
            self._listener.note(f"failed after {took:.1f} s: {seen.error.message}")
            if not seen.serving:
                stop(candidate.runner, self._listener)
        record = _record(candidate, seen, release)
        try:
            save_record(record if seen.error is None else replace(record, release=""), self._directory)
        except StorageError as error:
            unkept = unkept or error
        result = outcome(seen, record, kept=attempt.kept, seconds=took)
        if unkept is None:
            return result, seen.error
        self._listener.note(f"not recorded: {unkept.message}")
        if seen.error is not None:
            return result, seen.error
        return replace(result, error=trouble(unrecorded(unkept))), unrecorded(unkept)

    def _start(self, attempt: Attempt, journal: Journal) -> StartResult:
        """Make room and bring the candidate up to its verdict."""
        candidate = attempt.candidate
        try:
            if not attempt.kept and not _rolls(candidate):
                self._stop_old(candidate)
            _enter(JournalStage.START, attempt, journal)
            runs = self._id_of_kept(attempt) if attempt.kept else ""
            with suppress(StorageError):
                save_record(_record(candidate, StartResult(), runs), self._directory)
            self._listener.expect(self._expected(candidate))
        except DeployError as error:
            return StartResult(error=error)
        timeout = self._timeout if self._timeout is not None else float(candidate.service.start_period)
        runner, listener, fresh = candidate.runner, self._listener, attempt.restoring

        def gating() -> None:
            _enter(JournalStage.GATE, attempt, journal)

        if isinstance(runner, ReplicaSet):
            return bring_up_replicas(
                candidate.service, runner, timeout=timeout, listener=listener, fresh=fresh, on_ready=gating
            )
        return start_and_gate(
            candidate.service, runner, timeout=timeout, listener=listener, fresh=fresh, on_ready=gating
        )

    def _stop_old(self, candidate: Candidate) -> None:
        """What this directory runs now, under whatever name, makes room: one GPU holds one engine."""
        record = load_record(self._directory)
        service = candidate.service
        mine = (service.runner, service.project, service.engines)
        if record is not None and (record.runner, record.project, record.engines) != mine:
            before = runner_of(record, self._directory)
            if before.state().started is not None:
                self._listener.note(f"stopping {before.state().detail}")
                before.remove()
        now = candidate.runner.state()
        if now.running:
            self._listener.note(f"stopping {now.detail}")
            candidate.runner.stop()

    def _keep(self, attempt: Attempt, seen: StartResult) -> tuple[str, DeployError | None]:
        """Record what was seen: its release's id, and what kept it from being recorded."""
        secrets = attempt.candidate.secrets if seen.started else frozenset()
        log = head_and_tail(redact("\n".join(seen.log) + "\n", secrets), LOG_BYTES)
        if seen.error is not None and seen.log:
            with suppress(StorageError):  # where `glm4-deploy diagnose` looks; the release holds it too
                write_text(self._directory / "failed.log", log)
        before = self._id_of_kept(attempt) if attempt.kept and seen.error is None else ""
        if attempt.draft is None:
            return before, None
        if before:
            attempt.draft.discard()
            return before, None
        release = _release(self.store.next_id(), attempt, attempt.draft, seen)
        report = redact(dumps({"verdict": seen.verdict, "results": seen.results, "findings": seen.findings}), secrets)
        try:
            attempt.draft.publish(release, {BOOT_LOG: log, REPORT: report + "\n"})
        except StorageError as error:
            return "", error
        self.store.prune()
        return release.id, None

    def _id_of_kept(self, attempt: Attempt) -> str:
        """The release that runs already, where the candidate is the same; '' where it was never judged good."""
        record = load_record(self._directory)
        mine = (one for one in self.store.releases() if record is not None and one.id == record.release)
        return next((one.id for one in mine if one.good and one.content == attempt.content), "")

    def _after_failure(
        self, attempt: Attempt, failed: DeploymentResult, error: DeployError, journal: Journal, *, rollback: bool
    ) -> tuple[DeploymentResult, DeployError]:
        # What was just started from scratch and failed is not worth a second start; what ran and fell ill is.
        good = self.store.last_good(but="" if attempt.kept else attempt.content)
        if good is None or not rollback:
            return failed, left_alone(error, good.id if good else "")
        self._listener.note(f"putting release {good.id} back")
        journal.stage(JournalStage.RESTORE)
        try:
            if isinstance(error, DockerMissing):
                self._await_docker()
            put_back, second = self._restore(good, attempt.candidate, journal)
        except DeployError as once_more:
            return failed, rollback_failed(error, good.id, once_more)
        whole = replace(failed, restored=put_back)
        if not put_back.good:
            return whole, rollback_failed(error, good.id, second or error)
        return whole, rolled_back(error, good.id, whole, self.store.root / failed.release / BOOT_LOG)

    def _restore(
        self, good: Release, failed: Candidate, journal: Journal
    ) -> tuple[DeploymentResult, DeployError | None]:
        if (failed.service.project, failed.service.runner) != (good.service.project, good.service.runner):
            failed.runner.remove()  # its log is kept, and its container's name may be the one that is needed
        candidate = release_candidate(good, self.store, self._directory, self._listener.pull)
        candidate = check_release(candidate, good, self._directory, force=False, note=self._listener.note)
        draft: ReleaseDraft | None = None
        try:
            draft = self.store.draft(candidate.files)
        except StorageError as error:
            self._listener.note(f"going on without a record: {error.message}")
        attempt = Attempt(candidate=candidate, image=self._image(candidate), draft=draft, restoring=True)
        return self._attempt(attempt, journal)

    def _await_docker(self) -> None:
        """A restarted engine is back within seconds.

        Raises:
            DockerMissing, DockerDenied
        """
        deadline = time.monotonic() + DOCKER_BACK_SECONDS
        self._listener.note(f"the Docker engine does not answer: waiting for it, {DOCKER_BACK_SECONDS:.0f} s at most")
        while True:
            try:
                connect(timeout=5)
                return
            except DockerMissing:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def _expected(self, candidate: Candidate) -> float | None:
        """Seconds that the last good starts of this service took: their median, None where there are none."""
        same = [
            release.ready_seconds
            for release in self.store.releases()[-10:]
            if release.good and release.ready_seconds and release.service.model_dir == candidate.service.model_dir
        ]
        return sorted(same)[len(same) // 2] if same else None


def _enter(stage: JournalStage, attempt: Attempt, journal: Journal) -> None:
    journal.stage(JournalStage.RESTORE if attempt.restoring else stage)


def _rolls(candidate: Candidate) -> bool:
    """Whether engines are replaced one at a time, while the others serve."""
    return isinstance(candidate.runner, ReplicaSet) and candidate.runner.rolls()


def _record(candidate: Candidate, seen: StartResult, release: str) -> Record:
    service = candidate.service
    files = candidate.runner.files if isinstance(candidate.runner, ComposeRunner | ReplicaSet) else ()
    return Record(
        runner=service.runner,
        project=service.project,
        service=service.service,
        profile=service.profile,
        base_url=service.base_url,
        model=service.model,
        max_model_len=service.max_model_len,
        files=tuple(str(path) for path in files),
        id=seen.started.id if seen.started else "",
        started_at=seen.started.started_at if seen.started else 0.0,
        verdict=seen.verdict,
        ready_seconds=seen.ready_seconds,
        release=release,
        api_key_file=service.api_key_file,
        replicas=service.replicas,
    )


def _release(name: str, attempt: Attempt, draft: ReleaseDraft, seen: StartResult) -> Release:
    candidate, weights = attempt.candidate, attempt.candidate.weights
    return Release(
        id=name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kit=__version__,
        verdict=seen.verdict,
        reason=redact(seen.error.message) if seen.error else "",
        restores=candidate.restores,
        service=candidate.service,
        image=attempt.image,
        fingerprint=weights.fingerprint if weights else None,
        stamp=weights.stamp if weights else None,
        files=draft.files,
        settings=dict(candidate.settings),
        engine=to_wire(seen.facts),
        phases=dict(seen.phases),
        ready_seconds=seen.ready_seconds,
        gate_seconds=seen.gate_seconds,
    )
