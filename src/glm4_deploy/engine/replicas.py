"""Several engines of one Compose project and their router, behind the same protocol as one engine."""

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from glm4_deploy.engine.compose import Compose
from glm4_deploy.engine.docker import address_in, connect, find_container
from glm4_deploy.engine.router import PORT, SERVICE
from glm4_deploy.engine.runner import ComposeRunner, RunState, Started
from glm4_deploy.errors import ComposeFailed


class ReplicaSet:
    """The engines in order, each a runner of its own that touches nothing beside its container, and the router."""

    kind = "compose"

    def __init__(self, *, compose: Compose, services: tuple[str, ...]) -> None:
        self._compose = compose
        self.services = services
        self.engines = tuple(ComposeRunner(compose=compose, service=name, alone=True) for name in services)
        self.router = ComposeRunner(compose=compose, service=SERVICE, alone=True)

    @property
    def files(self) -> tuple[Path, ...]:
        return self._compose.files

    @property
    def image(self) -> str:
        return self.engines[0].image

    @property
    def model(self) -> dict[str, Any]:
        return self.engines[0].model

    def keeps(self) -> bool:
        """Whether all that runs was made from these very files."""
        return self.rolls() and all(engine.keeps() for engine in self.engines)

    def rolls(self) -> bool:
        """Whether the router runs already as these files have it, so that engines can be replaced behind it."""
        return self.router.keeps()

    def address(self, service: str) -> str:
        """Where this host reaches an engine: its container's address on the project's own network.

        Raises:
            ComposeFailed: it has none.
        """
        container = find_container(connect(), self._compose.project, service)
        found = address_in(container) if container else None
        if found is None:
            raise ComposeFailed(
                f"the container of {service} has no address of its own",
                hint="replicas are gated one by one, over the project's bridge network: see docs/how-to/replicas.md",
            )
        return f"http://{found}:{PORT}"

    def start(self, *, fresh: bool = False) -> Started:
        """Start everything at once; the first engine stands for all."""
        self._compose.config()
        self._compose.up(recreate=fresh or not self.state().running)
        started = self.engines[0].state().started
        if started is None:
            raise ComposeFailed(f"docker compose made no container for the service {self.services[0]}")
        return started

    def settle(self) -> None:
        """Start what stands beside and is new, end what is no longer wished; what runs as wished is not touched."""
        self._compose.up()

    def states(self) -> dict[str, RunState]:
        """Of each engine, and of the router at the end."""
        return {
            name: one.state() for name, one in zip((*self.services, SERVICE), (*self.engines, self.router), strict=True)
        }

    def state(self) -> RunState:
        """Running: something of it does. detail tells what does not."""
        states = self.states()
        down = [state.detail for state in states.values() if not state.running]
        first = next((state for state in states.values() if state.running), next(iter(states.values())))
        return RunState(
            running=first.running,
            started=first.started,
            exit_code=first.exit_code,
            oom_killed=any(state.oom_killed for state in states.values()),
            restarts=sum(state.restarts for state in states.values()),
            health=_worst(states),
            detail=", ".join(down) if down else f"{len(self.services)} engines and their router run",
            pid=first.pid,
        )

    def lines(self, since: float, *, follow: bool = True) -> Iterator[str]:
        """The engines' logs and the router's, each line with its service in front; in order of arrival if followed."""
        sources = list(zip((*self.services, SERVICE), (*self.engines, self.router), strict=True))
        if not follow:
            for name, one in sources:
                yield from (f"{name} | {line}" for line in one.lines(0, follow=False))
            return
        arrived: queue.Queue[str | None] = queue.Queue(maxsize=10_000)

        def pump(name: str, one: ComposeRunner) -> None:
            with suppress(Exception):  # a stream that breaks ends; the others go on
                for line in one.lines(since):
                    arrived.put(f"{name} | {line}")
            arrived.put(None)

        for name, one in sources:
            threading.Thread(target=pump, args=(name, one), daemon=True).start()
        left = len(sources)
        while left:
            line = arrived.get()
            left -= line is None
            if line is not None:
                yield line

    def events(self) -> Iterator[str]:
        return self.engines[0].events()

    def stop(self) -> None:
        self._compose.stop()

    def remove(self, *, volumes: bool = False) -> None:
        self._compose.down(volumes=volumes)


def _worst(states: dict[str, RunState]) -> str | None:
    healths = {state.health for state in states.values()}
    return next((word for word in ("unhealthy", "starting", "healthy") if word in healths), None)
