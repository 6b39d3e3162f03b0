"""What runs now: the container or process, /health, the served model, the engine's log, and the log to diagnose."""

import time
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
from docker.errors import APIError, DockerException, NotFound

from glm4_deploy.catalog.rows import Role
from glm4_deploy.deploy.boot import end_of_engine
from glm4_deploy.deploy.caches import doubt
from glm4_deploy.deploy.candidates import recorded_engine
from glm4_deploy.deploy.compose_cli import made_from
from glm4_deploy.deploy.core_check import CoreAnswer, ask_core
from glm4_deploy.deploy.docker import ContainerState, connect, state_of
from glm4_deploy.deploy.endpoint import Endpoint
from glm4_deploy.deploy.engines import Engine, RunState
from glm4_deploy.deploy.keys import secret_key
from glm4_deploy.deploy.replicas import RouterClient, address_of
from glm4_deploy.deploy.state import (
    LastCanary,
    MemoryStop,
    Record,
    describe_journal,
    load_canary,
    load_record,
    load_stop,
)
from glm4_deploy.errors import ComposeMissing, DeployError, DockerMissing, Unreachable, UsageError
from glm4_deploy.files import read_text
from glm4_deploy.host.memory import MemoryFacts, read_memory
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.logs.finding import LogFinding
from glm4_deploy.logs.reader import LogReader
from glm4_deploy.logs.source import read_file, scan_log
from glm4_deploy.probe.endpoints import ask_models, read_health
from glm4_deploy.report_model import Report, make_report
from glm4_deploy.result import Result, Severity, Status


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

    @property
    def why(self) -> str:
        """What keeps it from serving; '' if nothing does."""
        if not self.running:
            return f"{self.service}: {self.detail}"
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

    @property
    def up(self) -> bool:
        return not self.why

    @property
    def why(self) -> str:
        """What keeps it from being up; '' if nothing does."""
        failures = [row.observed for row in self.results if row.status is Status.FAIL]
        if self.unjudged:
            return f"{failures[-1]} ({failures[0]})" if failures[1:] else failures[0]
        return failures[0] if failures else ""

    @property
    def results(self) -> tuple[Result, ...]:
        """One row per condition; the first that fails is `why`. A deployment that was never judged is not up."""
        return tuple(self._rows())

    def _rows(self) -> Iterator[Result]:
        endpoint = self.record.endpoint
        ended = f"; its last end: {self.ended.observed}" if self.ended else ""
        if self.stopped:
            ended = f"; stopped by the watch: {self.stopped.why}"
        down = f"{self.state.detail}{self._restarts}{ended}"
        yield _row("running", self.state.running, self.state.detail if self.state.running else down, "the engine runs")
        # Before /health: the router's fails too where one engine is out, and says less.
        for one in self.replicas:
            yield _row(f"replica/{one.service}", not one.why, one.why or one.summary, "running, and the router uses it")
        if self.state.running:
            address, phase = endpoint.base_url, f"(phase {self.engine.phase})"
            health = (
                f"{address}/health answers {self.health}" if self.health else f"no answer at {address}/health {phase}"
            )
            if self.health == httpx.codes.SERVICE_UNAVAILABLE and not self.replicas:
                health += ", as vLLM does once its engine has died"
            yield _row("health", self.health == httpx.codes.OK, health, "HTTP 200")
            models = f"{address} serves {', '.join(self.models)}, not {endpoint.model}" if self.models else ""
            error = f"{address}/v1/models answers: {self.models_error}" if self.models_error else ""
            models = models or error or f"no answer at {address}/v1/models {phase}"
            served = self.models is not None and endpoint.model in self.models
            yield _row("model", served, endpoint.model if served else models, endpoint.model)
            if self.core:
                yield _row("core", self.core.good, f"the engine's core: {self.core.detail}", "one token")
            unhealthy = self.state.health == "unhealthy"
            container = "its health check fails" if unhealthy else self.state.health or "no health check"
            yield _row("container-health", not unhealthy, container, "")
        if self.deployment:
            yield _row("deployment", not self.unjudged, self.deployment, "")

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

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and value, for people."""
        yield "up", "yes" if self.up else f"no: {self.why}"
        yield "engine", self.state.detail
        for one in self.replicas:
            yield one.service[-17:], one.summary
        yield "started", self.started or "-"
        health = f"{self.state.health or 'no health check'}, restarted {self.state.restarts} times"
        yield "health", f"{health}; /health answers {self.health or 'nothing'}" if self.started else "-"
        if self.core:
            yield "core", self.core.detail
        yield "memory", self._memory
        if self.canary:
            yield "last canary", str(self.canary)
        if self.stopped:
            yield "stopped", f"{self.stopped.remedy}; its log: {self.stopped.log or 'not kept'}"
        if self.ended:
            yield "last end", f"{self.ended.observed}; {self.ended.remedy}"
        yield "address", f"{self.record.endpoint.base_url}/v1"
        yield "models", ", ".join(self.models) if self.models else "no answer"
        yield "last gate", self.record.verdict
        yield "release", self.record.release or "-"
        if self.made_from:
            yield "made from", f"settings {self.made_from.get('settings')}, glm4-deploy {self.made_from.get('kit')}"
        if self.state.cache:
            yield "cache", self.state.cache_doubt or f"volume {self.state.cache}"
        if self.deployment:
            yield "deployment", self.deployment
        facts = self.engine
        yield "vLLM", facts.version or "unknown"
        yield "kernel", facts.kernel_path
        yield "KV cache", f"{facts.kv_cache_tokens or 'unknown'} tokens, {facts.kv_cache_dtype or 'type unknown'}"

    def report(self) -> Report:
        """The keys that every `--json` begins with."""
        return make_report("status", self.results)

    def wire(self) -> dict[str, Any]:
        """What scripts ask for most, then the record and the state."""
        front = {"up": self.up, "why": self.why, "runner": self.record.endpoint.runner}
        front |= {"release": self.record.release, "last_verdict": self.record.verdict}
        return front | {one.name: getattr(self, one.name) for one in fields(self)}


def _row(check: str, good: bool, observed: str, expected: str) -> Result:
    return Result(check=check, status=Status.OK if good else Status.FAIL, observed=observed, expected=expected)


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
        replicas=tuple(_replicas(record.endpoint, engine)),
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


def _memory_stop(record: Record, state: RunState, directory: Path) -> MemoryStop | None:
    started = state.started or record.started
    return load_stop(directory, since=started.started_at) if started and not state.running else None


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


def _replicas(endpoint: Endpoint, engine: Engine) -> Iterator[ReplicaStatus]:
    if not engine.replicas:
        return
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


# The log that `diagnose` reads, and what Docker recorded about how the container ended.

GIB = 2**30
KILLED = 137
LAST_LINES = 2000  # a death under 64 concurrent requests writes about a thousand
SETTLE_S = 2.0  # the cause may be written after the clients have got their errors


def autopsy(directory: Path, base_url: str) -> Result | None:
    """What the log of the engine on record says of its end; None if that is another engine, or if it says nothing."""
    record = load_record(directory)
    if record is None or record.endpoint.base_url != base_url:
        return None
    time.sleep(SETTLE_S)
    with suppress(DeployError, DockerException, OSError):  # the report of the death matters more
        return end_of_engine(log_tail(recorded_engine(record, directory), LAST_LINES, follow=False))
    return None


def cache_doubt(directory: Path, base_url: str) -> str:
    """Why the engine on record may read another image's kernels; '' for no doubt, or if that is another engine."""
    record = load_record(directory)
    if record is None or record.endpoint.base_url != base_url:
        return ""
    with suppress(DeployError, DockerException, OSError):  # the report is complete without it
        engine = recorded_engine(record, directory)
        states = (one.state() for one in engine.replicas.values() or (engine,))
        return next((state.cache_doubt for state in states if state.cache_doubt), "")
    return ""


def diagnose_container(name: str) -> tuple[str, LogReader]:
    """A container's log, with findings from what Docker recorded about its end.

    Raises:
        DockerMissing, DockerDenied, UsageError: no such container.
    """
    client = connect()
    try:
        container = client.containers.get(name)
        now = state_of(container)
        reader = scan_log(LogReader(), container.logs(stream=True, follow=False, timestamps=True))
    except NotFound:
        raise UsageError(f"no container is named {name}", hint="see them all: docker ps -a") from None
    except APIError as error:
        raise UsageError(
            f"the log of {name} cannot be read: {error.explanation or error}",
            hint="its logging driver may not support `docker logs`: give the log as a file",
        ) from None
    if now is not None:
        for finding in end_findings(now):
            reader.add(finding)
        if why := doubt(container):
            reader.add(_foreign_cache(why))
    return f"container {name}" + (f" ({now.status})" if now else ""), reader


def diagnose_deployment(directory: Path) -> tuple[str, LogReader]:
    """The log of this deployment's engine, also of one that died in service; else that of its last failed start.

    Raises:
        UsageError: neither exists.
    """
    record = load_record(directory)
    with suppress(DockerMissing, ComposeMissing):
        if record is not None and (log := _engine_log(record, directory)) is not None:
            return log
    failed = directory / "failed.log"
    if failed.is_file():
        return read_file(str(failed))
    raise UsageError(
        f"nothing to diagnose: this deployment has no engine, running or dead, and there is no {failed}",
        hint="name a log: glm4-deploy diagnose FILE, or - for a pipe, or --container NAME",
    )


def _engine_log(record: Record, directory: Path) -> tuple[str, LogReader] | None:
    """The log of an engine that died after it had passed its gate, else of one that runs; None if there is neither.

    One that failed its gate was stopped by `up`, which kept its log.
    """
    engine = recorded_engine(record, directory)
    states = [(one, one.state()) for one in engine.replicas.values() or (engine,)]
    dead = [(one, state) for one, state in states if state.started and not state.running and record.verdict.passed]
    running = [(one, state) for one, state in states if state.running]
    for one, state in dead + running:
        if state.container:
            return diagnose_container(state.container)
        lines = (line.encode() + b"\n" for line in one.lines(0, follow=False))
        return state.detail, scan_log(LogReader(), lines)
    return None


def _foreign_cache(why: str) -> LogFinding:
    """A cache that several images may have filled; it explains corrupt answers, of which a log says nothing."""
    return LogFinding(
        id="shared-cache",
        severity=Severity.LOW,
        line=why,
        cause="compiled kernels of another image, GPU or driver may be read: answers can be corrupt, without any error",
        fix="glm4-deploy up gives it a cache of its own; without the kit, remove the volume and start again",
        source="vllm-project/vllm#41871",
        role=Role.SYMPTOM,
    )


def end_findings(now: ContainerState) -> Iterator[LogFinding]:
    """What Docker has recorded about a container's end, as findings."""
    line = f"{now.name}: {now.status}, exit code {now.exit_code}, OOMKilled {now.oom_killed}, restarts {now.restarts}"
    if now.oom_killed:
        yield LogFinding(
            id="container-oom-killed",
            severity=Severity.CRITICAL,
            line=line,
            cause="the kernel killed the container because memory ran out (its own limit, or the host's)",
            fix="raise its memory limit; on unified memory lower --gpu-memory-utilization and keep 8 GiB for the host",
            source="docker inspect, State.OOMKilled",
        )
    elif now.exit_code == KILLED:
        yield LogFinding(
            id="container-killed",
            severity=Severity.HIGH,
            line=line,
            cause="killed from outside (SIGKILL): by the kernel because memory ran out, or by docker stop, kill or rm",
            fix="if nobody stopped it, look for `Out of memory: Killed process` in dmesg",
            source="docker inspect, State.ExitCode",
        )
    elif now.exit_code:
        yield LogFinding(
            id="container-ended",
            severity=Severity.HIGH,
            line=line,
            cause="the container ended by itself with an error; its log says why",
            fix="read the end of its log; dmesg -T says whether the kernel killed it",
            source="docker inspect, State.ExitCode",
            role=Role.WRAPPER,
        )
    if now.gave_up:
        yield LogFinding(
            id="container-gave-up",
            severity=Severity.CRITICAL,
            line=line,
            cause=f"the engine ended after each of {now.restarts} restarts, so it is not started again",
            fix="mend what the other findings say, then: glm4-deploy up",
            source="docker inspect, RestartCount and State.ExitCode",
            role=Role.WRAPPER,
        )
    elif now.restarts:
        yield LogFinding(
            id="container-restarts",
            severity=Severity.MEDIUM,
            line=line,
            cause=f"Docker restarted the container {now.restarts} times by itself",
            fix="a restart policy hides a failing start: see the other findings",
            source="docker inspect, RestartCount",
        )
