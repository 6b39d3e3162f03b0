"""A server that answers with anything: mutated answers, events and metrics."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fuzz.harness import ODD, attempt, fuzzed, mutated
from glm4_deploy.probe.answers import Malformed, RequestFailure, from_body, sse_events
from glm4_deploy.probe.client import _assemble
from glm4_deploy.probe.endpoints import model_rows, parse_metrics
from glm4_deploy.probe.hang import counters

BODY: dict[str, Any] = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [
        {
            "index": 0, "finish_reason": "stop", "token_ids": [1, 2],
            "message": {"role": "assistant", "content": "42", "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
            "delta": {"role": "assistant", "content": "42", "tool_calls": [{"id": "1"}], "reasoning_content": "x"},
            "logprobs": {"content": [{"token": "4", "logprob": -0.1}, {"token": "2", "logprob": -0.2}]},
        }
    ],
    "usage": {
        "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1},
    },
    "data": [{"id": "m", "max_model_len": 2048, "created": 1, "root": "/m", "owned_by": "vllm"}],
}  # fmt: skip


def whole(body: Any) -> None:
    try:
        answer = from_body(body, 1.0)
    except Malformed:
        return
    assert answer.finish_reason is None or isinstance(answer.finish_reason, str)
    assert answer.finite_logprobs is None or all(abs(value) <= 1e6 for value in answer.finite_logprobs)
    assert answer.usage is None or answer.usage.adds_up in (True, False)


def streamed(chunks: list[tuple[float, bytes]]) -> None:
    for complete in (True, False):
        try:
            _assemble(chunks, complete=complete).close(1.0)
        except RequestFailure as failure:
            assert complete
            assert failure.detail


@fuzzed
@given(mutated(BODY))
def test_a_body_is_an_answer_or_one_failure(body: Any) -> None:
    attempt(whole, body)
    attempt(model_rows, body)


@fuzzed
@given(st.lists(mutated(BODY), max_size=4), st.integers(1, 40), st.booleans())
def test_a_stream_is_an_answer_or_one_failure(events: list[Any], size: int, done: bool) -> None:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ("data: [DONE]\n\n" if done else "")
    data = text.encode("utf-8", errors="surrogatepass")[:20_000]
    chunks = [(float(start), data[start : start + size]) for start in range(0, len(data), size)]
    attempt(streamed, chunks)


@fuzzed
@given(st.lists(st.binary(max_size=30), max_size=30))
def test_events_do_not_depend_on_where_chunks_are_cut(parts: list[bytes]) -> None:
    data = b"".join(parts).replace(b"a", b"\n").replace(b"b", b"\r\n").replace(b"c", b"data: x")
    together = [event for _, event in attempt(lambda: list(sse_events([(0.0, data)])))]
    single = [event for _, event in sse_events([(0.0, data[at : at + 1]) for at in range(len(data))])]
    assert together == single


LINE = st.one_of(
    st.text(max_size=60),
    st.builds("vllm:num_requests_running{{{}}} {}".format, st.text(max_size=20), st.text(max_size=10)),
    st.builds("{} {}".format, st.sampled_from(["vllm:generation_tokens_total", "process_start_time_seconds"]), ODD),
)


@fuzzed
@given(st.lists(LINE, max_size=20))
def test_metrics_of_any_text_are_numbers_or_absent(lines: list[str]) -> None:
    metrics = attempt(parse_metrics, "\n".join(lines))
    assert metrics.sum("process_start_time_seconds") is None or metrics.sum(
        "process_start_time_seconds"
    ) == metrics.sum("process_start_time_seconds")
    counters(metrics)


def test_floods_take_no_longer_than_their_length() -> None:
    for unit in (b"\n", b"\r\n", b"x", b"data: x\n", b"data: x\n\n", b"\r"):
        data = unit * (2_000_000 // len(unit))
        chunks = [(0.0, data[start : start + 4096]) for start in range(0, len(data), 4096)]
        attempt(streamed, chunks)
    attempt(parse_metrics, "vllm:x 1\n" * 200_000)
    attempt(parse_metrics, 'vllm:x{a="' + "\\" * 1_000_000)
