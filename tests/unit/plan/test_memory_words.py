"""Loads in words, advice, kernels, and the plan compared with a log."""

from dataclasses import replace
from pathlib import Path

import pytest

from glm4_deploy.catalog.rows import gpu_by_name
from glm4_deploy.deploy.plan_check import add_observation, load_observations
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.engine_rules import WeightFormat, glm4_9b
from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.plan.kernels import kernel_path
from glm4_deploy.plan.memory import estimate
from glm4_deploy.plan.sizing import MeasuredMemory, advice, compare_with_log, learn_from_starts, parse_load, sharpen
from glm4_deploy.result import Status

WISH = MemoryRequest(gpu=gpu_by_name("h100"), model=glm4_9b(), vllm=(0, 24, 0), gpu_memory_utilization=0.75)


@pytest.mark.parametrize(
    ("text", "requests", "context"),
    [
        ("64 users, 8k context", 64, 8192),
        ("8k context for 64 users", 64, 8192),
        ("200 concurrent requests of 4096 tokens", 200, 4096),
        ("one hundred users? no: 100 users", 100, None),
        ("context 32k", None, 32768),
        ("1.5k users, 128K context", 1500, 131072),
        ("1,5k users with 8,192 tokens", 1500, 8192),
    ],
)
def test_a_load_in_words(text: str, requests: int | None, context: int | None) -> None:
    load = parse_load(text)

    assert (load.requests, load.context) == (requests, context)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "much",
        "0 users",
        "-",
        "64",
        "users context",
        "-1 users, 8k context",
        "8 users, -8k context",
        "1e3 users",
        "0x10 users, 8k context",
        "4-16 users",
        "64 users with 8k",
        "64 users, 8k context, 3 GPUs",
        "− 8 users, 1k context",
        "2 users, 3 users",
    ],
)
def test_text_without_a_load_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither users nor a context"):
        parse_load(text)


def test_advice_names_the_smallest_fraction_and_what_is_unsafe() -> None:
    spark = replace(WISH, gpu=gpu_by_name("gb10"), vllm=(0, 13, 0), gpu_memory_utilization=0.97)
    text = "\n".join(advice(spark, estimate(spark)))

    assert "gpu_memory_utilization 0.42 is the smallest" in text
    assert "leaves less than 8 GiB for the host" in text


def test_advice_names_fp8_where_the_cache_is_16_bit() -> None:
    wide = replace(WISH, kv_cache_dtype="auto")

    assert any("kv_cache_dtype fp8" in line for line in advice(wide, estimate(wide)))


@pytest.mark.parametrize(
    ("capability", "name"),
    [((12, 1), "native FP4"), ((10, 3), "native FP4"), ((11, 0), "native FP4"), ((9, 0), "Marlin, weight-only"),
     ((8, 9), "Marlin, weight-only"), ((7, 0), "none")],
)  # fmt: skip
def test_the_kernel_path_by_capability(capability: tuple[int, int], name: str) -> None:
    assert kernel_path(capability, WeightFormat.NVFP4, (0, 27, 1)).name == name


def test_a_start_as_planned_is_ok_and_one_far_off_warns() -> None:
    plan = estimate(WISH)
    near = MeasuredMemory(weights_gib=6.71, kv_cache_gib=51.04, kv_cache_tokens=2_676_144, max_concurrency=81.67)
    far = replace(near, kv_cache_gib=40.0, kv_cache_tokens=2_097_152)

    assert {row.status for row in compare_with_log(plan, near)} == {Status.OK}
    assert [row.status for row in compare_with_log(plan, far)] == [Status.OK, Status.WARN, Status.WARN]
    assert compare_with_log(plan, MeasuredMemory()) == ()


def test_an_observed_start_sharpens_the_next_plan(tmp_path: Path) -> None:
    """Learn from a start that had 3 GiB less, store it in a file, and predict the next start with another fraction."""
    plan = estimate(WISH)
    seen = learn_from_starts(
        WISH, plan, MeasuredMemory(weights_gib=plan.weights_gib, kv_cache_gib=plan.kv_cache_gib - 3)
    )
    assert seen is not None
    add_observation(tmp_path, seen)
    add_observation(tmp_path, seen)

    kept = load_observations(tmp_path)
    next_wish = replace(WISH, gpu_memory_utilization=0.5)
    assert len(kept) == 1
    assert estimate(sharpen(next_wish, kept)).kv_cache_gib == pytest.approx(
        estimate(next_wish).kv_cache_gib - 3, abs=0.01
    )
    other = replace(next_wish, vllm=(0, 13, 0))
    assert sharpen(other, kept) == other


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 9, "observations": []}', '{"schema": 1, "observations": [1]}']
)
def test_a_damaged_record_is_not_an_observation(tmp_path: Path, text: str) -> None:
    (tmp_path / "observations.json").write_text(text, encoding="utf-8")

    assert load_observations(tmp_path) == ()


def test_nothing_is_learnt_from_a_log_of_another_engine() -> None:
    assert learn_from_starts(WISH, estimate(WISH), MeasuredMemory(kv_cache_gib=500.0)) is None
