"""The suite against a real vLLM: the healthy demo model passes, and each sick twin fails for its own reason."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.engine import NAME, engine
from e2e.kit import ROOT
from glm4_deploy.probe import Report, Suite, Target, run_suite
from glm4_deploy.result import Result, Status

pytestmark = pytest.mark.e2e
DEMO = ROOT / "demo" / "glm-4-tiny-chat"
# Each twin, and the check that must fail with these words; the others may fail too.
SICK = {
    "loops": ("loop-greedy", "EXACT_LOOP"),
    "nan": ("numbers", "null"),
    "noise": ("arithmetic", "wrong"),
    "missing-eos": ("stops", "length"),
}
Runs = Mapping[str, Future[Report]]


def judge(python: str, model: Path, log: Path, suite: Suite) -> Report:
    with engine(python, model, log) as running:
        target = Target(base_url=running.base_url, model=NAME, started_at=running.started, timeout_s=180.0)
        return asyncio.run(run_suite(target, suite=suite))


@pytest.fixture(scope="session")
def runs(cpu_python: str, twin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All engines, two at a time: starting one keeps about one core busy."""
    logs = tmp_path_factory.mktemp("logs")
    models = {"healthy": DEMO} | {kind: twin(kind) for kind in SICK}
    pool = ThreadPoolExecutor(2)
    return {
        kind: pool.submit(
            judge, cpu_python, model, logs / f"{kind}.log", Suite.FULL if kind == "healthy" else Suite.QUICK
        )
        for kind, model in models.items()
    }


def row(report: Report, check: str) -> Result:
    return next(result for result in report.results if result.check == check)


def test_the_healthy_model_passes(runs: Runs) -> None:
    report = runs["healthy"].result()
    bad = [result for result in report.results if result.status not in {Status.OK, Status.SKIPPED}]
    assert bad == []
    assert (report.verdict, report.exit_code) == (Status.OK, 0)
    assert "started" in row(report, "identity").observed


def test_what_the_healthy_engine_does_not_offer_is_skipped_with_its_reason(runs: Runs) -> None:
    report = runs["healthy"].result()
    skipped = {result.check: result.reason for result in report.results if result.status is Status.SKIPPED}
    assert "not configured" in skipped.pop("tools")
    assert "no key" in skipped.pop("key")
    assert "baseline" in skipped.pop("perplexity")
    assert {reason.split(":")[0] for reason in skipped.values()} == {
        "the context is 2048 tokens",
        "the context is 2048",
    }


@pytest.mark.parametrize("kind", SICK)
def test_a_sick_twin_fails_for_its_own_reason(runs: Runs, kind: str) -> None:
    report = runs[kind].result()
    check, words = SICK[kind]
    found = row(report, check)
    assert found.status is Status.FAIL, found
    assert words in found.observed
    assert (report.verdict, report.exit_code) == (Status.FAIL, 1)
    assert row(report, "alive").status is Status.OK, "the sick engine is alive: that is the point"


def test_nothing_answers_after_the_engine_is_gone(runs: Runs, tmp_path: Path) -> None:
    report = runs["healthy"].result()
    command = [sys.executable, "-m", "glm4_deploy", "smoke", "--base-url", report.base_url]
    done = subprocess.run([*command, "--json", str(tmp_path / "r.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["exit_code"] == 3
