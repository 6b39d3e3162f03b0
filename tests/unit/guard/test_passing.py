"""What is not cut passes the guard byte for byte, between real sockets."""

import gzip
import json
import socket

import httpx
import pytest

from glm4_deploy.guard.reader import Mode
from servers.guarded import (
    ANSWER,
    CHAT,
    DONE,
    LOOP,
    PATIENCE_S,
    Engine,
    body_of,
    guarded,
    head,
    loop,
    post,
    streamed,
    token,
    whole,
)

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
    "completions": (b'data: {"id":"c","choices":[{"index":0,"text":" a","logprobs":null}]}\n\n', USAGE, DONE),
    "responses": tuple(
        f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **more})}\n\n".encode()
        for number, (kind, more) in enumerate(
            [
                ("response.created", {"response": {"id": "resp_1"}}),
                ("response.output_text.delta", {"delta": "Hello", "output_index": 0}),
                ("response.function_call_arguments.delta", {"delta": '{"a"', "output_index": 1}),
                ("response.completed", {"response": {"id": "resp_1", "status": "completed"}}),
            ]
        )
    ),
    "no end mark": (token("a"), b"data: {"),
    "nothing": (),
}


PATHS = {"completions": "/v1/completions", "responses": "/v1/responses"}


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.CUT, Mode.RETRY])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_of_any_shape_passes_byte_for_byte(shape: str, mode: Mode) -> None:
    with guarded(Engine(*streamed(*SHAPES[shape])), mode) as guard:
        answer = post(guard, PATHS.get(shape, CHAT), n=2 if shape == "two choices" else 1, prompt="p", input="i")
        assert answer.content == b"".join(SHAPES[shape])
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (answer.headers["server"], answer.headers["date"]) == ("x", "Sat, 28 Nov 2026 12:00:00 GMT")


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


def test_a_compressed_stream_passes_unread() -> None:
    raw = gzip.compress(b"".join([*loop(), DONE]))
    first = head("text/event-stream", "transfer-encoding: chunked", "content-encoding: gzip")
    pieces = (first, f"{len(raw):x}\r\n".encode() + raw + b"\r\n", b"0\r\n\r\n")
    with guarded(Engine(*pieces)) as guard:
        assert post(guard).content == raw
        assert guard.count("unjudged_total", reason="encoding") == 1


def test_a_compressed_request_passes_unread() -> None:
    engine = Engine(*whole(ANSWER))
    raw = gzip.compress(b"0" * 50_000_000)  # it would be 50 MB
    with guarded(engine) as guard:
        headers = {"Content-Encoding": "gzip"}
        answer = httpx.post(guard.url + CHAT, content=raw, headers=headers, trust_env=False, timeout=PATIENCE_S)
        assert answer.content == ANSWER
    assert engine.requests[0].endswith(b"\r\n\r\n" + raw)


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.CUT, Mode.RETRY])
def test_a_stream_with_a_length_passes(mode: Mode) -> None:
    events = b"".join([token("a"), token("b", finish="stop"), DONE])
    with guarded(Engine(*whole(events, "text/event-stream")), mode) as guard:
        assert post(guard).content == events


def test_models_are_listed_as_the_engine_lists_them() -> None:
    engine = Engine(*whole(b'{"object":"list","data":[{"id":"m"}]}'))
    with guarded(engine) as guard:
        answer = httpx.get(guard.url + "/v1/models?x=1", trust_env=False, timeout=PATIENCE_S)
        assert answer.content == engine.pieces[1]
    assert engine.requests[0].startswith(b"GET /v1/models?x=1 HTTP/1.1\r\n")


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
