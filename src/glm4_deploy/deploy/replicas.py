"""Several engines behind vLLM's router: started at once where nothing serves yet, else replaced one at a time."""

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

# vLLM's router over HTTP: which engines it knows, taking one out, putting it back (its own endpoints, 0.1.17).

SERVICE = "router"
PORT = 8080  # of the engines, inside their containers
ADD_SECONDS = 30.0  # an engine is put back only after it has answered, so this is one health check of the router's
READY_SECONDS = 60.0
IDLE_LOOKS = 2  # a request may be on its way from the router while the engine counts none


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterClient:
    """base_url: where this host reaches the router."""

    base_url: str

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
                f"{self.base_url}/workers answers, but not as a router does", hint="see what holds the port: ss -ltnp"
            ) from error

    def take_out(self, service: str) -> None:
        """No new request goes to this engine from here on; those that it has go on. An unknown one is no error."""
        self._ask("POST", "/remove_worker", url=address_of(service))

    def put_back(self, service: str) -> None:
        """It must answer /health already; one that is there is no error.

        Raises:
            Unreachable
        """
        if address_of(service) not in self.workers():
            self._ask("POST", "/add_worker", url=address_of(service))

    def wait_ready(self, services: tuple[str, ...]) -> None:
        """Until it holds exactly these engines, all healthy.

        Raises:
            Unreachable: it does not in READY_SECONDS.
        """
        wanted = {address_of(service): True for service in services}
        deadline = time.monotonic() + READY_SECONDS
        seen = ""
        while time.monotonic() < deadline:
            try:
                now = self.workers()
                if now == wanted:
                    return
                seen = ", ".join(f"{url} {'healthy' if well else 'unhealthy'}" for url, well in now.items()) or "none"
            except Unreachable as error:
                seen = error.message
            time.sleep(0.5)
        raise Unreachable(
            f"the router at {self.base_url} is not ready with {len(services)} engines: {seen}",
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
    """Block until the engine at `base_url` runs and queues no request: what are left after `seconds`, None where the
    engine does not say (it does not answer, so there is nothing to wait for)."""
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


# Several engines of one Compose project and their router, behind the same protocol as one engine.

DRAIN_SECONDS = 120.0
# Of the gate, what a router could spoil: whether the answers make sense was judged at each engine.
ROUTER_CHECKS = ("alive", "identity", "chat", "stream")


class Replica(ComposeEngine):
    """One of several engines: it has no port on this host, but an address on the project's own network."""

    def __init__(self, *, compose: Compose, service: str) -> None:
        super().__init__(compose=compose, service=service, alone=True)

    def address(self) -> str:
        """
        Raises:
            ComposeFailed: it has none.
        """
        container = self._container()
        found = address_in(container) if container else None
        if found is None:
            raise ComposeFailed(
                f"the container of {self._service} has no address of its own",
                hint="replicas are gated one by one, over the project's bridge network: see docs/how-to/replicas.md",
            )
        return f"http://{found}:{PORT}"


class ReplicaSet:
    """The engines in order, each of which touches nothing but its own container, and the router."""

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

    def secrets(self) -> frozenset[str]:
        return self._first.secrets()

    def address(self) -> str:
        return ""

    def keeps(self) -> bool:
        return self.rolls() and all(engine.keeps() for engine in self.replicas.values())

    def rolls(self) -> bool:
        """Whether the router runs already as these files have it, so that engines can be replaced behind it."""
        return self.router.keeps()

    def bring_up(self, steps: Steps) -> None:
        """Each engine is gated at its own address, then the router at the one that clients use.

        An engine that runs from these files is gated and left alone. Another is taken out of the router, has
        `DRAIN_SECONDS` to finish its requests, is started again, gated, and put back. The first that fails is stopped
        and stays out; where the set was rolling, the others go on serving.
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
            # Start what is new beside the engines and end what is no longer in the files; the rest is not touched.
            self._compose.up()
        steps.note("the router")
        router.wait_ready(self.services)
        steps.gate_router(SERVICE, ROUTER_CHECKS)

    def start(self, *, fresh: bool = False) -> Started:
        """Start everything at once; the first engine stands for all."""
        self._compose.config()
        self._compose.up(recreate=fresh or not self.state().running)
        started = self._first.state().started
        if started is None:
            raise ComposeFailed(f"docker compose made no container for the service {self.services[0]}")
        return started

    def _containers(self) -> dict[str, ComposeEngine]:
        """The engines by name, and the router at the end."""
        return {**self.replicas, SERVICE: self.router}

    def state(self) -> RunState:
        """running: something of it is. detail: what is not."""
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
        """The engines' logs and the router's, each line with its service in front; in order of arrival if followed."""
        sources = self._containers()
        if not follow:
            for name, one in sources.items():
                yield from (f"{name} | {line}" for line in one.lines(0, follow=False))
            return
        arrived: queue.Queue[str | None] = queue.Queue(maxsize=10_000)

        def pump(name: str, one: ComposeEngine) -> None:
            with suppress(Exception):  # a stream that breaks ends; the others go on
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
            steps.note(f"{name}: {left:.0f} requests still run after {DRAIN_SECONDS:.0f} s and are cut off here")
