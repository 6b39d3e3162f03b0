"""NVFP4 W4A4 gives the answers of bf16, and one wrong input scale is caught by verify and by smoke."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from checkpoints import write_scale
from e2e.engine import NAME, engine
from e2e.kit import ROOT
from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.fingerprint.model import read_fingerprint
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report_model import Suite
from glm4_deploy.result import Status

pytestmark = pytest.mark.e2e
NVFP4 = ROOT / "demo/glm-4-tiny-chat-nvfp4"
# The sums and the stories of the gate survive this one; counting to 160 does not (docs/lab/demo.md).
SCALE = "model.layers.1.mlp.gate_up_proj.input_global_scale"
VLLM = (0, 32, 0)  # that of `cpu_python`; it loads the checkpoint as llm-compressor wrote it


def test_w4a4_answers_as_bf16_does(cpu_python: str) -> None:
    path = os.pathsep.join((str(ROOT / "src"), os.environ.get("PYTHONPATH", "")))
    command = [cpu_python, "-W", "ignore", "-m", "benchmarks.numerics", "--json"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    bf16, w4a4 = measured["bf16"], measured["w4a4"]
    assert bf16["canaries"] == w4a4["canaries"] == measured["of"]
    assert w4a4["agreement"] > 0.98
    for before, after in zip(bf16["perplexity"], w4a4["perplexity"], strict=True):
        assert after < 1.1 * before


def test_one_wrong_input_scale_is_caught_by_verify_and_by_smoke(cpu_python: str, tmp_path: Path) -> None:
    model = tmp_path / NVFP4.name
    shutil.copytree(NVFP4, model)
    assert verify_checkpoint(model, vllm=VLLM).failures == ()
    sound = write_scale(model, SCALE, 0.0)
    write_scale(model, SCALE, 1024 * sound)
    (fault,) = verify_checkpoint(model, vllm=VLLM).failures
    assert fault.check == "global-scales"
    assert "behind post_attention_layernorm they reach" in fault.observed

    rig = os.pathsep.join((str(ROOT / "tests/nvfp4_rig"), os.environ.get("PYTHONPATH", "")))
    extra = ("--quantization", "compressed-tensors")
    with engine(cpu_python, model, tmp_path / "engine.log", *extra, env={"PYTHONPATH": rig}) as running:
        target = ProbeTarget(base_url=running.base_url, model=NAME, started_at=running.started, timeout_s=180.0)
        options = Options(fingerprint=read_fingerprint(NVFP4 / "fingerprint.json"))
        report = asyncio.run(run_suite(target, suite=Suite.QUICK, only=("counting", "fingerprint"), options=options))
    assert report.verdict is Status.FAIL
    found = {row.check: row for row in report.results}
    assert found["counting"].status is found["fingerprint"].status is Status.FAIL
    assert "look for a wrong global scale" in found["fingerprint"].remedy
