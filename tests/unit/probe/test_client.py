"""The client against real sockets: nothing hangs, no key leaks, every failure has its own message."""

import asyncio
import socket
import struct
import time
from typing import Any

import pytest
from pydantic import SecretStr

from glm4_deploy.errors import UsageError
from glm4_deploy.probe.answers import FailureKind, RequestFailure, sse_events
from glm4_deploy.probe.client import Client, ProbeTarget
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report.wire import dumps
from glm4_deploy.report_model import Suite, SuiteReport
from glm4_deploy.result import Status
from servers import broken
from servers.reference import Reference
from servers.serve import mounted, raw_server, serving

KEY = "sk-secret-0123456789"
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "glm-4-9b-chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}


def gate(url: str, **settings: Any) -> SuiteReport:
    target = ProbeTarget(base_url=url, model="glm-4-9b-chat", **{"timeout_s": 5.0, **settings})
    return asyncio.run(run_suite(target, suite=Suite.GATE))


async def stream(url: str, **settings: Any) -> Any:
    async with Client(ProbeTarget(base_url=url, **{"timeout_s": 5.0, **settings})) as client:
        return await client.ask_stream(CHAT, BODY, limit_s=5.0)


def reset(connection: socket.socket) -> None:
    """Reads the request and cuts the connection with a RST."""
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(connection: socket.socket) -> None:
    """Accepts connections and never answers."""
    time.sleep(3)


def not_http(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")


def test_a_reset_connection() -> None:
    with raw_server(reset) as url, pytest.raises(RequestFailure) as caught:
        asyncio.run(stream(url))
    assert caught.value.kind is FailureKind.RESET


def test_a_silent_server_ends_in_a_verdict() -> None:
    begin = time.monotonic()
    with raw_server(silent) as url, pytest.raises(RequestFailure) as caught:
        asyncio.run(stream(url, timeout_s=0.3))
    assert caught.value.kind is FailureKind.HANG
    assert time.monotonic() - begin < 3


def test_another_protocol_on_the_port() -> None:
    with raw_server(not_http) as url:
        report = gate(url)
    assert report.exit_code == 1
    assert report.results[0].status is Status.FAIL


def test_a_gate_over_a_silent_server_is_unreachable_or_failed_and_quick() -> None:
    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as port:
        url = f"http://127.0.0.1:{port.getsockname()[1]}"
    report = gate(url)
    assert report.exit_code == 3
    assert [row.status for row in report.results[1:]] == [Status.SKIPPED] * (len(report.results) - 1)
    assert time.monotonic() - begin < 5


def test_the_key_goes_only_to_the_base_url() -> None:
    elsewhere = Reference()
    with mounted(elsewhere) as other:
        moved = broken.Redirects()
        moved.elsewhere = f"{other}/"
        with mounted(moved) as url:
            report = gate(url, api_key=SecretStr(KEY))
    assert report.exit_code == 4
    assert elsewhere.seen_keys == []
    assert set(moved.seen_keys) == {f"Bearer {KEY}"}


def test_a_proxy_from_the_environment_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with mounted(Reference(token_s=0.001)) as url:
        assert gate(url).exit_code == 0


class Echoes(Reference):
    """Repeats the key in its error, as some servers do."""

    async def unauthorized(self, send: Any) -> None:
        await self.send_json(send, {"error": {"message": f"Incorrect API key: {KEY}"}}, 401)

    def models(self) -> dict[str, Any]:
        return {"data": [{"id": f"glm-{KEY}"}]}


def test_the_key_is_in_no_report() -> None:
    with mounted(Echoes(key=KEY)) as url:
        report = gate(url, api_key=SecretStr(KEY))
    assert report.exit_code == 4
    assert KEY not in dumps(report)
    assert "[redacted]" in dumps(report)


def test_connections_are_reused() -> None:
    async def main(url: str) -> None:
        async with Client(ProbeTarget(base_url=url)) as client:
            for _ in range(5):
                await client.ask_stream(CHAT, BODY, limit_s=5)
            pool = client._http._transport._pool  # type: ignore[attr-defined]
            assert len(pool.connections) == 1

    with serving(Reference()) as url:
        asyncio.run(main(url))


CLOSED = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
HALF = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"


class ClosesReused:
    """Answers the first request of each connection with `first`, and the second one with `second`, then closes.

    No client can know that from the first answer, and waiting for the second request makes it lose the race always.
    """

    def __init__(self, *, first: bytes = CLOSED, second: bytes = b"") -> None:
        self.answers = (first, second)
        self.requests: list[int] = []

    def __call__(self, connection: socket.socket) -> None:
        number = len(self.requests)
        for count, answer in enumerate(self.answers, start=1):
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            self.requests[number:] = [count]
            connection.sendall(answer)


async def twice(url: str) -> int:
    async with Client(ProbeTarget(base_url=url, timeout_s=5.0)) as client:
        await client.get("/health")
        return (await client.get("/health")).status


def test_a_reused_connection_that_closes_before_any_byte_is_retried_once_on_a_new_one() -> None:
    server = ClosesReused()
    with raw_server(server) as url:
        assert asyncio.run(twice(url)) == 400
    assert server.requests == [2, 1]  # two on the first connection, of which one was lost, and its repetition


def test_an_answer_that_has_begun_is_not_requested_again() -> None:
    server = ClosesReused(second=HALF)
    with raw_server(server) as url, pytest.raises(RequestFailure) as caught:
        asyncio.run(twice(url))
    assert caught.value.kind in {FailureKind.RESET, FailureKind.TRUNCATED}
    assert server.requests == [2]


def test_a_new_connection_that_closes_is_not_retried() -> None:
    server = ClosesReused(first=b"")
    with raw_server(server) as url, pytest.raises(RequestFailure):
        asyncio.run(twice(url))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://x", "http://", "http://user:pw@host", "http://h:99999", "http://h/?q=1"],
)
def test_a_wrong_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        _ = ProbeTarget(base_url=url).root


@pytest.mark.parametrize("given", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", " http://h:1 "])
def test_an_address_with_or_without_v1(given: str) -> None:
    assert ProbeTarget(base_url=given).root == "http://h:1"


@pytest.mark.parametrize("key", ["", "  ", "a b", "line\nbreak", "ключ", "\x00"])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(UsageError):
        _ = ProbeTarget(base_url="http://h", api_key=SecretStr(key)).key


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_survive_any_cut(size: int, end: bytes) -> None:
    lines = [
        b": ping",
        b"",
        b"data: one",
        b"",
        b"event: x",
        b"data: two",
        b"data: lines",
        b"",
        b"data:[DONE]",
        b"",
        b"",
    ]
    raw = end.join(lines)
    chunks = [(float(place), raw[place : place + size]) for place in range(0, len(raw), size)]
    assert [data for _, data in sse_events(chunks)] == [b"one", b"two\nlines", b"[DONE]"]


class SaysDone(Reference):
    """A model whose text contains the stream's end mark."""

    def reply(self, body: dict[str, Any]) -> str:
        return "data: [DONE] and on"


def test_a_model_may_say_done() -> None:
    with mounted(SaysDone(token_s=0.01)) as url:
        answer = asyncio.run(stream(url))
    assert answer.text == "data: [DONE] and on"
