"""The log that `diagnose` reads, and what Docker recorded about how the container ended."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from docker.errors import APIError, DockerException, NotFound

from glm4_deploy.catalog.rows import Role
from glm4_deploy.deploy.boot import end_of_engine
from glm4_deploy.deploy.caches import doubt
from glm4_deploy.deploy.candidates import recorded_engine
from glm4_deploy.deploy.docker import ContainerState, connect, state_of
from glm4_deploy.deploy.state import Record, load_record
from glm4_deploy.deploy.status import LAST_LINES, log_tail
from glm4_deploy.errors import ComposeMissing, DeployError, DockerMissing, UsageError
from glm4_deploy.logs.finding import LogFinding
from glm4_deploy.logs.reader import LogReader
from glm4_deploy.logs.source import read_file, scan_log
from glm4_deploy.result import Result, Severity

KILLED = 137
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
