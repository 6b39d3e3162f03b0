"""The number of GPUs: the search against trying all, one cell against all replicas, and what cannot be answered."""

from dataclasses import replace

import pytest

from glm4_deploy.errors import PlanRefused
from glm4_deploy.scale.answer import Setting, alone, least, simulate_load, size_fleet
from glm4_deploy.scale.calibration import Calibration, Level, MeasuredRun
from glm4_deploy.scale.request import EngineLimits, Lengths, Limit, RouterPolicy, StepCost, Workload

COST = StepCost(base=0.02, per_seq=0.0002, per_prefill=0.0001, per_context=1e-8, front=0.002)
ENGINE = EngineLimits(max_num_seqs=16, max_num_batched_tokens=512, kv_cache_tokens=16 * 1500)
SLO = (Limit(metric="ttft", share=95, ms=500), Limit(metric="tpot", share=95, ms=80))
LOAD = Workload(users=60, think_s=5.0, prompt=Lengths(median=200, p95=700), answer=Lengths(median=60, p95=150))
SETTING = Setting(cost=COST, limits=ENGINE, workload=LOAD, slo=SLO, requests=600)


def level(users: int, prompt: int = 200) -> Level:
    return Level(
        concurrency=users, requests=4, input_len=prompt, output_len=60,
        ttft_p50=1, ttft_p95=1, tpot_p50=1, tpot_p95=1, tokens_per_s=1,
    )  # fmt: skip


def calibration(*levels: Level, example: bool = False, slower: float = 1.0) -> Calibration:
    measured = MeasuredRun(name="m", levels=levels or (level(1), level(16, 900)), card="a card", example=example)
    return Calibration(measured=measured, cost=COST, misses=(), slower=slower)


def test_the_search_finds_what_trying_every_number_finds() -> None:
    holds = [count for count in range(1, 13) if not simulate_load(SETTING, count, 3).broken]
    assert holds == list(range(holds[0], 13)), "more replicas hold whatever fewer do"
    assert 1 < holds[0] < 12
    for start in (None, 1, 12, holds[0]):
        assert least(SETTING, 1, 12, 3, start=start) == holds[0]
    assert least(SETTING, holds[0] + 2, 12, 3, start=None) == holds[0] + 2


def test_the_answer_says_what_comes_next() -> None:
    setting = SETTING.with_size(200)
    found = size_fleet(setting, calibration(slower=1.25), replicas=(1, 100), gpus_each=2, seeds=3, seed=0)
    assert found.gpus == 2 * found.replicas
    assert found.least <= found.most == found.replicas
    assert found.broken == ()
    assert found.one_down, "with one fewer it breaks, or that would have been the answer"
    assert found.headroom is not None
    assert found.headroom.size is not None
    assert found.headroom.size >= 200
    beyond = setting.with_size(found.headroom.tried)
    assert simulate_load(beyond, found.replicas, 0).broken
    assert found.if_slower is not None
    assert found.if_slower > found.replicas
    assert found.warnings == ()


def test_an_slo_that_a_single_request_misses_is_not_met_by_more_gpus() -> None:
    hopeless = replace(SETTING, slo=(Limit(metric="ttft", share=95, ms=20),))
    with pytest.raises(PlanRefused, match="no number of GPUs helps: one request alone"):
        size_fleet(hopeless, calibration(), replicas=(1, 10_000), gpus_each=1, seeds=1, seed=0)


def test_a_need_beyond_the_allowed_range_is_refused_with_the_broken_limit() -> None:
    with pytest.raises(PlanRefused, match=r"not even 1 replicas hold the limits: TTFT p95"):
        least(SETTING, 1, 1, 0, start=None)


def test_a_single_number_of_gpus_is_evaluated_even_if_it_does_not_hold() -> None:
    found = size_fleet(SETTING, calibration(), replicas=(1, 1), gpus_each=1, seeds=2, seed=0)
    assert any(line.startswith("TTFT p95") for line in found.broken)
    assert (found.headroom, found.if_slower) == (None, None)


def test_an_open_loop_that_does_not_keep_up_is_broken_however_lax_the_limits() -> None:
    load = replace(LOAD, users=None, rate=30.0)
    lax = replace(SETTING, workload=load, slo=(Limit(metric="ttft", share=50, ms=1e9),))
    assert any("cannot keep up" in line for line in simulate_load(lax, 2, 0).broken)
    assert not simulate_load(lax, 16, 0).broken


@pytest.mark.parametrize("router", [RouterPolicy.ROUND_ROBIN, RouterPolicy.LEAST_LOADED])
def test_a_cell_represents_all_replicas(router: RouterPolicy) -> None:
    """32 replicas simulated one by one, and as a cell of 16."""
    load = replace(LOAD, users=400)
    everything = simulate_load(replace(SETTING, workload=load, router=router, cell=32, requests=3000), 32, 1)
    cell = simulate_load(replace(SETTING, workload=load, router=router, cell=16, requests=3000), 32, 1)
    for name in ("ttft p50", "tpot p50", "tpot p95"):
        assert cell.times[name] == pytest.approx(everything.times[name], rel=0.05), name
    assert cell.times["ttft p95"] == pytest.approx(everything.times["ttft p95"], rel=0.15)
    assert cell.requests_per_s == pytest.approx(everything.requests_per_s, rel=0.05)


def test_a_cached_prefix_is_found_where_the_router_looks_for_it() -> None:
    load = replace(LOAD, cached_tokens=190, prompt=Lengths(median=400))
    blind, aware = (
        simulate_load(replace(SETTING, workload=load, router=router), 8, 0).times["ttft p50"]
        for router in (RouterPolicy.ROUND_ROBIN, RouterPolicy.CACHE_AWARE)
    )
    assert aware < 0.85 * blind


def test_little_kv_cache_shows_as_preemptions() -> None:
    tight = replace(ENGINE, kv_cache_tokens=16 * 120)
    one = alone(replace(SETTING, limits=tight), 0)
    crowd = simulate_load(replace(SETTING, limits=tight), 1, 0)
    assert (one.preemptions, crowd.preemptions > 0) == (0, True)
    assert crowd.kv_peak > 0.9


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (calibration(level(1), level(2)), "requests at once in a replica, 2 were measured"),
        (calibration(level(1), level(16)), "extrapolated: prompts of"),
        (calibration(level(1, 650), level(16, 650)), "one prompt length was measured (650)"),
        (calibration(example=True), "NOT your machine"),
        (calibration(slower=1.4), "misses its own measurements by up to 1.40 times"),
    ],
)
def test_a_calibration_says_what_was_not_measured(found: Calibration, message: str) -> None:
    given = size_fleet(SETTING, found, replicas=(3, 3), gpus_each=1, seeds=1, seed=0)
    assert any(message in line for line in given.warnings), given.warnings
