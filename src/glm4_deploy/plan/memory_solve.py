"""From a wished load to the settings that serve it. Pure."""

import math
from dataclasses import dataclass, replace

from glm4_deploy.plan.memory import MemoryPlan, Wish, estimate
from glm4_deploy.plan.memory_model import GIB
from glm4_deploy.plan.memory_refusal import at_any_fraction
from glm4_deploy.plan.memory_rules import BLOCK_TOKENS

HOST_RESERVE_GIB = 8.0  # unified memory: what stays for the host; below it freezes and hard resets were reported
CONTEXT_GIB = 0.6  # the CUDA context and what a display may take, outside of what vLLM requests
HIGHEST_FRACTION = 0.95
STEP = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """gpu_memory_utilization for a load, and what it gives.

    fraction: 0.01 to 0.95, two decimals.
    serves: whether max_num_seqs requests of max_model_len fit at once; a smaller share still starts where plan.fits.
    reason: why this fraction; "" where no fraction would do.
    """

    fraction: float
    serves: bool
    plan: MemoryPlan
    reason: str


def solve(wish: Wish, *, host_reserve_gib: float = HOST_RESERVE_GIB) -> Solution:
    """The smallest fraction that serves max_num_seqs × max_model_len; the wish's own fraction is not looked at.

    Where none does, the highest that is safe, with what it does serve; `plan.fits` is False where even one request of
    max_model_len is too much.
    """
    ceiling = highest_fraction(wish, host_reserve_gib=host_reserve_gib)
    needed = load_bytes(wish) / GIB
    plans = [(fraction, at(wish, fraction)) for fraction in _steps(ceiling)]
    for fraction, plan in plans:
        if plan.fits and plan.kv_cache_gib - plan.error_range_gib >= needed:
            reason = f"the smallest that keeps {_load(wish)} ({needed:.1f} GiB of KV cache) at once"
            return Solution(fraction=fraction, serves=True, plan=plan, reason=reason)
    fraction, plan = plans[-1]
    why = f"the most that leaves {host_reserve_gib:g} GiB to the host" if wish.gpu.unified else "the most that is safe"
    if not plan.fits:
        reason = "" if at_any_fraction(wish) else f"{why}, and it does not start there"
        return Solution(fraction=fraction, serves=False, plan=_at_ceiling(plan), reason=reason)
    if plan.kv_cache_gib >= needed:
        reason = f"{why}; {_load(wish)} just fit"
        return Solution(fraction=fraction, serves=True, plan=plan, reason=reason)
    reason = (
        f"{why}; {plan.max_concurrency:.1f} of {wish.max_num_seqs} requests of {wish.max_model_len} tokens fit at once"
    )
    return Solution(fraction=fraction, serves=False, plan=plan, reason=reason)


def _at_ceiling(plan: MemoryPlan) -> MemoryPlan:
    """The engine's own remedy is another fraction; where none is left to try, it is less context or more memory."""
    if "gpu_memory_utilization" not in plan.remedy:
        return plan
    shorter = f"decrease max_model_len to {plan.longest_context} or less, or " if plan.longest_context else ""
    return replace(plan, remedy=f"{shorter}end the other users of this memory, or use a GPU that has more of it")


def at(wish: Wish, fraction: float) -> MemoryPlan:
    """The plan of the same wish at another fraction."""
    return estimate(replace(wish, gpu_memory_utilization=fraction))


def highest_fraction(wish: Wish, *, host_reserve_gib: float = HOST_RESERVE_GIB) -> float:
    """The largest safe fraction, two decimals, at least 0.01.

    What the engine takes beyond its request (graphs and workspace of older versions) stays free, on unified memory the
    host's reserve as well; and no more than is free now, where that is known.
    """
    total = wish.gpu.total_bytes / GIB
    aside = at(wish, 0.5).outside_gib + (host_reserve_gib if wish.gpu.unified else CONTEXT_GIB)
    limit = (total - aside) / total
    if wish.free_bytes is not None:
        limit = min(limit, wish.free_bytes / wish.gpu.total_bytes)
    return max(STEP, math.floor(min(limit, HIGHEST_FRACTION) / STEP + 1e-9) * STEP)


def load_bytes(wish: Wish) -> int:
    """KV cache that max_num_seqs requests of max_model_len take on one rank."""
    return wish.max_num_seqs * math.ceil(wish.max_model_len / BLOCK_TOKENS) * wish.block_bytes


def longest_context(plan: MemoryPlan, wish: Wish, *, requests: int) -> int:
    """Tokens that each of so many requests can hold at once, at most the model's own limit."""
    return min(plan.kv_cache_blocks // requests * BLOCK_TOKENS, wish.model.max_position)


def _steps(ceiling: float) -> list[float]:
    return [round(number * STEP, 2) for number in range(1, round(ceiling / STEP) + 1)]


def _load(wish: Wish) -> str:
    return f"{wish.max_num_seqs} requests of {wish.max_model_len} tokens"
