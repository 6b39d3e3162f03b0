"""The plan held against what the engine logged, and what the next plan on this host learns from it. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from glm4_deploy.plan.memory import MemoryPlan, Wish
from glm4_deploy.plan.memory_model import GIB
from glm4_deploy.result import Result, Status

TOKENS_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an engine's log says of its memory; None: not said."""

    weights_gib: float | None = None
    kv_cache_gib: float | None = None
    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one start on this host showed: `overhead_gib` is what the plan's other terms did not explain.

    gpu, vllm, weights, first_start: what it holds for; a plan for anything else does not use it.
    """

    gpu: str
    vllm: str
    weights: str
    first_start: bool
    overhead_gib: float


def compare(plan: MemoryPlan, measured: Measured) -> tuple[Result, ...]:
    """One row a figure: OK within the stated range, else a warning with the difference."""
    return tuple(_rows(plan, measured))


def _rows(plan: MemoryPlan, measured: Measured) -> Iterator[Result]:
    if measured.weights_gib is not None:
        yield _row("plan-weights", plan.weights_gib, measured.weights_gib, max(0.1, 0.02 * plan.weights_gib), "GiB")
    if measured.kv_cache_gib is not None:
        yield _row("plan-kv-cache", plan.kv_cache_gib, measured.kv_cache_gib, plan.error_range_gib, "GiB")
    if measured.kv_cache_tokens is not None and plan.kv_cache_gib > 0:
        share = max(TOKENS_TOLERANCE, plan.error_range_gib / plan.kv_cache_gib)
        yield _row(
            "plan-kv-tokens", plan.kv_cache_tokens, measured.kv_cache_tokens, share * plan.kv_cache_tokens, "tokens"
        )


def _row(check: str, planned: float, seen: float, tolerance: float, unit: str) -> Result:
    digits = 0 if unit == "tokens" else 2
    off = seen - planned
    percent = f", {100 * off / planned:+.1f} %" if planned else ""
    within = abs(off) <= tolerance
    return Result(
        check=check,
        status=Status.OK if within else Status.WARN,
        observed=f"{seen:,.{digits}f} {unit} (planned {planned:,.{digits}f}{percent})",
        expected=f"± {tolerance:,.{digits}f} {unit}",
        remedy="" if within else "recorded: the next plan on this host uses it",
    )


def learn(wish: Wish, plan: MemoryPlan, measured: Measured) -> Observation | None:
    """The overhead that would have made this plan right; None where the log says too little or the rest is off."""
    if measured.kv_cache_gib is None:
        return None
    weights = plan.weights_gib if measured.weights_gib is None else measured.weights_gib
    rest = plan.requested_gib - weights - plan.activation_gib - plan.graph_counted_gib - measured.kv_cache_gib
    if not -1 <= rest <= 0.2 * plan.total_gib:
        return None  # not this engine's log, or another setting: nothing to learn from
    return Observation(
        gpu=wish.gpu.name,
        vllm=".".join(map(str, wish.vllm)),
        weights=str(wish.model.weights),
        first_start=wish.first_start,
        overhead_gib=round(rest, 3),
    )


def sharpen(wish: Wish, observations: Iterable[Observation]) -> Wish:
    """The wish with the newest overhead that was seen for the same GPU, version, weights and kind of start."""
    version = ".".join(map(str, wish.vllm))
    fitting = [
        seen.overhead_gib
        for seen in observations
        if (seen.gpu, seen.vllm, seen.weights, seen.first_start)
        == (wish.gpu.name, version, str(wish.model.weights), wish.first_start)
    ]
    return replace(wish, overhead_bytes=fitting[-1] * GIB) if fitting else wish
