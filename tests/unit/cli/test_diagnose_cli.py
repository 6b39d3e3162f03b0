"""`diagnose` as a user calls it: files, pipes, what `up` left behind, bad input."""

import json
import os
import random
import re
from pathlib import Path

import pytest

import preloaded
from glm4_deploy.deploy.docker import ContainerState
from glm4_deploy.deploy.postmortem import end_findings

ROOT = Path(__file__).parents[3]
LOGS = ROOT / "tests/data/logs"
FACTS = [
    *("version", "engine", "kernel", "native_fp4", "attention_backend", "kv_cache_dtype", "weights_gib"),
    *("kv_cache_gib", "kv_cache_tokens", "max_concurrency", "compile_s", "graph_gib", "ready_s", "phase"),
]

SHARED = ["schema", "kind", "kit", "verdict", "exit_code", "results"]


def kit(*words: str | Path, cwd: Path, stdin: bytes = b"") -> tuple[int, str, str]:
    env = {**os.environ, "DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    done = preloaded.run("diagnose", *words, cwd=cwd, stdin=stdin, env=env)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_json_has_the_promised_keys_and_the_cause_first(tmp_path: Path) -> None:
    code, out, err = kit(LOGS / "cpu-0.32-no-kernel.log", "--json", cwd=tmp_path)
    report = json.loads(out)
    assert (code, err) == (1, "")
    assert [*report] == [*SHARED, *FACTS, "findings"]
    assert [*report["findings"][0]] == ["id", "severity", "line", "cause", "fix", "source", "count"]
    assert report["findings"][0]["id"] == "no-nvfp4-kernel"
    assert report["kernel"] is None
    assert report["native_fp4"] is None


def test_the_text_ends_with_what_to_do(tmp_path: Path) -> None:
    code, out, _ = kit(LOGS / "h100-0.24-no-room.log", cwd=tmp_path)
    assert code == 1
    cause, fix = out.splitlines()[-2:]
    assert cause.startswith("root cause: no-kv-room: ")
    assert "--gpu-memory-utilization" in fix
    assert " unknown\n" in out


def test_a_cause_that_is_elsewhere_is_not_called_a_root_cause(tmp_path: Path) -> None:
    line = b"RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    code, out, _ = kit("-", cwd=tmp_path, stdin=line)
    assert code == 1
    assert "root cause: not in this text" in out
    assert "docker logs CONTAINER" in out.splitlines()[-1]


def test_a_pipe_and_a_healthy_log(tmp_path: Path) -> None:
    code, out, _ = kit("-", cwd=tmp_path, stdin=(LOGS / "v1-0.13-native-tp2.log").read_bytes())
    assert code == 0
    assert out.splitlines()[-1] == "no failure found; it came up"


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"Nov 24 12:00:00 host kernel: nothing\nworld\n", "no start of an engine"),
        (b"2026-11-24T12:00:00Z hello\nworld\n", "  | world"),
        (b"INFO 01-01 00:00:00 [x.py:1] vLLM API server version 0.13.0\n", "ends in the phase `config`"),
    ],
)
def test_a_log_without_information_is_not_called_fine(tmp_path: Path, stdin: bytes, message: str) -> None:
    code, out, _ = kit("-", cwd=tmp_path, stdin=stdin)
    assert code == 0
    assert message in out


def test_without_an_argument_the_last_failed_start_is_read(tmp_path: Path) -> None:
    (tmp_path / ".glm4").mkdir()
    (tmp_path / ".glm4/failed.log").write_bytes((LOGS / "h100-0.24-bad-path.log").read_bytes())
    code, out, _ = kit(cwd=tmp_path)
    assert code == 1
    assert out.startswith("read .glm4/failed.log: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "nothing to diagnose"),
        (("none.log",), 2, "cannot read none.log"),
        (("/",), 2, "cannot read /"),
        (("none.log", "--container", "x"), 2, "FILE and --container exclude each other"),
        (("--metrics", "http://127.0.0.1:1", "--symptom", "x"), 2, "--metrics and --symptom exclude each other"),
        (("--container", "x"), 5, "no Docker engine answers"),
    ],
)
def test_bad_input(tmp_path: Path, words: tuple[str, ...], code: int, message: str) -> None:
    got, out, err = kit(*words, cwd=tmp_path)
    assert (got, out) == (code, "")
    assert message in err


def test_a_symptom_finds_known_failures_and_judges_nothing(tmp_path: Path) -> None:
    code, out, err = kit("--symptom", "ptxas error on my spark", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert out.index("fatal ptxas-too-old\n") < out.index("error ptxas-failed\n")
    assert "TRITON_PTXAS_PATH" in out
    code, out, _ = kit("--symptom", "loops", "--json", cwd=tmp_path)
    report = json.loads(out)
    assert (code, report["verdict"], report["exit_code"]) == (0, "warn", 0)
    assert [*report] == [*SHARED, "findings"]
    assert report["findings"][0] == {**report["findings"][0], "id": "answers-loop", "severity": "error", "line": ""}


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_a_symptom_that_fits_nothing_is_not_called_fine(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, err = kit("--symptom", "banana\x1b[2J", *words, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert "no known failure fits 'banana␛[2J'" in err


def test_no_line_of_a_log_controls_the_terminal(tmp_path: Path) -> None:
    line = "ValueError: No available memory for the cache blocks\x1b]0;owned\x07\x1b[2J \u202e\x9b31m\n"
    _, out, _ = kit("-", cwd=tmp_path, stdin=line.encode())
    assert "no-kv-room" in out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)


@pytest.mark.parametrize(
    ("code", "killed", "restarts", "wanted"),
    [
        (0, False, 0, []),
        (1, False, 0, ["container-ended"]),
        (137, False, 0, ["container-killed"]),
        (137, True, 0, ["container-oom-killed"]),
        (None, False, 4, ["container-restarts"]),
    ],
)
def test_the_end_of_a_container_is_a_finding(code: int | None, killed: bool, restarts: int, wanted: list[str]) -> None:
    now = ContainerState(
        id="a",
        name="vllm-1",
        image="vllm",
        image_id="sha256:0",
        status="running" if code is None else "exited",
        started_at=0.0,
        restarts=restarts,
        exit_code=code,
        oom_killed=killed,
        health=None,
        ports=(),
    )
    assert [row.id for row in end_findings(now)] == wanted


@pytest.mark.parametrize("stdin", [b"", b"\n\n", b"hello\nworld\n", random.Random(1).randbytes(200_000)])
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_input_that_is_not_a_log_is_not_judged(tmp_path: Path, stdin: bytes, words: tuple[str, ...]) -> None:
    code, out, err = kit("-", *words, cwd=tmp_path, stdin=stdin)
    assert (code, out) == (2, "")
    assert "nothing to diagnose in standard input" in err


SECRET = "CANARY0123456789"
ARGS = f'INFO 01-01 00:00:00 [x.py:1] non-default args: {{"api_key": ["glm4-{SECRET}", "b-{SECRET}"], "port": 1}}'


@pytest.mark.parametrize("words", [(), ("--json",)])
@pytest.mark.parametrize(
    "last",
    [
        ARGS,
        f"using hf_{SECRET} to log in",
        f"curl -H 'Authorization: Bearer {SECRET}' failed",
        f"ERROR 01-01 00:00:00 [x.py:1] RuntimeError: HF token hf_{SECRET} is invalid",
        f"RuntimeError: CUDA error: out of memory {'x' * 960} hf_{SECRET}",
        f"Traceback (most recent call last):\n  File 'x'\nValueError: token={SECRET}",
    ],
)
def test_no_secret_in_a_log_is_shown(tmp_path: Path, words: tuple[str, ...], last: str) -> None:
    _, out, err = kit("-", *words, cwd=tmp_path, stdin=f"INFO: started\n{ARGS}\n{last}\n".encode())
    assert out
    assert SECRET[:6] not in out + err
