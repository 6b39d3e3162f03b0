"""From measured TTFT and TPOT to the cost of a step: least squares on the simulation's own schedule.

Each measured load is simulated as it was sent. In a simulated request the time to the first token is linear in the
cost: so many steps, sequences, prompt tokens and KV tokens read lay between, plus the front. The measured medians then
give the cost by least squares (relative errors, nothing below zero), the cost gives a new schedule, and so on until
both agree.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm4_deploy.errors import UsageError
from glm4_deploy.scale.engine import Cell, CellResult, SimulatedRequest, quantile
from glm4_deploy.scale.measured import HINT, Level, MeasuredRun
from glm4_deploy.scale.request import EngineLimits, Lengths, StepCost, Workload

ROUNDS = 14
# The median TTFT of users in lockstep lies between two groups of them and jumps; TPOT does not.
TTFT_WEIGHT = 0.5
BAND = (0.4, 0.6)  # ranks that stand for the median: their mean does not jump as one request does

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """One load: what the fitted simulation says, as a multiple of what was measured."""

    level: Level
    ttft_p50: float
    ttft_p95: float
    tpot_p50: float
    tpot_p95: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """slower: how many times slower than the fit the engine was where the fit flatters it most (TPOT, tokens/s)."""

    measured: MeasuredRun
    cost: StepCost
    misses: tuple[Miss, ...]
    slower: float


def fit(measured: MeasuredRun, limits: EngineLimits) -> Calibration:
    """The cost of a step of the engine that was measured under `limits`.

    Raises:
        UsageError: too little was measured: base and per_seq cannot be told apart from one number of users.
    """
    if len({level.concurrency for level in measured.levels}) < 2:
        raise UsageError(
            f"{measured.name} holds one number of users only",
            hint="measure several: glm4-deploy bench --concurrency 1,4,16,64 --json FILE",
        )
    for level in measured.levels:
        if level.input_len + level.output_len > limits.longest:
            raise UsageError(
                f"{measured.name}: its requests do not fit into {limits.kv_cache_tokens} tokens", hint=HINT
            )
    cost, best, loss = _guess(measured.levels), _guess(measured.levels), float("inf")
    for _ in range(ROUNDS):
        outcomes = [play(level, cost, limits) for level in measured.levels]
        missed = sum(_error(level, outcome) for level, outcome in zip(measured.levels, outcomes, strict=True))
        if missed < loss:
            best, loss = cost, missed
        cost = _mixed(cost, _solve(measured.levels, outcomes))
    misses = tuple(miss_of(level, play(level, best, limits)) for level in measured.levels)
    slower = max(max(1 / miss.tpot_p50, miss.tokens_per_s) for miss in misses)
    return Calibration(measured=measured, cost=best, misses=misses, slower=max(1.0, slower))


def play(level: Level, cost: StepCost, limits: EngineLimits) -> CellResult:
    """Simulate a measured load as vLLM's generator sends it: all users at once, and no one after the last request."""
    load = Workload(
        users=level.concurrency, prompt=Lengths(median=level.input_len), answer=Lengths(median=level.output_len)
    )
    return Cell(cost, limits, load, replicas=1).run(level.requests, drain=True)


def _guess(levels: Sequence[Level]) -> StepCost:
    least = min(levels, key=lambda level: (level.concurrency, level.input_len))
    prompt = max(least.ttft_p50 - least.tpot_p50, 0.1 * least.ttft_p50)
    return StepCost(
        base=0.8e-3 * least.tpot_p50, per_seq=2e-5 * least.tpot_p50, per_prefill=1e-3 * prompt / least.input_len,
        per_context=0.0,
    )  # fmt: skip


def _mixed(old: StepCost, new: Array) -> StepCost:
    """Half way: a whole step can swing between two schedules for ever."""
    parts = 0.5 * np.array([old.base, old.per_seq, old.per_prefill, old.per_context, old.front]) + 0.5 * new
    base, seq, prefill, context, front = (float(part) for part in parts)
    return StepCost(base=base, per_seq=seq, per_prefill=prefill, per_context=context, front=front)


def _solve(levels: Sequence[Level], outcomes: Sequence[CellResult]) -> Array:
    rows, wanted = [], []
    for level, outcome in zip(levels, outcomes, strict=True):
        first = _median_work(outcome.requests, first=True)
        rest = _median_work(outcome.requests, first=False) / (level.output_len - 1)
        rows.append(TTFT_WEIGHT * np.append(first, 1.0) / (level.ttft_p50 / 1000))
        rows.append(np.append(rest, 0.0) / (level.tpot_p50 / 1000))
        wanted += [TTFT_WEIGHT, 1.0]
    return non_negative(np.array(rows), np.array(wanted))


def _median_work(requests: Sequence[SimulatedRequest], *, first: bool) -> Array:
    """Mean work of the requests in the middle: up to the first token, or from there to the end."""
    ranked = sorted(requests, key=(lambda r: r.ttft) if first else (lambda r: r.tpot))
    low, high = int(BAND[0] * len(ranked)), int(BAND[1] * len(ranked)) + 1
    pairs = [(r.sent_work, r.first_work) if first else (r.first_work, r.done_work) for r in ranked[low:high]]
    return np.mean([np.subtract(after, before) for before, after in pairs], axis=0)  # type: ignore[no-any-return]


def non_negative(rows: Array, wanted: Array) -> Array:
    """Least squares with no part below zero. Few unknowns: every subset that may be above zero is tried."""
    count = rows.shape[1]
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    best, least = np.zeros(count), float("inf")
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            part, *_ = np.linalg.lstsq(rows[:, chosen] / scale[list(chosen)], wanted, rcond=None)
            left = float(np.sum((rows[:, chosen] / scale[list(chosen)] @ part - wanted) ** 2))
            if (part >= 0).all() and left < least:
                best, least = np.zeros(count), left
                best[list(chosen)] = part / scale[list(chosen)]
    return best


def _error(level: Level, outcome: CellResult) -> float:
    miss = miss_of(level, outcome)
    return TTFT_WEIGHT**2 * (miss.ttft_p50 - 1) ** 2 + (miss.tpot_p50 - 1) ** 2


def miss_of(level: Level, outcome: CellResult) -> Miss:
    """A simulated load as multiples of the measured one."""
    ttft = sorted(1000 * request.ttft for request in outcome.requests)
    tpot = sorted(1000 * request.tpot for request in outcome.requests)
    took = max(r.done for r in outcome.requests) - min(r.sent for r in outcome.requests)
    return Miss(
        level=level,
        ttft_p50=quantile(ttft, 50) / level.ttft_p50,
        ttft_p95=quantile(ttft, 95) / level.ttft_p95,
        tpot_p50=quantile(tpot, 50) / level.tpot_p50,
        tpot_p95=quantile(tpot, 95) / level.tpot_p95,
        tokens_per_s=len(outcome.requests) * level.output_len / took / level.tokens_per_s,
    )
