"""What a user types and sees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints as made
import preloaded


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    done = preloaded.run("checkpoint", *words)
    assert "Traceback" not in done.stderr + done.stdout
    return done


def test_verify_reports_the_fault_its_reason_and_the_repair_command(tmp_path: Path) -> None:
    done = run("verify", made.DATA, "--image-tag", "26.01-py3")
    assert done.returncode == 1 and done.stderr == ""
    for words in ("fail     gate-up", "why: vLLM 0.13.0 fills one of two slots", "fail: "):
        assert words in done.stdout
    command = next(line for line in done.stdout.splitlines() if "→ glm4-deploy checkpoint repair" in line)
    assert f"repair {made.DATA} --output {made.DATA}-0.13.0" in command


def test_the_repair_command_names_the_engine_unless_it_is_the_default() -> None:
    report = json.loads(run("verify", made.DATA, "--vllm", "0.15.1", "--json").stdout)
    remedies = {result["check"]: result["remedy"] for result in report["results"]}
    assert remedies["gate-up"].endswith("--for 0.15.1")
    assert report["verdict"] == "fail" and report["engine"] == "vLLM 0.15.1"


@pytest.mark.parametrize(
    ("option", "value", "status"),
    [("--image-tag", "26.05-py3", "ok"), ("--vllm", "0.20.1", "warn"), ("--image-tag", "26.03-py3", "fail")],
)
def test_the_transformers_of_a_catalogued_image_is_known_where_its_vllm_allows_two(
    option: str, value: str, status: str
) -> None:
    report = json.loads(run("verify", made.DATA, option, value, "--json").stdout)
    assert {result["check"]: result["status"] for result in report["results"]}["tokenizer-class"] == status


def test_repair_then_verify(tmp_path: Path) -> None:
    output = tmp_path / "glm-4-out"
    done = run("repair", made.DATA, "--output", output, "--for", "26.01")
    assert done.returncode == 0, done.stderr
    assert "separate gate_proj and up_proj, 2 layers" in done.stdout and "3 files written" in done.stdout
    assert run("verify", output, "--full", "--manifest", output / "SHA256SUMS").returncode == 0
    again = run("repair", made.DATA, "--output", output)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_with_only_repair_reports_what_still_fails(tmp_path: Path) -> None:
    done = run(
        "repair", made.DATA, "--output", tmp_path / "glm-4-out", "--for", "0.13.0", "--only", "gate-up", "--json"
    )
    assert done.returncode == 1
    outcome = json.loads(done.stdout)
    assert [change["check"] for change in outcome["changes"]] == ["gate-up"]
    assert outcome["report"]["verdict"] == "fail"


def test_json_with_a_name_that_is_not_text(tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    (directory / os.fsdecode(b"\xff.txt")).touch()
    done = run("repair", directory, "--output", tmp_path / "glm-4-out", "--for", "0.13.0", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"]["verdict"] == "ok"
    assert run("repair", directory, "--output", tmp_path / "glm-4-two").returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("verify", "/nowhere"), 9, "no checkpoint at"),
        (("verify", str(made.DATA), "--vllm", "x"), 2, "not a vLLM version"),
        (("verify", str(made.DATA), "--vllm", "0.13.0", "--image-tag", "26.01"), 2, "exclude each other"),
        (("verify", str(made.DATA), "--manifest", "/proc/no/where"), 18, "cannot write"),
        (("repair", str(made.DATA), "--output", "/nowhere/x"), 2, "/nowhere is not a directory"),
        (("repair", str(made.DATA), "--output", "/tmp/glm-4-x", "--for", "27.77-py3"), 2, "not in the catalog"),
        (("repair", str(made.DATA), "--output", "/tmp/glm-4-x", "--only", "x"), 2, "not a check that can be repaired"),
        (("quantize", str(made.DATA), "--output", "/tmp/other"), 2, "starts with glm-4"),
        (("quantize", str(made.DATA), "--output", "/tmp/glm-4-x"), 10, "quantised already"),
    ],
)
def test_wrong_usage_is_one_line_and_its_exit_code(words: tuple[str, ...], code: int, message: str) -> None:
    done = run(*words)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert done.stdout == ""


def test_a_damaged_checkpoint_is_not_repaired(tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    os.truncate(directory / "model.safetensors", 1000)
    done = run("repair", directory, "--output", tmp_path / "glm-4-out")
    assert done.returncode == 10 and "shard-headers" in done.stderr and "→" in done.stderr


def test_neither_torch_nor_numpy_slows_the_help() -> None:
    code = "import sys; import glm4_deploy.cli; assert not {'numpy', 'torch', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dry_repair_says_what_would_change_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "copy"
    argv = ("repair", made.DATA, "--output", output, "--for", "26.01-py3")
    dry = run(*argv, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not list(tmp_path.iterdir())
    changes = json.loads(run(*argv, "--json").stdout)["changes"]
    assert dry.stdout.splitlines() == [
        *(f"{one['check']}: {one['file']}: {one['detail']}" for one in changes),
        f"write the copy to {output}, and verify it",
    ]
    assert run(*argv, "--dry-run").returncode == 2  # it exists now
