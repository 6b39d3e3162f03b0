"""Each row of the table fires on its own example, and no other row does."""

from pathlib import Path

import pytest
import yaml

from glm4_deploy.catalog.rows import Signature, signatures
from glm4_deploy.logs.reader import LEVELS, LogReader
from glm4_deploy.logs.source import scan_log

ROWS = signatures()
LINES = yaml.safe_load((Path(__file__).parents[2] / "data/lines.yaml").read_text(encoding="utf-8"))
PREFIXES = (
    "",
    "2026-03-18T12:03:55.123456789Z ",
    "vllm-1  | ",
    "vllm-1  | 2026-03-18T12:03:55.123456789Z (EngineCore_DP0 pid=143) ERROR 03-18 12:07:03 [core.py:866] ",
    "(VllmWorker rank=0 pid=222) ERROR 04-17 23:28:22 [core.py:502] ",
    "\x1b[1;36m(EngineCore pid=7)\x1b[0;0m ",
    "Aug 17 18:42:18 spark vllm[8052]: (APIServer pid=8052) ",
)


def findings(text: str) -> tuple[str, ...]:
    reader = LogReader()
    for line in text.split("\n"):
        reader.feed(line)
    return tuple(row.id for row in reader.findings)


def shown(row: Signature, prefix: str = "") -> str:
    """The example as it stands in a log; a call of a traceback stands in one."""
    call = row.frames and not row.regex
    lines = ("Traceback (most recent call last):", row.example, "Odd: x") if call else (row.example,)
    return "\n".join(prefix + line for line in lines)


def test_the_table_is_large_and_its_names_are_unique() -> None:
    assert len(ROWS) >= 40
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert {row.severity for row in ROWS} <= set(LEVELS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_fires_on_its_example_only(row: Signature) -> None:
    assert bool(row.regex) != bool(row.frames or (row.about and not row.regex))
    assert not row.regex or any(literal in row.example for literal in row.has)
    assert all((row.cause, row.fix, row.source))
    assert findings(shown(row)) == (row.id,)


@pytest.mark.parametrize("prefix", PREFIXES[1:])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_fires_behind_any_prefix(row: Signature, prefix: str) -> None:
    assert row.id in findings(shown(row, prefix))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_fires_in_the_middle_of_a_large_log(row: Signature) -> None:
    dull = b'(APIServer pid=1) INFO:     127.0.0.1:49578 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    text = shown(row).encode()
    reader = scan_log(LogReader(), [dull * 3000, text + b"\n", dull * 3000])
    assert [(found.id, found.number) for found in reader.findings] == [(row.id, 3001 + text.count(b"\n"))]


def test_a_failure_that_a_prompt_quotes_is_not_believed() -> None:
    prompt = "(APIServer pid=1) INFO 11-23 14:43:47 [logger.py:40] Received request cmpl-1: prompt: {!r}"
    for row in ROWS:
        if row.severity in ("fatal", "error"):
            assert findings(prompt.format(row.example)) == (), row.id


@pytest.mark.parametrize("line", LINES["healthy"])
def test_a_healthy_line_that_looks_similar_is_not_a_finding(line: str) -> None:
    assert findings(line) == ()
    assert scan_log(LogReader(), [line.encode() + b"\n" + b"x\n" * 300]).findings == ()


@pytest.mark.parametrize(("line", "row"), LINES["alike"].items())
def test_other_messages_of_the_same_failure_are_recognised(line: str, row: str) -> None:
    assert findings(line) == (row,)
