"""What runs an engine: Docker Compose, or a plain process of this host, behind one protocol."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from docker.models.containers import Container

from glm4_deploy.engine.compose import Compose
from glm4_deploy.engine.docker import connect, events, find_container, log_lines, state_of
from glm4_deploy.engine.images import find_image
from glm4_deploy.errors import ComposeFailed, DeployError, EngineDied


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
        return events(connect(timeout=24 * 3600), str(container.id)) if container else iter(())

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
