"""The one state machine of a deployment: `up`, `upgrade` and `rollback` are this and nothing else.

    prepare ──▶ start ──▶ gate ──▶ record ──▶ done: it serves
       │          │         │         ▲ │
       │          └──failed─┴─────────┘ │ what failed is recorded too, and stopped
       ▼                                ▼
    refused:                         restore: the last good release, by the same way
    nothing has changed                 │     (start ──▶ gate ──▶ record)
                                        ▼
                                     done: the good release serves, or nothing does

`candidates.preflight` has refused what it can before this begins. `prepare` writes the files, reserves the disk space
that the record will need, and pulls the image; only then is anything that runs touched. The journal on disk names the
stage entered last, so that the next command can report what a killed one left behind. The methods of `Transaction` are
in the order of events.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from glm4_deploy import __version__
from glm4_deploy.deploy.boot import Boot
from glm4_deploy.deploy.caches import unnamed_caches
from glm4_deploy.deploy.candidates import Candidate, check_release, recorded_engine, release_candidate, with_own_cache
from glm4_deploy.deploy.docker import BACK_SECONDS, PullState, fetch_image, wait_for_docker
from glm4_deploy.deploy.engines import Engine
from glm4_deploy.deploy.keys import secret_key
from glm4_deploy.deploy.outcome import DeploymentResult, StartResult, left_alone, rollback_failed, rolled_back
from glm4_deploy.deploy.page import PAGE, start_page
from glm4_deploy.deploy.processes import family, wait_gone
from glm4_deploy.deploy.releases import BOOT_LOG, LOG_BYTES, REPORT, Release, ReleaseDraft, ReleaseImage, Store
from glm4_deploy.deploy.state import Journal, JournalStage, MemoryStop, forget_stop, load_record, load_stop, save_record
from glm4_deploy.errors import DeployError, DockerMissing, EngineDied, Judged, StorageError, UsageError
from glm4_deploy.files import write_text
from glm4_deploy.fingerprint.model import Arithmetic, Fingerprint, fingerprint_beside
from glm4_deploy.logs.facts import EngineFacts, quantizes_activations
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.questions import UserQuestion, read_questions
from glm4_deploy.probe.suite import DIED, LOG, Autopsy, run_suite
from glm4_deploy.report.wire import dumps, to_wire
from glm4_deploy.report_model import Suite, SuiteReport
from glm4_deploy.result import Result, Status, verdict
from glm4_deploy.text import head_and_tail, redact


class Listener(Protocol):
    """Shows progress; prints nothing to stdout."""

    def note(self, text: str) -> None: ...
    def expect(self, ready_seconds: float | None) -> None: ...
    def pull(self, state: PullState) -> None: ...
    def phase(self, facts: EngineFacts, seconds: float) -> None: ...
    def check_started(self, check: str) -> None: ...
    def check_done(self, result: Result) -> None: ...


class Transaction:
    """One candidate started in one state directory, whose lock the caller holds.

    An engine brings itself up through it (`engines.Steps`): a single engine calls `start_and_gate` once, a set of
    replicas once per engine, and then `gate_router`.
    """

    def __init__(
        self,
        directory: Path,
        candidate: Candidate,
        listener: Listener,
        *,
        timeout: float | None = None,
        journal: Journal | None = None,
        after_gate: Callable[[str], Result] | None = None,
        compare: Callable[[EngineFacts], tuple[Result, ...]] | None = None,
    ) -> None:
        """
        Args:
            timeout: seconds until /health must answer; None: the deployment's start_period.
            after_gate: one more check of a single engine that has passed its gate, by the id of its start.
            compare: the memory plan compared with what the log says; for information, it does not count.
            journal: that of the failed transaction, if this one restores the release before it.
        """
        self._directory = directory
        self._candidate = candidate
        self._listener = listener
        self._timeout = timeout
        self._restoring = journal is not None
        self._journal = journal
        self._after_gate = after_gate
        self._compare = compare
        self._asked: list[SuiteReport] = []
        self._stopped: MemoryStop | None = None  # the watch's note of it, from before this start
        self._store = Store(directory)
        self._image: ReleaseImage | None = None
        self._draft: ReleaseDraft | None = None
        self.result = StartResult(
            endpoint=candidate.endpoint, files=tuple(str(path) for path in candidate.engine.files)
        )

    def run(self, what: str, *, rollback: bool = True) -> DeploymentResult:
        """Run every stage, from `prepare` to the end.

        Args:
            what: `up`, `upgrade` or `rollback`, for the journal.
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
        """Enter a stage in the journal; every stage of a restoring transaction is its parent's `restore`."""
        if self._journal is not None:
            self._journal.stage(JournalStage.RESTORE if self._restoring else stage, must=must)

    # prepare: everything that can be refused is refused now.

    def _prepare(self) -> None:
        try:
            self._draft = self._make_draft()
            self._enter(JournalStage.PULL)
            self._image = self._pull(self._candidate.engine.image)
            self._use_own_cache()
            engine = self._candidate.engine
            self.result.kept = not self._restoring and engine.keeps()
            self._enter(JournalStage.START if self.result.kept else JournalStage.STOP, must=not self._restoring)
        except BaseException:
            if self._draft is not None:
                self._draft.discard()
            raise

    def _make_draft(self) -> ReleaseDraft | None:
        """The files, and room for the record. A good release is restored even where there is no room."""
        try:
            return self._store.draft(self._candidate.files)
        except StorageError as error:
            if not self._restoring:
                raise
            self.note(f"continuing without a record: {error.message}")
            return None

    def _pull(self, reference: str) -> ReleaseImage | None:
        """The image, pulled if this host does not have it; None for a process."""
        if not reference:
            return None
        return fetch_image(reference, self.note, self._listener.pull)

    def _use_own_cache(self) -> None:
        """Give the candidate the cache of its image. A good release is put back even where that cannot be written."""
        try:
            self._candidate = with_own_cache(self._candidate, self._image, self._directory)
            if self._draft is not None:
                self._draft.complete(self._candidate.files)
        except StorageError as error:
            if not self._restoring:
                raise
            self.note(f"continuing with the cache on record: {error.message}")
        self._say_unnamed_caches()
        self.result.files = tuple(str(path) for path in self._candidate.engine.files)
        cache = self._candidate.cache
        if cache is not None and cache.cold:
            last = self._store.last_cold_seconds(self._candidate.endpoint.model_dir)
            took = "" if last is None else f"; the last start that did took {last:.0f} s until it answered"
            self.note(f"first start with the cache of {cache.label}: it compiles, and takes longer{took}")

    def _say_unnamed_caches(self) -> None:
        if self._candidate.cache is None:
            return
        with suppress(DeployError):  # Docker itself is judged elsewhere
            for volume in unnamed_caches(self._candidate.endpoint.project):
                self.note(
                    f"volume {volume.name} ({volume.size}) is a cache of compiled kernels that an earlier kit kept for "
                    "all images; nothing reads it any more: glm4-deploy releases prune"
                )

    # start and gate: from now on only an interrupt raises; a failure is in the result.

    def _bring_up(self) -> None:
        begin = time.monotonic()
        self._stopped = load_stop(self._directory, since=0.0)
        try:
            self.result.serving = self._candidate.engine.rolls()
            if not self.result.kept and not self.result.serving:
                self._stop_old()
            self._enter(JournalStage.START)
            self._announce()
            self._candidate.engine.bring_up(self)
        except DeployError as error:
            self.result.error = self._with_known_faults(error)
        self.result.seconds = round(time.monotonic() - begin, 1)

    def _with_known_faults(self, error: DeployError) -> DeployError:
        """The checkpoint's faults were known before the start, so they come before what they led to."""
        weights = self._candidate.weights
        if weights is None or not weights.faults:
            return error
        return error.blame((f"known before the start: {fault}" for fault in weights.faults), weights.remedy)

    def _stop_old(self) -> None:
        """Stop what this directory runs now, under whatever name: one GPU holds one engine."""
        record, engine = load_record(self._directory), self._candidate.engine
        if record is not None and not record.endpoint.same_engines(self._candidate.endpoint):
            old = recorded_engine(record, self._directory)
            if old.state().started is not None:
                self._end(old, old.remove)
        if engine.state().running:
            self._end(engine, engine.stop)

    def _end(self, engine: Engine, end: Callable[[], None]) -> None:
        """Stop an engine, and wait until its memory is back.

        Raises:
            EngineDied: one of its processes lives on, even though it was killed.
        """
        self.note(f"stopping {engine.state().detail}")
        old = family(one.state().pid for one in engine.replicas.values() or (engine,))
        end()
        if left := wait_gone(old, self.note):
            raise EngineDied(
                f"the old engine is stopped, and {', '.join(map(str, left))} is still running and may hold its memory",
                hint=("a process that survives SIGKILL hangs in the driver: see dmesg, and reboot",),
            )

    def _announce(self) -> None:
        """Record what is about to start: `status` and `down` must find it whatever happens."""
        with suppress(StorageError):
            save_record(replace(self.result.record, release=self._kept_release()), self._directory)
        self._listener.expect(self._store.usual_ready_seconds(self._candidate.endpoint.model_dir))

    def start_and_gate(self, engine: Engine, *, name: str = "", fresh: bool = False) -> None:
        """Start one engine, wait for /health, prove its identity, and gate it. name: which of several.

        Raises:
            DeployError: it does not serve sanely; the result holds what was observed until then.
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
            rows += self._add(name, *self._ask(base_url, autopsy=boot.autopsy, kernel=boot.reader.facts.kernel))
            require_alive(rows)
            boot.check()
            require_pass(rows)
            if self._after_gate is not None and not name:
                row = self._after_gate(started.id)
                self._listener.check_done(row)
                require_pass((*rows, *self._add(name, row)))
        finally:
            # Of several engines, keep those of the last one: an engine that fails is the last.
            self.result.facts, self.result.findings = boot.reader.facts, tuple(boot.reader.findings)
            self.result.log, self.result.phases = boot.log, boot.phases

    def gate_router(self, name: str, only: tuple[str, ...]) -> None:
        """Gate the address that clients use; the engines behind it have passed.

        Raises:
            EngineDied, Judged
        """
        rows = self._add(name, *self._ask(self._candidate.endpoint.base_url, only))
        require_alive(rows)
        require_pass(rows)

    def _add(self, name: str, *rows: Result) -> tuple[Result, ...]:
        named = tuple(replace(row, check=f"{name}/{row.check}") for row in rows) if name else rows
        self.result.results += named
        return named

    def _ask(
        self,
        base_url: str,
        only: tuple[str, ...] = (),
        *,
        autopsy: Autopsy | None = None,
        kernel: str | None = None,
    ) -> tuple[Result, ...]:
        """Run the gate's checks. They need no start time: the request in the engine's log proves more than a clock."""
        endpoint = self._candidate.endpoint
        key, limit = secret_key(endpoint.api_key_file), endpoint.max_model_len
        target = ProbeTarget(base_url=base_url, model=endpoint.model, max_model_len=limit, api_key=key)
        started, done = self._listener.check_started, self._listener.check_done
        options = Options(
            questions=() if only else self._questions(),
            fingerprint=self._fingerprint(),
            arithmetic=_arithmetic(kernel),
        )
        report = asyncio.run(
            run_suite(
                target,
                suite=Suite.GATE,
                only=only,
                skip=() if endpoint.tools else ("tools-*",),  # the refusal would be an error in the engine's log
                options=options,
                on_start=started,
                on_result=done,
                autopsy=autopsy,
            )
        )
        self._asked.append(report)
        self.result.gate_seconds = round((self.result.gate_seconds or 0.0) + report.seconds, 1)
        return report.results

    def _questions(self) -> tuple[UserQuestion, ...]:
        """The user's own questions. A good release is put back even where their file has gone or is wrong now."""
        file = self._candidate.settings.get("questions")
        if not file:
            return ()
        try:
            return read_questions(Path(str(file)))
        except UsageError as error:
            if not self._restoring:
                raise
            self.note(f"gated without your own questions: {error.message}")
            return ()

    def _fingerprint(self) -> Fingerprint | None:
        try:
            return fingerprint_beside(self._candidate.endpoint.model_dir)
        except UsageError as error:
            self.note(f"not judged by its fingerprint: {error.message}")
            return None

    # record: good or not, it becomes a release; a failed engine does not keep serving.

    def _record(self) -> None:
        result = self.result
        self._enter(JournalStage.RECORD)
        if self._compare is not None:
            result.planned = self._compare(result.facts)
        result.release, result.unrecorded = self._publish()
        if result.error is not None:
            self.note(f"failed after {result.seconds:.1f} s: {result.error.message}")
            if not result.serving:
                result.stopped = self.stop(self._candidate.engine)
        else:  # an engine that was not restarted is older than the note, as is any after the clock was set back
            forget_stop(self._stopped, self._directory)
        try:
            save_record(result.record, self._directory)
        except StorageError as error:
            result.unrecorded = result.unrecorded or error
        if result.unrecorded is not None:
            self.note(f"not recorded: {result.unrecorded.message}")
            advice = "the engine runs and passed its gate: free some disk space, then `glm4-deploy up` records it"
            result.unrecorded = result.unrecorded.advise(advice)

    def _publish(self) -> tuple[str, DeployError | None]:
        """The release's id, and what kept it from being recorded."""
        result = self.result
        secrets = self._candidate.secrets if result.started else frozenset()
        log = head_and_tail(redact("\n".join(result.log) + "\n", secrets), LOG_BYTES)
        if result.error is not None and result.log:
            with suppress(StorageError):  # `glm4-deploy diagnose` reads this file; the release has a copy
                write_text(self._directory / "failed.log", log)
        before = self._kept_release() if result.error is None else ""
        if self._draft is None:
            return before, None
        if before:
            self._draft.discard()
            return before, None
        release = self._release(self._draft)
        report = {"verdict": result.verdict, "results": result.results, "findings": result.findings}
        report |= {"planned": result.planned}
        page = start_page(self._store, release, result, self._asked, secrets)
        try:
            self._draft.publish(release, {BOOT_LOG: log, REPORT: redact(dumps(report), secrets) + "\n", PAGE: page})
        except StorageError as error:
            return "", error
        self.note(f"report: {self._store.root / release.id / PAGE}")
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
            cache=self._candidate.cache,
        )

    def _kept_release(self) -> str:
        """The id of the good release that already runs and equals the candidate; '' where there is none."""
        record = load_record(self._directory) if self.result.kept else None
        if record is None:
            return ""
        content = self._candidate.content(self._image)
        running = (release for release in self._store.releases() if release.id == record.release)
        return next((release.id for release in running if release.good and release.content == content), "")

    # restore: the last good release replaces what failed.

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
            failed.engine.remove()  # its log is kept, and the release may need its container name
        candidate = release_candidate(good, self._store, self._directory, self._listener.pull)
        candidate = check_release(candidate, good, self._directory, force=False, note=self.note)
        again = Transaction(self._directory, candidate, self._listener, timeout=self._timeout, journal=self._journal)
        again._prepare()
        again._bring_up()
        again._record()
        return again.result

    # What an engine may call at any time (`engines.Steps`).

    @property
    def fresh(self) -> bool:
        return self._restoring

    @property
    def rolling(self) -> bool:
        return self.result.serving

    def note(self, text: str) -> None:
        self._listener.note(text)

    def stop(self, engine: Engine) -> bool:
        """Stop what must not serve. False: it could not be stopped, which is noted and not raised."""
        try:
            self._end(engine, engine.stop)
        except DeployError as error:
            self.note(f"the engine could not be stopped: {error.message}")
            return False
        return True


def require_alive(results: tuple[Result, ...]) -> None:
    """Raises EngineDied where the engine died in a check."""
    died = next((row for row in results if row.code == DIED), None)
    if died is not None:
        log = next((piece.text for piece in died.evidence if piece.name == LOG), "")
        raise EngineDied(died.observed, details=filter(None, (log,)), hint=died.remedy)


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


def _arithmetic(kernel: str | None) -> Arithmetic | None:
    """What a kernel of vLLM's name computes in; None if that is not known."""
    w4a4 = quantizes_activations(kernel) if kernel else None
    return None if w4a4 is None else Arithmetic.W4A4 if w4a4 else Arithmetic.W4A16
