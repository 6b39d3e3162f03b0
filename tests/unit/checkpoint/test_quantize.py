"""What happens before and after llm-compressor. Its own output is a recorded real one here.

(`tests/data/nvfp4-tiny` is what it wrote; the tests do without torch and llm-compressor, which are several GB.)
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import checkpoints as made
from glm4_deploy.checkpoint import quantize as module
from glm4_deploy.checkpoint.quantize import CalibrationSet, quantize_checkpoint
from glm4_deploy.errors import CheckpointRefused, UsageError
from glm4_deploy.result import Status

DRAWN = CalibrationSet(
    seed=3,
    short=9,
    long=1,
    shortest=256,
    median=700,
    longest=2000,
    tokens=8000,
    passed_over=2,
    by_source={"a.jsonl": 10},
    digest="ab" * 32,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return made.checkpoint(tmp_path / "glm-4-base", nvfp4=False)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def compress(_base: Path, output: Path, _sources: Sequence[str], **_: Any) -> CalibrationSet:
        sys.stdout.write("llm-compressor may print")
        shutil.copytree(made.DATA, output)
        (output / "model.safetensors").chmod(0o600)
        return DRAWN

    monkeypatch.setattr(module, "_compress", compress)
    monkeypatch.setattr(module, "_check_extra", lambda: None)
    monkeypatch.setattr(module, "version", lambda _name: "0.14.0.1")


@pytest.mark.usefixtures("recorded")
def test_the_output_is_what_the_engine_loads(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = quantize_checkpoint(base, tmp_path / "glm-4-tiny-nvfp4", vllm=(0, 13, 0))
    assert (done.report.verdict, done.report.engine) == (Status.OK, "vLLM 0.13.0")
    output = tmp_path / "glm-4-tiny-nvfp4"
    card = (output / "README.md").read_text()
    assert "Built with glm-4" in card and "9   90.0 %" in card and "base_model: glm-4-base" in card
    assert json.loads((output / "calibration.json").read_text())["digest"] == DRAWN.digest
    assert (output / "LICENSE").read_text() == (base / "LICENSE").read_text()
    assert (output / "tokenizer_config.json").read_text() == (base / "tokenizer_config.json").read_text()
    assert all(path.stat().st_mode & 0o004 for path in output.iterdir())
    assert capsys.readouterr().out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"glm-4-base", "glm-4-tiny-nvfp4"}


@pytest.mark.usefixtures("recorded")
def test_raw_leaves_the_traps_and_reports_them(base: Path, tmp_path: Path) -> None:
    done = quantize_checkpoint(base, tmp_path / "glm-4-raw", vllm=(0, 13, 0), raw=True)
    assert {"gate-up", "quantization-keys", "rope-theta"} <= {result.check for result in done.report.failures}


@pytest.mark.usefixtures("recorded")
def test_for_another_engine_it_stays_fused(base: Path, tmp_path: Path) -> None:
    done = quantize_checkpoint(base, tmp_path / "glm-4-new", vllm=(0, 32, 0))
    assert done.report.failures == ()
    assert any("gate_up_proj" in name for name in made.read(tmp_path / "glm-4-new"))


@pytest.mark.usefixtures("recorded")
def test_without_a_licence_it_says_so(base: Path, tmp_path: Path) -> None:
    (base / "LICENSE").unlink()
    done = quantize_checkpoint(base, tmp_path / "glm-4-new")
    result = next(result for result in done.report.results if result.check == "licence")
    assert (result.status, result.observed) == (Status.WARN, "no licence text")
    assert "add it" in (tmp_path / "glm-4-new/README.md").read_text()


def test_a_failed_compression_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compress(_base: Path, output: Path, _sources: Sequence[str], **_: Any) -> CalibrationSet:
        output.mkdir(parents=True)
        raise UsageError("too few texts")

    monkeypatch.setattr(module, "_compress", compress)
    monkeypatch.setattr(module, "_check_extra", lambda: None)
    with pytest.raises(UsageError):
        quantize_checkpoint(base, tmp_path / "glm-4-new")
    assert {path.name for path in tmp_path.iterdir()} == {"glm-4-base"}


def test_a_base_that_is_damaged_or_quantised_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="quantised already"):
        quantize_checkpoint(made.DATA, tmp_path / "glm-4-new")
    (base / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointRefused, match="cannot be quantised: shard-headers"):
        quantize_checkpoint(base, tmp_path / "glm-4-new")


@pytest.mark.skipif(find_spec("llmcompressor") is not None, reason="the extra is installed")
def test_without_the_extra_it_names_the_command(base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glm4_deploy", "checkpoint", "quantize", base, "--output", tmp_path / "glm-4-new"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "pip install 'glm4-deploy[quantize]'" in done.stderr) == (20, True), done.stderr
