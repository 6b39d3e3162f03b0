"""The log of a container, or of what this directory brought up last, and what Docker says of how it ended."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path

from docker.errors import APIError, NotFound

from glm4_deploy.deploy.docker import ContainerState, connect, find_container, state_of
from glm4_deploy.deploy.engines import Runner
from glm4_deploy.deploy.keys import read_key
from glm4_deploy.deploy.replicas import ReplicaSet, RouterClient, address_of
from glm4_deploy.deploy.state import Record, describe_journal, load_record
from glm4_deploy.errors import DockerMissing, Unreachable, UsageError
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.logs.reader import LogFinding, LogReader
from glm4_deploy.logs.scan import read_file, scan_log
from glm4_deploy.probe.endpoints import read_models
from glm4_deploy.result import Severity

# What runs now, seen from outside: the container or process, /health, the served model, and the engine's own log.


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One of several engines. routed: whether the router sends it requests; None: the router does not answer."""

    service: str
    running: bool
    detail: str
    health: str | None
    restarts: int
    routed: bool | None

    @property
    def why(self) -> str:
        """What keeps it from serving; '' where nothing does."""
        if not self.running:
            return f"{self.service}: {self.detail}"
        if self.routed is None:
            return "the router does not answer"
        return "" if self.routed else f"{self.service}: the router sends it nothing"

    @property
    def words(self) -> str:
        state = {True: "the router sends it requests", False: "left out by the router", None: "the router is silent"}
        return (
            f"{self.detail}, {self.health or 'no health check'}, restarted {self.restarts} times; {state[self.routed]}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """One look. `models` is None where /v1/models did not answer; `why` says what keeps it from being up.

    deployment: an `up` or `rollback` that is at work or was cut off, in one sentence; '' for none.
    """

    up: bool
    why: str
    runner: str
    profile: str
    detail: str
    container_health: str | None
    restarts: int
    started: str | None
    base_url: str
    models: tuple[str, ...] | None
    expected_model: str
    last_verdict: str
    release: str
    deployment: str
    engine: EngineFacts
    replicas: tuple[ReplicaStatus, ...] = ()

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and value, for people."""
        yield "up", "yes" if self.up else f"no: {self.why}"
        yield "engine", self.detail
        for one in self.replicas:
            yield one.service[-17:], one.words
        yield "started", self.started or "-"
        health = f"{self.container_health or 'no health check'}, restarted {self.restarts} times"
        yield "health", health if self.started else "-"
        yield "address", f"{self.base_url}/v1"
        yield "models", ", ".join(self.models) if self.models else "no answer"
        yield "last gate", self.last_verdict
        yield "release", self.release or "-"
        if self.deployment:
            yield "deployment", self.deployment
        facts = self.engine
        native = {True: "native FP4", False: "not native FP4", None: "native FP4 unknown"}[facts.native_fp4]
        yield "vLLM", facts.version or "unknown"
        yield "kernel", f"{facts.kernel or 'unknown'} ({native})"
        yield "KV cache", f"{facts.kv_cache_tokens or 'unknown'} tokens, {facts.kv_cache_dtype or 'type unknown'}"


def read_status(record: Record, runner: Runner, directory: Path) -> StatusReport:
    """Take one look; never starts or changes anything. What a killed deployment left unjudged is not up."""
    state = runner.state()
    models = _models(record) if state.running else None
    replicas = tuple(_replicas(record, runner)) if isinstance(runner, ReplicaSet) else ()
    reader = LogReader()
    if state.started is not None:
        for line in log_tail(runner.engines[0] if isinstance(runner, ReplicaSet) else runner, None, follow=False):
            reader.feed(line)
    why = next((one.why for one in replicas if one.why), "")
    if not state.running:
        why = state.detail
    elif models is None:
        why = f"no answer at {record.base_url}/v1/models (phase {reader.facts.phase})"
    elif why:
        pass
    elif record.model not in models:
        why = f"{record.base_url} serves {', '.join(models)}, not {record.model}"
    elif state.health == "unhealthy":
        why = "its health check fails"
    deployment, unjudged = describe_journal(directory)
    if unjudged:
        why = f"{deployment} ({why})" if why else deployment
    return StatusReport(
        up=not why,
        why=why,
        runner=record.runner,
        profile=record.profile,
        detail=state.detail,
        container_health=state.health,
        restarts=state.restarts,
        started=datetime.fromtimestamp(state.started.started_at, UTC).isoformat(timespec="seconds")
        if state.started
        else None,
        base_url=record.base_url,
        models=models,
        expected_model=record.model,
        last_verdict=record.verdict,
        release=record.release,
        deployment=deployment,
        engine=reader.facts,
        replicas=replicas,
    )


def _replicas(record: Record, runner: ReplicaSet) -> Iterator[ReplicaStatus]:
    try:
        routed = RouterClient(base_url=record.base_url).workers()
    except Unreachable:
        routed = None
    for name, engine in zip(runner.services, runner.engines, strict=True):
        state = engine.state()
        yield ReplicaStatus(
            service=name,
            running=state.running,
            detail=state.detail,
            health=state.health,
            restarts=state.restarts,
            routed=None if routed is None else routed.get(address_of(name), False),
        )


def log_tail(runner: Runner, count: int | None, *, follow: bool) -> Iterator[str]:
    """The last `count` lines (None: all) of the present start, and those that come where it is to be followed.

    Of several engines, which stand one after the other: the last of each, or the router's would be all that is seen.
    """
    state = runner.state()
    if state.started is None:
        return iter(())
    lines = runner.lines(state.started.started_at, follow=follow)
    if follow or count is None:
        return lines
    if isinstance(runner, ReplicaSet):
        services = groupby(lines, key=lambda line: line.partition(" | ")[0])
        return chain.from_iterable(deque(of_one, maxlen=count) for _, of_one in services)
    return iter(deque(lines, maxlen=count))


def _models(record: Record) -> tuple[str, ...] | None:
    return read_models(record.base_url, key=read_key(Path(record.api_key_file)) if record.api_key_file else None)


KILLED = 137


def diagnose_container(name: str) -> tuple[str, LogReader]:
    """A container's log, and what Docker says of how it ended.

    Raises:
        DockerMissing, DockerDenied, UsageError: no such container.
    """
    client = connect()
    try:
        container = client.containers.get(name)
        now = state_of(container)
        reader = scan_log(LogReader(), container.logs(stream=True, follow=False, timestamps=True))
    except NotFound:
        raise UsageError(f"no container is called {name}", hint="see them all: docker ps -a") from None
    except APIError as error:
        raise UsageError(
            f"the log of {name} cannot be read: {error.explanation or error}",
            hint="a logging driver without `docker logs`? Give the log as a file",
        ) from None
    if now is not None:
        for finding in ended(now):
            reader.add(finding)
    return f"container {name}" + (f" ({now.status})" if now else ""), reader


def diagnose_deployment(directory: Path) -> tuple[str, LogReader]:
    """This deployment's engine if it runs, else the log of its last failed start.

    Raises:
        UsageError: there is neither.
    """
    record = load_record(directory)
    if record is not None and record.runner == "compose":
        try:
            found = [find_container(connect(), record.project, name) for name in record.engines]
        except DockerMissing:
            found = []
        running = next((one for one in found if one is not None and one.status == "running"), None)
        if running is not None:
            return diagnose_container(str(running.name))
    elif record is not None:
        from glm4_deploy.deploy.engines import ProcessRunner

        if ProcessRunner(deployment=None, directory=directory, python=None).state().running:
            return read_file(str(directory / "engine.log"))
    failed = directory / "failed.log"
    if failed.is_file():
        return read_file(str(failed))
    raise UsageError(
        f"nothing to diagnose: no engine of this deployment runs, and there is no {failed}",
        hint="name a log: glm4-deploy diagnose FILE, or - for a pipe, or --container NAME",
    )


def ended(now: ContainerState) -> Iterator[LogFinding]:
    """What Docker's own record of a container tells, as findings."""
    line = f"{now.name}: {now.status}, exit code {now.exit_code}, OOMKilled {now.oom_killed}, restarts {now.restarts}"
    if now.oom_killed:
        yield LogFinding(
            id="container-oom-killed",
            severity=Severity.CRITICAL,
            line=line,
            cause="the kernel killed the container for want of memory (its own limit, or the host's)",
            fix="raise its memory limit; on unified memory lower --gpu-memory-utilization and keep 8 GiB for the host",
            source="docker inspect, State.OOMKilled",
        )
    elif now.exit_code == KILLED:
        yield LogFinding(
            id="container-killed",
            severity=Severity.HIGH,
            line=line,
            cause="killed from outside (SIGKILL): by the kernel for want of memory, or by docker stop, kill or rm",
            fix="did nobody stop it? Then look for `Out of memory: Killed process` in dmesg",
            source="docker inspect, State.ExitCode",
        )
    elif now.exit_code:
        yield LogFinding(
            id="container-ended",
            severity=Severity.HIGH,
            line=line,
            cause="the container ended by itself with an error; its log says why",
            fix="see the first finding",
            source="docker inspect, State.ExitCode",
            wrapper=True,
        )
    if now.restarts:
        yield LogFinding(
            id="container-restarts",
            severity=Severity.MEDIUM,
            line=line,
            cause=f"Docker restarted the container {now.restarts} times by itself",
            fix="a restart policy hides a failing start: see the other findings",
            source="docker inspect, RestartCount",
        )
