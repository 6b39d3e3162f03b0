"""Files of strangers, through the command line: logs, answers, Compose files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fuzz.harness import attempt, fuzzed
from glm4_deploy.cli.app import app
from glm4_deploy.settings import Settings

RUNNER = CliRunner()
OOM = (
    "(EngineCore pid=99) ERROR 11-23 14:43:40 [core.py:842] torch.OutOfMemoryError: CUDA out of memory. Tried to "
    "allocate 2.00 GiB. GPU 0 has a total capacity of 31.36 GiB of which 1.02 GiB is free."
)
NOISE = st.one_of(
    st.binary(max_size=80),
    st.sampled_from([
        b"\x1b]0;title", b"\x1b[1;36m", b"\x1b", b"\xff\xfe", b"(a" + b" " * 2000 + b" Error",
        b"Traceback (most recent call last):",
        b"During handling of the above exception, another exception occurred:", b"`" * 3, b"> ", b"{", b"\r", b"\0" * 9,
        b"INFO 11-23 14:43:40 [a.py:1] client said \x1b]0;hello", b"sm_" + b"1" * 3000, b"(APIServer pid=1) " * 90,
    ]),
)  # fmt: skip


def run(*words: str) -> tuple[int, str]:
    done = RUNNER.invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@fuzzed
@given(st.lists(NOISE, max_size=12))
def test_any_log_can_be_read(tmp_path: Path, lines: list[bytes]) -> None:
    (tmp_path / "a.log").write_bytes(b"\n".join(lines))
    attempt(run, "diagnose", str(tmp_path / "a.log"))


@fuzzed
@given(st.lists(NOISE, max_size=6))
@example([b"INFO 11-23 14:43:40 [a.py:1] client said \x1b]0;hello"])
@example([b"(a" + b" " * 60_000 + b" Error"])
def test_no_line_hides_the_failure_after_it(tmp_path: Path, before: list[bytes]) -> None:
    boot = [b"INFO 11-23 14:43:30 [api_server.py:1] vLLM API server version 0.13.0"]
    (tmp_path / "a.log").write_bytes(b"\n".join([*boot, *before, OOM.encode(), b""]))

    def act() -> None:
        try:
            code, said = run("diagnose", str(tmp_path / "a.log"), "--json")
        except SystemExit as error:
            code, said = int(error.code or 0), ""
        assert code != 0, said

    attempt(act)


@fuzzed
@given(
    st.lists(
        st.fixed_dictionaries(
            {"text": st.text(max_size=50) | st.none() | st.integers()},
            optional={
                "prompt": st.text(max_size=20) | st.integers(),
                "logprobs": st.lists(st.floats() | st.integers() | st.just(10**400) | st.none() | st.booleans()),
                "token_ids": st.lists(st.integers()),
                "finish_reason": st.text(max_size=5) | st.lists(st.none()),
            },
        ),
        max_size=4,
    )
)
def test_any_rows_can_be_judged(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8", errors="replace")
    attempt(run, "detect", str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("value", ["9" * 400, "nan", "inf", "1e308", "1e400", "-1", "٣", "½", "0x10", ""])
def test_any_number_is_refused_or_used(value: str) -> None:
    for name in Settings.model_fields:
        attempt(run, "render", "--profile", "gb10", "--set", f"{name}={value}")
    for words in (("--gpu-free-mib", value), ("--for", f"{value} users"), ("--host-reserve-gib", value)):
        attempt(run, "plan", "--gpu", "gb10", *words)


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in ("env", "args")])
def test_a_refused_value_shows_no_token(name: str) -> None:
    secret = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"
    done = RUNNER.invoke(app, ["render", "--profile", "gb10", "--set", f"{name}={secret}\r"])
    if done.exit_code:
        assert secret not in f"{done.output} {done.exception}"
