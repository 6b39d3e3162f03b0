"""The memory breaker: warn, then stop the engine in order, before the kernel runs out of memory.

Where CPU and GPU share one memory, an engine that takes the last page takes the host with it: it freezes, or resets
(vllm-project/vllm#46307, NVIDIA/dgx-spark-playbooks#97). The floor is the planner's: `host_reserve_gib`.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from docker.errors import DockerException
from prometheus_client import CollectorRegistry, Counter, Gauge

from glm4_deploy.deploy.candidates import recorded_engine
from glm4_deploy.deploy.docker import connect
from glm4_deploy.deploy.processes import alive, descendants, start_ticks
from glm4_deploy.deploy.state import STOP_FILE, MemoryStop, Record, load_stop, save_stop
from glm4_deploy.errors import DeployError
from glm4_deploy.files import write_text
from glm4_deploy.host.memory import MemoryFacts, read_memory
from glm4_deploy.text import one_line
from glm4_deploy.watch.breaker import Breaker, MemoryRoom, MemoryState, remedy

LOOK_S = 0.5  # between two looks: an engine that starts can take several GiB per second
LIST_S = 10.0  # between two questions about which engines run
STOP_S = 10  # for SIGTERM; then SIGKILL
RECORD_S = 2.0  # for the note of a stop: a disk that hangs must not delay the stop
UNDONE_S = 60.0  # after a stop that failed: Docker may still end it, so the note stays for that long
TAIL_LINES, KEPT_LOGS = 5000, 10


# What may be stopped.


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """An engine that runs. pid: 0 if it is not known. log: the end of its log, also after its end."""

    name: str
    pid: int
    stop: Callable[[], None]
    log: Callable[[], Iterable[str]]
    ticks: str = "0"  # the start of that process; "0" if this user cannot see it

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended since."""
        return self.ticks != "0" and not alive(f"{self.pid}:{self.ticks}")


class Engines(Protocol):
    """Looked up each time. Raises DeployError where that is not possible."""

    def running(self) -> tuple[RunningEngine, ...]: ...


class RecordedEngines:
    """What `up` started from a state directory: one engine, or several behind a router."""

    def __init__(self, record: Record, directory: Path) -> None:
        self._engine = recorded_engine(record, directory)

    def running(self) -> tuple[RunningEngine, ...]:
        found = []
        for name, one in (self._engine.replicas or {"": self._engine}).items():
            state = one.state()
            if not state.running:
                continue
            if state.container:
                found.append(_container(state.container, state.pid))
            else:
                lines = lambda one=one: deque(one.lines(0, follow=False), maxlen=TAIL_LINES)  # noqa: E731
                found.append(_running(name or state.detail, state.pid, one.stop, lines))
        return tuple(found)


class NamedContainer:
    """One container by its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def running(self) -> tuple[RunningEngine, ...]:
        with _docker():
            state = connect().containers.get(self._name).attrs["State"]
        return (_container(self._name, int(state.get("Pid") or 0)),) if state.get("Running") else ()


def _running(name: str, pid: int, stop: Callable[[], None], log: Callable[[], Iterable[str]]) -> RunningEngine:
    return RunningEngine(name=name, pid=pid, stop=stop, log=log, ticks=start_ticks(pid) if pid else "0")


def _container(name: str, pid: int) -> RunningEngine:
    def stop() -> None:
        with _docker():
            connect(timeout=STOP_S + 30).containers.get(name).stop(timeout=STOP_S)

    def log() -> Iterable[str]:
        with _docker():
            tail = connect().containers.get(name).logs(tail=TAIL_LINES, timestamps=True)
        return tail.decode("utf-8", errors="replace").splitlines()

    return _running(name, pid, stop, log)


class _docker:  # noqa: N801 (a context manager)
    """Turn what Docker's client raises into a DeployError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DockerException | OSError):
            raise DeployError(f"the Docker engine does not answer: {str(error)[:200]}") from error


# What is published.


class MemoryMetrics:
    """The breaker's series. A figure that cannot be read has no series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"glm4_watch_memory_{name}", text, labels, registry=registry)

        self._registry = registry
        self.state = gauge("state", "1 for the state of the memory, 0 for the others", "state")
        self.floor = gauge("floor_bytes", "Memory that is to stay available (host_reserve_gib)")
        self.stops = Counter("glm4_watch_memory_stops", "Engines stopped because memory ran out", registry=registry)
        self._figures: dict[str, Gauge] = {}
        self._made = gauge

    def publish(self, breaker: Breaker, facts: MemoryFacts) -> None:
        for state in MemoryState:
            self.state.labels(state.value).set(state is breaker.state)
        self.floor.set(breaker.floor)
        self._figure("available_bytes", "MemAvailable of the host", facts.available)
        self._figure("total_bytes", "MemTotal of the host", facts.total)
        if facts.pressure is not None:
            text = "Percent of the last 10 s in which all tasks waited for memory (PSI, full avg10)"
            self._figure("pressure_full_percent", text, facts.pressure.full)
        if facts.groups:
            inner = facts.groups[0]
            self._figure("cgroup_used_bytes", "Memory of the engine's cgroup, without inactive page cache", inner.used)
            self._figure("cgroup_limit_bytes", "Limit of the engine's cgroup", inner.limit)
            self._figure("cgroup_oom_kills", "Processes that the kernel killed in it", inner.oom_kills)

    def _figure(self, name: str, text: str, value: float | None) -> None:
        if value is None:
            return
        if name not in self._figures:
            self._figures[name] = self._made(name, text)
        self._figures[name].set(value)


# The loop.


@dataclass(slots=True, kw_only=True)
class Defence:
    """Looks twice a second, warns, and stops the engine. Nothing that Docker does delays a look.

    Attributes:
        engines: what may be stopped; None: only the host's memory is watched.
        directory: where the log and the reason are kept.
    """

    breaker: Breaker
    metrics: MemoryMetrics
    emit: Callable[..., None]
    engines: Engines | None
    may_stop: bool
    directory: Path
    _seen: tuple[RunningEngine, ...] = ()
    _stopping: asyncio.Task[None] | None = None
    _said: dict[str, str] = field(default_factory=dict)  # event → what it said last
    _undone: "_Undone | None" = None
    _warned: bool = False  # whether anything was said of it

    async def run(self) -> None:
        """Forever."""
        listing = asyncio.create_task(self._list(self.engines)) if self.engines else None
        try:
            while True:
                try:
                    self._look()
                except Exception as error:  # noqa: BLE001 (no figure may end the watch)
                    self._say("memory-look-failed", error)
                await asyncio.sleep(LOOK_S)
        finally:
            for task in filter(None, (listing, self._stopping)):
                task.cancel()

    async def _list(self, engines: Engines) -> None:
        """Keep the list of what runs, forever; one that cannot be had leaves the last one."""
        while True:
            try:
                self._seen = await asyncio.to_thread(engines.running)
                self._said.pop("memory-engines-unknown", None)
                await asyncio.to_thread(self._withdraw)
            except Exception as error:  # noqa: BLE001 (no answer of Docker may end the watch)
                if self.may_stop:
                    self._say("memory-engines-unknown", error)
            await asyncio.sleep(LIST_S)

    def _say(self, event: str, error: Exception) -> None:
        """Once, until it is another error."""
        kind = "" if isinstance(error, DeployError) else f"{type(error).__name__}: "
        why = kind + one_line(str(error), 400)
        if self._said.get(event) != why:
            self.emit(event, why=why)
        self._said[event] = why

    def _look(self) -> None:
        now, before = time.monotonic(), self.breaker.state
        facts = _of_all(self._seen)
        stop = self.breaker.look(facts, now)
        self.metrics.publish(self.breaker, facts)
        first_look = not self._warned and (before, self.breaker.state) == (MemoryState.UNKNOWN, MemoryState.FINE)
        if self.breaker.state is not before and not first_look:  # that all is well at the start is not news
            self._warn(before)
        busy = self._stopping is not None and not self._stopping.done()
        if busy:
            return
        if not stop:
            self._said.pop("memory-stop-failed", None)
        elif self.may_stop and self.engines and self.breaker.room:
            self._stopping = asyncio.create_task(self._stop(self.engines, self.breaker.room, now))

    def _warn(self, before: MemoryState) -> None:
        self._warned = True
        room, state = self.breaker.room, self.breaker.state
        hint = remedy(room, _pids(self._seen)) if room and state in (MemoryState.LOW, MemoryState.CRITICAL) else ""
        why = str(room) if room else "the kernel's figures cannot be read"
        self.emit("memory", state=state.value, was=before.value, why=why, hint=hint)

    async def _stop(self, engines: Engines, room: MemoryRoom, began: float) -> None:
        """Stop one engine. The list may be some seconds old; with none that lives, ask once more."""
        try:
            living = tuple(one for one in self._seen if not one.gone) or await asyncio.to_thread(engines.running)
        except Exception as error:  # noqa: BLE001 (the next look tries again)
            self._say("memory-stop-failed", error)
            return
        for one in living:
            try:
                await self._stop_one(one, room, began)
            except Exception as error:  # noqa: BLE001 (the next look tries again)
                self._say("memory-stop-failed", error)
            else:
                self._said.pop("memory-stop-failed", None)
                self._seen = tuple(other for other in living if other is not one)
                self.breaker.stopped()
                return

    async def _stop_one(self, one: RunningEngine, room: MemoryRoom, began: float) -> None:
        """Note it first: `--restart` must never find an engine that is being stopped, and no reason."""
        if "memory-stop-failed" not in self._said:
            self._said.pop("memory-stop-unrecorded", None)
            self.emit("memory-stopping", engine=one.name, why=str(room))
        hint = remedy(room, _pids((one,)))
        former = self._undone.former if self._undone else load_stop(self.directory, since=0.0)
        runs = {other.name for other in self._seen if other.ticks != "0" and not other.gone}
        down = [name for name in (former.what if former else ()) if name not in {*runs, one.name}]
        stop = MemoryStop(at=time.time(), what=(*down, one.name), why=f"memory ran out: {room}", remedy=hint, log="")
        await self._record(stop)
        try:
            await asyncio.to_thread(one.stop)
        except Exception:
            self._undone = _Undone(engine=one, stop=stop, former=former, at=time.monotonic())
            raise
        self._undone = None
        self.metrics.stops.inc()
        try:
            stop = replace(stop, log=str(await asyncio.to_thread(self._keep_log, one, stop)))
        except Exception as error:  # noqa: BLE001 (the engine is stopped, which matters more)
            self._say("memory-stop-unrecorded", error)
        else:
            await self._record(stop)
        seconds = round(time.monotonic() - began, 1)
        self.emit("memory-stopped", engine=one.name, why=stop.why, hint=hint, log=stop.log, seconds=seconds)

    async def _record(self, stop: MemoryStop) -> None:
        """As far as the disk allows; whatever happens, the engine is to be stopped."""
        try:
            await asyncio.wait_for(asyncio.to_thread(save_stop, stop, self.directory), RECORD_S)
        except Exception as error:  # noqa: BLE001
            self._say("memory-stop-unrecorded", error)

    def _withdraw(self) -> None:
        """Take the note of a stop back that failed, once memory is back and the engine lives on."""
        undone = self._undone
        if undone is None or self.breaker.state is MemoryState.CRITICAL or time.monotonic() - undone.at < UNDONE_S:
            return
        self._undone = None
        if undone.engine.gone or load_stop(self.directory, since=0.0) != undone.stop:
            return
        if undone.former is not None:
            save_stop(undone.former, self.directory)
        else:
            (self.directory / STOP_FILE).unlink(missing_ok=True)

    def _keep_log(self, one: RunningEngine, stop: MemoryStop) -> Path:
        now = datetime.fromtimestamp(stop.at, UTC)
        folder = self.directory / "watch"
        path = folder / f"memory-{now:%Y%m%dT%H%M%SZ}.log"
        head: dict[str, Any] = {"stopped": now.isoformat(timespec="seconds"), "engine": one.name, "why": stop.why}
        lines = "\n".join(one.log())
        write_text(path, f"{json.dumps(head | {'hint': stop.remedy}, ensure_ascii=False)}\n{lines}\n", mode=0o600)
        for old in sorted(folder.glob("memory-*.log"))[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Undone:
    """A stop that was noted and failed. former: the note before it. at: monotonic seconds."""

    engine: RunningEngine
    stop: MemoryStop
    former: MemoryStop | None
    at: float


def _pids(engines: Iterable[RunningEngine]) -> frozenset[int]:
    return frozenset(pid for one in engines if one.pid for pid in descendants(one.pid))


def _of_all(engines: tuple[RunningEngine, ...]) -> MemoryFacts:
    """One look at the host, with the cgroups of each engine."""
    seen = [read_memory(one.pid) for one in engines] or [read_memory()]
    groups = {group.path: group for facts in seen for group in facts.groups}
    return replace(seen[0], groups=tuple(groups.values()))
