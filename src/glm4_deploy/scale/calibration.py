"""Measured loads of one engine, and the cost of a step fitted to them.

A measured load comes from `bench --json` or from a calibration file. The catalog ships examples, which are never the
reader's own engine.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from glm4_deploy.catalog.rows import load_catalog
from glm4_deploy.errors import PlanRefused, UsageError
from glm4_deploy.files import parse_yaml
from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.plan.memory import estimate
from glm4_deploy.plan.sizing import solve
from glm4_deploy.report_model import BenchReport
from glm4_deploy.scale.request import EngineLimits, EngineOptions, Lengths, StepCost, Workload
from glm4_deploy.scale.simulator import Cell, CellResult, SimulatedRequest, quantile

HINT = "measure one with `glm4-deploy bench --json FILE`; docs/how-to/scale.md shows the format"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One closed-loop load: `concurrency` users without think time. Lengths in tokens, times in milliseconds."""

    concurrency: int
    requests: int
    input_len: int
    output_len: int
    ttft_p50: float
    ttft_p95: float
    tpot_p50: float
    tpot_p95: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """None: not stated. example: shipped with the kit, so not of the reader's own machine."""

    name: str
    levels: tuple[Level, ...]
    card: str | None = None
    vllm: str | None = None
    date: str | None = None
    model: str | None = None
    note: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_tokens: int | None = None
    block_tokens: int | None = None
    example: bool = False


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Word = Annotated[str, BeforeValidator(str)]  # YAML reads 2026-11-25 as a date and 0.24 as a number


class _Times(BaseModel):
    model_config = ConfigDict(extra="ignore")
    p50: Positive
    p95: Positive

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.p95 < self.p50:
            raise ValueError(f"p95 {self.p95:g} is below p50 {self.p50:g}")
        return self


class _Level(BaseModel):
    model_config = ConfigDict(extra="ignore")
    concurrency: Count
    requests: Count
    ttft: _Times
    tpot: _Times
    output_tokens_per_s: Positive


class _BenchRun(BaseModel):
    model_config = ConfigDict(extra="forbid")
    input_len: Count
    output_len: Annotated[int, Field(gt=1)]
    levels: Annotated[list[_Level], Field(min_length=1)]


class _File(BaseModel):
    """A calibration file (YAML or JSON)."""

    model_config = ConfigDict(extra="forbid")
    card: str
    vllm: Word
    date: Word
    model: str
    note: str | None = None
    max_num_seqs: Count
    max_num_batched_tokens: Count
    kv_cache_tokens: Count | None = None
    block_tokens: Count = 16
    runs: Annotated[list[_BenchRun], Field(min_length=1)]


def parse_measured(text: str, name: str) -> MeasuredRun:
    """The text of a file: a report of `bench --json`, or a calibration file.

    Raises:
        UsageError: neither, or a value that no measurement can have.
    """
    raw = _load(text, name)
    if not isinstance(raw, dict):
        raise UsageError(f"{name} is not a valid calibration", hint=HINT)
    try:
        if "base_url" in raw:
            return _from_bench(TypeAdapter(BenchReport).validate_python(raw), name)
        return from_mapping(raw, name)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")[:120]
        raise UsageError(f"{name} is not a valid calibration: {where}: {said}", hint=HINT) from None


def _load(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return parse_yaml(text, name)


def from_mapping(raw: dict[str, Any], name: str, *, example: bool = False) -> MeasuredRun:
    """A calibration file's content. Raises pydantic.ValidationError."""
    file = _File.model_validate(raw)
    levels = tuple(_level(level, run.input_len, run.output_len) for run in file.runs for level in run.levels)
    words = file.model_dump(exclude={"runs"})
    return MeasuredRun(name=name, levels=levels, example=example, **words)


def _from_bench(report: BenchReport, name: str) -> MeasuredRun:
    facts = {fact.name: fact.value for fact in report.engine}
    raw = TypeAdapter(BenchReport).dump_python(report)
    run = _BenchRun.model_validate({key: raw[key] for key in ("input_len", "output_len", "levels")})
    if any(level.failed for level in report.levels):
        raise UsageError(f"{name}: requests failed during the measurement", hint="measure again on a healthy engine")
    return MeasuredRun(
        name=name,
        levels=tuple(_level(level, report.input_len, report.output_len) for level in run.levels),
        vllm=facts.get("vLLM"),
        date=report.started[:10],
        model=report.model,
    )


def _level(level: _Level, input_len: int, output_len: int) -> Level:
    return Level(
        concurrency=level.concurrency,
        requests=level.requests,
        input_len=input_len,
        output_len=output_len,
        ttft_p50=level.ttft.p50,
        ttft_p95=level.ttft.p95,
        tpot_p50=level.tpot.p50,
        tpot_p95=level.tpot.p95,
        tokens_per_s=level.output_tokens_per_s,
    )


def require_calibration(count: int) -> None:
    """Raises UsageError if there is none: this room never guesses how fast an engine is."""
    if not count:
        raise UsageError(
            "this cannot be answered without a measured load of an engine",
            hint="measure yours: glm4-deploy bench --json bench.json, then --calibration bench.json;"
            f" or look at an example: --calibration {' or '.join(examples())}",
        )


def joined(parts: Sequence[MeasuredRun]) -> MeasuredRun:
    """Several files of one engine as one calibration (each with other lengths, for example).

    Raises:
        UsageError: they come from different engines.
    """
    first, rest = parts[0], parts[1:]
    for other in rest:
        for field in ("model", "vllm", "card", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(first, field) != getattr(other, field):
                words = (
                    f"{field} is {getattr(first, field)} in {first.name} and {getattr(other, field)} in {other.name}"
                )
                raise UsageError(
                    f"these calibrations come from different engines: {words}", hint="give those of one engine"
                )
    levels = tuple(level for part in parts for level in part.levels)
    return replace(first, name=", ".join(part.name for part in parts), levels=levels)


@cache
def _rows() -> dict[str, Any]:
    rows: dict[str, Any] = load_catalog("calibrations")["calibrations"]
    return rows


def examples() -> tuple[str, ...]:
    return tuple(_rows())


def example(name: str) -> MeasuredRun:
    """The row of that name. Raises KeyError."""
    return from_mapping(_rows()[name], name, example=True)


# The limits of each engine: as given, else as measured, else planned or assumed.


def engine_of(measured: MeasuredRun, options: EngineOptions) -> tuple[EngineLimits, tuple[str, ...]]:
    """The limits of each engine, and which of them are assumptions."""
    assumed = []
    if options.max_num_seqs is None and measured.max_num_seqs is None:
        assumed.append("max_num_seqs 64: not in the calibration")
    if options.max_num_batched_tokens is None and measured.max_num_batched_tokens is None:
        assumed.append("max_num_batched_tokens 2048: not in the calibration")
    seqs = options.max_num_seqs or measured.max_num_seqs or 64
    batched = options.max_num_batched_tokens or measured.max_num_batched_tokens or 2048
    if batched < seqs:
        raise UsageError(f"max_num_batched_tokens {batched} is below max_num_seqs {seqs}", hint="vLLM refuses this too")
    cache = options.kv_cache_tokens
    if cache is None and options.memory is not None and (options.gpu_named or measured.kv_cache_tokens is None):
        request = replace(options.memory, max_num_seqs=seqs, max_num_batched_tokens=batched)
        cache = _planned_cache(request, solved=options.solved)
        assumed.append(
            f"KV cache {cache:,} tokens: planned for {request.gpu.label} (docs/explanation/planner.md), not measured"
        )
    cache = cache or measured.kv_cache_tokens
    if cache is None:
        raise UsageError(
            "the size of the KV cache is unknown", hint="give --kv-cache-tokens from the engine's log, or --gpu NAME"
        )
    limits = EngineLimits(
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        kv_cache_tokens=cache,
        block_tokens=measured.block_tokens or 16,
    )
    if limits.blocks < 1:
        raise UsageError(f"a KV cache of {cache} tokens is too small for any request", hint="take the engine's figure")
    return limits, tuple(assumed)


def _planned_cache(request: MemoryRequest, *, solved: bool) -> int:
    plan = solve(request).plan if solved else estimate(request)
    if not plan.fits:
        raise PlanRefused(f"an engine does not start on {request.gpu.label}: {plan.refusal}", hint=plan.remedy)
    return plan.kv_cache_tokens


def as_measured(measured: MeasuredRun, engine: EngineLimits) -> EngineLimits:
    """The limits under which the engine was measured, as far as the calibration says."""
    return replace(
        engine,
        max_num_seqs=measured.max_num_seqs or engine.max_num_seqs,
        max_num_batched_tokens=measured.max_num_batched_tokens or engine.max_num_batched_tokens,
        kv_cache_tokens=measured.kv_cache_tokens or engine.kv_cache_tokens,
    )


# From measured TTFT and TPOT to the cost of a step, by least squares on the simulation's own schedule.
#
# Each measured load is simulated as it was sent. A simulated request's time to the first token is linear in the cost:
# the steps, sequences, prompt tokens and KV tokens read in between, plus the front. Least squares on the measured
# medians (relative errors, nothing below zero) gives a cost, the cost gives a new schedule, and so on until both agree.

ROUNDS = 14
# The median TTFT of users in lockstep falls between two groups of them and jumps; TPOT does not.
TTFT_WEIGHT = 0.5
BAND = (0.4, 0.6)  # ranks that stand for the median: unlike a single request, their mean does not jump

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """One load: simulated figures as multiples of the measured ones."""

    level: Level
    ttft_p50: float
    ttft_p95: float
    tpot_p50: float
    tpot_p95: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """slower: how many times slower than the fit the engine was, where the fit is most optimistic (TPOT, tokens/s)."""

    measured: MeasuredRun
    cost: StepCost
    misses: tuple[Miss, ...]
    slower: float


def fit(measured: MeasuredRun, limits: EngineLimits) -> Calibration:
    """The cost of a step of the engine that was measured under `limits`.

    Raises:
        UsageError: too little was measured: one number of users cannot separate base from per_seq.
    """
    if len({level.concurrency for level in measured.levels}) < 2:
        raise UsageError(
            f"{measured.name} has only one number of users",
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
    """Simulate a measured load as vLLM's load generator sends it: all users at once, none after the last request."""
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
    """Half way: a full step can swing between two schedules forever."""
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
    """Mean work of the requests near the median: up to the first token, or from there to the end."""
    ranked = sorted(requests, key=(lambda r: r.ttft) if first else (lambda r: r.tpot))
    low, high = int(BAND[0] * len(ranked)), int(BAND[1] * len(ranked)) + 1
    pairs = [(r.sent_work, r.first_work) if first else (r.first_work, r.done_work) for r in ranked[low:high]]
    return np.mean([np.subtract(after, before) for before, after in pairs], axis=0)  # type: ignore[no-any-return]


def non_negative(rows: Array, wanted: Array) -> Array:
    """Non-negative least squares. There are few unknowns, so every subset of them is tried."""
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
