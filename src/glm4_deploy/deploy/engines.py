"""The embedded engine: the same plan as a plain process of this user, where there is no Docker."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from docker.models.containers import Container

from glm4_deploy.deploy.compose_cli import Compose
from glm4_deploy.deploy.docker import connect, container_events, find_container, find_image, log_lines, state_of
from glm4_deploy.deploy.keys import read_key
from glm4_deploy.errors import ComposeFailed, DeployError, EngineDied, ExtraMissing
from glm4_deploy.files import write_text
from glm4_deploy.plan.spec import CACHE, DeploymentSpec

# What runs an engine: Docker Compose, or a plain process of this host, behind one protocol.


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A start of an engine. id: container id, or `pid:start-ticks`. started_at: seconds since the epoch."""

    id: str
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is so now. restarts counts those that the engine's keeper made by itself since it was created."""

    running: bool
    started: Started | None
    exit_code: int | None = None
    oom_killed: bool = False
    restarts: int = 0
    health: str | None = None
    detail: str = ""
    pid: int = 0


class Runner(Protocol):
    """Starts, watches and stops one engine."""

    @property
    def kind(self) -> str: ...
    def keeps(self) -> bool: ...
    def start(self, *, fresh: bool = False) -> Started: ...
    def state(self) -> RunState: ...
    def lines(self, since: float, *, follow: bool = True) -> Iterator[str]: ...
    def events(self) -> Iterator[str]: ...
    def stop(self) -> None: ...
    def remove(self, *, volumes: bool = False) -> None: ...


class ComposeRunner:
    """An engine in a container, kept by Docker Compose."""

    kind = "compose"

    def __init__(self, *, compose: Compose, service: str, alone: bool = False) -> None:
        """alone: start and stop touch this service only, and leave the rest of the project as it is."""
        self._compose = compose
        self._service = service
        self._only = service if alone else None
        self._client = connect()
        self._fresh_id = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return self._compose.files

    def keeps(self) -> bool:
        """Whether what runs was made from these very files and this very image, so that `start` would keep it."""
        container = self._container()
        state = state_of(container) if container else None
        if state is None or not state.running:
            return False
        image = find_image(self._client, self.image)
        same_image = image is not None and image.id == state.image_id
        return same_image and state.config_hash == self._compose.config_hash(self._service)

    def start(self, *, fresh: bool = False) -> Started:
        """Create and start the container, or keep the one that already runs these very settings.

        A container that does not run is made anew, so that its log holds one start alone.

        Args:
            fresh: make it anew even so.

        Raises:
            ComposeFailed, PortTaken: with nothing left behind that was not there before.
        """
        self._compose.config()
        before = self._container()
        recreate = fresh or not self.keeps()
        try:
            self._compose.up(recreate=recreate, only=self._only)
        except DeployError:
            if before is None and self._only is None:
                # Compose leaves a created container and a network behind when the engine refuses to start it.
                self.remove()
            raise
        started = self.state().started
        if started is None:
            raise ComposeFailed(
                f"docker compose made no container for the service {self._service}",
                hint="look at the files with: docker compose config",
            )
        self._fresh_id = started.id if recreate else ""
        return started

    def state(self) -> RunState:
        container = self._container()
        state = state_of(container) if container else None
        if state is None:
            return RunState(running=False, started=None, detail="no container")
        return RunState(
            running=state.running,
            started=Started(id=state.id, started_at=state.started_at) if state.started_at else None,
            exit_code=state.exit_code,
            oom_killed=state.oom_killed,
            restarts=state.restarts,
            health=state.health,
            detail=f"{state.name} ({state.image}) {state.status}",
            pid=state.pid,
        )

    def lines(self, since: float, *, follow: bool = True) -> Iterator[str]:
        container = self._container()
        if container is None:
            return iter(())
        # All of a container that was made for this start is of this start; asking by time would lose it all where the
        # clock is set back in the middle.
        return log_lines(container, since=0 if container.id == self._fresh_id else since, follow=follow)

    def events(self) -> Iterator[str]:
        container = self._container()
        return container_events(connect(timeout=24 * 3600), str(container.id)) if container else iter(())

    @property
    def image(self) -> str:
        """The image that the merged files name: an override may have changed it."""
        return str(self.model["services"].get(self._service, {}).get("image", ""))

    @cached_property
    def model(self) -> dict[str, Any]:
        """The merged, interpolated Compose model.

        Raises:
            ComposeFailed
        """
        return self._compose.config_json()

    def stop(self) -> None:
        self._compose.stop(only=self._only)

    def remove(self, *, volumes: bool = False) -> None:
        self._compose.down(volumes=volumes)

    def _container(self) -> Container | None:
        return find_container(self._client, self._compose.project, self._service)


def died(state: RunState, *, phase: str, cause: str, fix: str, tail: tuple[str, ...]) -> EngineDied:
    """The one sentence for an engine that went away, whatever kept it."""
    how = "restarted by itself" if state.restarts else "stopped"
    if state.running and not state.restarts:
        how = "cannot come up any more"
    code = f", exit code {state.exit_code}" if state.exit_code is not None else ""
    if state.oom_killed or state.exit_code == 137:
        killer = "by the kernel" if state.oom_killed else "from outside, most often by the kernel"
        cause = cause or f"killed {killer} for want of memory"
        fix = fix or "give the host more room: a smaller --gpu-memory-utilization or --max-model-len"
    why = f": {cause}" if cause else ""
    return EngineDied(
        f"the engine {how} in the phase `{phase}`{code}{why}",
        details=tail,
        hint=fix or "read the log: glm4-deploy logs, or glm4-deploy diagnose",
    )


# How much an engine has read from disk so far, from the kernel: what the log does not tell while weights load.

GB = 1e9
SHOWN_FROM = 0.05  # GB: less is the interpreter's own files


@dataclass(slots=True)
class Meter:
    """Bytes read by a process and its children since the meter was made, and the rate since the last look."""

    _first: int | None = None
    _last: int = 0
    _at: float = 0.0

    def look(self, pid: int) -> str:
        """`3.1 GB read, 0.9 GB/s`, or '' where the kernel does not tell (another user's process, a full page cache)."""
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
    """Bytes that a process and its descendants made the disks deliver (proc(5), io: read_bytes); None: not told."""
    children: dict[int, list[int]] = {}
    for path in proc.glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    total, waiting, told = 0, [pid], False
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        try:
            fields = dict(line.split(": ") for line in (proc / str(one) / "io").read_text().splitlines())
            total, told = total + int(fields["read_bytes"]), True
        except (OSError, ValueError, KeyError):
            continue
    return total if told and pid else None


POLL_SECONDS = 0.2


class ProcessRunner:
    """vLLM as a process group; its pid and log live in the state directory."""

    kind = "process"

    def __init__(self, *, deployment: DeploymentSpec | None, directory: Path, python: str | None) -> None:
        self._deployment = deployment
        self._python = python
        self._directory = directory
        self._pid_file = directory / "engine.pid"
        self._log = directory / "engine.log"
        self._child: subprocess.Popen[bytes] | None = None

    def keeps(self) -> bool:
        """Never: a process carries no record of what it was started from."""
        return False

    def start(self, *, fresh: bool = False) -> Started:
        """Start the engine, after ending one that this directory still holds.

        Raises:
            ExtraMissing: no Python that has vLLM was named.
        """
        if self._python is None or self._deployment is None:
            raise ExtraMissing(
                "no engine to run: GLM4_CPU_PYTHON names no Python with vLLM",
                hint="build one: export GLM4_CPU_PYTHON=$(scripts/cpu-engine.sh)",
            )
        self.stop()
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                command(self._deployment, self._python),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self._deployment, self._directory),
                start_new_session=True,
            )
        started = Started(id=f"{self._child.pid}:{_start_ticks(self._child.pid)}", started_at=time.time())
        write_text(self._pid_file, f"{started.id} {started.started_at}\n")
        return started

    def state(self) -> RunState:
        started = self._read()
        if started is None:
            return RunState(running=False, started=None, detail="no process")
        code = self._child.poll() if self._child else None
        running = code is None and _alive(started.id)
        return RunState(
            running=running,
            started=started,
            exit_code=None if running else _as_a_shell(code),
            detail=f"process {started.id.partition(':')[0]} {'running' if running else 'ended'}",
            pid=int(started.id.partition(":")[0]) if running else 0,
        )

    def lines(self, since: float, *, follow: bool = True) -> Iterator[str]:
        """The log, followed until the process ends. `since` is not needed: a start empties the file."""
        if not self._log.is_file():
            return
        rest = b""
        with self._log.open("rb") as file:
            while True:
                running = self.state().running
                chunk = file.read(65536)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", errors="replace")
                if not chunk:
                    if not (running and follow):
                        return
                    time.sleep(POLL_SECONDS)

    def events(self) -> Iterator[str]:
        """Ends with `die` when the process does; a plain process has no other events."""
        while self.state().running:
            time.sleep(POLL_SECONDS)
        yield "die"

    def stop(self) -> None:
        """End the whole process group: first kindly, after 20 s by force."""
        started = self._read()
        if started is not None and _session_is_ours(started.id):
            group = int(started.id.partition(":")[0])
            for sign, seconds in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
                with suppress(ProcessLookupError):
                    os.killpg(group, sign)
                if self._wait_ended(group, seconds):
                    break
        self._pid_file.unlink(missing_ok=True)

    def remove(self, *, volumes: bool = False) -> None:
        self.stop()

    def _wait_ended(self, session: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._child:
                self._child.poll()
            if not _members(session):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _read(self) -> Started | None:
        try:
            identity, started_at = self._pid_file.read_text().split()
            return Started(id=identity, started_at=float(started_at))
        except (OSError, ValueError):
            return None


def _as_a_shell(code: int | None) -> int | None:
    """137 for SIGKILL, as a shell and Docker report it; Python says -9."""
    return 128 - code if code is not None and code < 0 else code


def command(deployment: DeploymentSpec, python: str) -> list[str]:
    """The container's command line with this host's paths: the model's directory, the published address and port."""
    host = {"model": os.path.abspath(deployment.model_dir), "port": str(deployment.port)}  # noqa: PTH100 (no symlink is resolved)
    words = [python, *deployment.program[1:], "--host", deployment.bind]
    for flag in deployment.flags:
        value = host.get(flag.name, flag.value)
        words += [f"--{flag.name}"] if value is None else [f"--{flag.name}", value]
    return words


def environment(deployment: DeploymentSpec, directory: Path) -> Mapping[str, str]:
    """This process's environment and the plan's, with the cache volume as a directory."""
    cache = str((directory / "cache").resolve())
    planned = {
        variable.name: cache + variable.value.removeprefix(CACHE)
        if variable.value.startswith(CACHE)
        else variable.value
        for variable in deployment.environment
    }
    if deployment.hardening.api_key_file:
        planned["VLLM_API_KEY"] = read_key(Path(deployment.hardening.api_key_file))
    return {**os.environ, **planned, "PYTHONUNBUFFERED": "1"}


def _stat(pid: int | str) -> list[str] | None:
    """The fields of /proc/PID/stat from `state` on (proc(5), field 3); None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _start_ticks(pid: int) -> str:
    """The kernel's start time of a process: with the pid it names one process for good, a pid alone is reused."""
    stat = _stat(pid)
    return stat[19] if stat else "0"


def _alive(identity: str) -> bool:
    pid, _, ticks = identity.partition(":")
    stat = _stat(pid)
    return stat is not None and stat[0] not in "ZX" and stat[19] == ticks


def _members(session: int) -> list[int]:
    """Living processes of a session: the engine's workers outlive an API server that was killed."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        stat = _stat(path.name)
        if stat and stat[0] not in "ZX" and stat[3] == str(session):
            found.append(int(path.name))
    return found


def _session_is_ours(identity: str) -> bool:
    """Whether the session still is the one that was started: the kernel gives its number to no other while one
    member lives, so only a living leader with another start time means that it was reused."""
    pid, _, ticks = identity.partition(":")
    leader = _stat(pid)
    return bool(_members(int(pid))) and (leader is None or leader[19] == ticks)
