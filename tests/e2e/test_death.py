"""A real engine that dies while it is asked: one finding, and the engine's own words."""

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from e2e.engine import NAME, engine
from e2e.kit import KIT, MODEL, ROOT
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.suite import DIED, run_suite
from glm4_deploy.report_model import Suite
from glm4_deploy.result import Status

pytestmark = pytest.mark.e2e


def kill_core(log: Path) -> None:
    """Stop the core at once, so that no request is answered any more, and kill it when many wait for it."""
    (core,) = set(re.findall(r"\(EngineCore\w* pid=(\d+)\)", log.read_text()))
    os.kill(int(core), signal.SIGSTOP)
    threading.Timer(2, os.kill, [int(core), signal.SIGKILL]).start()


def test_a_core_that_is_killed_under_many_requests(cpu_python: str, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with engine(cpu_python, MODEL, log) as running:
        report = asyncio.run(
            run_suite(
                ProbeTarget(base_url=running.base_url, model=NAME, timeout_s=180),
                suite=Suite.QUICK,
                skip=("loop-*", "counting", "perplexity"),
                on_start=lambda check: kill_core(log) if check == "concurrency-16" else None,
            )
        )
    failed = [row for row in report.results if row.status in (Status.FAIL, Status.UNKNOWN)]
    assert [(row.check, row.code) for row in failed] == [("concurrency-16", DIED)], failed
    assert failed[0].observed.startswith("the engine died in concurrency-16: ")
    assert report.exit_code == 11
    diagnosis = subprocess.run([*KIT, "diagnose", log], capture_output=True, text=True, check=False)
    assert diagnosis.returncode == 1
    assert "root cause: engine-process-gone" in diagnosis.stdout


def test_an_engine_that_ends_itself_is_one_finding(tmp_path: Path) -> None:
    """In vLLM 0.13 on a CPU, the first answer under a JSON schema ends the engine (xgrammar wants float32)."""
    built = subprocess.run([ROOT / "scripts/cpu-engine.sh", "0.13.0"], capture_output=True, text=True, check=False)
    if built.returncode == 3:
        pytest.skip(built.stderr.strip())
    model, log = tmp_path / "model", tmp_path / "engine.log"
    repair = [*KIT, "checkpoint", "repair", MODEL, "--for", "0.13.0", "--output", model]
    assert subprocess.run(repair, capture_output=True, check=False).returncode == 0
    with engine(built.stdout.strip(), model, log) as running:
        words = ["smoke", "--base-url", running.base_url, "--only", "structured", "--only", "tools-call", "--json", "-"]
        smoke = subprocess.run([*KIT, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert smoke.returncode == 11, smoke.stderr
    rows = {row["check"]: row for row in json.loads(smoke.stdout)["results"]}
    assert [check for check, row in rows.items() if row["status"] == "fail"] == ["structured"]
    assert "the engine died in structured: " in rows["structured"]["observed"]
    assert "EngineCore encountered an issue" in rows["structured"]["observed"]
    diagnosis = subprocess.run([*KIT, "diagnose", log], capture_output=True, text=True, check=False)
    assert diagnosis.returncode == 1
    assert "ValueError: logits must be of type float32" in diagnosis.stdout
