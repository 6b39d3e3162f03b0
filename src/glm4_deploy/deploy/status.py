"""What runs now: the container or process, /health, the served model, the guard, memory, and the engine's log."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import httpx

from glm4_deploy.deploy.boot import end_of_engine
from glm4_deploy.deploy.compose_cli import made_from
from glm4_deploy.deploy.core_check import CoreAnswer, ask_core
from glm4_deploy.deploy.endpoint import Endpoint
from glm4_deploy.deploy.engines import Engine, RunState
from glm4_deploy.deploy.guarded import GuardStatus, read_guard
from glm4_deploy.deploy.keys import secret_key
from glm4_deploy.deploy.replicas import RouterClient, address_of
from glm4_deploy.deploy.state import (
    LastCanary,
    MemoryStop,
    Record,
    describe_journal,
    load_canary,
    load_stop,
)
from glm4_deploy.errors import DeployError, Unreachable
from glm4_deploy.files import read_text
from glm4_deploy.host.gpu_health import GpuHealth, read_gpu_health
from glm4_deploy.host.memory import MemoryFacts, read_memory
from glm4_deploy.host.system import gather
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.logs.reader import LogReader
from glm4_deploy.probe.endpoints import ask_models, read_health
from glm4_deploy.report_model import Report, make_report
from glm4_deploy.result import Result, Status, fail, ok, warn

GIB = 2**30
GPU_S = 5.0  # for NVML, and nvidia-smi after it: a wedged driver never answers
LAST_LINES = 2000  # a death under 64 concurrent requests writes about a thousand


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One of several engines behind a router."""

    service: str
    running: bool
    detail: str
    health: str | None
    restarts: int
    routed: bool | None
    """Whether the router sends it requests; None: the router does not answer."""
    core: CoreAnswer | None = None
    """What became of a request for one token, sent to it alone; None: not asked."""
    stopped: MemoryStop | None = None
    """That the watch stopped it, because memory was running out."""

    @property
    def why(self) -> str:
        """What keeps it from serving; '' if nothing does."""
        if not self.running:
            stopped = f"; stopped by the watch: {self.stopped.why}" if self.stopped else ""
            return f"{self.service}: {self.detail}{stopped}"
        if self.routed is None:
            return "the router does not answer"
        if self.core and not self.core.good:
            return f"{self.service}: {self.core.detail}"
        return "" if self.routed else f"{self.service}: the router sends it no requests"

    @property
    def summary(self) -> str:
        routing = {
            True: "the router sends it requests",
            False: "left out by the router",
            None: "the router does not answer",
        }
        health = self.health or "no health check"
        core = f"; {self.core.detail}" if self.core else ""
        return f"{self.detail}, {health}, restarted {self.restarts} times; {routing[self.routed]}{core}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """One look at the deployment on record: what runs now, and what it answers."""

    record: Record
    state: RunState
    health: int | None
    """HTTP status of /health; None: no answer."""
    models: tuple[str, ...] | None
    """Served names from /v1/models; None: no answer."""
    models_error: str
    """What /v1/models answered instead of a list; '' for nothing."""
    replicas: tuple[ReplicaStatus, ...]
    engine: EngineFacts
    """From its log."""
    deployment: str
    """One sentence about an `up` or `rollback` that is at work or was cut off; '' for none."""
    unjudged: bool
    """Whether that left what runs unjudged."""
    ended: Result | None = None
    """Why the engine ended last, as its log says, if it is down or has been restarted."""
    stopped: MemoryStop | None = None
    """That the watch stopped it, because memory was running out."""
    core: CoreAnswer | None = None
    """What became of a request for one token; None: not asked, because what comes before it fails."""
    memory: MemoryFacts = field(default_factory=MemoryFacts)
    """Of the host, and of the engine's cgroup."""
    canary: LastCanary | None = None
    """What the watch on this host asked last."""
    made_from: Mapping[str, Any] = field(default_factory=dict)
    """What the Compose files on record say that they were made from."""
    guard: GuardStatus | None = None
    """What stands between the gateway and the engine; None: nothing does, or the engine does not run."""
    gpus: tuple[GpuHealth, ...] | None = ()
    """Of this host; () where there is neither NVML nor nvidia-smi; None: the driver did not answer within GPU_S."""

    @property
    def up(self) -> bool:
        return not self.why

    @property
    def why(self) -> str:
        """What keeps it from being up; '' if nothing does."""
        failures = [row.observed for row in self.results if not row.status.passed]
        if self.unjudged:
            return f"{failures[-1]} ({failures[0]})" if failures[1:] else failures[0]
        return failures[0] if failures else ""

    @property
    def results(self) -> tuple[Result, ...]:
        """One row per condition; the first that does not pass is `why`. A deployment never judged is not up."""
        return tuple(self._rows())

    def _rows(self) -> Iterator[Result]:
        ended = f"; its last end: {self.ended.observed}" if self.ended else ""
        if self.stopped:
            ended = f"; stopped by the watch: {self.stopped.why}"
        down = f"{self.state.detail}{self._restarts}{ended}"
        running = self.state.detail if self.state.running else down
        yield _row("running", self.state.running, running, "the engine runs", "glm4-deploy diagnose; glm4-deploy up")
        # Before /health: the router's fails too where one engine is out, and says less.
        for one in self.replicas:
            expected, remedy = "running, and the router uses it", "glm4-deploy logs --tail all"
            yield _row(f"replica/{one.service}", not one.why, one.why or one.summary, expected, remedy)
        if self.state.running:
            yield from self._answers()
            if self.guard:
                yield self.guard.result(self.record.endpoint.project)
        if self.gpus is None:
            yield warn(f"the GPU's driver gave no answer within {GPU_S:g} s", check="gpu", remedy="glm4-deploy doctor")
        for gpu in self.gpus or ():
            if troubles := gpu.troubles():
                seen = f"GPU {gpu.index}: {'; '.join(troubles)}"
                yield warn(seen, check="gpu", remedy="glm4-deploy doctor")
        if self.deployment:
            yield _row("deployment", not self.unjudged, self.deployment, "")

    def _answers(self) -> Iterator[Result]:
        """What a running engine answers."""
        endpoint, diagnose = self.record.endpoint, "glm4-deploy diagnose"
        address, phase = endpoint.base_url, f"(phase {self.engine.phase})"
        health = f"{address}/health answers {self.health}" if self.health else f"no answer at {address}/health {phase}"
        if self.health == httpx.codes.SERVICE_UNAVAILABLE and not self.replicas:
            health += ", as vLLM does once its engine has died"
        yield _row("health", self.health == httpx.codes.OK, health, "HTTP 200", diagnose)
        models = f"{address} serves {', '.join(self.models)}, not {endpoint.model}" if self.models else ""
        error = f"{address}/v1/models answers: {self.models_error}" if self.models_error else ""
        models = models or error or f"no answer at {address}/v1/models {phase}"
        served = self.models is not None and endpoint.model in self.models
        yield _row("model", served, endpoint.model if served else models, endpoint.model, diagnose)
        if self.core:
            yield _row("core", self.core.good, f"the engine's core: {self.core.detail}", "one token", diagnose)
        unhealthy = self.state.health == "unhealthy"
        container = "its health check fails" if unhealthy else self.state.health or "no health check"
        yield _row("container-health", not unhealthy, container, "", diagnose)

    @property
    def _restarts(self) -> str:
        times = f", restarted {self.state.restarts} times" if self.state.restarts else ""
        return f"{times}, given up" if self.state.gave_up else times

    @property
    def _memory(self) -> str:
        facts, reserve = self.memory, self.record.endpoint.host_reserve_gib
        if facts.available is None or facts.total is None:
            return "unknown"
        seen = f"{facts.available / GIB:.1f} of {facts.total / GIB:.1f} GiB available on this host"
        stay = f", {reserve:g} are to stay" if reserve is not None else ""
        waits = f"; all tasks waited {facts.pressure.full:.0f} % of the last 10 s" if facts.pressure else ""
        groups = "".join(
            f"; {one.used / GIB:.1f} of {one.limit / GIB:.1f} GiB of its cgroup" for one in facts.groups[:1]
        )
        return seen + stay + waits + groups

    @property
    def started(self) -> str | None:
        """UTC, for people."""
        started = self.state.started
        return datetime.fromtimestamp(started.started_at, UTC).isoformat(timespec="seconds") if started else None

    @property
    def hints(self) -> tuple[str, ...]:
        """What to do while it is not up, most specific first."""
        guard = self.guard and self.guard.result(self.record.endpoint.project)
        first = (f"the guard: {guard.remedy}",) if guard and not guard.status.passed else ()
        return (*first, "start it: glm4-deploy up", "see why: glm4-deploy diagnose")

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and value, for people: at most ten, and one for each fault and each replica."""
        yield "up", "yes" if self.up else f"no: {self.why}"
        yield from self._faults()
        since = f", since {self.started}" if self.started else ""
        yield "engine", f"{self.state.detail}{since}, restarted {self.state.restarts} times"
        for one in self.replicas:
            yield one.service[-17:], one.summary
        health = f"{self.state.health or 'no health check'}; /health answers {self.health or 'nothing'}"
        core = f"; core: {self.core.detail}" if self.core else ""
        yield "health", health + core if self.started else "-"
        models = ", ".join(self.models) if self.models else "no answer"
        yield "serves", f"{models} at {self.record.endpoint.base_url}/v1"
        if self.guard:
            yield "guard", self.guard.summary
        yield "memory", self._memory
        if self.gpus:
            yield "GPU", "; ".join(_gpu(one) for one in self.gpus)
        if self.canary:
            yield "last canary", str(self.canary)
        made = f", made from settings {self.made_from.get('settings')} by glm4-deploy {self.made_from.get('kit')}"
        gate = f", last gate: {self.record.verdict}"
        yield "release", f"{self.record.release or '-'}{gate}{made if self.made_from else ''}"
        facts = self.engine
        cache = f"KV cache {facts.kv_cache_tokens or 'unknown'} tokens, {facts.kv_cache_dtype or 'type unknown'}"
        yield "vLLM", f"{facts.version or 'unknown'}, {facts.kernel_path}, {cache}"

    def _faults(self) -> Iterator[tuple[str, str]]:
        """Each thing that is wrong, and what to do. `up` names the first; the replicas have rows of their own."""
        # Of several engines that are down for it the note has one reason: that of the last one.
        for stopped in dict.fromkeys(filter(None, (self.stopped, *(one.stopped for one in self.replicas)))):
            yield "stopped", f"{stopped.remedy}; its log: {stopped.log or 'not kept'}"
        if self.ended:
            yield "last end", f"{self.ended.observed}; {self.ended.remedy}"
        if self.state.cache_doubt:
            yield "cache", self.state.cache_doubt
        if self.deployment:
            yield "deployment", self.deployment
        told = {"running", "deployment", *(f"replica/{one.service}" for one in self.replicas)}
        if self.models is None and not self.models_error and self.health != httpx.codes.OK:
            told.add("model")  # it says no more than the row of /health
        for row in self.results:
            if row.check not in told and row.status is not Status.OK and row.observed not in self.why:
                yield "fault", f"{row.observed}: {row.remedy}"

    def report(self) -> Report:
        """The keys that every `--json` begins with."""
        return make_report("status", self.results)

    def wire(self) -> dict[str, Any]:
        """What scripts ask for most, then the record and the state."""
        front = {"up": self.up, "why": self.why, "runner": self.record.endpoint.runner}
        front |= {"release": self.record.release, "last_verdict": self.record.verdict}
        return front | {one.name: getattr(self, one.name) for one in fields(self)}


def _row(check: str, good: bool, observed: str, expected: str, remedy: str = "") -> Result:
    return (ok if good else fail)(observed, expected, check=check, remedy="" if good else remedy)


def _gpu(gpu: GpuHealth) -> str:
    """What it does; what is wrong with it is a fault, in its own row."""
    figures = ((gpu.utilization, "% busy"), (gpu.power_w, "W"), (gpu.sm_clock_mhz, "MHz"))
    return f"{gpu.index}: " + (", ".join(f"{value:.0f} {unit}" for value, unit in figures if value is not None) or "-")


def read_status(record: Record, engine: Engine, directory: Path) -> StatusReport:
    """Look once; starts and changes nothing."""
    state = engine.state()
    reader = LogReader()
    if state.started is not None:
        first = next(iter(engine.replicas.values()), engine)
        for line in log_tail(first, None, follow=False):
            reader.feed(line)
    deployment, unjudged = describe_journal(directory)
    health = read_health(record.endpoint.base_url) if state.running else None
    models, models_error = _models(record.endpoint) if state.running else (None, "")
    served = health == httpx.codes.OK and models is not None and record.endpoint.model in models
    return StatusReport(
        record=record,
        state=state,
        health=health,
        models=models,
        models_error=models_error,
        replicas=tuple(_replicas(record, engine, directory)),
        engine=reader.facts,
        deployment=deployment,
        unjudged=unjudged,
        ended=_last_end(engine, state),
        stopped=_memory_stop(record, state, directory),
        # The router's counters are those of one engine, not of that which got the request: each is asked by itself.
        core=_core(record.endpoint, "") if served and not engine.replicas else None,
        memory=read_memory(state.pid),
        canary=load_canary(directory),
        made_from=_made_from(record),
        guard=read_guard(record) if state.running and record.endpoint.in_container else None,
        gpus=gather({"gpus": read_gpu_health}, timeout=GPU_S).get("gpus"),
    )


def _core(endpoint: Endpoint, address: str) -> CoreAnswer:
    """address: '' for the deployment's own."""
    key = secret_key(endpoint.api_key_file)
    return ask_core(address or endpoint.base_url, endpoint.model, key.get_secret_value() if key else None)


def _core_of(endpoint: Endpoint, engine: Engine) -> CoreAnswer | None:
    """Of one of several; None where this host does not reach it."""
    with suppress(DeployError):
        return _core(endpoint, engine.address())
    return None


def _memory_stop(record: Record, state: RunState, directory: Path, *, of: str = "") -> MemoryStop | None:
    started = state.started or record.started
    return load_stop(directory, since=started.started_at, of=of) if started and not state.running else None


def _last_end(engine: Engine, state: RunState) -> Result | None:
    """From the end of the log over all its starts: the last one may have said only that it waits, or gave up."""
    if state.started is None or engine.replicas or (state.running and not state.restarts):
        return None
    return end_of_engine(deque(engine.lines(0, follow=False), maxlen=LAST_LINES))


def _made_from(record: Record) -> dict[str, Any]:
    texts = []
    for file in map(Path, record.files):
        with suppress(DeployError):
            if file.is_file():  # a pipe would keep us waiting
                texts.append(read_text(file))
    return made_from(texts)


def _replicas(record: Record, engine: Engine, directory: Path) -> Iterator[ReplicaStatus]:
    if not engine.replicas:
        return
    endpoint = record.endpoint
    try:
        routed = RouterClient(base_url=endpoint.base_url).workers()
    except Unreachable:
        routed = None
    states = {name: one.state() for name, one in engine.replicas.items()}
    with ThreadPoolExecutor() as pool:  # each may take all of its patience
        cores = {
            name: pool.submit(_core_of, endpoint, one) for name, one in engine.replicas.items() if states[name].running
        }
    for name, state in states.items():
        yield ReplicaStatus(
            service=name,
            running=state.running,
            detail=state.detail,
            health=state.health,
            restarts=state.restarts,
            routed=None if routed is None else routed.get(address_of(name), False),
            core=cores[name].result() if name in cores else None,
            stopped=_memory_stop(record, state, directory, of=state.container) if state.container else None,
        )


def log_tail(engine: Engine, count: int | None, *, follow: bool) -> Iterator[str]:
    """The last `count` lines (None: all) of the current start, and with `follow` those that come after.

    Of several engines, the last lines of each: one log after the other, the router's last.
    """
    state = engine.state()
    if state.started is None:
        return iter(())
    lines = engine.lines(state.started.started_at, follow=follow)
    if follow or count is None:
        return lines
    if engine.replicas:
        services = groupby(lines, key=lambda line: line.partition(" | ")[0])
        return chain.from_iterable(deque(of_one, maxlen=count) for _, of_one in services)
    return iter(deque(lines, maxlen=count))


def _models(endpoint: Endpoint) -> tuple[tuple[str, ...] | None, str]:
    """The served names, and what the server answered if it did not list any."""
    key = secret_key(endpoint.api_key_file)
    return ask_models(endpoint.base_url, key=key.get_secret_value() if key else None)
