"""A fit finds the cost behind the measurements, which come from the simulation with a known cost."""

import random
from dataclasses import replace

import numpy as np
import pytest

from glm4_deploy.errors import UsageError
from glm4_deploy.scale.calibration import Level, MeasuredRun, fit, non_negative, play
from glm4_deploy.scale.request import EngineLimits, StepCost
from glm4_deploy.scale.simulator import quantile

LIMITS = EngineLimits(max_num_seqs=64, max_num_batched_tokens=2048, kv_cache_tokens=400_000)
TRUTH = StepCost(base=0.008, per_seq=0.00005, per_prefill=0.00002, per_context=2e-8, front=0.004)


def measured(cost: StepCost, noise: float = 0.0) -> MeasuredRun:
    """What `bench` would have measured on an engine of that cost, each figure off by up to `noise`."""
    source, levels = random.Random(7), []
    for input_len in (128, 2000):
        for users in (1, 4, 16, 64):
            asked = Level(
                concurrency=users, requests=4 * users + 4, input_len=input_len, output_len=64,
                ttft_p50=1, ttft_p95=1, tpot_p50=1, tpot_p95=1, tokens_per_s=1,
            )  # fmt: skip
            done = play(asked, cost, LIMITS).requests
            ttft, tpot = sorted(1000 * r.ttft for r in done), sorted(1000 * r.tpot for r in done)
            took = max(r.done for r in done)
            off = [1 + source.uniform(-noise, noise) for _ in range(5)]
            levels.append(
                replace(
                    asked,
                    ttft_p50=quantile(ttft, 50) * off[0],
                    ttft_p95=quantile(ttft, 95) * off[1],
                    tpot_p50=quantile(tpot, 50) * off[2],
                    tpot_p95=quantile(tpot, 95) * off[3],
                    tokens_per_s=64 * len(done) / took * off[4],
                )
            )
    return MeasuredRun(name="made", levels=tuple(levels))


def test_the_cost_that_made_the_figures_is_found() -> None:
    found = fit(measured(TRUTH), LIMITS)
    for part in ("base", "per_seq", "per_prefill", "per_context"):
        assert getattr(found.cost, part) == pytest.approx(getattr(TRUTH, part), rel=0.15), part
    assert all(abs(miss.tpot_p50 - 1) < 0.03 for miss in found.misses)
    assert found.slower < 1.05


def test_noise_is_averaged_and_reported() -> None:
    found = fit(measured(TRUTH, noise=0.15), LIMITS)
    assert found.cost.base == pytest.approx(TRUTH.base, rel=0.2)
    assert 1.05 < found.slower < 1.5


def test_one_number_of_users_is_not_enough() -> None:
    run = measured(TRUTH)
    with pytest.raises(UsageError, match="one number of users"):
        fit(replace(run, levels=run.levels[:1]), LIMITS)


def test_least_squares_never_go_below_zero() -> None:
    rows = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert non_negative(rows, np.array([3.0, 2.0, 1.0])).tolist() == pytest.approx([2.0, 0.0])
    assert non_negative(rows, np.array([3.0, 5.0, 7.0])).tolist() == pytest.approx([1.0, 2.0])
