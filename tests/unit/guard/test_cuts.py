"""Answers that loop are cut, or asked for once more."""

import json
import threading
from typing import Any

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
    Turns,
    events_of,
    guarded,
    loop,
    looping_body,
    post,
    streamed,
    token,
    whole,
)


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
        guard.until(lambda: guard.count("streams") == 0)
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
    engine = Turns(whole(looping_body()), whole(ANSWER))
    with guarded(engine, Mode.RETRY) as guard:
        body = post(guard, stream=False, seed=3).json()
        guard.until(lambda: guard.count("answers_total", model="m", outcome="retried") == 1)
    assert body["choices"][0]["message"]["content"] == "Fine."
    assert body["glm4_guard"]["action"] == "retried"
    assert engine.bodies[1] == engine.bodies[0] | {"seed": 4, "repetition_penalty": 1.1}


def test_a_retry_that_loops_too_is_cut() -> None:
    engine = Engine(*whole(looping_body()))
    with guarded(engine, Mode.RETRY) as guard:
        assert post(guard, stream=False).json()["glm4_guard"]["action"] == "cut"
    assert len(engine.requests) == 2


# Streams that are asked for once more.

SOUND = [token(""), token("A white tower."), token("", finish="stop"), DONE]
AGAIN = {"x-glm4-guard": "retry"}


def after_begin(engine: Engine) -> Engine:
    """It goes on once the client has the first bytes."""
    engine.go = threading.Event()
    return engine


def test_a_stream_of_which_nothing_was_sent_is_replaced() -> None:
    engine = Turns(streamed(b"".join(loop()), DONE), streamed(*SOUND))
    with guarded(engine, Mode.RETRY) as guard:
        answer = post(guard, seed=3)
        assert answer.content == b"".join(SOUND)
        guard.until(lambda: guard.count("answers_total", model="m", outcome="retried") == 1)
    assert engine.bodies[1] == engine.bodies[0] | {"seed": 4, "repetition_penalty": 1.1}


def test_a_stream_of_which_something_was_sent_is_cut_unless_the_client_asked() -> None:
    engine = after_begin(Turns(streamed(*loop()), streamed(*SOUND)))
    with guarded(engine, Mode.RETRY) as guard:
        raw = post(guard, begun=engine.go).content
        assert events_of(raw)[-1]["glm4_guard"]["action"] == "cut"
        assert raw.endswith(DONE)
        assert guard.count("answers_total", model="m", outcome="cut") == 1
    assert len(engine.requests) == 1


def test_a_client_that_asked_gets_a_second_answer_in_the_same_stream() -> None:
    engine = after_begin(Turns(streamed(token("Once."), *loop()), streamed(*SOUND)))
    with guarded(engine, Mode.OBSERVE) as guard:
        raw = post(guard, headers=AGAIN, begun=engine.go).content
        guard.until(lambda: guard.count("answers_total", model="m", outcome="retried") == 1)
        assert guard.count("answers_total", model="m", outcome="cut") == 0
        assert guard.count("tokens_saved_total") == 0
    assert raw.endswith(b"".join(SOUND))
    first = raw.removesuffix(b"".join(SOUND))
    events = events_of(first)
    assert b"".join([token("Once."), *loop()]).startswith(first[: first.rindex(b"data: ")])
    assert (events[-1]["choices"], events[-1]["glm4_guard"]["action"]) == ([], "retried")
    assert (events[-1]["id"], events[-1]["glm4_guard"]["verdict"]) == ("chatcmpl-7", "EXACT_LOOP")
    assert len(engine.requests) == 2


def test_a_second_stream_that_loops_too_is_cut() -> None:
    engine = after_begin(Engine(*streamed(*loop())))
    with guarded(engine) as guard:
        raw = post(guard, headers=AGAIN, begun=engine.go).content
        assert guard.count("answers_total", model="m", outcome="cut") == 1
    assert [event["glm4_guard"]["action"] for event in events_of(raw) if "glm4_guard" in event] == ["retried", "cut"]
    assert raw.endswith(DONE)
    assert len(engine.requests) == 2


NO_STREAMS = {"an error": whole(b"{}", status="503 Unavailable"), "whole": whole(ANSWER), "nothing": (b"",)}


@pytest.mark.parametrize("second", NO_STREAMS)
@pytest.mark.parametrize("together", [True, False])
def test_without_a_second_stream_the_first_is_cut(second: str, together: bool) -> None:
    events = [b"".join(loop())] if together else loop()
    engine = Turns(streamed(*events), NO_STREAMS[second])
    if not together:
        after_begin(engine)
    with guarded(engine) as guard:
        raw = post(guard, headers=AGAIN, begun=engine.go).content
        assert guard.count("answers_total", model="m", outcome="cut") == 1
    assert [event["glm4_guard"]["action"] for event in events_of(raw) if "glm4_guard" in event] == ["cut"]
    assert raw.endswith(DONE)
    assert len(engine.requests) == 2


def test_a_stream_of_the_responses_api_is_not_begun_anew() -> None:
    data = json.dumps({"type": "response.output_text.delta", "delta": LOOP, "output_index": 0})
    engine = after_begin(Engine(*streamed(*[f"data: {data}\n\n".encode()] * 400)))
    with guarded(engine) as guard:
        raw = post(guard, "/v1/responses", headers=AGAIN, begun=engine.go, input="Tell me.").content
    assert b"response.incomplete" in raw
    assert len(engine.requests) == 1


def test_a_stream_with_a_length_is_cut_too() -> None:
    events = b"".join([*loop(), DONE])
    with guarded(Engine(*whole(events, "text/event-stream"))) as guard:
        assert post(guard).content.endswith(DONE)
        assert guard.count("answers_total", model="m", outcome="cut") == 1


# vLLM's own check as a second net.

ENDED = token("", finish="repetition")


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_the_engines_own_check_is_set_where_answers_are_cut(path: str) -> None:
    engine = Engine(*streamed(token("a"), ENDED, DONE))
    with guarded(engine, Mode.OBSERVE, repetition_detection=(64, 8)) as guard:
        assert post(guard, path, prompt="p").content == b"".join([token("a"), ENDED, DONE])
        post(guard, path, prompt="p", headers={"x-glm4-guard": "cut"})
        guard.until(lambda: guard.count("engine_ended_total", model="m") == 2)
        own = {"max_pattern_size": 3, "min_count": 9}
        post(guard, path, prompt="p", headers={"x-glm4-guard": "cut"}, repetition_detection=own)
        post(guard, "/v1/responses", input="p", headers={"x-glm4-guard": "cut"})
    plain, cut, client, responses = engine.bodies
    assert "repetition_detection" not in plain
    assert cut == plain | {"repetition_detection": {"max_pattern_size": 64, "min_count": 8}}
    assert client["repetition_detection"] == own
    assert "repetition_detection" not in responses


@pytest.mark.parametrize("raw", [b' {\n "model": "m", "x": 1e400}', b"{}", b"{ }"])
def test_the_engines_own_check_changes_nothing_else(raw: bytes) -> None:
    engine = Engine(*whole(ANSWER))
    with guarded(engine, repetition_detection=(64, 8)) as guard:
        httpx.post(guard.url + CHAT, content=raw, trust_env=False, timeout=PATIENCE_S)
    body = engine.requests[0].partition(b"\r\n\r\n")[2]
    added = b'"repetition_detection":{"max_pattern_size":64,"min_count":8},'
    assert body == raw.replace(b"{", b"{" + added) if b"model" in raw else raw


def test_rows_of_a_whole_answer_are_shortened_once_they_have_repeated_for_long() -> None:
    for size, cut in ((6_000, False), (30_000, True)):
        message = {"content": "| pump | 20 | ok |\n" * (size // 19)}
        body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}).encode()
        with guarded(Engine(*whole(body))) as guard:
            raw = post(guard, stream=False).content
        assert (b"glm4_guard" in raw) is cut
        assert cut or raw == body
