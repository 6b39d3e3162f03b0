"""The memory breaker: warn, then stop the engine in order, before the kernel runs out of memory.

Where CPU and GPU share one memory, an engine that takes the last page takes the host with it: it freezes, or resets
(vllm-project/vllm#46307, NVIDIA/dgx-spark-playbooks#97). The floor is the planner's: `host_reserve_gib`.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from docker.errors import DockerException
from prometheus_client import CollectorRegistry, Counter, Gauge

from glm4_deploy.deploy.candidates import recorded_engine
from glm4_deploy.deploy.docker import connect
from glm4_deploy.deploy.processes import descendants
from glm4_deploy.deploy.state import MemoryStop, Record, save_stop
from glm4_deploy.errors import DeployError
from glm4_deploy.files import write_text
from glm4_deploy.host.memory import MemoryFacts, Pressure, largest_users, read_memory

GIB = 2**30
LOOK_S = 0.5  # between two looks: an engine that starts can take several GiB per second
CONFIRM = 2  # consecutive looks
AGAIN_S = 5.0  # after a stop that failed
STOP_S = 10  # for SIGTERM; then SIGKILL
TAIL_LINES, KEPT_LOGS = 5000, 10
# Of the floor: below it, stop. Hosts froze with about 7 GiB available (vllm-project/vllm#46307) while they lost GiBs
# per second; at rest they work with less.
CRITICAL = 0.5
CALM = 1.1  # of the floor: above it, all is well again
STALLED = 20.0  # percent of 10 s in which every task waited for memory: below the floor that is an emergency too
GROUP_FLOOR = 0.1  # of a cgroup's limit, where that is less than the floor of the host


class MemoryState(StrEnum):
    """FINE, LOW (below the floor: a warning), CRITICAL (below half of it, or stalling: stop)."""

    UNKNOWN = "unknown"
    FINE = "fine"
    LOW = "low"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRoom:
    """Memory that is left in one place, in bytes. group: '' for the host as a whole."""

    group: str
    left: int
    total: int
    floor: float
    pressure: Pressure | None

    @property
    def state(self) -> MemoryState:
        stalls = self.pressure is not None and self.pressure.full >= STALLED
        if self.left < CRITICAL * self.floor or (self.left < self.floor and stalls):
            return MemoryState.CRITICAL
        return MemoryState.LOW if self.left < self.floor else MemoryState.FINE

    def __str__(self) -> str:
        where = f"in the cgroup {self.group}" if self.group else "on this host"
        stalls = "" if self.pressure is None else f"; all tasks waited {self.pressure.full:.0f} % of the last 10 s"
        left, total = _size(self.left), _size(self.total)
        return f"{left} of {total} available {where}, {_size(self.floor)} are to stay{stalls}"


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def rooms(facts: MemoryFacts, floor: float) -> Iterator[MemoryRoom]:
    """The host, and each limited cgroup that the engine is in. floor: bytes that are to stay available."""
    if facts.available is not None and facts.total is not None:
        yield MemoryRoom(group="", left=facts.available, total=facts.total, floor=floor, pressure=facts.pressure)
    for group in facts.groups:
        least = min(floor, GROUP_FLOOR * group.limit)
        yield MemoryRoom(group=group.path, left=group.left, total=group.limit, floor=least, pressure=group.pressure)


class Breaker:
    """Decides from one look after the other. Pure."""

    def __init__(self, floor_gib: float) -> None:
        self.floor = floor_gib * GIB
        self.state = MemoryState.UNKNOWN
        self.room: MemoryRoom | None = None  # the tightest one
        self._critical = 0

    def look(self, facts: MemoryFacts) -> bool:
        """Take one look. Returns whether to stop the engine."""
        found = sorted(rooms(facts, self.floor), key=lambda room: room.left / max(room.floor, 1.0))
        self.room = found[0] if found else None
        state = self.room.state if self.room else MemoryState.UNKNOWN
        self._critical = self._critical + 1 if state is MemoryState.CRITICAL else 0
        if state is MemoryState.CRITICAL and self._critical < CONFIRM:
            state = max(self.state, MemoryState.LOW, key=list(MemoryState).index)
        warned = self.state in (MemoryState.LOW, MemoryState.CRITICAL)
        if state is MemoryState.FINE and warned and self.room and self.room.left < CALM * self.room.floor:
            state = MemoryState.LOW
        self.state = state
        return self._critical >= CONFIRM


def remedy(room: MemoryRoom, engine: frozenset[int]) -> str:
    """What to change, with the largest other processes by name. engine: the pids of the engine."""
    others = ", ".join(str(one) for one in largest_users(3, without=engine) if one.used >= GIB // 4)
    stop = f"stop what else uses memory: {others}" if others else "no other process holds much main memory"
    if room.group:
        return f"{stop}; or raise the limit of the cgroup (mem_limit); then: glm4-deploy up"
    share = max(0.01, (room.floor - room.left) / room.total)
    return (
        f"{stop}; or give the engine less: gpu_memory_utilization lower by {share:.2f}, or kv_cache_memory_bytes "
        "(glm4-deploy plan); then: glm4-deploy up"
    )


# What may be stopped.


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """An engine that runs. log: the end of its log, also after its end."""

    name: str
    pid: int
    stop: Callable[[], None]
    log: Callable[[], Iterable[str]]


class Engines(Protocol):
    """Looked up anew each time. Raises DeployError where that is not possible."""

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
                found.append(RunningEngine(name=name or state.detail, pid=state.pid, stop=one.stop, log=lines))
        return tuple(found)


class NamedContainer:
    """One container by its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def running(self) -> tuple[RunningEngine, ...]:
        with _docker():
            state = connect().containers.get(self._name).attrs["State"]
        return (_container(self._name, int(state["Pid"])),) if state["RunningEngine"] else ()


def _container(name: str, pid: int) -> RunningEngine:
    def stop() -> None:
        with _docker():
            connect(timeout=STOP_S + 30).containers.get(name).stop(timeout=STOP_S)

    def log() -> Iterable[str]:
        with _docker():
            tail = connect().containers.get(name).logs(tail=TAIL_LINES, timestamps=True)
        return tail.decode("utf-8", errors="replace").splitlines()

    return RunningEngine(name=name, pid=pid, stop=stop, log=log)


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
    """Looks twice a second, warns, and stops the engine.

    Attributes:
        engines: what may be stopped; None: only warn.
        directory: where the log and the reason are kept.
    """

    breaker: Breaker
    metrics: MemoryMetrics
    emit: Callable[..., None]
    engines: Engines | None
    may_stop: bool
    directory: Path
    _seen: tuple[RunningEngine, ...] = ()
    _looked_up: float = float("-inf")
    _wait_until: float = 0.0

    async def run(self) -> None:
        """Forever."""
        while True:
            await self._look()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        now, before = time.monotonic(), self.breaker.state
        if self.engines is not None and now - self._looked_up > 10:
            self._looked_up = now
            with suppress(DeployError):
                self._seen = await asyncio.to_thread(self.engines.running)
        facts = _of_all(self._seen)
        stop = self.breaker.look(facts)
        self.metrics.publish(self.breaker, facts)
        if self.breaker.state is not before and (before, self.breaker.state) != (MemoryState.UNKNOWN, MemoryState.FINE):
            self._warn(before)
        if stop and self.may_stop and self.engines is not None and now >= self._wait_until:
            await self._stop(self.engines, now)

    def _warn(self, before: MemoryState) -> None:
        room, state = self.breaker.room, self.breaker.state
        own = frozenset(pid for one in self._seen for pid in descendants(one.pid))
        hint = remedy(room, own) if room and state in (MemoryState.LOW, MemoryState.CRITICAL) else ""
        why = str(room) if room else "the kernel's figures cannot be read"
        self.emit("memory", state=state.value, was=before.value, why=why, hint=hint)

    async def _stop(self, engines: Engines, began: float) -> None:
        """Stop one engine after the other, until memory is back."""
        try:
            for one in await asyncio.to_thread(engines.running):
                room = self.breaker.room
                if room is None or room.state is not MemoryState.CRITICAL:
                    break
                await self._stop_one(one, room, began)
                self.breaker.look(_of_all(()))
            self._seen, self._looked_up = (), float("-inf")
        except DeployError as error:
            self.emit("memory-stop-failed", why=error.message)
        self._wait_until = time.monotonic() + AGAIN_S

    async def _stop_one(self, one: RunningEngine, room: MemoryRoom, began: float) -> None:
        self.emit("memory-stopping", engine=one.name, why=str(room))
        hint = remedy(room, frozenset(descendants(one.pid)))
        await asyncio.to_thread(one.stop)
        self.metrics.stops.inc()
        stop = MemoryStop(at=time.time(), what=(one.name,), why=f"memory ran out: {room}", remedy=hint, log="")
        try:
            log = await asyncio.to_thread(self._keep_log, one, stop)
            stop = replace(stop, log=str(log))
            save_stop(stop, self.directory)
        except DeployError as error:  # the engine is stopped, which matters more
            self.emit("memory-stop-unrecorded", why=error.message)
        seconds = round(time.monotonic() - began, 1)
        self.emit("memory-stopped", engine=one.name, why=stop.why, hint=hint, log=stop.log, seconds=seconds)

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


def _of_all(engines: tuple[RunningEngine, ...]) -> MemoryFacts:
    """One look at the host, with the cgroups of each engine."""
    seen = [read_memory(one.pid) for one in engines] or [read_memory()]
    groups = {group.path: group for facts in seen for group in facts.groups}
    return replace(seen[0], groups=tuple(groups.values()))
