"""The log of a container, or of what this directory brought up last, and what Docker says of how it ended."""

from collections.abc import Iterator
from pathlib import Path

from docker.errors import APIError, NotFound

from glm4_deploy.engine import state
from glm4_deploy.engine.docker import ContainerState, connect, find_container, state_of
from glm4_deploy.errors import DockerMissing, UsageError
from glm4_deploy.facts.enginelog import LogFinding, LogReader, Severity
from glm4_deploy.facts.logfile import read_file
from glm4_deploy.facts.logscan import read

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
        reader = read(LogReader(), container.logs(stream=True, follow=False, timestamps=True))
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
    record = state.load(directory)
    if record is not None and record.runner == "compose":
        try:
            found = [find_container(connect(), record.project, name) for name in record.engines]
        except DockerMissing:
            found = []
        running = next((one for one in found if one is not None and one.status == "running"), None)
        if running is not None:
            return diagnose_container(str(running.name))
    elif record is not None:
        from glm4_deploy.engine.process import ProcessRunner

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
            severity=Severity.FATAL,
            line=line,
            cause="the kernel killed the container for want of memory (its own limit, or the host's)",
            fix="raise its memory limit; on unified memory lower --gpu-memory-utilization and keep 8 GiB for the host",
            source="docker inspect, State.OOMKilled",
        )
    elif now.exit_code == KILLED:
        yield LogFinding(
            id="container-killed",
            severity=Severity.ERROR,
            line=line,
            cause="killed from outside (SIGKILL): by the kernel for want of memory, or by docker stop, kill or rm",
            fix="did nobody stop it? Then look for `Out of memory: Killed process` in dmesg",
            source="docker inspect, State.ExitCode",
        )
    elif now.exit_code:
        yield LogFinding(
            id="container-ended",
            severity=Severity.ERROR,
            line=line,
            cause="the container ended by itself with an error; its log says why",
            fix="see the first finding",
            source="docker inspect, State.ExitCode",
            wrapper=True,
        )
    if now.restarts:
        yield LogFinding(
            id="container-restarts",
            severity=Severity.WARN,
            line=line,
            cause=f"Docker restarted the container {now.restarts} times by itself",
            fix="a restart policy hides a failing start: see the other findings",
            source="docker inspect, RestartCount",
        )
