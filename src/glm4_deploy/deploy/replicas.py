"""Several engines behind vLLM's router: started together if nothing serves yet, otherwise replaced one at a time."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from glm4_deploy.deploy.compose_cli import Compose
from glm4_deploy.deploy.docker import address_in
from glm4_deploy.deploy.endpoint import Started
from glm4_deploy.deploy.engines import ComposeEngine, RunState, Steps
from glm4_deploy.errors import ComposeFailed, DeployError, Unreachable
from glm4_deploy.plan.engine_rules import HELD_REQUESTS
from glm4_deploy.probe.endpoints import read_metrics

# The router's HTTP interface (vLLM router 0.1.17): list its engines, take one out, put it back.

SERVICE = "router"
PORT = 8080  # of each engine, inside its container
ADD_SECONDS = 30.0  # the engine already answers when it is put back, so this covers one health check by the router
READY_SECONDS = 60.0
IDLE_LOOKS = 2  # a request may be in flight from the router while the engine still counts none


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterClient:
    """The router of one deployment."""

    base_url: str
    """Where this host reaches it."""

    def workers(self) -> Mapping[str, bool]:
        """Address of each engine → whether the router considers it healthy.

        Raises:
            Unreachable
        """
        try:
            rows = self._ask("GET", "/workers").json()["workers"]
            return {str(row["url"]): bool(row["is_healthy"]) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(
                f"{self.base_url}/workers does not answer like vLLM's router", hint="see what holds the port: ss -ltnp"
            ) from error

    def take_out(self, service: str) -> None:
        """Send this engine no new requests; those it has are finished. Does nothing if it is already out."""
        self.remove(address_of(service))

    def put_back(self, service: str) -> None:
        """Send requests to this engine, which must answer /health. Does nothing if it is already in.

        Raises:
            Unreachable
        """
        self.add(address_of(service))

    def remove(self, url: str) -> None:
        """As `take_out`, by its address in the router."""
        self._ask("POST", "/remove_worker", url=url)

    def add(self, url: str) -> None:
        """As `put_back`, by its address in the router."""
        if url not in self.workers():
            self._ask("POST", "/add_worker", url=url)

    def wait_ready(self, services: tuple[str, ...]) -> None:
        """Wait until the router has exactly these engines, all healthy.

        Raises:
            Unreachable: not within READY_SECONDS.
        """
        wanted = {address_of(service): True for service in services}
        deadline = time.monotonic() + READY_SECONDS
        reported = ""
        while time.monotonic() < deadline:
            try:
                now = self.workers()
                if now == wanted:
                    return
                states = (f"{url} {'healthy' if healthy else 'unhealthy'}" for url, healthy in now.items())
                reported = ", ".join(states) or "none"
            except Unreachable as error:
                reported = error.message
            time.sleep(0.5)
        raise Unreachable(
            f"the router at {self.base_url} is not ready with {len(services)} engines: {reported}",
            hint="see its log: glm4-deploy logs",
        )

    def _ask(self, method: str, path: str, **query: str) -> httpx.Response:
        try:
            answer = httpx.request(method, self.base_url + path, params=query, timeout=ADD_SECONDS, trust_env=False)
        except httpx.HTTPError as error:
            raise Unreachable(
                f"the router at {self.base_url} does not answer {path}: {type(error).__name__}",
                hint="see its log: glm4-deploy logs",
            ) from None
        if answer.status_code != httpx.codes.OK:
            raise Unreachable(
                f"the router refuses {path}: HTTP {answer.status_code} {answer.text[:200]}",
                hint="see its log: glm4-deploy logs",
            )
        return answer


def address_of(service: str) -> str:
    """An engine's address on the project's network, as the rendered file gives it to the router."""
    return f"http://{service}:{PORT}"


def wait_idle(base_url: str, seconds: float) -> float | None:
    """Block until the engine at `base_url` has no request, running or queued, at most `seconds`.

    Returns:
        The requests that are left; None where the engine does not answer, so that there is nothing to wait for.
    """
    deadline = time.monotonic() + seconds
    quiet = 0
    while True:
        left = _requests(base_url)
        if left is None:
            return None
        quiet = quiet + 1 if left == 0 else 0
        if quiet >= IDLE_LOOKS or time.monotonic() >= deadline:
            return left
        time.sleep(0.5)


def _requests(base_url: str) -> float | None:
    metrics = read_metrics(base_url)
    counts = [metrics.sum(name) for name in HELD_REQUESTS] if metrics else []
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


# The engines of one Compose project and their router, behind the same protocol as a single engine.

DRAIN_SECONDS = 120.0
# The gate's checks that a router can break. Whether the answers make sense was checked at each engine.
ROUTER_CHECKS = ("alive", "identity", "chat", "stream")


class Replica(ComposeEngine):
    """One of several engines. It has no port on this host, only an address on the project's network."""

    def __init__(self, *, compose: Compose, service: str) -> None:
        super().__init__(compose=compose, service=service, alone=True)

    def address(self) -> str:
        """Its address on the project's network.

        Raises:
            ComposeFailed: it has none.
        """
        container = self._container()
        address = address_in(container) if container else None
        if address is None:
            raise ComposeFailed(
                f"the container of {self._service} has no address on the project's network",
                hint="replicas are gated one by one, over the project's bridge network: see docs/how-to/replicas.md",
            )
        return f"http://{address}:{PORT}"


class ReplicaSet:
    """The engines in order, each of which touches only its own container, and the router."""

    kind = "compose"

    def __init__(self, *, compose: Compose, services: tuple[str, ...], base_url: str) -> None:
        """base_url: where this host reaches the router."""
        self._compose = compose
        self._base_url = base_url
        self.services = services
        self.replicas: Mapping[str, Replica] = {name: Replica(compose=compose, service=name) for name in services}
        self.router = ComposeEngine(compose=compose, service=SERVICE, alone=True)

    @property
    def _first(self) -> ComposeEngine:
        return next(iter(self.replicas.values()))

    @property
    def files(self) -> tuple[Path, ...]:
        return self._compose.files

    @property
    def image(self) -> str:
        return self._first.image

    def caches(self) -> Mapping[str, str]:
        return {key: name for engine in self.replicas.values() for key, name in engine.caches().items()}

    def secrets(self) -> frozenset[str]:
        return self._first.secrets()

    def address(self) -> str:
        return ""

    def keeps(self) -> bool:
        return self.rolls() and all(engine.keeps() for engine in self.replicas.values())

    def rolls(self) -> bool:
        """Whether the router already runs from these files, so that engines can be replaced behind it."""
        return self.router.keeps()

    def bring_up(self, steps: Steps) -> None:
        """Gate each engine at its own address, then the router at the address that clients use.

        An engine that already runs from these files is only gated. Any other is taken out of the router, gets
        `DRAIN_SECONDS` to finish its requests, is started again, gated, and put back. The first that fails is stopped
        and stays out; in a rolling update the others keep serving.
        """
        router = RouterClient(base_url=self._base_url)
        if not steps.rolling:
            self.start(fresh=steps.fresh)
        for name, engine in self.replicas.items():
            kept = engine.keeps()
            steps.note(f"replica {name}" + (": as it runs" if kept else ""))
            if steps.rolling and not kept:
                _drain(name, engine, router, steps)
            try:
                steps.start_and_gate(engine, name=name)
            except DeployError:
                steps.stop(engine)
                raise
            if steps.rolling:
                router.put_back(name)
        if steps.rolling:
            # Start new services beside the engines and remove those no longer in the files; nothing else is touched.
            self._compose.up()
        steps.note("the router")
        router.wait_ready(self.services)
        steps.gate_router(SERVICE, ROUTER_CHECKS)

    def start(self, *, fresh: bool = False) -> Started:
        """Start everything at once; returns the first engine's start."""
        self._compose.config()
        self._compose.up(recreate=fresh or not self.state().running)
        started = self._first.state().started
        if started is None:
            raise ComposeFailed(f"docker compose made no container for the service {self.services[0]}")
        return started

    def _containers(self) -> dict[str, ComposeEngine]:
        """The engines by name, then the router."""
        return {**self.replicas, SERVICE: self.router}

    def state(self) -> RunState:
        """running: at least one container runs. detail: those that do not, or that all run."""
        states = {name: one.state() for name, one in self._containers().items()}
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
            container=first.container,
            pid=first.pid,
        )

    def lines(self, since: float, *, follow: bool = True) -> Iterator[str]:
        """The logs of the engines and the router, each line prefixed by its service; when followed, as they arrive."""
        sources = self._containers()
        if not follow:
            for name, one in sources.items():
                yield from (f"{name} | {line}" for line in one.lines(0, follow=False))
            return
        arrived: queue.Queue[str | None] = queue.Queue(maxsize=10_000)

        def pump(name: str, one: ComposeEngine) -> None:
            with suppress(Exception):  # a broken stream ends; the others continue
                for line in one.lines(since):
                    arrived.put(f"{name} | {line}")
            arrived.put(None)

        for name, one in sources.items():
            threading.Thread(target=pump, args=(name, one), daemon=True).start()
        left = len(sources)
        while left:
            line = arrived.get()
            left -= line is None
            if line is not None:
                yield line

    def events(self) -> Iterator[str]:
        return self._first.events()

    def stop(self) -> None:
        self._compose.stop()

    def remove(self, *, volumes: bool = False) -> None:
        self._compose.down(volumes=volumes)


def _worst(states: dict[str, RunState]) -> str | None:
    healths = {state.health for state in states.values()}
    return next((word for word in ("unhealthy", "starting", "healthy") if word in healths), None)


def _drain(name: str, engine: Replica, router: RouterClient, steps: Steps) -> None:
    router.take_out(name)
    if engine.state().running:
        left = wait_idle(engine.address(), DRAIN_SECONDS)
        if left:
            steps.note(f"{name}: {left:.0f} requests still run after {DRAIN_SECONDS:.0f} s and are cut off")
