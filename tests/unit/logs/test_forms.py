"""Logs as collectors, shells and clusters deliver them: the same facts and findings in every form."""

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.unit.logs.test_reader import BAD, EXPECTED, LOGS, coloured, facts_of, ids, lines_of

from glm4_deploy.logs.reader import LogReader
from glm4_deploy.logs.source import read_file, scan_log

Form = Callable[[list[bytes]], bytes]
UNKNOWN = "unknown-exception"
BEGIN = datetime(2026, 3, 18, 12, 0, 0, 123456, tzinfo=UTC)


def each(make: Callable[[bytes, datetime], bytes]) -> Form:
    return lambda lines: b"\n".join(make(line, BEGIN + timedelta(milliseconds=7 * n)) for n, line in enumerate(lines))


def stamp(now: datetime) -> bytes:
    return now.strftime("%Y-%m-%dT%H:%M:%S.%f").encode() + b"789Z"


def docker_json(line: bytes, now: datetime) -> bytes:
    """Docker's own log file: a long line is split into records, of which only the last ends with a newline."""
    text = line.decode(errors="replace") + "\n"
    pieces = [text[at : at + 100] for at in range(0, len(text), 100)]
    record = {"stream": "stderr", "time": stamp(now).decode()}
    return b"\n".join(json.dumps({"log": piece, **record}).encode() for piece in pieces)


def cri(line: bytes, now: datetime) -> bytes:
    pieces = [line[at : at + 100] for at in range(0, len(line), 100)] or [b""]
    tags = [b"P"] * (len(pieces) - 1) + [b"F"]
    return b"\n".join(b"%b stderr %b %b" % (stamp(now), tag, piece) for tag, piece in zip(tags, pieces, strict=True))


def compose_coloured(lines: list[bytes]) -> bytes:
    return b"\n".join(b"\x1b[36mglm4-engine-1  | \x1b[0m" + line for line in coloured(lines))


def huge(lines: list[bytes]) -> bytes:
    middle = len(lines) // 2
    return b"\n".join([*lines[:middle], b"INFO: " + b"word " * 1_000_000, *lines[middle:]])


def requests_logged(lines: list[bytes]) -> bytes:
    """Prompts that quote other logs."""
    bad = b"torch.OutOfMemoryError: CUDA out of memory. Available KV cache memory: 1.5 GiB ERROR Traceback"
    request = b"INFO: Received request cmpl-1: prompt: '%b', params: None" % bad
    return b"\n".join(part for line in lines for part in (line, request))


def wrapped(lines: list[bytes]) -> bytes:
    """As a terminal of 120 columns shows it."""
    rows = []
    for line in lines:
        text = line.decode(errors="replace").rstrip("\r").split("\r")[-1]
        rows += [text[at : at + 120] for at in range(0, len(text), 120)] or [""]
    return "\n".join(rows).encode()


def colours_as_text(escape: bytes) -> Form:
    return lambda lines: compose_coloured(lines).replace(b"\x1b", escape)


FORMS: dict[str, Form] = {
    "colours, cat -v": colours_as_text(b"^["),
    "colours, without their escape character": colours_as_text(b""),
    "colours, in JSON": colours_as_text(b"\\u001b"),
    "quoted": each(lambda line, _: b"> " + line),
    "quoted twice": each(lambda line, _: b"> > " + line),
    "in a fence": lambda lines: b"\n".join([b"```text", *lines, b"```"]),
    "^M": each(lambda line, _: line + b"^M"),
    "wrapped by a terminal": wrapped,
    "HTML": each(lambda line, _: line.replace(b"'", b"&#39;").replace(b'"', b"&quot;").replace(b">", b"&gt;")),
    "compose --timestamps": each(lambda line, now: b"engine-1  | " + stamp(now) + b" " + line),
    "compose, coloured": compose_coloured,
    "swarm": each(lambda line, _: b"glm_vllm.1.x7k2@spark    | " + line),
    "journald": each(lambda line, now: now.strftime("%b %d %H:%M:%S spark vllm[8052]: ").encode() + line),
    "journald, precise": each(lambda line, now: now.strftime("%b %d %H:%M:%S.%f spark vllm[8052]: ").encode() + line),
    "journald, ISO": each(lambda line, now: now.strftime("%Y-%m-%dT%H:%M:%S+0000 spark docker[1]: ").encode() + line),
    "journald, JSON": each(
        lambda line, _: json.dumps({"_PID": "7", "MESSAGE": line.decode(errors="replace") or " "}).encode()
    ),
    "kubectl --prefix": each(lambda line, _: b"[pod/vllm-0/engine] " + line),
    "kubectl --prefix --timestamps": each(lambda line, now: b"[pod/vllm-0/engine] " + stamp(now) + b" " + line),
    "pod file": each(cri),
    "docker json-file": each(docker_json),
    "CRLF": b"\r\n".join,
    "UTF-16, little": lambda lines: b"\xff\xfe" + b"\r\n".join(lines).decode(errors="replace").encode("utf-16-le"),
    "UTF-16, big": lambda lines: b"\xfe\xff" + b"\n".join(lines).decode(errors="replace").encode("utf-16-be"),
    "UTF-8 with a mark": lambda lines: b"\xef\xbb\xbf" + b"\r\n".join(lines),
    "gzip": lambda lines: gzip.compress(b"\n".join(lines), mtime=0),
    "gzip in two members": lambda lines: gzip.compress(b"\n".join(lines) + b"\n") + gzip.compress(b"last\n"),
    "a line of 5 MB": huge,
    "requests logged": requests_logged,
}


def read_form(form: str, lines: list[bytes], path: Path) -> LogReader:
    file = path / "engine.log"
    file.write_bytes(FORMS[form](lines))
    return read_file(str(file))[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_log_gives_the_same_result_in_every_form(name: str, form: str, tmp_path: Path) -> None:
    plain = read_file(str(LOGS / name))[1]
    changed = read_form(form, lines_of(name), tmp_path)
    assert (facts_of(changed), ids(changed)) == (facts_of(plain), ids(plain))


@pytest.mark.parametrize("name", [name for name in EXPECTED if EXPECTED[name].get("failures", [UNKNOWN])[0] != UNKNOWN])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_log_without_its_beginning_still_shows_why_the_engine_failed(name: str, share: float, tmp_path: Path) -> None:
    lines = lines_of(name)
    file = tmp_path / "engine.log"
    # It is cut within a line.
    file.write_bytes(b"\n".join(lines[int(len(lines) * share) :])[7:])
    found = [row.id for row in read_file(str(file))[1].findings if row.severity in BAD]
    assert found[0] == EXPECTED[name]["failures"][0]


def test_a_damaged_archive_is_read_as_far_as_possible(tmp_path: Path) -> None:
    lines = [b"x%d" % random.randrange(10**9) for _ in range(2000)]
    archive = gzip.compress(b"\n".join([*lines_of("h100-0.24-no-room.log"), *lines]))
    file = tmp_path / "engine.log.1.gz"
    for data in (archive[:-2000], archive + b"\0" * 512, archive[:-2000] + b"\xff" * 2000):
        file.write_bytes(data)
        assert ids(read_file(str(file))[1])[0] == "no-kv-room"


def test_an_archive_that_holds_a_thousand_times_its_size_is_read_in_pieces(tmp_path: Path) -> None:
    file = tmp_path / "engine.log.1.gz"
    file.write_bytes(gzip.compress(b"\n".join(lines_of("h100-0.24-no-room.log")) + b"\nINFO x" * 20_000_000, 1))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from glm4_deploy.logs.source import read_file\n"
        "print([row.id for row in read_file(sys.argv[1])[1].findings][0])"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=False)
    assert done.stdout == "no-kv-room\n", done.stderr[-300:]


def test_json_lines_of_the_engines_own_logger_are_read() -> None:
    trouble = {
        "levelname": "ERROR",
        "asctime": "2026-03-18 12:00:00,123",
        "message": "Something broke",
        "exc_info": 'Traceback (most recent call last):\n  File "x.py", line 3, in f\nmade.Trouble: of no known kind',
    }
    quoted = {"levelname": "INFO", "message": "torch.OutOfMemoryError: CUDA out of memory, said a user"}
    reader = scan_log(LogReader(), [json.dumps(row).encode() + b"\n" for row in (quoted, trouble)])
    assert [row.id for row in reader.findings] == [UNKNOWN]


def test_records_that_are_not_log_lines_are_not_changed() -> None:
    lines = [
        b'{"log": 1}',
        b'{"a": [',
        b"{}",
        b'ERROR 11-23 14:43:47 [x.py:1] bad body {"message": "x"}',
        b'{"log": "cut',
    ]
    reader = scan_log(LogReader(), [b"\n".join(lines)])
    assert reader.lines == len(lines)
    assert [row.line for row in reader.findings] == [lines[3].decode()]
