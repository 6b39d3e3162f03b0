"""Complete logs: facts and findings as recorded by hand, whatever surrounds the lines."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from glm4_deploy.logs.facts import EngineFacts, Phase
from glm4_deploy.logs.reader import LogReader
from glm4_deploy.logs.source import scan_log
from glm4_deploy.result import Severity

LOGS = Path(__file__).parents[2] / "data/logs"
EXPECTED: dict[str, dict[str, Any]] = yaml.safe_load((LOGS / "expected.yaml").read_text())
BAD = (Severity.CRITICAL, Severity.HIGH)


def lines_of(name: str) -> list[bytes]:
    return (LOGS / name).read_bytes().split(b"\n")


def scan(lines: list[bytes], *, chunk: int = 1 << 18) -> LogReader:
    data = b"\n".join(lines)
    return scan_log(LogReader(), (data[at : at + chunk] for at in range(0, len(data), chunk)))


def facts_of(reader: LogReader) -> dict[str, Any]:
    facts = asdict(reader.facts)
    del facts["progress"]
    return facts


def ids(reader: LogReader) -> list[str]:
    return [row.id for row in reader.findings]


def wanted(name: str) -> dict[str, Any]:
    facts = asdict(EngineFacts(**EXPECTED[name]["facts"]))
    del facts["progress"]
    return facts


@pytest.mark.parametrize("name", EXPECTED)
def test_a_log_gives_the_recorded_facts_and_findings(name: str) -> None:
    reader = scan(lines_of(name))
    assert facts_of(reader) == wanted(name)
    assert [row.id for row in reader.findings if row.severity in BAD] == EXPECTED[name].get("failures", [])
    assert [row.id for row in reader.findings if row.severity not in BAD] == EXPECTED[name].get("others", [])


@pytest.mark.parametrize("name", EXPECTED)
def test_findings_quote_lines_of_the_log_and_a_wrapper_is_never_before_a_cause(name: str) -> None:
    reader = scan(lines_of(name))
    text = (LOGS / name).read_bytes().decode()
    for row in reader.findings:
        assert row.line in text
        assert row.line == text.split("\n")[row.number - 1].rstrip()
    wrappers = [row.wrapper for row in reader.findings if row.severity in BAD]
    assert wrappers == sorted(wrappers)


def docker(lines: list[bytes]) -> Iterator[bytes]:
    now = datetime(2026, 3, 18, 12, 0, 0, 123456, tzinfo=UTC)
    for line in lines:
        now += timedelta(milliseconds=7)
        yield now.strftime("%Y-%m-%dT%H:%M:%S.%f").encode() + b"789Z " + line


def compose(lines: list[bytes]) -> Iterator[bytes]:
    return (b"vllm-engine-1  | " + line for line in lines)


def coloured(lines: list[bytes]) -> Iterator[bytes]:
    for line in lines:
        shown = re.sub(rb"^\([^)]*\)", lambda match: b"\x1b[1;36m%b\x1b[0;0m" % match[0], line)
        yield re.sub(rb"\b(INFO|WARNING|ERROR)\b", lambda match: b"\x1b[32m%b\x1b[0m" % match[0], shown, count=1)


def journal(lines: list[bytes]) -> Iterator[bytes]:
    return (b"Aug 17 18:42:18 spark vllm[8052]: " + line for line in lines)


def windows(lines: list[bytes]) -> Iterator[bytes]:
    return (line + b"\r" for line in lines)


def dirty(lines: list[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield from (b"\xff\xfe\x80", b"\0\0", line.replace(b" ", b" \0", 1))


def served(lines: list[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines):
        yield line
        yield b'(APIServer pid=1) INFO:     10.0.0.7:%d - "GET /health HTTP/1.1" 200 OK' % (40000 + number)


def interleaved(lines: list[bytes]) -> Iterator[bytes]:
    """Adjacent lines of different processes are swapped; each process keeps its own order."""
    out, dice = list(lines), random.Random(7)
    for at in range(len(out) - 1):
        first, second = (re.match(rb"\([^)]*\)", line) for line in out[at : at + 2])
        if first and second and first[0] != second[0] and dice.random() < 0.7:
            out[at], out[at + 1] = out[at + 1], out[at]
    return iter(out)


def everything(lines: list[bytes]) -> Iterator[bytes]:
    return compose(list(docker(list(coloured(list(served(list(interleaved(lines)))))))))


MUTATIONS: tuple[Callable[[list[bytes]], Iterator[bytes]], ...] = (
    docker,
    compose,
    coloured,
    journal,
    windows,
    dirty,
    served,
    interleaved,
    everything,
)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
@pytest.mark.parametrize("name", EXPECTED)
def test_what_surrounds_the_lines_does_not_change_the_result(name: str, mutate: Any) -> None:
    plain, changed = scan(lines_of(name)), scan(list(mutate(lines_of(name))))
    assert facts_of(changed) == facts_of(plain)
    assert ids(changed) == ids(plain)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_of_any_size_and_single_lines_give_the_same_result(name: str, chunk: int) -> None:
    lines = lines_of(name)
    cut, single = scan(lines, chunk=chunk), LogReader()
    for line in lines:
        single.feed(line.decode())
    assert (facts_of(cut), cut.findings, cut.tail(9)) == (facts_of(single), single.findings, single.tail(9))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_phase_never_goes_back_as_a_log_grows(name: str) -> None:
    lines = lines_of(name)
    reader, last = LogReader(), -1
    for line in lines:
        reader.feed(line.decode())
        now = list(Phase).index(reader.facts.phase)
        assert now >= last
        last = now


def test_the_log_of_a_restarting_container_describes_its_last_start() -> None:
    reader = scan(lines_of("h100-0.24-no-room.log") + lines_of("v1-0.13-native-tp2.log"))
    assert facts_of(reader) == wanted("v1-0.13-native-tp2.log")
    assert reader.starts == 2
    assert ids(reader)[0] == "no-kv-room"
    again = scan(lines_of("h100-0.24-bad-path.log") * 3)
    assert again.starts == 3
    assert [(row.id, row.count) for row in again.findings] == [("model-path", 3)]


def test_dockers_timestamps_are_used_where_the_engine_writes_none() -> None:
    lines = [b"vLLM Version 0.13.0", b"INFO:     Application startup complete."]
    stamped = [b"2026-03-18T12:00:00.5Z " + lines[0], b"2026-03-18T12:01:30.75Z " + lines[1]]
    assert scan(lines).facts.ready_s is None
    assert scan(stamped).facts.ready_s == 90.2


def test_a_start_across_new_year_has_the_right_duration() -> None:
    lines = [
        b"INFO 12-31 23:59:50 [api_server.py:1] vLLM API server version 0.13.0",
        b"INFO 01-01 00:00:20 [api_server.py:2] Starting vLLM API server 0 on http://0.0.0.0:8000",
        b"INFO:     Application startup complete.",
    ]
    assert scan(lines).facts.ready_s == 30.0


def test_an_unknown_exception_is_quoted_with_the_file_that_raised_it() -> None:
    first, second = scan(lines_of("unknown-exception-interleaved.log")).findings[:2]
    assert first.line.endswith("vllm.made.StrangeTrouble: the frobnicator is out of phase")
    assert "models/glm.py:77" in first.cause
    assert second.line.endswith("AssertionError")
    assert "models/other.py:12" in second.cause


def test_a_stop_from_outside_and_a_clients_mistake_are_not_failures() -> None:
    head = [b"Traceback (most recent call last):", b'  File "/usr/lib/python3/x.py", line 1, in f']
    long = b"ValueError: This model's maximum context length is 32768 tokens. However, you requested 40000 tokens"
    ends = (b"KeyboardInterrupt", b"asyncio.exceptions.CancelledError", long)
    for end in ends:
        reader = scan([*lines_of("v1-0.13-native-tp2.log"), *head, end])
        assert not [row for row in reader.findings if row.severity in BAD], end
    odd = scan([*lines_of("v1-0.13-native-tp2.log"), *head, b"ValueError: odd"])
    assert [row.id for row in odd.findings if row.severity in BAD] == ["unknown-exception"]


def test_progress_shows_shards_and_rate_then_graphs() -> None:
    reader, seen = LogReader(), []
    for line in lines_of("v1-0.18-sm120.log"):
        reader.feed(line.decode())
        seen.append(reader.facts.progress)
    assert "1/2 shards, about 3.2 of 6.3 GiB, 0.79 GiB/s" in seen
    bf16 = LogReader()
    for part in lines_of("h100-0.24-bf16.log"):
        for piece in part.decode().split("\r"):
            bf16.feed(piece)
            seen.append(bf16.facts.progress)
    assert "11/11 graphs" in seen
    assert bf16.facts.progress is None


@given(st.lists(st.binary(max_size=300), max_size=30))
def test_no_input_makes_the_reader_fail(chunks: list[bytes]) -> None:
    reader = scan_log(LogReader(), chunks)
    assert all(row.line.isprintable() or "\t" in row.line for row in reader.findings)


@given(st.data())
def test_a_log_with_damage_anywhere_is_still_read(data: st.DataObject) -> None:
    raw = bytearray((LOGS / data.draw(st.sampled_from(sorted(EXPECTED)))).read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    scan_log(LogReader(), [bytes(raw)])


BOOT = b"INFO 01-01 00:00:00 [x.py:1] vLLM API server version 0.13.0"
TOKEN = b"(APIServer pid=1) ERROR 01-01 00:00:01 [api_server.py:1] the hub's token is invalid"
READY = b"INFO:     Application startup complete."


@pytest.mark.parametrize(
    ("lines", "severity"),
    [
        ([BOOT, TOKEN], Severity.HIGH),
        ([BOOT, *[b"some other line"] * 300, TOKEN, b"a last word"], Severity.HIGH),
        ([BOOT, TOKEN, *[b"some other line"] * 300], Severity.MEDIUM),
        ([BOOT, TOKEN, READY], Severity.MEDIUM),
        ([BOOT, READY, TOKEN], Severity.MEDIUM),
    ],
)
def test_an_error_that_no_signature_knows_is_a_finding(lines: list[bytes], severity: Severity) -> None:
    (row,) = scan(lines).findings
    assert (row.id, row.severity) == ("unknown-error", severity)
    assert row.line == TOKEN.decode()


def test_an_unknown_error_comes_after_known_failures_and_not_beside_its_own_traceback() -> None:
    known = scan([BOOT, TOKEN, *lines_of("h100-0.24-no-room.log")])
    assert known.findings[0].id == "no-kv-room"
    place = TOKEN.partition(b"the hub")[0]
    messages = (b"It failed.", b"Traceback (most recent call last):", b"ValueError: x", b"more")
    traced = [place + line for line in messages]
    assert ids(scan([BOOT, *traced])) == ["unknown-exception"]


def test_the_number_of_unknown_errors_is_limited() -> None:
    lines = [TOKEN + f" {chr(97 + n % 26)}{chr(97 + n // 26)}".encode() for n in range(500)]
    found = scan([BOOT, *lines]).findings
    assert len(found) == 10
    assert found[0].severity is Severity.HIGH
    assert found[0].line == lines[-1].decode()
