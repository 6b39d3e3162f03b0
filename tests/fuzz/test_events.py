"""The guard's reader: where a stream's chunks are cut changes nothing, and nothing that an engine sends raises."""

import json
from contextlib import suppress
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.harness import fuzzed
from glm4_deploy.guard.events import Events
from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.guard.question import Api, read_json, read_question
from glm4_deploy.guard.reader import EventReader, Judging, Mode

LINES = st.sampled_from(
    [b"data: ", b"data:", b"data", b": ", b"event: x", b"id", b'{"a":1}', b"\xff", b"\n", b"\r", b"\r\n", b"\n\n"]
)
FIELDS = ["choices", "index", "delta", "message", "content", "text", "tool_calls", "function", "arguments", "output"]
STREAMS = st.lists(LINES, max_size=40).map(b"".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 300) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def datas(chunks: list[bytes]) -> list[tuple[int, bytes]]:
    """Each event's end, as an offset in the whole stream, and its data."""
    events, before, found = Events(), 0, []
    for chunk in chunks:
        found += [(before + end, data) for end, data in events.feed(chunk)]
        before += len(chunk)
    return found


@fuzzed
@given(STREAMS, st.lists(st.integers(0, 200), max_size=4))
@example(b"data: 1\r\n", [8, 8])  # an empty chunk between \r and \n
def test_events_do_not_depend_on_where_the_stream_was_cut(stream: bytes, cuts: list[int]) -> None:
    at = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[begin:end] for begin, end in pairwise(at)]
    byte_by_byte = [data for _, data in datas([bytes([one]) for one in stream])]
    assert [data for _, data in datas(chunks)] == [data for _, data in datas([stream])] == byte_by_byte


@fuzzed
@given(st.lists(VALUES, max_size=5), st.sampled_from(Api))
def test_no_event_of_an_engine_raises(values: list[object], api: Api) -> None:
    question = read_question(api, b'{"model": "m", "messages": [], "prompt": "p"}')
    assert question is not None
    lines: list[str] = []
    reader = EventReader(Judging(ledger=Ledger(lines.append), question=question, mode=Mode.CUT, room=lambda _: None))
    for value in values:
        reader.feed(b"data: " + json.dumps(value).encode() + b"\n\n")
    reader.close()
    assert not any('"fault"' in line for line in lines)


@fuzzed
@given(VALUES)
def test_json_is_read_as_python_reads_it(value: object) -> None:
    raw = json.dumps(value).encode()
    assert repr(read_json(raw)) == repr(json.loads(raw))


@fuzzed
@given(st.binary(max_size=40))
def test_what_is_not_json_is_a_value_error(raw: bytes) -> None:
    try:
        expected = repr(json.loads(raw))
    except (ValueError, RecursionError):
        expected = "refused"
    with suppress(ValueError):
        assert repr(read_json(raw)) == expected
        return
    assert expected == "refused"
