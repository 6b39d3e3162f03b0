"""The guard between real sockets: what passes is equal byte for byte, what loops is cut, what is hostile is bounded."""

import asyncio
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvloop

from glm4_deploy.detect import Stream
from glm4_deploy.guard import answer as answers
from glm4_deploy.guard import proxy, upstream
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

    def __call__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.connected.set()
        try:
            self.requests.append(read_request(connection))
            for piece in self.pieces:
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


def post(guard: Running, path: str = CHAT, headers: Mapping[str, str] | None = None, **more: Any) -> httpx.Response:
    """The answer, undecoded: `.content` are the bytes on the wire."""
    with (
        httpx.Client(timeout=PATIENCE_S, trust_env=False) as client,
        client.stream("POST", guard.url + path, json=body_of(**more), headers=headers or {}) as answer,
    ):
        answer._content = b"".join(answer.iter_raw())
    return answer


def events_of(raw: bytes) -> list[Any]:
    datas = [block.removeprefix(b"data: ") for block in raw.split(b"\n\n") if block]
    return [json.loads(data) for data in datas if data != b"[DONE]"]


# What is not cut passes as it is.

GZIPPED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"

USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}\n\n'
TOOL = token("", tool_calls=[{"index": 0, "id": "t", "function": {"name": "f", "arguments": '{"a": 1}'}}])
LOGPROBS = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"logprobs":{"content":[{"logprob":-0.1}]}}]}\n\n'
SHAPES: dict[str, tuple[bytes, ...]] = {
    "plain": (token(""), token("Hello"), token(" there.", finish="stop"), DONE),
    "comments": (b": ping\n\n", token("a"), b":\n", b": more\n\n", token("b", finish="stop"), DONE),
    "crlf": (b'data: {"choices":[]}\r\n\r\n', b"data: [DONE]\r\n\r\n"),
    "returns alone": (b'data: {"choices":[]}\r\r', b"data: [DONE]\r\r"),
    "data of several lines": (b'event: x\nid: 1\ndata: {"choices":\ndata: []}\nretry: 5\n\n', DONE),
    "cut anywhere": tuple(bytes([byte]) for byte in token("Grüße, 世界") + b"\r\n" + USAGE + DONE),
    "several in one chunk": (token("a") + token("b") + token("c", finish="stop") + USAGE + DONE,),
    "two choices": (token("a", 0), token("b", 1), token("c", 1, "stop"), token("d", 0, "length"), DONE),
    "logprobs": (LOGPROBS, DONE),
    "tool calls": (TOOL, TOOL, token("", finish="tool_calls"), DONE),
    "reasoning": (token("", reasoning_content="Hm."), token("Yes.", finish="stop"), DONE),
    "an error in mid-stream": (token("a"), b'data: {"error":{"message":"NaN","code":500}}\n\n', DONE),
    "no JSON": (b"data: <html>\n\n", b"data: \xff\xfe\n\n", b"data: [1]\n\n", b"data: 3\n\n", DONE),
    "of other types": (b'data: {"choices":[{"index":"x","delta":[3],"text":7}]}\n\n', b'data: {"choices":4}\n\n'),
    "no end mark": (token("a"), b"data: {"),
    "nothing": (),
}


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.CUT])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_of_any_shape_passes_byte_for_byte(shape: str, mode: Mode) -> None:
    with guarded(Engine(*streamed(*SHAPES[shape])), mode) as guard:
        answer = post(guard, n=2 if shape == "two choices" else 1)
        assert answer.content == b"".join(SHAPES[shape])
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (answer.headers["server"], answer.headers["date"]) == ("x", "Sat, 28 Nov 2026 12:00:00 GMT")


ANSWER = json.dumps({"choices": [{"index": 0, "message": {"content": "Fine."}, "finish_reason": "stop"}]}).encode()
BODIES = {
    "json": whole(ANSWER),
    "json with spaces": whole(b" " + ANSWER.replace(b",", b" ,\n") + b"\n"),
    "gzip": whole(gzip.compress(ANSWER), "application/json", "content-encoding: gzip"),
    "bad request": whole(b'{"error":{"message":"no"}}', status="400 Bad Request"),
    "too many": whole(b'{"error":1}', "application/json", "retry-after: 3", status="429 Too Many Requests"),
    "engine's error": whole(b"oops", "text/plain", status="500 Internal Server Error"),
    "a page": whole(b"<html>", "text/html"),
    "not json": whole(b'{"choices": [', "application/json"),
    "deep json": whole(b"[" * 100_000),
    "empty": whole(b""),
    "two cookies": whole(b"{}", "application/json", "set-cookie: a=1", "set-cookie: b=2"),
}


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.CUT, Mode.RETRY])
@pytest.mark.parametrize("kind", BODIES)
def test_a_whole_answer_passes_byte_for_byte(kind: str, mode: Mode) -> None:
    with guarded(Engine(*BODIES[kind]), mode) as guard:
        answer = post(guard, stream=False)
    first, body = BODIES[kind]
    assert answer.content == body
    status, *fields = first.decode().split("\r\n")[:-2]
    assert f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}" == status
    assert [f"{name}: {value}" for name, value in answer.headers.multi_items()] == fields


@pytest.mark.parametrize("path", ["/v1/models", "/v1/embeddings?a=%2F&b", "/health", "/v1/audio/transcriptions"])
def test_other_endpoints_pass_unread(path: str) -> None:
    engine = Engine(*whole(b'{"data": "' + LOOP.encode() * 400 + b'"}'))
    with guarded(engine) as guard, httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        upload = (b"x" * 10_000 for _ in range(50))
        answer = client.post(guard.url + path, content=upload, headers={"Authorization": "Bearer k", "TE": "trailers"})
        assert answer.content == engine.pieces[1]
    raw = engine.requests[0]
    assert raw.startswith(f"POST {path} HTTP/1.1\r\n".encode())
    assert raw.count(b"x" * 100) >= 4_900
    assert b"authorization: bearer k" in raw.lower()
    assert b"\r\nte:" not in raw.lower()


def test_answers_without_a_body_pass() -> None:
    engine = Engine(head("application/json", "content-length: 99"))
    with guarded(engine) as guard, httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        answer = client.head(guard.url + "/v1/models")
        assert (answer.content, answer.headers["content-length"]) == (b"", "99")
        engine.pieces = (b"HTTP/1.1 204 No Content\r\n\r\n",)
        assert client.delete(guard.url + "/v1/files/1").status_code == 204


def test_the_request_reaches_the_engine_as_it_was() -> None:
    engine = Engine(*whole(ANSWER))
    raw = b'{ "model":"m",\n"messages":[{"role":"user","content":"\\u00fc"}], "x": 1e400 }'
    with guarded(engine) as guard, httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        client.post(guard.url + CHAT + "?q=1", content=raw, headers={"X-Mine": "1", "Accept-Encoding": "br"})
    head_, _, body = engine.requests[0].partition(b"\r\n\r\n")
    assert body == raw
    lines = head_.lower().split(b"\r\n")
    assert b"x-mine: 1" in lines
    assert b"accept-encoding: br" in lines
    assert [line for line in lines if line.startswith((b"host:", b"content-length:", b"content-type:"))] == [
        f"host: 127.0.0.1:{guard.port}".encode(),
        f"content-length: {len(raw)}".encode(),
    ]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3", b'{"model": 3}', b'{"n": -1}', b'{"n": 1e9}', b"[" * 100_000])
def test_a_request_that_cannot_be_read_is_the_engines_affair(raw: bytes) -> None:
    engine = Engine(*whole(b'{"error":{"message":"bad"}}', status="400 Bad Request"))
    with guarded(engine) as guard:
        answer = httpx.post(guard.url + CHAT, content=raw, trust_env=False, timeout=PATIENCE_S)
        assert (answer.status_code, answer.content) == (400, engine.pieces[1])
        assert guard.count("answers_total", model="m", outcome="sound") == 0


def test_answers_whose_length_is_not_known_end_where_the_connection_ends() -> None:
    events = [token("a"), token("b"), DONE]
    with guarded(Engine(head("text/event-stream"), *events)) as guard:
        assert post(guard).content == b"".join(events)
    with guarded(Engine(head("application/json"), ANSWER)) as guard:
        assert post(guard, stream=False).content == ANSWER


def test_provisional_answers_and_trailers_are_left_out() -> None:
    early = b"HTTP/1.1 100 Continue\r\nX-No: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    first, *chunks = streamed(token("a"), DONE)
    with guarded(Engine(early, first, *chunks[:-1], b"0\r\nX-Late: 1\r\n\r\n")) as guard:
        answer = post(guard)
    assert (answer.status_code, answer.content) == (200, token("a") + DONE)
    assert not {"x-no", "link", "x-late"} & set(answer.headers)


def test_a_client_of_http_1_0_gets_the_bytes_without_chunks() -> None:
    with (
        guarded(Engine(*streamed(token("a"), DONE))) as guard,
        socket.create_connection(("127.0.0.1", guard.port)) as client,
    ):
        raw = json.dumps(body_of()).encode()
        client.sendall(f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        client.settimeout(PATIENCE_S)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.partition(b"\r\n\r\n")[2] == token("a") + DONE


def test_an_upload_reaches_the_engine_with_its_length() -> None:
    engine = Engine(*whole(b"{}"))
    with guarded(engine) as guard:
        httpx.post(guard.url + "/v1/files", content=b"y" * 3_000_000, trust_env=False, timeout=PATIENCE_S)
    (raw,) = engine.requests
    assert b"\r\nContent-Length: 3000000\r\n" in raw
    assert raw.endswith(b"y" * 3_000_000)


def test_events_that_arrive_together_are_cut_where_the_loop_is_found() -> None:
    events = loop()
    with guarded(Engine(*streamed(b"".join(events), DONE), hold=True)) as guard:
        together = post(guard).content
    with guarded(Engine(*streamed(*events)[:-1], hold=True)) as guard:
        assert post(guard).content == together


def test_json_that_python_alone_reads_is_judged() -> None:
    events = [token(word + " ").replace(b'"created": 7', b'"created": NaN') for word in (LOOP * 400).split()]
    with guarded(Engine(*streamed(*events)[:-1], hold=True)) as guard:
        assert b"glm4_guard" in post(guard).content


# Loops.


def test_observe_counts_a_loop_and_changes_nothing() -> None:
    events = [*loop(), DONE]
    with guarded(Engine(*streamed(*events)), Mode.OBSERVE) as guard:
        assert post(guard).content == b"".join(events)
        guard.until(lambda: guard.count("answers_total", model="m", outcome="sick") == 1)
        assert guard.count("findings_total", model="m", verdict="EXACT_LOOP") == 1
    (line,) = [line for line in guard.lines if line["event"] == "finding"]
    assert (line["action"], line["verdict"], line["unit_characters"]) == ("seen", "EXACT_LOOP", len(LOOP))
    assert "lighthouse" not in json.dumps(guard.lines)


def test_a_loop_is_cut_with_a_valid_end_and_the_engines_request_ends() -> None:
    first, *events = streamed(token(""), *loop())
    engine = Engine(first, *events[:-1], hold=True)
    with guarded(engine) as guard:
        answer = post(guard, max_tokens=4800)
        assert engine.left.wait(PATIENCE_S)
        assert guard.count("answers_total", model="m", outcome="cut") == 1
        assert 0 < guard.count("tokens_saved_total") < 4800
        assert guard.count("streams") == 0
    assert answer.content.endswith(DONE)
    last = events_of(answer.content)[-1]
    assert (last["id"], last["model"], last["object"]) == ("chatcmpl-7", "m", "chat.completion.chunk")
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    found = last["glm4_guard"]
    assert (found["action"], found["verdict"], found["period"]) == ("cut", "EXACT_LOOP", len(LOOP))
    passed = answer.content[: answer.content.rindex(b'data: {"id":"chatcmpl-7"')]
    assert b"".join([token(""), *loop()]).startswith(passed)
    assert len(passed) < 0.5 * sum(map(len, loop()))


@pytest.mark.parametrize("part", ["reasoning_content", "reasoning"])
def test_a_loop_in_reasoning_is_cut(part: str) -> None:
    events = [token("", **{part: word + " "}) for word in (LOOP * 400).split()]
    with guarded(Engine(*streamed(*events)[:-1], hold=True)) as guard:
        assert events_of(post(guard).content)[-1]["glm4_guard"]["part"] == "reasoning"


def test_a_loop_in_the_arguments_of_a_tool_call_is_cut() -> None:
    calls = [[{"index": 1, "function": {"arguments": word + " "}}] for word in (LOOP * 400).split()]
    events = [token("", tool_calls=call) for call in calls]
    with guarded(Engine(*streamed(*events)[:-1], hold=True)) as guard:
        assert events_of(post(guard).content)[-1]["glm4_guard"]["part"] == "tool 1"


@pytest.mark.parametrize("row", ["| pump | 20 | ok |\n", "    total += weights[i] * x[i]\n", '{"a": 1, "b": [2, 3]}, '])
def test_rows_and_code_are_cut_once_they_have_repeated_for_long(row: str) -> None:
    short, endless = ([token(row) for _ in range(size // len(row))] for size in (6_000, 30_000))
    with guarded(Engine(*streamed(*short, DONE))) as guard:
        assert post(guard).content == b"".join([*short, DONE])
    with guarded(Engine(*streamed(*endless)[:-1], hold=True)) as guard:
        raw = post(guard).content
    assert events_of(raw)[-1]["glm4_guard"]["action"] == "cut"
    assert len(raw) < len(b"".join(endless)) / 2


def test_a_loop_of_completions_is_cut() -> None:
    event = {"id": "cmpl-1", "object": "text_completion", "model": "m", "created": 1}
    texts = [event | {"choices": [{"index": 0, "text": word + " "}]} for word in (LOOP * 400).split()]
    events = [b"data: " + json.dumps(text).encode() + b"\n\n" for text in texts]
    with guarded(Engine(*streamed(*events)[:-1], hold=True)) as guard:
        last = events_of(post(guard, "/v1/completions", prompt="Tell me.").content)[-1]
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]


def test_a_loop_of_the_responses_api_is_cut() -> None:
    def event(kind: str, number: int, **more: Any) -> bytes:
        data = json.dumps({"type": kind, "sequence_number": number, **more})
        return f"event: {kind}\ndata: {data}\n\n".encode()

    made = {"id": "resp_1", "object": "response", "created_at": 5, "model": "m", "status": "in_progress", "output": []}
    words = enumerate((LOOP * 400).split(), 1)
    deltas = [event("response.output_text.delta", at, delta=word + " ", output_index=0) for at, word in words]
    events = [event("response.created", 0, response=made), *deltas]
    with guarded(Engine(*streamed(*events)[:-1], hold=True)) as guard:
        raw = post(guard, "/v1/responses", input="Tell me.").content
    name, data = raw.split(b"\n\n")[-2].split(b"\n")
    last = json.loads(data.removeprefix(b"data: "))
    assert name == b"event: response.incomplete"
    assert last["type"] == "response.incomplete"
    assert last["sequence_number"] == len(raw.split(b"\n\n")) - 2
    assert last["response"]["id"] == "resp_1"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["glm4_guard"]["verdict"] == "EXACT_LOOP"


def test_one_looping_choice_of_two_is_not_cut_until_the_other_has_ended() -> None:
    sound = [token("A", 1), token(" word.", 1, "stop")]
    cut, going = [*loop(), *sound, *loop(5)], [*loop(), sound[0]]
    with guarded(Engine(*streamed(*cut)[:-1], hold=True)) as guard:
        raw = post(guard, n=2).content
        assert raw.startswith(b"".join([*loop(), *sound]))
        assert events_of(raw)[-1]["choices"][0]["index"] == 0
    with guarded(Engine(*streamed(*going))) as guard:
        assert post(guard, n=2).content == b"".join(going)


def test_what_the_prompt_asked_to_repeat_is_not_cut() -> None:
    events = [*loop(20), token("", finish="stop"), DONE]
    asked = [{"role": "user", "content": f"Repeat this sentence 20 times: {LOOP}"}]
    with guarded(Engine(*streamed(*events))) as guard:
        assert post(guard, messages=asked).content == b"".join(events)
        guard.until(lambda: guard.count("answers_total", model="m", outcome="sound") == 1)


def test_an_unknown_prompt_is_only_observed() -> None:
    data = json.dumps({"choices": [{"index": 0, "text": LOOP * 100}]}).encode()
    events = [b"data: " + data + b"\n\n", DONE]
    with guarded(Engine(*streamed(*events))) as guard:
        assert post(guard, "/v1/completions", prompt=[5, 6, 7]).content == b"".join(events)
        guard.until(lambda: guard.count("answers_total", model="m", outcome="sick") == 1)


def test_a_client_can_choose_and_a_model_or_a_key_can_have_its_own_mode() -> None:
    events = [*loop(100), DONE]
    with guarded(
        Engine(*streamed(*events)), mode_for={"model:calm": Mode.OBSERVE, "key:ada": Mode.CUT, "key:bob": Mode.OFF}
    ) as guard:
        for headers, model, cut in (
            ({}, "m", True),
            ({}, "calm", False),
            ({"x-glm4-guard": "off"}, "m", False),
            ({"x-key-name": "ada"}, "calm", True),
            ({"x-key-name": "bob"}, "m", False),
            ({"x-key-name": "eve"}, "calm", False),
            ({"x-key-name": "bob", "x-glm4-guard": "cut"}, "m", True),
        ):
            assert (b"glm4_guard" in post(guard, headers=headers, model=model).content) is cut
        assert guard.count("unjudged_total", reason="off") == 2
        assert [line.get("key") for line in guard.lines if line["event"] == "finding"][2:4] == ["ada", "eve"]
        assert post(guard, headers={"x-glm4-guard": "yes"}).status_code == 400


def looping_body() -> bytes:
    message = {"role": "assistant", "content": "Once. " + LOOP * 200}
    usage = {"completion_tokens": 2400}
    return json.dumps(
        {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": usage}
    ).encode()


def test_a_whole_answer_that_loops_is_shortened_before_it_is_sent() -> None:
    with guarded(Engine(*whole(looping_body()))) as guard:
        answer = post(guard, stream=False)
        assert guard.count("answers_total", model="m", outcome="cut") == 1
    body = answer.json()
    assert body["choices"][0]["finish_reason"] == "stop"
    found, text = body["glm4_guard"], body["choices"][0]["message"]["content"]
    assert found["verdict"] == "EXACT_LOOP"
    assert text == ("Once. " + LOOP * 200)[: found["start"] + found["period"]]
    assert len(text) <= len("Once. " + LOOP)
    assert body["usage"] == {"completion_tokens": 2400}
    assert answer.headers["content-length"] == str(len(answer.content))


def test_retry_asks_once_more_and_sends_the_sound_answer() -> None:
    class Heals(Engine):
        def __call__(self, connection: socket.socket) -> None:
            self.pieces = whole(looping_body() if not self.requests else ANSWER)
            super().__call__(connection)

    engine = Heals()
    with guarded(engine, Mode.RETRY) as guard:
        body = post(guard, stream=False, seed=3).json()
        assert guard.count("answers_total", model="m", outcome="retried") == 1
    assert body["choices"][0]["message"]["content"] == "Fine."
    assert body["glm4_guard"]["action"] == "retried"
    assert engine.bodies[1] == engine.bodies[0] | {"seed": 4, "repetition_penalty": 1.1}


def test_a_retry_that_loops_too_is_cut() -> None:
    engine = Engine(*whole(looping_body()))
    with guarded(engine, Mode.RETRY) as guard:
        assert post(guard, stream=False).json()["glm4_guard"]["action"] == "cut"
    assert len(engine.requests) == 2


# Ends, and hostile sides.


def test_a_client_that_leaves_ends_the_engines_request() -> None:
    engine = Engine(*streamed(token("a"))[:-1], hold=True)
    with guarded(engine, Mode.OBSERVE) as guard:
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
            with client.stream("POST", guard.url + CHAT, json=body_of()) as answer:
                next(answer.iter_raw())
                assert not engine.left.is_set()
            assert engine.left.wait(PATIENCE_S)
        guard.until(lambda: guard.count("unjudged_total", reason="broken off") == 1)
        assert guard.count("streams") == 0


def test_a_client_that_leaves_before_the_first_byte_ends_the_engines_request() -> None:
    engine = Engine(hold=True)
    with guarded(engine) as guard, socket.create_connection(("127.0.0.1", guard.port)) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        guard.until(lambda: bool(engine.requests))
        client.close()
        assert engine.left.wait(PATIENCE_S)


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_dies_in_mid_answer_is_not_taken_for_a_complete_one(stream: bool) -> None:
    pieces = streamed(token("a"))[:-1] if stream else (head("application/json", "content-length: 99"), b'{"choices"')
    with guarded(Engine(*pieces), Mode.OBSERVE) as guard:
        with pytest.raises(httpx.RemoteProtocolError):
            post(guard, stream=stream)
        guard.until(lambda: guard.count("unjudged_total", reason="broken off") == 1)


def test_without_an_engine_the_answer_is_502_and_the_guard_stays() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # bound but not listening: refused
        with Running(f"http://127.0.0.1:{port}", Mode.CUT) as guard:
            answer = post(guard)
            assert (answer.status_code, json.loads(answer.content)["error"]["code"]) == (502, 502)
            assert httpx.get(guard.metrics_url + "/healthz", trust_env=False).status_code == 200
            assert b"glm4_guard_streams 0.0" in httpx.get(guard.metrics_url + "/metrics", trust_env=False).content


@pytest.mark.parametrize("endless", [b"x-more: 1\r\n", b"x" * 4096])
def test_endless_headers_of_an_engine_end(endless: bytes) -> None:
    engine = Engine(b"HTTP/1.1 200 OK\r\n", endless, repeat=True)
    with guarded(engine) as guard:
        assert post(guard).status_code == 502
        assert engine.left.wait(PATIENCE_S)


@pytest.mark.parametrize("endless", [b"X-More: 1\r\n", b"x" * 4096])
def test_endless_headers_of_a_client_end(endless: bytes) -> None:
    with guarded(Engine()) as guard, socket.create_connection(("127.0.0.1", guard.port)) as client:
        client.settimeout(PATIENCE_S)
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(OSError):
            while True:
                client.sendall(endless)


@pytest.mark.parametrize("line", ["Authorization: Bearer {}\0", "Authorization : Bearer {}", "X\x01: {}", " {}"])
def test_the_head_of_a_request_that_is_not_http_is_not_logged(line: str, caplog: pytest.LogCaptureFixture) -> None:
    key = "canary-k3y-5f21"
    with guarded(Engine(*whole(b"{}"))) as guard:
        with socket.create_connection(("127.0.0.1", guard.port), timeout=PATIENCE_S) as client:
            client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{line.format(key)}\r\n\r\n".encode())
            assert client.recv(4096).split()[1] == b"400"
        assert post(guard).status_code == 200
        assert key not in str(guard.lines)
    assert key not in caplog.text


def test_a_slow_head_of_an_engine_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "HEAD_S", 0.2)
    engine = Engine(b"HTTP/1.1 200 OK\r\nx-more: ", hold=True)
    with guarded(engine) as guard:
        assert post(guard).status_code == 502
        assert engine.left.wait(PATIENCE_S)


def test_a_slow_head_of_a_client_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "IDLE_S", 0.2)
    with guarded(Engine()) as guard, socket.create_connection(("127.0.0.1", guard.port)) as client:
        client.settimeout(PATIENCE_S)
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
        assert client.recv(65536) == b""


def test_a_fault_in_judging_does_not_end_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(Stream):
        def feed(self, chunk: str, **_: Any) -> None:
            raise IndexError(chunk)

    monkeypatch.setattr(answers, "Stream", Faulty)
    with guarded(Engine(*streamed(token("a"), token("b"), DONE))) as guard:
        assert post(guard).content == token("a") + token("b") + DONE
        assert guard.count("unjudged_total", reason="fault") == 1
    assert next(line for line in guard.lines if line["event"] == "fault")["error"] == "IndexError"


def test_an_upload_that_breaks_off_ends_the_engines_request() -> None:
    engine = Engine()
    with guarded(engine) as guard, socket.create_connection(("127.0.0.1", guard.port)) as client:
        client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhalf")
        guard.until(engine.connected.is_set)
        client.close()
        assert engine.left.wait(PATIENCE_S)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"220 mail\r\n", b"\x15\x03\x01", b"", GZIPPED]
)
def test_what_is_no_answer_is_a_bad_gateway(answer: bytes) -> None:
    with guarded(Engine(answer)) as guard:
        assert post(guard).status_code == 502


def test_a_line_without_an_end_passes_and_is_not_kept() -> None:
    line = b"data: " + b"x" * (8 << 20)
    with guarded(Engine(*streamed(line))) as guard:
        assert post(guard).content == line
        assert guard.count("unjudged_total", reason="unreadable") == 1


def test_a_slow_client_slows_the_engine_down() -> None:
    engine = Engine(streamed()[0], b"10000\r\n" + b":" * 65536 + b"\r\n", repeat=True)
    with guarded(engine) as guard, socket.create_connection(("127.0.0.1", guard.port)) as client:
        raw = json.dumps(body_of()).encode()
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        before = -1
        while engine.sent != before or not before:  # until the engine cannot send any more
            before = engine.sent
            time.sleep(0.3)
        assert engine.sent < 64 << 20  # what the kernel's buffers hold on both sides, and the guard's own


def test_a_request_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MAX_REQUEST", 1000)
    engine = Engine(*whole(ANSWER))
    with guarded(engine) as guard:
        assert post(guard, x="y" * 2000).status_code == 413
        assert not engine.requests


def test_more_answers_than_can_be_judged_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MAX_CHARACTERS", 100)
    events = [*loop(100), DONE]
    with guarded(Engine(*streamed(*events))) as guard:
        assert post(guard).content == b"".join(events)
        guard.until(lambda: guard.count("unjudged_total", reason="too many") == 1)
        assert post(guard, stream=False, headers={"x-glm4-guard": "observe"}).content == b"".join(events)


def test_a_held_answer_that_is_too_long_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MAX_BODY", 5000)
    with guarded(Engine(*whole(looping_body()))) as guard:
        assert post(guard, stream=False).content == looping_body()


def test_a_guard_that_ends_breaks_its_streams_off_and_a_new_one_serves() -> None:
    engine = Engine(*streamed(token("a"))[:-1], hold=True)
    with raw_server(engine) as url, httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        with (
            Running(url, Mode.CUT) as guard,
            client.stream("POST", guard.url + CHAT, json=body_of()) as answer,
        ):
            passing = answer.iter_raw()
            next(passing)
            guard.__exit__()
            with pytest.raises(httpx.RemoteProtocolError):
                next(passing)
        assert engine.left.wait(PATIENCE_S)
        with Running(url, Mode.CUT) as guard, client.stream("POST", guard.url + CHAT, json=body_of()) as answer:
            assert next(answer.iter_raw())


@pytest.mark.parametrize("target", ["@127.0.0.1:9/v1/models", "http://127.0.0.1:9/v1/models", "*", ":9/v1/models"])
def test_a_target_that_is_not_a_path_reaches_nobody(target: str) -> None:
    engine = Engine(*whole(b"{}"))
    with guarded(engine) as guard, socket.create_connection(("127.0.0.1", guard.port)) as client:
        client.settimeout(PATIENCE_S)
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ") or client.recv(1) == b""
        assert not engine.requests


def test_keys_and_texts_are_never_written() -> None:
    with guarded(Engine(*streamed(*loop(100), DONE)), Mode.CUT) as guard:
        post(guard, headers={"Authorization": "Bearer sk-secret-key"}, stream=True)
        post(guard, "/v1/nothing?key=sk-secret-key")
    written = json.dumps(guard.lines)
    assert "finding" in written
    assert "sk-secret" not in written
    assert "hill" not in written
