"""The plan held against what the engine logged, and what the next plan on this host learns from it. Pure."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from glm4_deploy.errors import UsageError
from glm4_deploy.plan.engine_rules import BLOCK_TOKENS, GIB
from glm4_deploy.plan.memory import MemoryPlan, MemoryRequest, at_any_fraction, estimate
from glm4_deploy.result import Result, Status

# A load in words: `64 users, 8k context`. Pure.

# Not the tail of something else: -1, 1e3, 0x10.
_NUMBER = r"(?<![\w.,+−–-])(\d{1,3}(?:,\d{3})+|\d+(?:[.,]\d+)?)\s*(k|m)?"
_STRAY = re.compile(r"\d|(?:^|,)\s*[+−–-]")
HINT = 'write it like --for "64 users, 8k context"'
_USERS = re.compile(
    _NUMBER + r"\s*(?:concurrent\s+|parallel\s+)?(?:users?|requests?|seqs?|sequences?|clients?|chats?)\b"
)
_CONTEXT = re.compile(
    _NUMBER
    + r"\s*(?:tokens?\s*)?(?:(?:of\s+)?context|ctx)\b|context\s*(?:of|=|:)?\s*"
    + _NUMBER
    + r"|"
    + _NUMBER
    + r"\s*tokens?\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLoad:
    """Requests at once, and tokens that each may hold; None: not said."""

    requests: int | None
    context: int | None


def parse_load(text: str) -> RequestLoad:
    """`64 users, 8k context` → 64 and 8192; `k` is 1024 for tokens and 1000 for users.

    Raises:
        UsageError: neither users nor a context in it, or a number that is neither.
    """
    words = text.lower().replace("_", "")
    users, context = _USERS.search(words), _CONTEXT.search(words)
    requests = _value(users, kilo=1000) if users else None
    tokens = _value(context, kilo=1024) if context else None
    if _STRAY.search(_without(words, users, context)):
        raise UsageError(f"no load in {text[:60]!r}: a number in it is neither users nor a context", hint=HINT)
    if (requests is None and tokens is None) or requests == 0 or tokens == 0:
        raise UsageError(f"no load in {text[:60]!r}", hint=HINT)
    return RequestLoad(requests=requests, context=tokens)


def _without(words: str, *matches: re.Match[str] | None) -> str:
    """What is left once those stretches are taken out."""
    taken = {at for match in matches if match for at in range(*match.span())}
    return "".join(" " if at in taken else char for at, char in enumerate(words))


def _value(match: re.Match[str], *, kilo: int) -> int:
    number, unit = next(pair for pair in zip(match.groups()[::2], match.groups()[1::2], strict=True) if pair[0])
    whole = re.fullmatch(r"\d{1,3}(?:,\d{3})+", number)
    return round(float(number.replace(",", "" if whole else ".")) * {"k": kilo, "m": kilo**2}.get(unit or "", 1))


# From a wished load to the settings that serve it. Pure.

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


def solve(wish: MemoryRequest, *, host_reserve_gib: float = HOST_RESERVE_GIB) -> Solution:
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


def at(wish: MemoryRequest, fraction: float) -> MemoryPlan:
    """The plan of the same wish at another fraction."""
    return estimate(replace(wish, gpu_memory_utilization=fraction))


def highest_fraction(wish: MemoryRequest, *, host_reserve_gib: float = HOST_RESERVE_GIB) -> float:
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


def load_bytes(wish: MemoryRequest) -> int:
    """KV cache that max_num_seqs requests of max_model_len take on one rank."""
    return wish.max_num_seqs * math.ceil(wish.max_model_len / BLOCK_TOKENS) * wish.block_bytes


def longest_context(plan: MemoryPlan, wish: MemoryRequest, *, requests: int) -> int:
    """Tokens that each of so many requests can hold at once, at most the model's own limit."""
    return min(plan.kv_cache_blocks // requests * BLOCK_TOKENS, wish.model.max_position)


def _steps(ceiling: float) -> list[float]:
    return [round(number * STEP, 2) for number in range(1, round(ceiling / STEP) + 1)]


def _load(wish: MemoryRequest) -> str:
    return f"{wish.max_num_seqs} requests of {wish.max_model_len} tokens"


# What to change, and what that would give. Pure.


def advice(wish: MemoryRequest, plan: MemoryPlan, *, host_reserve_gib: float = HOST_RESERVE_GIB) -> tuple[str, ...]:
    """Sentences, the most useful first."""
    return tuple(_advice(wish, plan, host_reserve_gib))


def _advice(wish: MemoryRequest, plan: MemoryPlan, reserve: float) -> Iterator[str]:
    fraction = wish.gpu_memory_utilization
    best = solve(wish, host_reserve_gib=reserve)
    ceiling = highest_fraction(wish, host_reserve_gib=reserve)
    other = abs(best.fraction - fraction) >= 0.005
    if other and (best.serves or (best.plan.fits and best.fraction > fraction)):
        yield f"gpu_memory_utilization {best.fraction:g} is {best.reason}"
    if fraction > ceiling + 1e-9:
        why = f"{reserve:g} GiB for the host" if wish.gpu.unified else "room for what lies outside of the request"
        yield f"{fraction:g} leaves less than {why}: {ceiling:g} is the most that is safe"
    if plan.fits:
        each = longest_context(plan, wish, requests=wish.max_num_seqs)
        one = longest_context(plan, wish, requests=1)
        yield f"longest context: {one:,} tokens for one request, {each:,} for each of {wish.max_num_seqs} at once"
    yield from _what_if(wish, plan)


def _what_if(wish: MemoryRequest, plan: MemoryPlan) -> Iterator[str]:
    short = plan.max_concurrency < wish.max_num_seqs
    if wish.kv_cache_dtype in ("auto", "bfloat16", "float16"):
        fp8 = estimate(replace(wish, kv_cache_dtype="fp8"))
        if fp8.fits:
            yield f"with kv_cache_dtype fp8: {fp8.kv_cache_tokens:,} tokens of KV cache"
    if short and plan.max_num_batched_tokens > 2048:
        small = estimate(replace(wish, max_num_batched_tokens=max(2048, wish.max_num_seqs)))
        gained = small.kv_cache_gib - plan.kv_cache_gib
        if gained > 0.1:
            tokens = small.max_num_batched_tokens
            yield f"with max_num_batched_tokens {tokens}: {gained:.1f} GiB more KV cache, slower prefill"
    if short and plan.fits and plan.max_concurrency >= 1:
        served = int(plan.max_concurrency)
        yield (
            f"with max_num_seqs {served}: every request has its whole context;"
            f" {wish.max_num_seqs} of them would need {load_bytes(wish) / GIB:.1f} GiB of KV cache"
        )
    if short and plan.fits and wish.tensor_parallel_size == 1 and not wish.gpu.unified:
        yield "with a second GPU: a second engine (data parallel) doubles the requests"


TOKENS_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMemory:
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


def compare_with_log(plan: MemoryPlan, measured: MeasuredMemory) -> tuple[Result, ...]:
    """One row a figure: OK within the stated range, else a warning with the difference."""
    return tuple(_rows(plan, measured))


def _rows(plan: MemoryPlan, measured: MeasuredMemory) -> Iterator[Result]:
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


def learn_from_starts(wish: MemoryRequest, plan: MemoryPlan, measured: MeasuredMemory) -> Observation | None:
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


def sharpen(wish: MemoryRequest, observations: Iterable[Observation]) -> MemoryRequest:
    """The wish with the newest overhead that was seen for the same GPU, version, weights and kind of start."""
    version = ".".join(map(str, wish.vllm))
    fitting = [
        seen.overhead_gib
        for seen in observations
        if (seen.gpu, seen.vllm, seen.weights, seen.first_start)
        == (wish.gpu.name, version, str(wish.model.weights), wish.first_start)
    ]
    return replace(wish, overhead_bytes=fitting[-1] * GIB) if fitting else wish
