"""Both sides end, die, dawdle or lie: the guard stays, and what it holds is bounded."""

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from glm4_deploy.detect import Stream
from glm4_deploy.guard import answer as answers
from glm4_deploy.guard import proxy, upstream
from glm4_deploy.guard.reader import Mode
from servers.guarded import (
    ANSWER,
    CHAT,
    DONE,
    LOOP,
    PATIENCE_S,
    Engine,
    Running,
    Turns,
    body_of,
    guarded,
    head,
    loop,
    looping_body,
    post,
    streamed,
    token,
    whole,
)
from servers.serve import raw_server

GZIPPED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"


def test_a_client_that_leaves_ends_the_engines_request() -> None:
    engine = Engine(*streamed(token("a"))[:-1], hold=True)
    with guarded(engine, Mode.OBSERVE) as guard:
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
            with client.stream("POST", guard.url + CHAT, json=body_of()) as answer:
                pieces = answer.iter_raw()  # without a name it would be closed at once, and the connection with it
                next(pieces)
                assert not engine.left.is_set()
            assert engine.left.wait(PATIENCE_S)
        guard.until(lambda: guard.count("unjudged_total", reason="broken off") == 1)
        guard.until(lambda: guard.count("streams") == 0)


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


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("method", ["feed", "close"])
@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.CUT, Mode.RETRY])
def test_a_fault_in_judging_does_not_end_the_answer(
    mode: Mode, method: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: Any) -> None:
        raise IndexError(method)

    monkeypatch.setattr(answers, "Stream", type("Faulty", (Stream,), {method: fault}))
    events = token("a"), token("b"), DONE
    with guarded(Engine(*(streamed(*events) if stream else whole(ANSWER))), mode) as guard:
        assert post(guard, stream=stream).content == (b"".join(events) if stream else ANSWER)
        guard.until(lambda: guard.count("unjudged_total", reason="fault") == 1)
    assert [line["error"] for line in guard.lines if line["event"] == "fault"] == ["IndexError"]


def test_a_fault_in_the_cut_leaves_the_engines_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: Any) -> None:
        raise KeyError

    monkeypatch.setattr(proxy, "shortened", fault)
    with guarded(Engine(*whole(looping_body()))) as guard:
        assert post(guard, stream=False).content == looping_body()
        guard.until(lambda: guard.count("answers_total", model="m", outcome="sick") == 1)
    assert [line["error"] for line in guard.lines if line["event"] == "fault"] == ["KeyError"]


CALLS = [{"index": 0, "function": {"name": "f", "arguments": LOOP * 200}}]
ODD_BODIES = {
    "half a surrogate pair": [{"index": 0, "message": {"content": "\ud83d " + LOOP * 200}}],
    "an index twice": [{"index": 0, "message": {"tool_calls": CALLS}}, {"index": 0, "message": {"content": "Fine."}}],
    "a delta": [{"index": 0, "delta": {"content": LOOP * 200}}],
    "a delta with a call": [{"index": 0, "delta": {"tool_calls": CALLS}}],
    "a call that is none": [{"index": 0, "message": {"tool_calls": [*CALLS, {"function": None}]}}],
}


@pytest.mark.parametrize("kind", ODD_BODIES)
def test_an_odd_body_that_loops_is_shortened(kind: str) -> None:
    body = json.dumps({"choices": ODD_BODIES[kind]}).encode()
    with guarded(Engine(*whole(body))) as guard:
        answer = post(guard, stream=False)
        assert (answer.status_code, guard.count("answers_total", model="m", outcome="cut")) == (200, 1)
    assert json.loads(answer.content)["glm4_guard"]["action"] == "cut"
    assert len(answer.content) < len(body) / 4
    assert not [line for line in guard.lines if line["event"] == "fault"]


def test_a_model_named_by_half_a_surrogate_pair_does_not_end_the_metrics() -> None:
    with guarded(Engine(*whole(ANSWER))) as guard:
        asked = json.dumps(body_of(stream=False, model="\ud800x"))
        assert httpx.post(guard.url + CHAT, content=asked, trust_env=False).content == ANSWER
        scraped = httpx.get(guard.metrics_url + "/metrics", trust_env=False)
    assert scraped.status_code == 200
    assert 'glm4_guard_answers_total{model="?x",outcome="sound"} 1.0' in scraped.text


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


MANY = {
    "choices": {"choices": [{}] * 1000},
    "tool calls": {"choices": [{"index": 0, "delta": {"tool_calls": [{}] * 1000}}]},
}


@pytest.mark.parametrize("what", MANY)
def test_an_event_with_more_parts_than_an_answer_has_passes_unread(what: str) -> None:
    event = b"data: " + json.dumps(MANY[what]).encode() + b"\n\n"
    with guarded(Engine(*streamed(event, *loop(100), DONE))) as guard:
        assert post(guard).content == b"".join([event, *loop(100), DONE])
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


@pytest.mark.parametrize("limit", ["MAX_REQUEST", "MAX_REQUESTS"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_request_that_is_too_long_to_keep_passes_unread(
    monkeypatch: pytest.MonkeyPatch, limit: str, chunked: bool
) -> None:
    monkeypatch.setattr(proxy, limit, 100_000)
    raw = json.dumps(body_of(x="y" * 3_000_000)).encode()
    engine = Engine(*streamed(*loop(100), DONE))
    with guarded(engine) as guard:
        sent = iter([raw[:200_000], raw[200_000:]]) if chunked else raw
        answer = httpx.post(guard.url + CHAT, content=sent, trust_env=False, timeout=PATIENCE_S)
        assert answer.content == b"".join([*loop(100), DONE])
        assert guard.count("unjudged_total", reason="request") == 1
        assert b"glm4_guard" in post(guard).content  # what the long one took is free again
    received = engine.requests[0].partition(b"\r\n\r\n")[2]
    assert received.count(b"y" * 100) >= 29_900
    assert chunked or received == raw


def test_a_request_whose_body_is_slow_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "BODY_S", 0.2)
    engine = Engine(*whole(ANSWER))
    with guarded(engine) as guard, socket.create_connection(("127.0.0.1", guard.port)) as client:
        client.settimeout(PATIENCE_S)
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{{".encode())
        assert b" 408 " in client.recv(65536)
    assert not engine.requests


def test_a_head_that_is_too_long_to_keep_is_refused() -> None:
    engine = Engine(*whole(ANSWER))
    with guarded(engine) as guard:
        assert post(guard, headers={f"x-{number}": "y" * 15_000 for number in range(5)}).status_code == 431
        assert post(guard, headers={"x": "y" * 15_000}).status_code == 200
    assert len(engine.requests) == 1


def test_names_of_models_do_not_pile_up() -> None:
    with guarded(Engine(*streamed(token("a"), DONE))) as guard:
        for number in range(70):
            post(guard, model=f"{'m' * 1000}{number}")
            post(guard, model=f"{number}{'m' * 1000}")
        models = {
            sample.labels["model"]
            for metric in guard.ledger.registry.collect()
            for sample in metric.samples
            if sample.name == "glm4_guard_answers_total"
        }
    assert len(models) == 65
    assert all(len(model) <= 200 for model in models)


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


def test_a_second_answer_that_breaks_off_is_not_taken_for_a_complete_one() -> None:
    engine = Turns(streamed(*loop(), DONE), streamed(token("a"))[:-1])
    with guarded(engine, Mode.RETRY) as guard:
        with pytest.raises(httpx.RemoteProtocolError):
            post(guard, headers={"x-glm4-guard": "retry"})
        guard.until(lambda: guard.count("answers_total", model="m", outcome="sick") == 1)


def test_a_client_that_leaves_during_the_second_try_ends_it() -> None:
    engine = Turns(streamed(token("a"), *loop())[:-1], (streamed()[0],), hold=True)
    engine.go = threading.Event()
    with guarded(engine, Mode.RETRY) as guard, httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        headers = {"x-glm4-guard": "retry"}
        with client.stream("POST", guard.url + CHAT, json=body_of(), headers=headers) as answer:
            passing = answer.iter_raw()
            while b'"retried"' not in next(passing):
                engine.go.set()
            assert engine.left.wait(PATIENCE_S)  # the first has ended
            engine.left.clear()
        assert engine.left.wait(PATIENCE_S)
        guard.until(lambda: guard.count("answers_total", model="m", outcome="sick") == 1)
        guard.until(lambda: guard.count("streams") == 0)


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
