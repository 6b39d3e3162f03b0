"""Follow one start of an engine through its log, events and phases, end early on anything fatal, and prove that this
engine is the one that answers at the address."""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from glm4_deploy.deploy.endpoint import Started
from glm4_deploy.deploy.engines import Engine, RunState
from glm4_deploy.deploy.processes import descendants
from glm4_deploy.errors import EngineDied, EngineTimeout, WrongEngine
from glm4_deploy.logs.facts import EngineFacts, Phase
from glm4_deploy.logs.finding import LogFinding
from glm4_deploy.logs.line import parse_line
from glm4_deploy.logs.reader import LogReader
from glm4_deploy.probe.endpoints import read_metrics
from glm4_deploy.result import Result, Status, ok, unknown

DRAIN_SECONDS = 2.0
STATE_POLL_SECONDS = 3.0
HEALTH_POLL_SECONDS = 0.5
PROOF_SECONDS = 8.0
# The kernel counts a process's start from its boot time, which is off by seconds after the clock was stepped (common on
# virtual machines): good enough to recognize yesterday's server, not one of this minute.
CLOCK_TOLERANCE_SECONDS = 60.0
TAIL_LINES = 8
LINE_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class _Item:
    source: str
    text: str


class Boot:
    """One start of an engine, followed from its first line.

    Two daemon threads read the log and the events into a queue; everything else happens in the caller's thread.
    """

    def __init__(
        self,
        engine: Engine,
        started: Started,
        base_url: str,
        on_phase: Callable[[EngineFacts, float], None],
        *,
        logs_requests: bool = True,
    ) -> None:
        """
        Args:
            on_phase: called with the facts and the seconds since the start when the phase or its progress changes.
            logs_requests: whether the engine logs each request, as vLLM does by default.
        """
        self.reader = LogReader()
        self.log: list[str] = []
        self.phases: dict[str, float] = {}
        self._engine = engine
        self._started = started
        self._base_url = base_url
        self._on_phase = on_phase
        self._logs_requests = logs_requests
        self._items: queue.Queue[_Item] = queue.Queue(maxsize=100_000)
        self._shown: tuple[object, object] = (None, None)
        self._meter = Meter()
        self._read = ""
        self._out_of_memory = False
        self._begin = time.monotonic()
        self._nonce = secrets.token_hex(8)
        self._nonce_seen = False
        self._ready_at = 0  # lines of the log before it was ready
        self._restarts = engine.state().restarts
        self._follow("line", engine.lines(started.started_at))
        self._follow("event", engine.events())

    def _follow(self, source: str, items: Iterator[str]) -> None:
        def pump() -> None:
            with suppress(Exception):  # a broken stream ends; the state poll still sees what became of the engine
                for text in items:
                    self._items.put(_Item(source, text))
            self._items.put(_Item(f"{source}-end", ""))

        threading.Thread(target=pump, name=f"boot-{source}", daemon=True).start()

    def wait_ready(self, timeout: float) -> float:
        """Block until /health answers 200 while this very start runs; returns the seconds that took.

        Raises:
            EngineDied: it stopped, restarted, or logged an error that it cannot recover from.
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
                        self._ready_at = len(self.log)
                        return elapsed
                if elapsed > timeout:
                    raise EngineTimeout(
                        f"not ready after {timeout:.0f} s, in the phase `{self.reader.facts.phase}`",
                        details=self.reader.tail(TAIL_LINES),
                        hint=("see why with: glm4-deploy diagnose", "allow more with --timeout"),
                    )

    @property
    def _loading(self) -> bool:
        return self.reader.facts.phase in (Phase.STARTING, Phase.CONFIG, Phase.WEIGHTS)

    def prove_identity(self) -> Result:
        """Tie the address to this start: a one-time request must appear in this engine's log.

        A stale server on the same port could answer /health, but cannot write to the new engine's log.

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
        hint = "another server holds that address: find it with ss -ltnp, then stop it or choose another --port"
        if self._logs_requests:
            raise WrongEngine(
                f"{self._base_url} answers, but a request sent there never reached the engine just started",
                hint=hint,
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
        """Read what has been logged since, and make sure that the engine still runs.

        Raises:
            EngineDied
        """
        while self._pump(wait=0.0):
            pass
        self._check_alive()

    def autopsy(self) -> Result | None:
        """What the log says of the end of an engine that was ready; None if it says nothing."""
        self._drain()
        return end_of_engine(self.log[self._ready_at :])

    def _pump(self, *, wait: float) -> bool:
        """Process everything queued; True if the log or an event suggests that the engine has ended."""
        ended = False
        with suppress(queue.Empty):
            item = self._items.get(timeout=wait) if wait else self._items.get_nowait()
            while True:
                ended |= self._take(item)
                item = self._items.get_nowait()
        facts = self.reader.facts
        if facts.phase is Phase.WEIGHTS and self._read:
            facts = replace(facts, progress=", ".join(filter(None, (facts.progress, self._read))))
        progress = (facts.phase, facts.progress)
        if progress != self._shown:
            self._shown = progress
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
        """The state of this start, which must be running.

        Raises:
            EngineDied: it stopped or restarted, the kernel killed part of it, or its log shows a fatal error.
        """
        state = self._engine.state()
        same = state.started is not None and state.started.id == self._started.id
        fatal = self.reader.fatal is not None or self._out_of_memory
        if state.running and same and state.restarts == self._restarts and not fatal:
            return state
        self._drain()
        raise self._death(state)

    def _drain(self) -> None:
        """Give the log a moment: the root cause often follows a line or two after the first sign."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            self._pump(wait=0.1)

    def _death(self, state: RunState) -> EngineDied:
        state = state if not state.running else self._engine.state()
        cause = next(iter(serious(self.reader)), None)
        return died(
            replace(state, oom_killed=state.oom_killed or self._out_of_memory),
            phase=str(self.reader.facts.phase),
            cause=cause.cause if cause else "",
            fix=cause.fix if cause else "",
            tail=lines_that_matter(self.reader),
        )


def serious(reader: LogReader) -> tuple[LogFinding, ...]:
    """The findings that may have ended the engine, root cause first."""
    return tuple(finding for finding in reader.findings if finding.status is Status.FAIL)


def end_of_engine(lines: Iterable[str]) -> Result | None:
    """The finding that says most about why an engine ended, from its last lines; None if they have none."""
    reader = LogReader()
    for line in lines:
        reader.feed(line)
    cause = next((finding.result() for finding in serious(reader)), None)
    return replace(cause, observed=parse_line(cause.observed).text) if cause else None


def lines_that_matter(reader: LogReader) -> tuple[str, ...]:
    """The lines of the serious findings; if none is recognized, the end of the log."""
    known = [finding for finding in serious(reader) if finding.id != "unknown-error"]
    lines = [finding.line.strip()[:LINE_CHARACTERS] for finding in known[:TAIL_LINES]]
    return tuple(dict.fromkeys(lines)) or reader.tail(TAIL_LINES)


def _healthy(client: httpx.Client, base_url: str) -> bool:
    try:
        return client.get(f"{base_url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def died(state: RunState, *, phase: str, cause: str, fix: str, tail: tuple[str, ...]) -> EngineDied:
    """The error for an engine that has ended, whatever ran it."""
    how = "restarted by itself" if state.restarts else "stopped"
    if state.running and not state.restarts:
        how = "can no longer come up"
    code = f", exit code {state.exit_code}" if state.exit_code is not None else ""
    if state.oom_killed or state.exit_code == 137:
        killer = "by the kernel" if state.oom_killed else "from outside, most often by the kernel"
        cause = cause or f"killed {killer} because memory ran out"
        fix = fix or "leave the host more memory: lower --gpu-memory-utilization or --max-model-len"
    why = f": {cause}" if cause else ""
    return EngineDied(
        f"the engine {how} in the phase `{phase}`{code}{why}",
        details=tail,
        hint=fix or ("read the log: glm4-deploy logs", "find the cause: glm4-deploy diagnose"),
    )


# While weights load, the log is silent: show how much the engine has read from disk, as the kernel counts it.

GB = 1e9
SHOWN_FROM = 0.05  # GB; less than this is the interpreter's files


@dataclass(slots=True)
class Meter:
    """Bytes read by a process and its children since the first look, and the rate since the previous one."""

    _first: int | None = None
    _last: int = 0
    _at: float = 0.0

    def look(self, pid: int) -> str:
        """`3.1 GB read, 0.9 GB/s`, or '' where nothing was read or the kernel does not say (another user)."""
        now, total = time.monotonic(), read_bytes(pid)
        if total is None:
            return ""
        if self._first is None:
            self._first, self._last, self._at = total, total, now
            return ""
        rate = (total - self._last) / GB / max(now - self._at, 0.001)
        self._last, self._at = total, now
        read = (total - self._first) / GB
        if read < SHOWN_FROM:
            return ""
        return f"{read:.1f} GB read, {rate:.2f} GB/s" if rate >= 0.01 else f"{read:.1f} GB read, nothing now"


def read_bytes(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Bytes that a process and its descendants had read from disk (proc(5), io: read_bytes); None: unknown."""
    total, known = 0, False
    for member in descendants(pid, proc):
        try:
            fields = dict(line.split(": ") for line in (proc / str(member) / "io").read_text().splitlines())
            total, known = total + int(fields["read_bytes"]), True
        except (OSError, ValueError, KeyError):
            continue
    return total if known and pid else None
