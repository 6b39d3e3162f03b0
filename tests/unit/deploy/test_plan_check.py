"""A start compared with its plan, from logs of real starts: what is shown, recorded, and used by the next plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from glm4_deploy.catalog.rows import Profile, gpu_by_name
from glm4_deploy.deploy.plan_check import compare_plan, free_memory, keep_free, kernel_row, load_observations
from glm4_deploy.deploy.state import expected_record, save_record
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.logs.reader import LogReader
from glm4_deploy.plan.kernels import ImageKind
from glm4_deploy.plan.memory import estimate
from glm4_deploy.plan.sizing import sharpen
from glm4_deploy.plan.spec import choose_fraction, memory_request, plan_deployment
from glm4_deploy.result import Result, Status
from glm4_deploy.settings import Settings, load_settings

LOGS = Path(__file__).parents[2] / "data/logs"
H100 = gpu_by_name("h100")
SEED_SETTINGS = {
    "gpu_memory_utilization": "0.75",
    "max_model_len": 32768,
    "max_num_seqs": 64,
    "kv_cache_dtype": "fp8",
    "image_tag": "26.05-py3",  # vLLM 0.20, whose rules are those of the logs' 0.24
}


def facts_of(name: str) -> EngineFacts:
    reader = LogReader()
    for line in (LOGS / name).read_text(encoding="utf-8").splitlines():
        reader.feed(line)
    return reader.facts


def held(
    facts: EngineFacts, directory: Path, *, profile: str = "hopper", known: bool = True, **changes: object
) -> tuple[tuple[Result, ...], Settings, Profile]:
    settings, row = load_settings({"profile": profile, **SEED_SETTINGS, **changes})
    deployment = plan_deployment(settings, row, choose_fraction(settings, row))
    return compare_plan(settings, row, deployment, facts, directory, H100 if known else None), settings, row


def test_a_start_as_planned_is_ok_in_every_row(tmp_path: Path) -> None:
    rows, _, _ = held(facts_of("h100-0.24-seed.log"), tmp_path)

    assert [row.check for row in rows] == ["plan-weights", "plan-kv-cache", "plan-kv-tokens", "plan-kernel"]
    assert {row.status for row in rows} == {Status.OK}
    assert "51.04 GiB" in rows[1].observed


def test_a_start_off_its_plan_warns_and_sharpens_the_next(tmp_path: Path) -> None:
    facts = facts_of("h100-0.24-seed.log")
    rows, settings, row = held(facts, tmp_path, gpu_memory_utilization="0.80")
    learnt = load_observations(tmp_path)
    request = sharpen(memory_request(settings, row, H100), learnt)

    assert Status.WARN in {one.status for one in rows}
    assert "recorded" in next(one.remedy for one in rows if one.status is Status.WARN)
    assert len(learnt) == 1
    assert estimate(request).kv_cache_gib == pytest.approx(51.04, abs=0.1)


def test_arithmetic_other_than_foretold_warns(tmp_path: Path) -> None:
    """A weight-only kernel is a warning where native FP4 was predicted, and nothing else was on an H100."""
    _, settings, row = held(facts_of("h100-0.24-seed.log"), tmp_path)
    request = memory_request(settings, row, H100)
    marlin = facts_of("h100-0.24-seed.log")
    on_blackwell = replace(request, gpu=gpu_by_name("rtx-5090"))

    assert [one.status for one in kernel_row(request, marlin, ImageKind.NVIDIA)] == [Status.OK]
    [unlike] = kernel_row(on_blackwell, marlin, ImageKind.NVIDIA)
    assert unlike.status is Status.WARN
    assert "weight-only" in unlike.observed
    assert kernel_row(request, replace(marlin, kernel=None, native_fp4=None), ImageKind.NVIDIA) == ()


def test_an_engine_of_ours_does_not_count_as_a_neighbour(tmp_path: Path) -> None:
    """What was free before the first start counts for the next plan, though the engine holds most of it now."""
    keep_free(tmp_path, 30 * 2**30)
    assert free_memory(tmp_path, 25 * 2**30) == 25 * 2**30  # nothing was brought up yet

    settings, row = load_settings({"profile": "hopper", **SEED_SETTINGS})
    save_record(expected_record(plan_deployment(settings, row, choose_fraction(settings, row))), tmp_path)
    assert free_memory(tmp_path, 2 * 2**30) == 30 * 2**30
    (tmp_path / "free.json").write_text("{", encoding="utf-8")
    assert free_memory(tmp_path, 2 * 2**30) is None


def test_nothing_is_recorded_for_an_unknown_gpu(tmp_path: Path) -> None:
    rows, _, _ = held(facts_of("h100-0.24-seed.log"), tmp_path, known=False)

    assert rows
    assert load_observations(tmp_path) == ()


def test_a_later_start_is_recognised_by_its_log(tmp_path: Path) -> None:
    assert facts_of("h100-0.24-no-room.log").compile_cached is True
    held(replace(facts_of("h100-0.24-seed.log"), compile_cached=True), tmp_path)

    assert [one.first_start for one in load_observations(tmp_path)] == [False]


def test_a_log_without_memory_figures_and_an_engine_without_a_plan_have_no_rows(tmp_path: Path) -> None:
    assert held(EngineFacts(), tmp_path)[0] == ()
    cpu = held(facts_of("cpu-0.32-tiny.log"), tmp_path, profile="cpu", known=False, gpu_memory_utilization="auto")
    assert cpu[0] == ()
