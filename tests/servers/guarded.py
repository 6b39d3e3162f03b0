"""A guard in a thread, in front of an engine that answers with recorded bytes."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import uvloop

from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.guard.proxy import GuardOptions, serving
from glm4_deploy.guard.reader import Mode
from servers.serve import raw_server

CHAT = "/v1/chat/completions"
LOOP = "The lighthouse stands on the hill and looks out over the sea. "
PATIENCE_S = 60.0


class Running:
    """A guard in a thread: its address, and what it has written and counted."""

    def __init__(self, engine: str, mode: Mode, **options: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self.ledger = Ledger(lambda line: self.lines.append(json.loads(line)))
        self._options = GuardOptions(engine=engine, mode=mode, **options)
        self._started = threading.Event()
        self._loop = uvloop.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()), daemon=True)

    async def _run(self) -> None:
        async with serving(self._options, self.ledger, "127.0.0.1", 0, 0) as (self.port, metrics):
            self.url, self.metrics_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{metrics}"
            self._started.set()
            await self._stop.wait()

    def __enter__(self) -> "Running":
        self._thread.start()
        assert self._started.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def count(self, name: str, **labels: str) -> float:
        return self.ledger.registry.get_sample_value(f"glm4_guard_{name}", labels) or 0.0

    def until(self, true: Callable[[], bool]) -> None:
        limit = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < limit, self.lines
            time.sleep(0.01)


class Engine:
    """Answers each connection with recorded bytes; keeps the requests, and whether a client has closed."""

    def __init__(self, *pieces: bytes, hold: bool = False, repeat: bool = False) -> None:
        self.pieces = pieces
        self.hold = hold  # keep the connection open after the last piece, until the other side closes it
        self.repeat = repeat  # send the last piece for ever
        self.requests: list[bytes] = []
        self.sent = 0
        self.connected = threading.Event()
        self.left = threading.Event()
        self.go: threading.Event | None = None  # wait for it after the head and the first piece of the body

    def __call__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.connected.set()
        try:
            self.requests.append(read_request(connection))
            for number, piece in enumerate(self.pieces):
                if number == 2 and self.go is not None:
                    assert self.go.wait(PATIENCE_S)
                connection.sendall(piece)
                self.sent += len(piece)
                if len(self.pieces) < 100:
                    time.sleep(0.002)  # so that pieces mostly arrive one by one; nothing depends on it
            while self.repeat:
                connection.sendall(self.pieces[-1])
                self.sent += len(self.pieces[-1])
            if self.hold and connection.recv(1) == b"":
                self.left.set()
        except OSError:
            self.left.set()
            raise

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(raw.partition(b"\r\n\r\n")[2]) for raw in self.requests]


class Turns(Engine):
    """Answers each connection with the next of its answers, the last one for ever."""

    def __init__(self, *answers: tuple[bytes, ...], hold: bool = False) -> None:
        super().__init__(hold=hold)
        self.answers = list(answers)

    def __call__(self, connection: socket.socket) -> None:
        self.pieces = self.answers[min(len(self.requests), len(self.answers) - 1)]
        super().__call__(connection)


def read_request(connection: socket.socket) -> bytes:
    raw = b""
    while b"\r\n\r\n" not in raw:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError
        raw += more
    head, _, body = raw.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    size = int(fields.get(b"content-length", b"0"))
    while len(body) < size or (b"chunked" in fields.get(b"transfer-encoding", b"") and b"0\r\n\r\n" not in body):
        more = connection.recv(65536)
        if not more:
            raise ConnectionError
        body += more
    return head + b"\r\n\r\n" + body


def head(content_type: str, *more: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", "date: Sat, 28 Nov 2026 12:00:00 GMT", "server: x"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


def streamed(*events: bytes) -> tuple[bytes, ...]:
    """An answer in chunked encoding, as uvicorn sends one."""
    first = head("text/event-stream; charset=utf-8", "transfer-encoding: chunked")
    return (first, *(f"{len(event):x}\r\n".encode() + event + b"\r\n" for event in events), b"0\r\n\r\n")


def whole(body: bytes, content_type: str = "application/json", *more: str, status: str = "200 OK") -> tuple[bytes, ...]:
    return (head(content_type, f"content-length: {len(body)}", *more, status=status), body)


def token(text: str, index: int = 0, finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": index, "delta": {"content": text, **delta}, "logprobs": None, "finish_reason": finish}
    event = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def loop(times: int = 400, index: int = 0) -> list[bytes]:
    return [token(word + " ", index) for word in (LOOP * times).split()]


@contextmanager
def guarded(engine: Any, mode: Mode = Mode.CUT, **options: Any) -> Iterator[Running]:
    with raw_server(engine) as url, Running(url, mode, **options) as running:
        yield running


def body_of(**more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me of a lighthouse."}]
    return {"model": "m", "messages": messages, "stream": True} | more


def post(
    guard: Running,
    path: str = CHAT,
    headers: Mapping[str, str] | None = None,
    begun: threading.Event | None = None,
    **more: Any,
) -> httpx.Response:
    """The answer, undecoded: `.content` are the bytes on the wire. begun: set once the first of them are here."""
    with (
        httpx.Client(timeout=PATIENCE_S, trust_env=False) as client,
        client.stream("POST", guard.url + path, json=body_of(**more), headers=headers or {}) as answer,
    ):
        answer._content = b""
        for piece in answer.iter_raw():
            answer._content += piece
            if begun is not None:
                begun.set()
    return answer


def events_of(raw: bytes) -> list[Any]:
    datas = [block.removeprefix(b"data: ") for block in raw.split(b"\n\n") if block]
    return [json.loads(data) for data in datas if data != b"[DONE]"]


ANSWER = json.dumps({"choices": [{"index": 0, "message": {"content": "Fine."}, "finish_reason": "stop"}]}).encode()


def looping_body() -> bytes:
    message = {"role": "assistant", "content": "Once. " + LOOP * 200}
    usage = {"completion_tokens": 2400}
    return json.dumps(
        {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": usage}
    ).encode()
