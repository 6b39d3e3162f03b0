"""Start one engine, wait, prove that it is the one that answers, and gate it: what was seen, good or bad."""

import asyncio
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import httpx
from pydantic import SecretStr

from glm4_deploy.deploy.docker import PullState
from glm4_deploy.deploy.engines import Meter, Runner, RunState, Started, died
from glm4_deploy.deploy.keys import read_key
from glm4_deploy.deploy.releases import Endpoint
from glm4_deploy.errors import DeployError, EngineTimeout, Judged, WrongEngine
from glm4_deploy.logs.facts import EngineFacts, Phase
from glm4_deploy.logs.reader import LogFinding, LogReader
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.endpoints import read_metrics
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report_model import Suite
from glm4_deploy.result import Result, Status, ok, unknown, verdict

# Waiting for an engine: its log and its events as they come, its phases, an early end on anything fatal.

DRAIN_SECONDS = 2.0
STATE_POLL_SECONDS = 3.0
HEALTH_POLL_SECONDS = 0.5
PROOF_SECONDS = 8.0
# A process's start is counted from the kernel's boot time, which a stepped clock leaves behind: seconds of error are
# common on virtual machines, so it can tell yesterday's server from today's, not this minute's.
CLOCK_TOLERANCE_SECONDS = 60.0
TAIL_LINES = 8
LINE_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class _Item:
    source: str
    text: str


class Boot:
    """One start of an engine, followed from its first line.

    The log and the events are read by two daemon threads into a queue; everything else happens in the caller's
    thread. `on_phase(facts, seconds)` is called when the phase or its progress changes. `logs_requests`: whether the
    engine writes a line a request, vLLM's default.
    """

    def __init__(
        self,
        runner: Runner,
        started: Started,
        base_url: str,
        on_phase: Callable[[EngineFacts, float], None],
        *,
        logs_requests: bool = True,
    ) -> None:
        self.reader = LogReader()
        self.log: list[str] = []
        self.phases: dict[str, float] = {}
        self._runner = runner
        self._started = started
        self._base_url = base_url
        self._on_phase = on_phase
        self._logs_requests = logs_requests
        self._items: queue.Queue[_Item] = queue.Queue(maxsize=100_000)
        self._seen: tuple[object, object] = (None, None)
        self._meter = Meter()
        self._read = ""
        self._out_of_memory = False
        self._begin = time.monotonic()
        self._nonce = secrets.token_hex(8)
        self._nonce_seen = False
        self._restarts = runner.state().restarts
        self._follow("line", runner.lines(started.started_at))
        self._follow("event", runner.events())

    def _follow(self, source: str, items: Iterator[str]) -> None:
        def pump() -> None:
            with suppress(Exception):  # a broken stream ends it; the state poll still sees what became of the engine
                for text in items:
                    self._items.put(_Item(source, text))
            self._items.put(_Item(f"{source}-end", ""))

        threading.Thread(target=pump, name=f"boot-{source}", daemon=True).start()

    def wait_ready(self, timeout: float) -> float:
        """Block until /health answers 200 while this very start is running; returns the seconds it took.

        Raises:
            EngineDied: it stopped, restarted, or logged a line after which it cannot come up.
            EngineTimeout: not ready within `timeout` seconds.
        """
        next_state = next_health = 0.0
        with httpx.Client(trust_env=False, timeout=2) as client:
            while True:
                ended = self._pump(wait=0.1)
                elapsed = time.monotonic() - self._begin
                if ended or self.reader.fatal is not None or elapsed >= next_state:
                    next_state = elapsed + STATE_POLL_SECONDS
                    pid = self._check_alive().pid
                    self._read = self._meter.look(pid) if self._loading else ""
                if elapsed >= next_health:
                    next_health = elapsed + HEALTH_POLL_SECONDS
                    if _healthy(client, self._base_url):
                        self._check_alive()
                        return elapsed
                if elapsed > timeout:
                    raise EngineTimeout(
                        f"not ready after {timeout:.0f} s, in the phase `{self.reader.facts.phase}`",
                        details=self.reader.tail(TAIL_LINES),
                        hint="see why with: glm4-deploy diagnose; allow more with --timeout",
                    )

    @property
    def _loading(self) -> bool:
        return self.reader.facts.phase in (Phase.STARTING, Phase.CONFIG, Phase.WEIGHTS)

    def prove_identity(self) -> Result:
        """Tie the address to this start: a request with a one-time word must appear in this engine's own log.

        A stale server on the same port answers /health for the new one; it cannot write into the new one's log.

        Raises:
            WrongEngine: the address answers, but not this engine.
        """
        check, expected = "this-container", f"{self._base_url} answers from {self._started.id[:12]}"
        with httpx.Client(trust_env=False, timeout=10) as client, suppress(httpx.HTTPError):
            client.get(f"{self._base_url}/v1/models", params={"glm4-deploy": self._nonce})
        deadline = time.monotonic() + PROOF_SECONDS
        while not self._nonce_seen and time.monotonic() < deadline:
            self._pump(wait=0.1)
        if self._nonce_seen:
            return ok("a one-time request showed up in this engine's own log", expected, check=check)
        hint = "another server holds that address: find it with ss -ltnp, stop it or choose --port"
        if self._logs_requests:
            raise WrongEngine(
                f"{self._base_url} answers, but a request sent there never reached the engine just started", hint=hint
            )
        metrics = read_metrics(self._base_url)
        born = metrics.sum("process_start_time_seconds") if metrics else None
        if born is None:
            return unknown(
                "the engine logs no requests and /metrics has no start time",
                "leave the access log on: it ties the answers to the container",
                expected=expected,
                check=check,
            )
        age = self._started.started_at - born
        if age > CLOCK_TOLERANCE_SECONDS:
            raise WrongEngine(
                f"{self._base_url} answers, but from a process {age:.0f} s older than the engine just started",
                hint=hint,
            )
        observed = f"the answering process began within {CLOCK_TOLERANCE_SECONDS:.0f} s of this start"
        return ok(observed, expected, check=check)

    def check(self) -> None:
        """Take in what has been logged since, and make sure that the engine still runs.

        Raises:
            EngineDied
        """
        while self._pump(wait=0.0):
            pass
        self._check_alive()

    def _pump(self, *, wait: float) -> bool:
        """Take in everything queued; True when the log or an event says that the engine may have ended."""
        ended = False
        with suppress(queue.Empty):
            item = self._items.get(timeout=wait) if wait else self._items.get_nowait()
            while True:
                ended |= self._take(item)
                item = self._items.get_nowait()
        facts = self.reader.facts
        if facts.phase is Phase.WEIGHTS and self._read:
            facts = replace(facts, progress=", ".join(filter(None, (facts.progress, self._read))))
        seen = (facts.phase, facts.progress)
        if seen != self._seen:
            self._seen = seen
            elapsed = time.monotonic() - self._begin
            self.phases.setdefault(str(facts.phase), round(elapsed, 1))
            self._on_phase(facts, elapsed)
        return ended

    def _take(self, item: _Item) -> bool:
        if item.source == "line":
            self.log.append(item.text)
            self._nonce_seen |= self._nonce in item.text
            self.reader.feed(item.text)
            return False
        self._out_of_memory |= item.text == "oom"
        return item.source == "line-end" or item.text in ("die", "oom", "kill", "restart", "destroy")

    def _check_alive(self) -> RunState:
        """The state of this start, which runs.

        Raises:
            EngineDied: it does not, it restarted, the kernel killed a part of it, or its log tells of its end.
        """
        state = self._runner.state()
        same = state.started is not None and state.started.id == self._started.id
        well = self.reader.fatal is None and not self._out_of_memory
        if state.running and same and state.restarts == self._restarts and well:
            return state
        self._drain()
        raise self._death(state)

    def _drain(self) -> None:
        """The root cause is often a line or two after the first sign: give the log a moment."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            self._pump(wait=0.1)

    def _death(self, state: RunState) -> DeployError:
        state = state if not state.running else self._runner.state()
        cause = next(iter(serious(self.reader)), None)
        return died(
            replace(state, oom_killed=state.oom_killed or self._out_of_memory),
            phase=str(self.reader.facts.phase),
            cause=cause.cause if cause else "",
            fix=cause.fix if cause else "",
            tail=lines_that_matter(self.reader),
        )


def serious(reader: LogReader) -> tuple[LogFinding, ...]:
    """What the log holds that may have ended the engine, the root cause first."""
    return tuple(finding for finding in reader.findings if finding.status is Status.FAIL)


def lines_that_matter(reader: LogReader) -> tuple[str, ...]:
    """The lines of the serious findings; where none is understood, the end of the log."""
    known = [finding for finding in serious(reader) if finding.id != "unknown-error"]
    found = [finding.line.strip()[:LINE_CHARACTERS] for finding in known[:TAIL_LINES]]
    return tuple(dict.fromkeys(found)) or reader.tail(TAIL_LINES)


def _healthy(client: httpx.Client, base_url: str) -> bool:
    try:
        return client.get(f"{base_url}/health").status_code == 200
    except httpx.HTTPError:
        return False


class Listener(Protocol):
    """Told of progress; prints nothing to stdout."""

    def note(self, text: str) -> None: ...
    def expect(self, ready_seconds: float | None) -> None: ...
    def pull(self, state: PullState) -> None: ...
    def phase(self, facts: EngineFacts, seconds: float) -> None: ...
    def check_started(self, check: str) -> None: ...
    def check_done(self, result: Result) -> None: ...


@dataclass(slots=True, kw_only=True)
class StartResult:
    """What one start showed, filled as it goes. Times are seconds; `error` says what ended it before or at the gate.

    ready_seconds: from start to /health; gate_seconds: from there to the verdict; phases: from start to each.
    serving: whether others serve on where it failed, so that what must not serve is stopped already.
    """

    started: Started | None = None
    results: tuple[Result, ...] = ()
    facts: EngineFacts = field(default_factory=EngineFacts)
    findings: tuple[LogFinding, ...] = ()
    log: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    ready_seconds: float | None = None
    gate_seconds: float | None = None
    error: DeployError | None = None
    serving: bool = False

    @property
    def verdict(self) -> Status:
        if self.error is not None and not isinstance(self.error, Judged):
            return Status.FAIL
        return verdict(self.results)


def start_and_gate(
    service: Endpoint,
    runner: Runner,
    *,
    timeout: float,
    listener: Listener,
    fresh: bool = False,
    on_ready: Callable[[], None] = lambda: None,
    address: Callable[[], str] | None = None,
) -> StartResult:
    """Never raises what a deployment can suffer: the error is part of what was seen. An interrupt passes through.

    Args:
        timeout: seconds until /health must answer.
        fresh: start anew even what already runs with these settings.
        on_ready: called between the start and the gate.
        address: asked after the start for the URL that is to be judged; None: the service's own.
    """
    seen = StartResult()
    boot: Boot | None = None
    try:
        seen.started = runner.start(fresh=fresh)
        listener.note(f"started {runner.kind} {seen.started.id[:12]}")
        if address is not None:
            service = replace(service, base_url=address())
        boot = Boot(runner, seen.started, service.base_url, listener.phase, logs_requests=service.logs_requests)
        seen.ready_seconds = round(boot.wait_ready(timeout), 1)
        on_ready()
        _gate(service, boot, listener, seen)
    except DeployError as error:
        seen.error = error
    if boot is not None:
        seen.facts, seen.findings = boot.reader.facts, tuple(boot.reader.findings)
        seen.log, seen.phases = boot.log, boot.phases
    return seen


def _gate(service: Endpoint, boot: Boot, listener: Listener, seen: StartResult) -> None:
    proof = boot.prove_identity()
    listener.check_done(proof)
    seen.results = (proof,)
    report = asyncio.run(
        run_suite(_target(service), suite=Suite.GATE, on_start=listener.check_started, on_result=listener.check_done)
    )
    seen.results, seen.gate_seconds = (proof, *report.results), round(report.seconds, 1)
    boot.check()
    require_pass(seen.results)


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


def _target(service: Endpoint) -> ProbeTarget:
    """No start time is given: prove_identity() has tied the address to this start by something better than clocks."""
    return ProbeTarget(
        base_url=service.base_url,
        model=service.model,
        max_model_len=service.max_model_len,
        api_key=SecretStr(read_key(Path(service.api_key_file))) if service.api_key_file else None,
    )


def stop(runner: Runner, listener: Listener) -> None:
    """What failed must not serve; where it cannot be stopped that is said, and the work goes on."""
    try:
        runner.stop()
    except DeployError as error:
        listener.note(f"could not stop it: {error.message}")
