"""One attempt after the other: start, gate, measure, and keep what came of it; at the end the old release serves again.

Trials have their own state directory below the deployment's, so they leave no releases behind, but the same
project: they use the deployment's address and its caches of compiled kernels.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from glm4_deploy.catalog.rows import Gpu, Profile, Version
from glm4_deploy.deploy.candidates import (
    Candidate,
    check_release,
    compose_candidate,
    preflight,
    process_candidate,
    recorded_engine,
    release_candidate,
)
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.outcome import DeploymentResult
from glm4_deploy.deploy.releases import Release, Store
from glm4_deploy.deploy.speed import measure_started
from glm4_deploy.deploy.state import Journal, JournalStage, load_record
from glm4_deploy.deploy.transaction import Listener, Transaction
from glm4_deploy.errors import DeployError, PlanRefused, UsageError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.plan.spec import Card, DeploymentSpec, choose_fraction, plan_deployment, settings_digest
from glm4_deploy.probe.bench import LoadTimeout
from glm4_deploy.probe.limits import Slo
from glm4_deploy.report.wire import dumps, to_wire
from glm4_deploy.report_model import BenchLevel
from glm4_deploy.result import Result, ok, warn
from glm4_deploy.settings import Settings
from glm4_deploy.tune.search import PATIENCE, Attempt, Outcome, Search, Trial
from glm4_deploy.tune.space import TuneLoad, changed

SCHEMA = 1
JOURNAL = "trials.jsonl"
LEAST_S = 10.0  # a load is never cut off sooner: that saves nothing beside a start, and a busy host costs seconds
SLOW_WITH_LIMITS = 3.0  # with an SLO, what is slower may still be what keeps the limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is tuned, for what, on what. card: None for the CPU profile."""

    settings: Settings
    profile: Profile
    card: Card | None
    load: TuneLoad
    slo: Slo | None
    vllm: Version

    @property
    def gpu(self) -> Gpu | None:
        return self.card.gpu if self.card else None

    @property
    def place(self) -> str:
        """What a gain was seen on: it does not carry over to another card or another vLLM."""
        return f"{self.gpu.name if self.gpu else 'cpu'} {'.'.join(map(str, self.vllm))}"

    @property
    def key(self) -> str:
        """Equal for runs whose trials may be compared with each other."""
        slo = self.slo.model_dump(mode="json") if self.slo else None
        parts = [self.place, to_wire(self.load), slo, settings_digest(self.settings), self.settings.pinned_image]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def in_use(self) -> dict[str, Any]:
        """The settings as they are, with the tokens per step that the engine chooses where they leave that open."""
        memory = self.spec(self.settings).memory
        chosen = {"max_num_batched_tokens": memory.max_num_batched_tokens} if memory else {}
        return {**chosen, **{key: value for key, value in self.settings.model_dump().items() if value is not None}}

    def spec(self, settings: Settings) -> DeploymentSpec:
        """
        Raises:
            PlanRefused: it does not fit the card.
        """
        return plan_deployment(settings, self.profile, choose_fraction(settings, self.profile, self.card))


class Notebook:
    """What was tried here, one JSON line each: a run that was cut off goes on from it, and later runs learn from it."""

    def __init__(self, directory: Path, subject: Subject) -> None:
        self._file = directory / JOURNAL
        self._subject = subject
        self._rows = tuple(self._read())

    def _read(self) -> list[tuple[str, str, Trial]]:
        adapter = TypeAdapter(Trial)
        rows: list[tuple[str, str, Trial]] = []
        with suppress(DeployError):
            for line in read_text(self._file).splitlines() if self._file.exists() else ():
                with suppress(ValueError, KeyError, TypeError, ValidationError):  # a line cut short
                    row = json.loads(line)
                    if row["schema"] == SCHEMA:
                        rows.append((str(row["key"]), str(row["place"]), adapter.validate_python(row["trial"])))
        return rows

    def earlier(self, attempt: Attempt) -> Trial | None:
        """The same attempt in an earlier run of the same load; one that failed is tried again."""
        key = self._subject.key
        rows = (trial for seen, _, trial in self._rows if seen == key and trial.settings == attempt.settings)
        return next((trial for trial in rows if trial.outcome in (Outcome.MEASURED, Outcome.SLOWER)), None)

    @property
    def here(self) -> tuple[Trial, ...]:
        """Every trial on this card with this vLLM, whatever the load."""
        return tuple(trial for _, place, trial in self._rows if place == self._subject.place)

    def add(self, trial: Trial) -> None:
        """
        Raises:
            StorageError
        """
        row = {"schema": SCHEMA, "key": self._subject.key, "place": self._subject.place, "trial": trial}
        before = read_text(self._file) if self._file.exists() else ""
        write_text(self._file, before + dumps(row, indent=None) + "\n", mode=0o600)


class Bench:
    """Starts attempts in place of what serves, and puts that back."""

    def __init__(
        self,
        directory: Path,
        subject: Subject,
        listener: Listener,
        *,
        runner: str,
        overrides: tuple[Path, ...] = (),
        timeout: float | None = None,
    ) -> None:
        """directory: the deployment's, whose lock the caller holds. timeout: seconds a start may take."""
        self._directory = directory
        self._own = directory / "tune" / "engine"
        self._subject = subject
        self._listener = listener
        self._runner = runner
        self._overrides = overrides
        self._timeout = timeout
        self._journal: Journal | None = None
        self._release: Release | None = None
        self._fastest = 0.0  # seconds of the fastest load, the generator's start included

    def clear(self) -> None:
        """Stop what serves, and what an earlier run left.

        Raises:
            DeployError: it cannot be stopped, or cannot be put back later; nothing was touched then.
        """
        store, record = Store(self._directory), load_record(self._directory)
        serving = recorded_engine(record, self._directory) if record else None
        if serving is not None and record is not None and serving.state().running:
            self._release = next((one for one in store.releases() if one.id == record.release and one.good), None)
            if self._release is None:
                raise UsageError(
                    "what serves here never passed its gate, so it could not be put back after tuning",
                    hint="glm4-deploy up first, or glm4-deploy down",
                )
        self._journal = Journal(self._directory, "tune", self._release.id if self._release else "")
        self._journal.stage(JournalStage.STOP, must=True)
        self._remove_trial()
        if self._release is not None and serving is not None:
            self._listener.note(f"stopping release {self._release.id} for the time of the trials")
            serving.remove()

    def _remove_trial(self) -> None:
        record = load_record(self._own)
        if record is not None:
            recorded_engine(record, self._own).remove()
        shutil.rmtree(self._own, ignore_errors=True)

    def end(self) -> None:
        """Stop the last trial. Until something else has been started, nothing serves."""
        self._remove_trial()
        if self._journal is not None and self._release is None:
            self._journal.end()

    def put_back(self) -> DeploymentResult | None:
        """The release that served, started and gated again; None if none did.

        Raises:
            DeployError: it could not even be prepared.
        """
        self.end()
        if self._release is None:
            return None
        self._listener.note(f"putting release {self._release.id} back")
        store = Store(self._directory)
        candidate = release_candidate(self._release, store, self._directory, self._listener.pull)
        candidate = check_release(candidate, self._release, self._directory, force=False, note=self._listener.note)
        return Transaction(self._directory, candidate, self._listener, timeout=self._timeout).run("tune")

    def make(self, settings: Settings, directory: Path) -> Candidate:
        """
        Raises:
            PlanRefused, UsageError, DockerMissing, ComposeMissing, StorageError
        """
        spec, kept = self._subject.spec(settings), settings.model_dump(mode="json")
        if self._runner == EngineKind.PROCESS:
            return process_candidate(spec, directory, os.environ.get("GLM4_CPU_PYTHON"), kept)
        return compose_candidate(spec, self._overrides, directory, kept)

    def measure(self, attempt: Attempt) -> Trial:
        """Start the attempt, gate it, and only then send it the load. A failure is an outcome, and raises nothing."""
        began = time.monotonic()

        def trial(outcome: Outcome, reason: str = "", level: BenchLevel | None = None) -> Trial:
            seconds = round(time.monotonic() - began, 1)
            return Trial(
                label=attempt.label,
                settings=attempt.settings,
                outcome=outcome,
                reason=reason,
                level=level,
                seconds=seconds,
            )

        seen: list[BenchLevel] = []
        slow: list[str] = []
        try:
            settings = changed(self._subject.settings, attempt.settings)
            candidate = preflight(self.make(settings, self._own), self._own, force=False, note=self._listener.note)
            send = self._send(candidate.endpoint, seen, slow)
            start = Transaction(self._own, candidate, self._listener, timeout=self._timeout, after_gate=send)
            error = start.run("tune", rollback=False).error
        except PlanRefused as refusal:
            return trial(Outcome.REFUSED, refusal.message)
        except (DeployError, ValidationError) as failure:
            return trial(Outcome.FAILED, failure.message if isinstance(failure, DeployError) else str(failure)[:300])
        if slow:
            return trial(Outcome.SLOWER, slow[0])
        if error is not None or not seen:
            return trial(Outcome.FAILED, error.message if error else "nothing was measured")
        return trial(Outcome.MEASURED, level=seen[0])

    def _send(self, endpoint: Endpoint, seen: list[BenchLevel], slow: list[str]) -> Callable[[str], Result]:
        """The load as one more row of the gate, cut off once it has taken too long to win."""
        load, slo = self._subject.load, self._subject.slo

        def after_gate(started: str) -> Result:
            patience = self._fastest * (SLOW_WITH_LIMITS if slo else PATIENCE)
            began, limit = time.monotonic(), max(patience, LEAST_S) if patience else None
            try:
                level = measure_started(
                    endpoint,
                    started,
                    concurrency=load.users,
                    input_len=load.input_len,
                    output_len=load.output_len,
                    slo=slo,
                    limit_s=limit,
                )
            except LoadTimeout:
                slow.append(f"not done after {limit:.0f} s; the fastest took {self._fastest:.0f} s")
                return warn(slow[0], check="load")
            took = time.monotonic() - began
            self._fastest = min(self._fastest or took, took)
            seen.append(level)
            rate, ttft, tpot = level.output_tokens_per_s, level.ttft.p50, level.tpot.p50
            return ok(f"{rate:.0f} tokens/s, TTFT p50 {ttft:.0f} ms, TPOT p50 {tpot:.1f} ms", check="load")

        return after_gate


def walk(
    search: Search,
    measure: Callable[[Attempt], Trial],
    notebook: Notebook | None,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Walk until nothing is left to try, or the budget would not last for another trial as long as the longest."""
    began, longest = clock(), 0.0
    while (attempt := search.next()) is not None:
        known = notebook.earlier(attempt) if notebook else None
        if known is None and clock() - began + longest > seconds:
            note(f"the budget is used up after {clock() - began:.0f} s")
            return
        note(f"trial {len(search.trials) + 1}: {attempt.label}{', from an earlier run' if known else ''}")
        before = clock()
        trial = search.add(attempt, known or measure(attempt))
        if known is None:
            longest = max(longest, clock() - before)
            if notebook:
                notebook.add(trial)
        note(f"{trial.label}: {outcome_text(trial)}")


def outcome_text(trial: Trial) -> str:
    """What came of it, in a few words."""
    if trial.level is None:
        return f"{trial.outcome}: {trial.reason}"
    gain = f", {trial.gain:+.1%}" if trial.gain is not None else ""
    broken = f"; over the limits: {', '.join(trial.level.broken)}" if trial.level.broken else ""
    return f"{trial.rate:.0f} tokens/s{gain}{broken}"


def planned_for(subject: Subject) -> Mapping[str, Any] | None:
    """What the planner would set for the load; None where that is configured already. The context stays as it is."""
    settings, wanted = subject.settings, {"max_num_seqs": subject.load.users, "gpu_memory_utilization": "auto"}
    if subject.card is None:
        del wanted["gpu_memory_utilization"]
    return wanted if any(getattr(settings, name) != value for name, value in wanted.items()) else None
