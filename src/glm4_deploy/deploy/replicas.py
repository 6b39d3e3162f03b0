"""Bring up several engines: all at once where nothing serves yet, one at a time behind the router where it does."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from glm4_deploy.deploy.boot import Listener, StartResult, require_pass, start_and_gate, stop
from glm4_deploy.deploy.compose_cli import Compose
from glm4_deploy.deploy.docker import address_in, connect, find_container
from glm4_deploy.deploy.engines import ComposeRunner, RunState, Started
from glm4_deploy.deploy.keys import read_key
from glm4_deploy.deploy.releases import Endpoint
from glm4_deploy.errors import ComposeFailed, DeployError, Unreachable
from glm4_deploy.plan.engine_rules import HELD_REQUESTS
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.endpoints import read_metrics
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report_model import Suite
from glm4_deploy.result import Result

# vLLM's router over HTTP: which engines it knows, taking one out, putting it back (its own endpoints, 0.1.17).

SERVICE = "router"
PORT = 8080  # of the engines, inside their containers
ADD_SECONDS = 30.0  # an engine is put back only after it has answered, so this is one look of the router's own
READY_SECONDS = 60.0
IDLE_LOOKS = 2  # a request may be on its way from the router while the engine counts none


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterClient:
    """base_url: where this host reaches the router."""

    base_url: str

    def workers(self) -> Mapping[str, bool]:
        """Address of each engine → whether the router holds it for healthy.

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
    engine does not tell (it does not answer, so nothing of it can be waited for)."""
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


DRAIN_SECONDS = 120.0
# Of the gate, what a router could spoil: the sense of the answers was judged at each engine.
ROUTER_CHECKS = ("alive", "identity", "chat", "stream")


def bring_up_replicas(
    service: Endpoint,
    runner: ReplicaSet,
    *,
    timeout: float,
    listener: Listener,
    fresh: bool,
    on_ready: Callable[[], None],
) -> StartResult:
    """Each engine is gated at its own address, then the router at the one that clients use.

    An engine that runs as wished is gated and left. Another is taken out of the router, has `DRAIN_SECONDS` to finish
    what it has, is made anew, gated, and put back. The first that fails is stopped and stays out; the rest serve on
    (`Seen.serving`). Nothing raises but an interrupt.
    """
    seen = StartResult()
    router = RouterClient(base_url=service.base_url)
    try:
        seen.serving = runner.rolls()
        if not seen.serving:
            runner.start(fresh=fresh)
        for name, engine in zip(runner.services, runner.engines, strict=True):
            one = _replace(service, runner, name, engine, router if seen.serving else None, timeout, listener, on_ready)
            _add(seen, name, one)
            if one.error is not None:
                stop(engine, listener)
                raise one.error
            if seen.serving:
                router.put_back(name)
        if seen.serving:
            runner.settle()
        listener.note("the router")
        router.wait_ready(runner.services)
        _gate_router(service, listener, seen)
    except DeployError as error:
        seen.error = error
    return seen


def _replace(
    service: Endpoint,
    runner: ReplicaSet,
    name: str,
    engine: ComposeRunner,
    router: RouterClient | None,
    timeout: float,
    listener: Listener,
    on_ready: Callable[[], None],
) -> StartResult:
    kept = engine.keeps()
    listener.note(f"replica {name}" + (": as it runs" if kept else ""))
    if router is not None and not kept:
        _drain(runner, name, router, listener)
    return start_and_gate(
        service,
        engine,
        timeout=timeout,
        listener=listener,
        on_ready=on_ready,
        address=lambda: runner.address(name),
    )


def _drain(runner: ReplicaSet, name: str, router: RouterClient, listener: Listener) -> None:
    router.take_out(name)
    if runner.states()[name].running:
        left = wait_idle(runner.address(name), DRAIN_SECONDS)
        if left:
            listener.note(f"{name}: {left:.0f} requests run still after {DRAIN_SECONDS:.0f} s and are cut off here")


def _add(seen: StartResult, name: str, one: StartResult) -> None:
    """Put what one engine showed to the whole. The log is that of the last one: where one failed, it is the last."""
    seen.started = seen.started or one.started
    seen.results += _named(name, one.results)
    seen.facts, seen.findings, seen.log, seen.phases = one.facts, one.findings, one.log, one.phases
    seen.ready_seconds = max(
        (time for time in (seen.ready_seconds, one.ready_seconds) if time is not None), default=None
    )
    seen.gate_seconds = round((seen.gate_seconds or 0) + (one.gate_seconds or 0), 1)


def _named(name: str, results: tuple[Result, ...]) -> tuple[Result, ...]:
    return tuple(replace(row, check=f"{name}/{row.check}") for row in results)


def _gate_router(service: Endpoint, listener: Listener, seen: StartResult) -> None:
    key = SecretStr(read_key(Path(service.api_key_file))) if service.api_key_file else None
    target = ProbeTarget(
        base_url=service.base_url, model=service.model, max_model_len=service.max_model_len, api_key=key
    )
    report = asyncio.run(
        run_suite(
            target,
            suite=Suite.GATE,
            only=ROUTER_CHECKS,
            on_start=listener.check_started,
            on_result=listener.check_done,
        )
    )
    rows = _named("router", report.results)
    seen.results += rows
    require_pass(rows)
