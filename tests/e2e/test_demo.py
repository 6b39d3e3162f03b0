"""The demo as a user runs it: an NVFP4 checkpoint in a real vLLM, from what breaks it to the release that returns."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.kit import ROOT, free_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Everything that `make demo-fault` prints; it contains what `make demo` does."""
    # A tree of its own: the demo works in .glm4/demo of the tree that it is in.
    tree = tmp_path_factory.mktemp("tree")
    for name in ("demo", "scripts", "tests/nvfp4_rig"):
        shutil.copytree(ROOT / name, tree / name)
    (tree / ".venv").symlink_to(Path(sys.executable).parents[1])
    engine = subprocess.run([ROOT / "scripts/cpu-engine.sh", "0.13.0"], capture_output=True, text=True, check=False)
    if engine.returncode == 3:
        pytest.skip(engine.stderr.strip())
    done = subprocess.run(
        [tree / "scripts/demo.sh", "fault"],
        env=os.environ | {"PORT": str(free_port()), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_verify_finds_what_breaks_the_checkpoint_and_repair_mends_it(told: str) -> None:
    verify, repair = told.index("checkpoint verify"), told.index("checkpoint repair demo")
    assert "fused global scale" in told[verify:repair]
    assert re.search(r"repaired gate-up .*separate gate_proj and up_proj", told[repair:])


def test_the_repaired_checkpoint_passes_its_gate_on_nvfp4_and_the_kernel_path_is_said(told: str) -> None:
    good = told[: told.index("The fused gate_up stays")]
    assert "serves 'glm-4-9b-chat': ok" in good
    assert "NVFP4 kernel: emulation (not native FP4: expected without a Blackwell GPU" in good


def test_the_broken_one_is_refused_then_forced_and_the_good_release_returns(told: str) -> None:
    fault = told[told.index("The fused gate_up stays") :]
    assert "1 fault(s) that this engine would not survive" in fault
    assert re.search(r"loop-greedy +fail +.*LOOP", fault)
    error = fault[fault.index("glm4-deploy: the engine came up but did not pass") :]
    lines = error.splitlines()
    assert "runs again, gated" in lines[0]
    assert "known before the start: gate-up" in lines[1], "the cause comes before what it led to"
    assert "checkpoint repair" in next(line for line in lines if "→" in line)
    assert fault.rstrip().endswith("stopped and removed")
