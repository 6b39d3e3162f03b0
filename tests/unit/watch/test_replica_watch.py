"""Two engines behind the real router: the sick one leaves, comes back gated, and the last one stays."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from glm4_deploy.deploy.replicas import RouterClient
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.render.compose import ROUTER
from glm4_deploy.watch.cause import LogEnd
from glm4_deploy.watch.judge import Limits
from glm4_deploy.watch.loop import Schedule
from glm4_deploy.watch.replicas import (
    FILE,
    Causes,
    ReplicaExporter,
    Rotation,
    RoutedEngine,
    Together,
    watch_replicas,
)
from glm4_deploy.watch.restart import Policy, Rules
from servers import broken
from servers.docker_engine import RunningKeeper
from servers.reference import Reference
from servers.serve import serving

LIMITS = Limits(interval_s=0.2, stall_s=1.5, start_grace_s=0.0)


class Engine:
    """A server that can be changed while it serves, as an ASGI app."""

    def __init__(self) -> None:
        self.now: Any = Reference()

    def becomes(self, kind: Any) -> None:
        """It turns sick without a restart: the start time stays."""
        self.now = replace(kind(), started=self.now.started) if kind else self.now

    def restarted(self) -> None:
        self.now = Reference(started=time.time())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.now(scope, receive, send)


class Keeper(RunningKeeper):
    """Its restart makes the engine well."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def restart(self, why: str, begin: Callable[[], None]) -> Path:
        log = super().restart(why, begin)
        self.engine.restarted()
        return log


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Pair:
    """Two engines, their router, and the watch's events."""

    engines: dict[str, Engine]
    urls: dict[str, str]
    router: RouterClient
    directory: Path
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keepers: dict[str, Keeper] = field(default_factory=dict)
    together: Together = field(init=False)
    causes: Causes = field(init=False)

    def watch(self, *, restart: bool = False, log: bytes | None = None) -> AsyncIterator[None]:
        """log: what each engine has logged; None: this watch may not read it."""
        rules = Rules(backoff_s=60, grace_s=0)
        self.keepers = {name: Keeper(engine) for name, engine in self.engines.items()} if restart else {}
        replicas = tuple(
            RoutedEngine(
                name=name, routed=url, address=lambda url=url: url, target=ProbeTarget(base_url=url, timeout_s=5),  # type: ignore[misc]
                policy=Policy(rules) if restart else None, keeper=self.keepers.get(name),
                tail=None if log is None else lambda _: LogEnd(new=log),
            )
            for name, url in self.urls.items()
        )  # fmt: skip
        self.together = Together({name: ReplicaExporter(stale_s=60) for name in self.urls})

        def emit(event: str, /, **fields: Any) -> None:
            self.events.append((event, fields))

        rotation = Rotation(router=self.router, replicas=replicas, directory=self.directory, emit=emit)
        self.causes = Causes(replicas, self.together, emit)
        return watch_replicas(
            rotation, self.together, LIMITS, lambda _: Schedule(every_s=0.4, max_tokens=64), emit, self.causes
        )  # fmt: skip

    @property
    def routed(self) -> set[str]:
        workers = self.router.workers()
        return {name for name, url in self.urls.items() if url in workers}

    def names(self, replica: str) -> list[str]:
        return [event for event, fields in self.events if fields.get("replica") == replica]

    def value(self, name: str, replica: str) -> float | None:
        return self.together.registry.get_sample_value(f"glm4_watch_{name}", {"replica": replica})


async def until(pair: Pair, seen: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(seen):
        assert time.monotonic() < deadline, f"in vain: {pair.events[-12:]}"
        await asyncio.sleep(0.05)


def run(pair: Pair, story: Any, **options: Any) -> None:
    """The story while the watch runs."""

    async def both() -> None:
        watching = asyncio.ensure_future(pair.watch(**options))  # type: ignore[arg-type]
        telling = asyncio.ensure_future(story())
        done, _ = await asyncio.wait({watching, telling}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        assert telling in done, "the watch ended by itself"
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(both())


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[dict[str, Engine], dict[str, str], RouterClient]]:
    engines = {"one": Engine(), "two": Engine()}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(serving(engine)) for name, engine in engines.items()}
        port, metrics = free_port(), free_port()
        words = ["--host", "127.0.0.1", "--port", str(port), "--policy", "cache_aware"]
        words += ["--health-check-interval-secs", "1", "--health-failure-threshold", "2", "--prometheus-port"]
        words += [str(metrics), "--prometheus-host", "127.0.0.1", "--worker-urls", *urls.values()]
        process = subprocess.Popen(
            [sys.executable, "-c", ROUTER, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(process.wait)
        stack.callback(process.send_signal, signal.SIGKILL)
        router = RouterClient(base_url=f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 60
        while True:
            try:
                if list(router.workers().values()) == [True, True]:
                    break
            except Exception:  # noqa: BLE001 (it starts)
                assert time.monotonic() < deadline
            time.sleep(0.1)
        yield engines, urls, router


@pytest.fixture
def pair(made: Any, tmp_path: Path) -> Iterator[Pair]:
    engines, urls, router = made
    for name, engine in engines.items():
        engine.restarted()
        router.add(urls[name])
    yield Pair(engines, urls, router, tmp_path)


def test_a_hung_one_leaves_the_router_is_restarted_alone_and_comes_back_gated(pair: Pair) -> None:
    async def story() -> None:
        await until(pair, lambda: pair.together.last.state.good)
        pair.engines["one"].becomes(broken.Hangs)
        await until(pair, lambda: pair.routed == {"two"})
        async with httpx.AsyncClient(trust_env=False) as client:
            body = {"model": "glm-4-9b-chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
            for _ in range(5):
                answer = await client.post(f"{pair.router.base_url}/v1/chat/completions", json=body, timeout=30)
                assert answer.status_code == 200
        await until(pair, lambda: "put-back" in pair.names("one"))
        assert pair.routed == {"one", "two"}
        await until(pair, lambda: pair.together.last.state.good)

    run(pair, story, restart=True)
    steps = [name for name in pair.names("one") if name in ("taken-out", "restarted", "gate-failed", "put-back")]
    assert steps == ["taken-out", "restarted", "put-back"]
    assert len(pair.keepers["one"].restarts) == 1
    assert pair.keepers["two"].restarts == []
    assert {"taken-out", "restarting", "put-back"}.isdisjoint(pair.names("two"))
    assert (pair.value("requests_lost_total", "one") or 0) >= 1, "the canary that it held"
    assert pair.value("requests_lost_total", "two") == 0
    assert pair.value("restarts_total", "one") == 1


def test_the_root_cause_is_told_of_the_one_that_is_sick_until_it_is_well(pair: Pair) -> None:
    def health() -> dict[str, Any]:
        body: dict[str, Any] = json.loads(pair.together.health()[1])["replicas"]
        return body

    async def story() -> None:
        await until(pair, lambda: pair.together.last.state.good)
        pair.engines["one"].becomes(broken.Hangs)
        await until(pair, lambda: "cause" in pair.names("one"))
        assert pair.together.worst == "one"
        found = await asyncio.to_thread(pair.causes.wait)
        assert found is not None
        assert (found.finding, found.why[:34]) == ("no-kv-room", "one: weights and workspace use up ")
        assert health()["one"]["cause"]["finding"] == "no-kv-room"
        assert "cause" not in health()["two"]
        pair.engines["one"].restarted()
        await until(pair, lambda: pair.together.last.state.good)
        assert "cause" not in health()["one"] and pair.causes.wait() is None

    run(pair, story, log=(Path(__file__).parents[2] / "data/logs/h100-0.24-no-room.log").read_bytes())
    assert pair.names("one").count("cause") == 1
    assert "cause" not in pair.names("two")


def test_the_last_one_is_never_taken_out(pair: Pair) -> None:
    async def story() -> None:
        await until(pair, lambda: pair.together.last.state.good)
        pair.engines["one"].becomes(broken.Hangs)
        await until(pair, lambda: "taken-out" in pair.names("one"))
        pair.engines["two"].becomes(broken.Corrupts)
        await until(pair, lambda: "kept-in" in pair.names("two"))
        for _ in range(10):
            assert await asyncio.to_thread(lambda: pair.routed) == {"two"}
            await asyncio.sleep(0.1)
        pair.engines["one"].restarted()
        await until(pair, lambda: pair.routed == {"one"})

    run(pair, story)
    assert pair.names("two").count("kept-in") == 1
    assert pair.together.health()[0] == 503


def test_one_that_does_not_pass_its_gate_stays_out(pair: Pair) -> None:
    async def story() -> None:
        await until(pair, lambda: pair.together.last.state.good)
        pair.engines["one"].becomes(broken.Hangs)
        await until(pair, lambda: "taken-out" in pair.names("one"))
        pair.engines["one"].now = GatedOut(started=time.time())
        await until(pair, lambda: "gate-failed" in pair.names("one"))
        assert await asyncio.to_thread(lambda: pair.routed) == {"two"}

    run(pair, story)
    assert "put-back" not in pair.names("one")


class GatedOut(Reference):
    """Answers the watch's small questions well, and has another context than the gate expects: it lists no model."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/v1/models":
            scope = {**scope, "path": "/nothing"}
        await super().__call__(scope, receive, send)


def test_what_a_killed_watch_took_out_is_put_back_by_the_next_and_what_others_took_out_is_not(pair: Pair) -> None:
    (pair.directory / FILE).parent.mkdir()
    (pair.directory / FILE).write_text('["one"]')
    pair.router.remove(pair.urls["one"])

    async def story() -> None:
        await until(pair, lambda: pair.routed == {"one", "two"})
        await until(pair, lambda: (pair.directory / FILE).read_text() == "[]")
        await asyncio.to_thread(pair.router.remove, pair.urls["one"])
        await until(pair, lambda: pair.together.last.state.good)
        await asyncio.sleep(1.0)
        assert await asyncio.to_thread(lambda: pair.routed) == {"two"}, "`up` is at work on it"

    run(pair, story)


def test_a_router_that_does_not_answer_is_reported_once_and_the_engines_are_watched_on(pair: Pair) -> None:
    pair.router = RouterClient(base_url="http://127.0.0.1:1")

    async def story() -> None:
        await until(pair, lambda: pair.together.last.state.good)
        pair.engines["one"].becomes(broken.Hangs)
        await until(pair, lambda: pair.together.last.state.value == "hung")

    run(pair, story)
    assert pair.names("one").count("router-failed") == 1


def test_metrics_of_all_engines_are_on_one_page(pair: Pair) -> None:
    async def story() -> None:
        await until(pair, lambda: pair.together.last.state.good)

    run(pair, story)
    page = generate_latest(pair.together.registry).decode()
    assert 'glm4_watch_state{replica="one",state="ok"} ' in page
    assert 'glm4_watch_routed{replica="two"} 1.0' in page
    assert page.count("# TYPE glm4_watch_state gauge") == 1
    assert page.count("# TYPE process_cpu_seconds_total counter") == 1
    assert pair.together.health()[0] == 200
