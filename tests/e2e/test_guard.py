"""The guard as a program, in front of a real vLLM: what it observes passes as it is, and a cut frees the engine."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from e2e.engine import NAME, Engine
from e2e.gateway import gateway
from e2e.kit import KIT, free_port
from e2e.watching import Lines
from glm4_deploy.deploy.keys import add_key
from glm4_deploy.probe.endpoints import parse_metrics
from servers.serve import raw_server

pytestmark = pytest.mark.e2e
LONG = 3000  # tokens: far more than the detector needs


class Tap:
    """Stands between guard and engine: keeps what the engine sends, one entry per connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.heard: list[bytes] = []

    def __call__(self, guard: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as engine:
            back = threading.Thread(target=self._answer, args=(engine, guard), daemon=True)
            back.start()
            try:
                while more := guard.recv(65536):
                    engine.sendall(more)
            finally:
                engine.shutdown(socket.SHUT_RDWR)
                back.join(60)

    def _answer(self, engine: socket.socket, guard: socket.socket) -> None:
        raw = b""
        with suppress(OSError):
            while more := engine.recv(65536):
                raw += more
                guard.sendall(more)
            guard.shutdown(socket.SHUT_WR)
        self.heard.append(raw)


def body_of(raw: bytes) -> bytes:
    """The body of an answer, without its chunks' frames."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


@pytest.fixture(scope="module")
def tap(healthy: Engine) -> Tap:
    return Tap(healthy.port)


@pytest.fixture(scope="module")
def guard(tap: Tap) -> Iterator[tuple[str, Lines]]:
    """Its address for clients, and the lines that it writes."""
    port, metrics_port = free_port(), free_port()
    with raw_server(tap) as engine:
        words = ["--engine", engine, "--port", str(port), "--metrics-port", str(metrics_port)]
        lines = Lines([*KIT, "guard", *words, "--mode-for", "key:ada=cut"])
        lines.wait(lambda row: row["event"] == "listening", 120)
        yield f"http://127.0.0.1:{port}", lines
        lines.end()
        Lines.open.remove(lines)


def forced(base_url: str, **more: Any) -> dict[str, Any]:
    """A request whose answer is one word over and over, whatever the model would say."""
    asked = httpx.post(f"{base_url}/tokenize", json={"model": NAME, "prompt": " lighthouse"}, trust_env=False)
    token = asked.json()["tokens"][-1]
    messages = [{"role": "user", "content": "Tell me of the sea."}]
    body = {"model": NAME, "messages": messages, "logit_bias": {str(token): 100}, "ignore_eos": True, "seed": 1}
    return body | more


def post(url: str, body: dict[str, Any], **headers: str) -> bytes:
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=300, trust_env=False).content


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.05)


def value(engine: Engine, name: str) -> float:
    metrics = parse_metrics(httpx.get(f"{engine.base_url}/metrics", timeout=60, trust_env=False).text)
    return metrics.sum(name) or 0.0


@pytest.mark.parametrize(
    "more",
    [
        {"stream": True, "n": 2, "stream_options": {"include_usage": True}},
        {"stream": True, "logprobs": True, "top_logprobs": 2},
        {"stream": False},
        {"stream": True, "temperature": -1},
    ],
    ids=["stream", "logprobs", "whole", "refused"],
)
def test_what_is_observed_is_what_the_engine_sent(
    healthy: Engine, tap: Tap, guard: tuple[str, Lines], more: dict[str, Any]
) -> None:
    before = len(tap.heard)
    answer = post(guard[0], forced(healthy.base_url, max_tokens=8, **more))
    until(lambda: len(tap.heard) > before)
    assert answer == body_of(tap.heard[before])
    assert (b'"error"' in answer) is ("temperature" in more)


def test_a_loop_is_cut_and_the_engines_slot_is_free(healthy: Engine, guard: tuple[str, Lines]) -> None:
    url, lines = guard
    before = value(healthy, "vllm:generation_tokens_total")
    raw = post(url, forced(healthy.base_url, max_tokens=LONG, stream=True), **{"X-GLM4-Guard": "cut"})
    last = json.loads(raw.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert raw.endswith(b"data: [DONE]\n\n")
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["glm4_guard"]["action"] == "cut"
    lines.wait(lambda row: row["event"] == "finding" and row["action"] == "cut", 60)
    until(lambda: not value(healthy, "vllm:num_requests_running"))
    assert value(healthy, "vllm:generation_tokens_total") - before < LONG


def test_a_client_that_asks_for_it_gets_a_second_answer_in_the_same_stream(
    healthy: Engine, guard: tuple[str, Lines]
) -> None:
    raw = post(guard[0], forced(healthy.base_url, max_tokens=LONG, stream=True), **{"X-GLM4-Guard": "retry"})
    events = [json.loads(event.removeprefix(b"data: ")) for event in raw.split(b"\n\n")[:-2]]
    marked = [event for event in events if "glm4_guard" in event]
    assert [event["glm4_guard"]["action"] for event in marked] == ["retried", "cut"]  # the word is forced on both
    assert events[0]["id"] != events[-1]["id"]
    assert raw.endswith(b"data: [DONE]\n\n")
    until(lambda: not value(healthy, "vllm:num_requests_running"))


def test_a_client_that_leaves_frees_the_engine(healthy: Engine, guard: tuple[str, Lines]) -> None:
    body = forced(healthy.base_url, max_tokens=LONG, stream=True)
    with httpx.stream("POST", f"{guard[0]}/v1/chat/completions", json=body, timeout=300, trust_env=False) as answer:
        next(answer.iter_raw())
    until(lambda: not value(healthy, "vllm:num_requests_running"))


def test_behind_the_gateway_a_keys_mode_holds_and_a_cut_goes_through(
    healthy: Engine, guard: tuple[str, Lines], tmp_path: Path
) -> None:
    """Caddy, the guard and vLLM: what a client of `--with gateway,guard` talks to."""
    url, lines = guard
    body = forced(healthy.base_url, max_tokens=LONG, stream=True)
    with gateway(urlsplit(url).netloc, tmp_path, extras=("gateway", "guard")) as front:
        ada, bob = (add_key(front.keys, name, rate=1000) for name in ("ada", "bob"))
        with front.client(ada, timeout=300) as client:
            cut = client.post("/v1/chat/completions", json=body).text
            assert client.get("/v1/models").json()["data"][0]["id"] == NAME
        with front.client(bob, timeout=300) as client:
            seen = client.post(
                "/v1/chat/completions", json=body | {"max_tokens": 8}, headers={"X-Key-Name": "ada"}
            ).text
            refused = client.post("/v1/chat/completions", json=body | {"temperature": -1})
    assert cut.endswith("data: [DONE]\n\n")
    assert '"action":"cut"' in cut.split("\n\n")[-3]
    assert "glm4_guard" not in seen
    assert seen.endswith("data: [DONE]\n\n")
    assert refused.status_code == 400
    lines.wait(lambda row: row["event"] == "finding" and row.get("key") == "ada", 60)
    until(lambda: not value(healthy, "vllm:num_requests_running"))
