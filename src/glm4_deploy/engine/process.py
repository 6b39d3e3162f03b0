"""The embedded engine: the same plan as a plain process of this user, where there is no Docker."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from glm4_deploy.engine import keyfile
from glm4_deploy.engine.runner import RunState, Started
from glm4_deploy.errors import ExtraMissing
from glm4_deploy.files import write_text
from glm4_deploy.plan.deployment import CACHE, Deployment

POLL_SECONDS = 0.2


class ProcessRunner:
    """vLLM as a process group; its pid and log live in the state directory."""

    kind = "process"

    def __init__(self, *, deployment: Deployment | None, directory: Path, python: str | None) -> None:
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
            exit_code=None if running else code,
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


def command(deployment: Deployment, python: str) -> list[str]:
    """The container's command line with this host's paths: the model's directory, the published address and port."""
    host = {"model": os.path.abspath(deployment.model_dir), "port": str(deployment.port)}  # noqa: PTH100 (no symlink is resolved)
    words = [python, *deployment.program[1:], "--host", deployment.bind]
    for flag in deployment.flags:
        value = host.get(flag.name, flag.value)
        words += [f"--{flag.name}"] if value is None else [f"--{flag.name}", value]
    return words


def environment(deployment: Deployment, directory: Path) -> Mapping[str, str]:
    """This process's environment and the plan's, with the cache volume as a directory."""
    cache = str((directory / "cache").resolve())
    planned = {
        variable.name: cache + variable.value.removeprefix(CACHE)
        if variable.value.startswith(CACHE)
        else variable.value
        for variable in deployment.environment
    }
    if deployment.hardening.api_key_file:
        planned["VLLM_API_KEY"] = keyfile.read(Path(deployment.hardening.api_key_file))
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
