"""The memory plan compared with real engine logs and with vLLM's own arithmetic, and at its limits."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.planner import read_case
from hypothesis import given
from hypothesis import strategies as st

from glm4_deploy.catalog.rows import gpu_by_name, gpu_by_size, parse_version, profiles
from glm4_deploy.plan.engine_rules import (
    BLOCK_TOKENS,
    WeightFormat,
    capacity_tokens,
    capture_sizes,
    concurrency,
    glm4_9b,
    graph_counts,
)
from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.plan.memory import MemoryPlan, estimate
from glm4_deploy.plan.sizing import highest_fraction, load_bytes, longest_context, solve

STARTS = yaml.safe_load((Path(__file__).parents[2] / "data/hosts/engine-starts.yaml").read_text(encoding="utf-8"))
LOGS = sorted((Path(__file__).parents[2] / "data/logs/plan-h100-0.24").glob("*.log"))


def request(gpu: str = "h100", vllm: str = "0.24.0", weights: str = "nvfp4", **changes: Any) -> MemoryRequest:
    fraction = changes.pop("gpu_memory_utilization", 0.75)
    return MemoryRequest(
        gpu=gpu_by_name(gpu),
        model=glm4_9b(WeightFormat(weights)),
        vllm=parse_version(vllm),
        gpu_memory_utilization=fraction,
        **changes,
    )


def of_start(row: dict[str, Any]) -> MemoryRequest:
    seen = ("name", "weights_gib", "graphs", "kv_cache_gib", "kv_cache_tokens", "max_concurrency", "refused")
    return request(**{key: value for key, value in row.items() if key not in seen})


@pytest.mark.parametrize("row", STARTS, ids=lambda row: row["name"])
def test_real_starts_are_predicted_within_two_percent(row: dict[str, Any]) -> None:
    plan = estimate(of_start(row))

    assert plan.weights_gib == pytest.approx(row["weights_gib"], rel=0.01)
    assert plan.kv_cache_gib == pytest.approx(row["kv_cache_gib"], rel=0.02)
    assert abs(plan.kv_cache_gib - row["kv_cache_gib"]) <= plan.error_range_gib
    if "refused" in row:
        assert not plan.fits
        assert "increase gpu_memory_utilization" in plan.remedy
    else:
        assert plan.fits
        assert plan.kv_cache_tokens == pytest.approx(row["kv_cache_tokens"], rel=0.02)
        assert plan.max_concurrency == pytest.approx(row["max_concurrency"], rel=0.02)


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_real_logs_are_predicted_within_two_percent_from_their_settings_alone(path: Path) -> None:
    """Nine settings on an H100: batch sizes, sequences, cache types, weights, eager and compiled, two refused."""
    case = read_case(path, "h100")
    assert case is not None
    plan = estimate(case.request)

    assert plan.weights_gib == pytest.approx(case.weights_gib, rel=0.01)
    assert plan.kv_cache_gib == pytest.approx(case.kv_cache_gib, rel=0.02)
    assert plan.fits is not path.stem.startswith("refused")
    if plan.fits:
        assert plan.kv_cache_tokens == pytest.approx(case.tokens, rel=0.02)
        assert plan.max_concurrency == pytest.approx(case.concurrency, rel=0.02)
    else:
        assert case.refused.split()[0] == {"no": "No", "one": "To"}[plan.refusal.split()[0]]
        assert "increase gpu_memory_utilization" in plan.remedy


def test_the_longest_context_is_the_engines_own() -> None:
    path = next(path for path in LOGS if path.stem.startswith("refused-too-long"))
    case = read_case(path, "h100")
    named = re.search(r"estimated maximum model length is (\d+)", path.read_text(encoding="utf-8"))

    assert case is not None
    assert named is not None
    assert estimate(case.request).longest_context == pytest.approx(int(named[1]), rel=0.01)


def test_a_later_start_has_more_memory_unless_it_is_eager() -> None:
    first, later = (estimate(request(first_start=start)).kv_cache_gib for start in (True, False))
    eager = [estimate(request(first_start=start, enforce_eager=True)).kv_cache_gib for start in (True, False)]

    assert later - first == pytest.approx(0.47, abs=0.02)  # as in two starts of 0.24 with the same settings
    assert eager[0] == eager[1]


@pytest.mark.parametrize("row", [row for row in STARTS if "kv_cache_tokens" in row], ids=lambda row: row["name"])
def test_block_arithmetic_is_exact(row: dict[str, Any]) -> None:
    """The engine's tokens are within the rounding of its printed GiB, and its concurrency follows from its tokens."""
    case = of_start(row)
    blocks = row["kv_cache_tokens"] // BLOCK_TOKENS
    low, high = ((row["kv_cache_gib"] + half) * 2**30 // case.block_bytes for half in (-0.005, 0.005))

    assert low <= blocks <= high
    assert round(concurrency(blocks, case.max_model_len), 2) == row["max_concurrency"]
    assert capacity_tokens(case.vllm, blocks, case.max_model_len) == row["kv_cache_tokens"]


def test_the_size_of_a_token_follows_from_the_models_shape() -> None:
    model = glm4_9b().shape

    assert model.kv_token_bytes("fp8") == 20_480
    assert model.kv_token_bytes("auto") == 40_960
    assert model.kv_token_bytes("fp8", 2) == 10_240
    assert model.kv_token_bytes("fp8", 4) == 10_240  # 2 KV heads: beyond 2 ranks they are copied


@pytest.mark.parametrize(
    ("gpu", "vllm", "tokens"),
    [
        ("h100", "0.24.0", 8192),
        ("gb10", "0.13.0", 2048),
        ("gb10", "0.33.0", 2048),
        ("rtx-5090", "0.13.0", 2048),
        ("a100", "0.24.0", 2048),
        ("b200", "0.24.0", 8192),
        ("b200", "0.28.0", 16384),
    ],
)
def test_the_batch_that_vllm_chooses(gpu: str, vllm: str, tokens: int) -> None:
    assert request(gpu, vllm).batched_tokens == tokens


@pytest.mark.parametrize(
    ("vllm", "sequences", "batch", "piecewise", "full"),
    [
        ("0.24.0", 64, 8192, 19, 11),
        ("0.13.0", 256, 2048, 51, 35),
        ("0.11.0", 256, 8192, 67, 35),
        ("0.24.0", 1, 8192, 2, 1),
    ],
)
def test_graphs_are_counted_as_in_real_logs(vllm: str, sequences: int, batch: int, piecewise: int, full: int) -> None:
    sizes = capture_sizes(
        parse_version(vllm), gpu_by_name("h100"), max_num_seqs=sequences, max_num_batched_tokens=batch
    )

    assert len(sizes) == piecewise
    assert graph_counts(sizes, sequences) == (piecewise, full)


def test_graphs_count_against_the_cache_from_0_20_on() -> None:
    assert estimate(request(vllm="0.19.0")).graph_counted_gib == 0
    assert estimate(request(vllm="0.20.1")).graph_counted_gib > 0
    assert estimate(request(vllm="0.24.0", enforce_eager=True)).graph_gib == 0


def test_an_impossible_context_is_refused_with_the_longest_that_fits() -> None:
    plan = estimate(request(max_model_len=131072, gpu_memory_utilization=0.12))

    assert not plan.fits
    assert plan.kv_cache_tokens == 0
    assert f"decrease max_model_len to {plan.longest_context}" in plan.remedy
    again = estimate(request(max_model_len=plan.longest_context, gpu_memory_utilization=0.12))
    assert again.fits
    assert not estimate(request(max_model_len=plan.longest_context + 1, gpu_memory_utilization=0.12)).fits


def test_a_start_is_refused_if_others_hold_the_memory() -> None:
    plan = estimate(request(free_bytes=30 * 2**30))

    assert not plan.fits
    assert "30.00 of 79.18 GiB are free" in plan.refusal
    assert "decrease gpu_memory_utilization" in plan.remedy


@pytest.mark.parametrize(
    ("gpu", "fraction", "fits"), [("h100", 0.99, True), ("h100", 1.0, False), ("gb10", 0.99, False)]
)
def test_the_whole_memory_is_never_free(gpu: str, fraction: float, fits: bool) -> None:
    plan = estimate(request(gpu, gpu_memory_utilization=fraction))

    assert plan.fits is fits
    assert fits or "even on an idle machine" in plan.refusal


def test_a_start_is_refused_if_the_graphs_do_not_fit_beside_the_request() -> None:
    plan = estimate(request("rtx-5080", "0.13.0", gpu_memory_utilization=0.96))

    assert not plan.fits
    assert "beyond the request" in plan.refusal


@pytest.mark.parametrize(("ranks", "fits"), [(1, True), (2, True), (4, True), (8, False), (3, False)])
def test_ranks_of_this_model(ranks: int, fits: bool) -> None:
    plan = estimate(request("b200", "0.27.1", tensor_parallel_size=ranks))

    assert plan.fits is fits
    assert fits or "data parallel" in plan.remedy


def test_the_model_card_on_a_spark() -> None:
    """0.75 takes 83 GiB where the load needs 40; the plan says so and finds the fraction that serves it."""
    card = request("gb10", "0.13.0")
    plan, best = estimate(card), solve(card)

    # The figures of docs/lab/planner.md and of the reason in catalog/profiles.yaml.
    assert f"{plan.kv_cache_gib:.0f} ± {plan.error_range_gib:.1f}" == "83 ± 1.6"
    assert "83 ± 1.6 GiB" in profiles()["seed"].reasons["gpu_memory_utilization"]
    assert load_bytes(card) == 40 * 2**30
    assert 0.40 <= best.fraction <= 0.45
    assert best.serves and best.plan.kv_cache_gib - best.plan.error_range_gib >= 40


def test_a_16_gb_card_serves_what_it_can() -> None:
    best = solve(request("rtx-5080", "0.13.0"))

    assert not best.serves
    assert best.plan.fits
    assert 5 < best.plan.max_concurrency < 20
    assert "of 64 requests of 32768 tokens fit at once" in best.reason


def test_where_no_fraction_is_left_the_remedy_is_not_another_fraction() -> None:
    full = solve(request("rtx-5080", "0.13.0", weights="bf16"))
    tight = solve(request("rtx-5080", "0.13.0", max_model_len=131072, kv_cache_dtype="auto", max_num_seqs=512))

    assert not full.plan.fits
    assert full.plan.remedy == "stop the other users of this memory, or use a GPU with more memory"
    assert tight.plan.fits or tight.plan.remedy.startswith("decrease max_model_len to")


def test_a_host_keeps_eight_gib_unless_asked() -> None:
    spark = request("gb10", "0.13.0", max_num_seqs=400)
    kept = solve(spark)
    total = kept.plan.total_gib

    assert total * (1 - kept.fraction) - kept.plan.outside_gib >= 8
    assert highest_fraction(spark, host_reserve_gib=4) > kept.fraction
    assert solve(spark, host_reserve_gib=4).fraction > kept.fraction


def test_unknown_versions_say_so() -> None:
    assert any("were not read" in reason for reason in estimate(request(vllm="0.40.0")).reasons)


@pytest.mark.parametrize(
    ("total", "capability", "name"),
    [(81559, (9, 0), "h100"), (81079, (9, 0), "h100"), (32607, (12, 0), "rtx-5090"), (48000, (8, 6), "custom")],
)
def test_a_size_that_nvidia_smi_prints_is_recognised(total: float, capability: tuple[int, int], name: str) -> None:
    assert gpu_by_size(total, capability).name == name


fractions = st.floats(min_value=0.01, max_value=1)
lengths = st.integers(min_value=1, max_value=131072)
sequences = st.integers(min_value=1, max_value=1024)


@given(fraction=fractions, length=lengths, count=sequences, eager=st.booleans(), gpu=st.sampled_from(["h100", "gb10"]))
def test_every_plan_is_coherent(fraction: float, length: int, count: int, eager: bool, gpu: str) -> None:
    case = request(gpu, gpu_memory_utilization=fraction, max_model_len=length, max_num_seqs=count, enforce_eager=eager)
    plan = estimate(case)

    parts = plan.weights_gib + plan.activation_gib + plan.overhead_gib + plan.graph_counted_gib + plan.kv_cache_gib
    assert parts == pytest.approx(plan.requested_gib)
    assert plan.kv_cache_blocks * case.block_bytes <= max(0, plan.kv_cache_gib * 2**30) + 1
    assert plan.fits is not bool(plan.refusal)
    assert plan.fits is not bool(plan.remedy)
    if plan.fits:
        assert plan.max_concurrency >= 1
        assert plan.kv_cache_tokens <= plan.kv_cache_blocks * 16
    assert longest_context(plan, case, requests=count) * count <= plan.kv_cache_blocks * 16


@given(count=sequences, length=lengths)
def test_a_solution_serves_what_it_says(count: int, length: int) -> None:
    case = request("rtx-pro-6000", "0.31.0", max_num_seqs=count, max_model_len=length, max_num_batched_tokens=8192)
    best = solve(case)

    needed = load_bytes(case) / 2**30
    assert best.serves is (best.plan.fits and best.plan.kv_cache_gib >= needed)
    if best.serves and best.plan.kv_cache_gib - best.plan.error_range_gib >= needed and best.fraction > 0.01:
        lower: MemoryPlan = estimate(replace(case, gpu_memory_utilization=best.fraction - 0.01))
        assert lower.kv_cache_gib - lower.error_range_gib < needed or not lower.fits
    assert math.isclose(best.fraction, round(best.fraction, 2))


@pytest.mark.parametrize("utilization", [0.5, 0.9])
def test_the_longest_context_is_at_most_the_models_own(utilization: float) -> None:
    assert estimate(request("h200", "0.24.0", gpu_memory_utilization=utilization)).longest_context == 131072


def test_a_context_beyond_the_model_is_not_blamed_on_the_fraction() -> None:
    best = solve(request("h200", "0.24.0", max_model_len=200_000))

    assert (best.plan.fits, best.reason) == (False, "")
    assert best.plan.refusal == "max_model_len 200,000 exceeds the model's limit of 131,072 tokens"
