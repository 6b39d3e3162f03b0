"""`glm4-deploy detect` as a user runs it."""

import json
import subprocess
from pathlib import Path

import pytest

import preloaded


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    return preloaded.run("detect", *arguments, stdin=stdin)


def test_rows_in_json_and_the_exit_code(tmp_path: Path) -> None:
    rows = [{"text": "Paris."}, {"text": "again " * 80, "finish_reason": "length"}, {"text": "ok\u2028", "mine": 1}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = run(str(file), "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["verdict"] for row in found] == ["CLEAN", "EXACT_LOOP", "CLEAN"]
    assert found[1]["degenerate"] is True
    assert set(found[1]) == {"verdict", "degenerate", "start", "unit", "period", "repeats", "confidence", "why"}
    assert done.returncode == 1


def test_plain_text_from_a_pipe() -> None:
    assert run(stdin=b"A short answer.\nNothing more.").returncode == 0
    assert run("-", stdin=b"").returncode == 1


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_input_without_rows_is_not_clean(tmp_path: Path, content: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    for done in (run(str(file)), run("--format", "jsonl", stdin=content.encode())):
        assert (done.returncode, done.stdout) == (2, "")
        assert "no rows in" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "ok"}\n{"text"', "line 2"),
        ('{"text": 1}', '"text" must be a string'),
        ('{"token_ids": [0, 0]}', '"text" must be a string'),
        ('{"text": "ok"}\n[]', "not a JSON object"),
        ('{"text": "ok", "logprobs": ["x"]}', "logprobs"),
        ('{"text": "ok", "token_ids": [true]}', "token_ids"),
    ],
)
def test_a_bad_row_gives_one_clear_error(text: str, message: str) -> None:
    done = run("--json", stdin=text.encode())
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file(tmp_path: Path) -> None:
    done = run(str(tmp_path / "none.txt"))
    assert done.returncode == 2
    assert "none.txt" in done.stderr


def test_no_control_character_reaches_the_terminal() -> None:
    hostile = "\x1b[31m\u202e\ud800x " * 90
    row = json.dumps({"text": hostile}).encode()
    for arguments in ((), ("--json",)):
        done = run(*arguments, stdin=row)
        assert done.returncode == 1
        assert all(char == "\n" or char.isprintable() for char in done.stdout)
    assert json.loads(run("--json", stdin=row).stdout)["unit"] in hostile * 2


def test_a_jsonl_file_is_never_read_as_one_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('[{"text": "ok"}]', encoding="utf-8")
    done = run(str(file))
    assert done.returncode == 2
    assert "not a JSON object" in done.stderr


@pytest.mark.parametrize("content", [bytes(range(256)) * 40, "An answer. ".encode("utf-16"), b"\0" * 50])
def test_input_that_is_not_text_is_not_called_clean(content: bytes) -> None:
    done = run(stdin=content)
    assert (done.returncode, done.stdout) == (2, "")
    assert "not UTF-8 text" in done.stderr


def test_broken_bytes_are_read() -> None:
    assert run(stdin=b"caf\xe9 \xff\xfe fine").returncode == 0
