"""What `up` asks of the real router (the pinned wheel), in front of two servers that imitate vLLM."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httpx
import pytest

from glm4_deploy.deploy import replicas as room
from glm4_deploy.deploy.compose_cli import Compose
from glm4_deploy.deploy.engines import Engine, RunState
from glm4_deploy.deploy.replicas import Replica, ReplicaSet, RouterClient, address_of, wait_idle
from glm4_deploy.errors import EngineDied, Unreachable
from glm4_deploy.render.compose import ROUTER
from servers.reference import Reference
from servers.serve import serving


@dataclass(kw_only=True)
class Busy(Reference):
    """Reports running requests, as vLLM's gauges do."""

    running: int = 0

    def metrics(self) -> str:
        gauges = (
            f'vllm:num_requests_running{{engine="0"}} {self.running}.0\nvllm:num_requests_waiting{{engine="0"}} 0.0\n'
        )
        return super().metrics() + gauges


@dataclass(frozen=True, kw_only=True)
class Pool:
    client: RouterClient
    services: tuple[str, str]
    engines: tuple[Busy, Busy]

    def chat(self) -> int:
        body = {"model": "glm-4-9b-chat", "messages": [{"role": "user", "content": "What is 6 times 7?"}]}
        headers = {"authorization": "Bearer secret"}
        url = f"{self.client.base_url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=headers, timeout=20, trust_env=False).status_code


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Engines at 127.0.0.1:PORT; services are named by host and port, so that the names resolve."""
    engines = (Busy(key="secret"), Busy(key="secret"))
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "address_of", lambda service: f"http://{service}")
        services = tuple(urlsplit(stack.enter_context(serving(engine))).netloc for engine in engines)
        port, metrics = free_port(), free_port()
        words = [sys.executable, "-c", ROUTER, "--port", str(port), "--prometheus-port", str(metrics)]
        words += [
            "--health-check-interval-secs",
            "1",
            "--health-failure-threshold",
            "1",
            "--worker-startup-check-interval",
            "1",
        ]
        process = subprocess.Popen(
            [*words, "--worker-urls", *(f"http://{name}" for name in services)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        client = RouterClient(base_url=f"http://127.0.0.1:{port}")
        client.wait_ready(services)
        yield Pool(client=client, services=(services[0], services[1]), engines=engines)


def test_an_engine_taken_out_gets_no_requests_and_can_be_put_back(pool: Pool) -> None:
    first, second = pool.services
    pool.client.take_out(first)
    pool.client.take_out(first)  # an update that was cut off may have done it already
    assert pool.client.workers() == {f"http://{second}": True}
    before = len(pool.engines[0].requests)
    assert {pool.chat() for _ in range(6)} == {200}
    assert len(pool.engines[0].requests) == before
    pool.client.put_back(first)
    pool.client.put_back(first)
    pool.client.wait_ready(pool.services)


def test_the_key_of_the_client_reaches_the_engine(pool: Pool) -> None:
    assert pool.chat() == 200
    assert "Bearer secret" in {key for engine in pool.engines for key in engine.seen_keys}
    url = f"{pool.client.base_url}/v1/chat/completions"
    body = {"model": "glm-4-9b-chat", "messages": [{"role": "user", "content": "x"}]}
    assert httpx.post(url, json=body, timeout=20, trust_env=False).status_code == 401


def test_an_engine_is_idle_when_it_counts_no_request(pool: Pool) -> None:
    address, engine = f"http://{pool.services[0]}", pool.engines[0]
    assert wait_idle(address, 5) == 0
    engine.running = 2
    assert wait_idle(address, 0.1) == 2, "bounded"
    threading.Timer(0.7, lambda: setattr(engine, "running", 0)).start()
    began = time.monotonic()
    assert wait_idle(address, 20) == 0
    assert time.monotonic() - began > 0.5
    assert wait_idle("http://127.0.0.1:9", 5) is None, "an engine that does not answer has nothing to finish"


def test_a_router_that_is_not_there_or_another_server_is_reported() -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        RouterClient(base_url="http://127.0.0.1:9").take_out("a")
    with serving(Reference()) as other, pytest.raises(Unreachable, match="refuses"):
        RouterClient(base_url=other).workers()


def test_the_router_is_not_ready_with_other_engines(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "READY_SECONDS", 0.6)
    with pytest.raises(Unreachable, match="not ready with 1 engines"):
        pool.client.wait_ready(pool.services[:1])


def test_the_address_is_the_one_that_the_rendered_file_gives() -> None:
    assert address_of("glm4-9b-nvfp4-1") == "http://glm4-9b-nvfp4-1:8080"


class Files:
    """Imitates `docker compose up` on a project in which everything runs already."""

    def up(self, **_: object) -> None:
        pass


class Running(Replica):
    """One of the pool's engines, at the address that its container would have."""

    def __init__(self, service: str, *, kept: bool) -> None:
        self._service, self._kept = service, kept

    def keeps(self) -> bool:
        return self._kept

    def address(self) -> str:
        return f"http://{self._service}"

    def state(self) -> RunState:
        return RunState(running=True, started=None)


@dataclass(kw_only=True)
class Roll:
    """The transaction's side of a roll: which engines the router held while each one was started and gated."""

    pool: Pool
    fails: str = ""
    fresh: bool = False
    rolling: bool = True
    held: dict[str, set[str]] = field(default_factory=dict)
    stopped: list[Engine] = field(default_factory=list)

    def note(self, text: str) -> None:
        pass

    def start_and_gate(self, engine: Engine, *, name: str = "", fresh: bool = False) -> None:
        assert not fresh
        self.held[name] = {url.removeprefix("http://") for url in self.pool.client.workers()}
        if name == self.fails:
            raise EngineDied("it died")

    def gate_router(self, name: str, only: tuple[str, ...]) -> None:
        self.held[name] = {url.removeprefix("http://") for url in self.pool.client.workers()}

    def stop(self, engine: Engine) -> bool:
        self.stopped.append(engine)
        return True


def replica_set(pool: Pool, *kept: str) -> ReplicaSet:
    made = object.__new__(ReplicaSet)
    made.services, made._base_url, made._compose = pool.services, pool.client.base_url, cast("Compose", Files())
    made.replicas = {name: Running(name, kept=name in kept) for name in pool.services}
    return made


def test_a_rolling_update_takes_one_engine_out_at_a_time_and_gates_the_router_last(pool: Pool) -> None:
    first, second = pool.services
    roll = Roll(pool=pool)
    replica_set(pool).bring_up(roll)
    assert list(roll.held.items()) == [(first, {second}), (second, {first}), ("router", {first, second})]
    assert roll.stopped == []


def test_an_engine_that_runs_from_these_files_keeps_serving_while_it_is_gated(pool: Pool) -> None:
    first, second = pool.services
    roll = Roll(pool=pool)
    replica_set(pool, first, second).bring_up(roll)
    assert list(roll.held.values()) == [{first, second}] * 3


def test_the_first_engine_that_fails_ends_the_update_stopped_and_out(pool: Pool) -> None:
    first, second = pool.services
    roll, replicas = Roll(pool=pool, fails=first), replica_set(pool)
    with pytest.raises(EngineDied):
        replicas.bring_up(roll)
    assert list(roll.held) == [first], "the second was not touched"
    assert roll.stopped == [replicas.replicas[first]]
    assert pool.client.workers() == {f"http://{second}": True}
    pool.client.put_back(first)
    pool.client.wait_ready(pool.services)
