"""From a load to settings that serve it, advice, and what the next plan learns from an engine's log."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from glm4_deploy.catalog.changes import flag_trouble
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.engine_rules import BLOCK_TOKENS, GIB
from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.plan.memory import MemoryPlan, estimate
from glm4_deploy.plan.refusal import at_any_fraction
from glm4_deploy.result import Result, ok, warn

# A load in words: `64 users, 8k context`.

# Not the tail of something else: -1, 1e3, 0x10.
_NUMBER = r"(?<![\w.,+−–-])(\d{1,3}(?:,\d{3})+|\d+(?:[.,]\d+)?)\s*(k|m)?"
_STRAY = re.compile(r"\d|(?:^|,)\s*[+−–-]")
HINT = 'write it like --for "64 users, 8k context", or "64 users, 2k in, 256 out"'
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
_IN = re.compile(_NUMBER + r"\s*(?:tokens?\s*)?(?:in|input|prompts?)\b")
_OUT = re.compile(_NUMBER + r"\s*(?:tokens?\s*)?(?:out|output|answers?)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLoad:
    """Concurrent requests, and for each its tokens: of context, or of prompt and answer. None: not stated."""

    requests: int | None
    context: int | None
    prompt: int | None = None
    answer: int | None = None


def parse_load(text: str) -> RequestLoad:
    """`64 users, 8k context` → 64 and 8192; `k` is 1024 for tokens and 1000 for users.

    `2k in, 256 out` are 2048 tokens of prompt and 256 of answer, and so a context of 2304.

    Raises:
        UsageError: it names neither users nor a context, or has a number that is neither.
    """
    if len(text) > 200:
        raise UsageError(f"{text[:60]!r}… is too long for a load", hint=HINT)
    words = text.lower().replace("_", "")
    into, out = _IN.search(words), _OUT.search(words)
    words = _without(words, into, out)
    users, context = _USERS.search(words), _CONTEXT.search(words)
    requests = _value(users, kilo=1000) if users else None
    prompt, answer, tokens = (_value(match, kilo=1024) if match else None for match in (into, out, context))
    if _STRAY.search(_without(words, users, context)) or (prompt is None) != (answer is None):
        raise UsageError(f"{text[:60]!r} has a number that is neither users nor a context", hint=HINT)
    if prompt is not None and answer is not None and tokens is None:
        tokens = prompt + answer
    if (requests is None and tokens is None) or 0 in (requests, tokens, prompt, answer):
        raise UsageError(f"{text[:60]!r} names neither users nor a context", hint=HINT)
    return RequestLoad(requests=requests, context=tokens, prompt=prompt, answer=answer)


def _without(words: str, *matches: re.Match[str] | None) -> str:
    """The text with the matches blanked out."""
    taken = {at for match in matches if match for at in range(*match.span())}
    return "".join(" " if at in taken else char for at, char in enumerate(words))


def _value(match: re.Match[str], *, kilo: int) -> int:
    number, unit = next(pair for pair in zip(match.groups()[::2], match.groups()[1::2], strict=True) if pair[0])
    whole = re.fullmatch(r"\d{1,3}(?:,\d{3})+", number)
    return round(float(number.replace(",", "" if whole else ".")) * {"k": kilo, "m": kilo**2}.get(unit or "", 1))


# From a load to the settings that serve it.

HOST_RESERVE_GIB = 8.0  # left to the host on unified memory; below this, freezes and hard resets were reported
CONTEXT_GIB = 0.6  # the CUDA context and a display, outside vLLM's request
HIGHEST_FRACTION = 0.95
STEP = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """gpu_memory_utilization for a load, and the resulting plan.

    fraction: 0.01 to 0.95, two decimals.
    serves: whether max_num_seqs requests of max_model_len fit at once. If not, the engine may still start: plan.fits.
    reason: why this fraction; "" if no fraction works.
    """

    fraction: float
    serves: bool
    plan: MemoryPlan
    reason: str


def solve(request: MemoryRequest, *, host_reserve_gib: float = HOST_RESERVE_GIB) -> Solution:
    """The smallest fraction that serves max_num_seqs × max_model_len; the request's own fraction is ignored.

    If none does, the highest safe one and what it serves; `plan.fits` is False if not even one request of
    max_model_len fits.
    """
    ceiling = highest_fraction(request, host_reserve_gib=host_reserve_gib)
    if request.kv_cache_memory_bytes is not None:
        return _cover(request, ceiling)
    needed = load_bytes(request) / GIB
    plans = [(fraction, at(request, fraction)) for fraction in _steps(ceiling)]
    for fraction, plan in plans:
        if plan.fits and plan.kv_cache_gib - plan.error_range_gib >= needed:
            reason = f"the smallest that holds {_load(request)} ({needed:.1f} GiB of KV cache) at once"
            return Solution(fraction=fraction, serves=True, plan=plan, reason=reason)
    fraction, plan = plans[-1]
    why = (
        f"the most that leaves {host_reserve_gib:g} GiB to the host" if request.gpu.unified else "the most that is safe"
    )
    if not plan.fits:
        reason = "" if at_any_fraction(request) else f"{why}, and the engine does not start with it"
        return Solution(fraction=fraction, serves=False, plan=_at_ceiling(plan), reason=reason)
    if plan.kv_cache_gib >= needed:
        reason = f"{why}; {_load(request)} just fit"
        return Solution(fraction=fraction, serves=True, plan=plan, reason=reason)
    reason = f"{why}; {plan.max_concurrency:.1f} of {_load(request)} fit at once"
    return Solution(fraction=fraction, serves=False, plan=plan, reason=reason)


def _cover(request: MemoryRequest, ceiling: float) -> Solution:
    """The smallest fraction with room for the bytes of KV cache that the engine is configured to allocate.

    The engine only checks that this fraction is free; the bytes decide the cache.
    """
    asked = (request.kv_cache_memory_bytes or 0) / GIB
    profiled = replace(request, kv_cache_memory_bytes=None)
    enough = (step for step in _steps(ceiling) if at(profiled, step).kv_cache_gib >= asked)
    fraction = next(enough, ceiling)
    plan = at(request, fraction)
    serves = plan.fits and plan.kv_cache_gib * GIB >= load_bytes(request)
    return Solution(
        fraction=fraction, serves=serves, plan=plan, reason=f"covers kv_cache_memory_bytes ({asked:.1f} GiB)"
    )


def _at_ceiling(plan: MemoryPlan) -> MemoryPlan:
    """The engine's remedy is another fraction; if none is left to try, it is less context or more memory."""
    if "gpu_memory_utilization" not in plan.remedy:
        return plan
    shorter = f"decrease max_model_len to {plan.longest_context} or less, or " if plan.longest_context else ""
    return replace(plan, remedy=f"{shorter}stop the other users of this memory, or use a GPU with more memory")


def at(request: MemoryRequest, fraction: float) -> MemoryPlan:
    """The plan of the same request at another fraction."""
    return estimate(replace(request, gpu_memory_utilization=fraction))


def highest_fraction(request: MemoryRequest, *, host_reserve_gib: float = HOST_RESERVE_GIB) -> float:
    """The largest safe fraction, two decimals, at least 0.01.

    It leaves room for what the engine takes beyond its request (graphs and workspace of older versions) and, on unified
    memory, for the host's reserve: of what is free now, if that is known, since the rest is in use.
    """
    total = request.gpu.total_bytes / GIB
    aside = at(request, 0.5).outside_gib + (host_reserve_gib if request.gpu.unified else CONTEXT_GIB)
    limit = (total - aside) / total
    if request.free_bytes is not None:
        taken = aside if request.gpu.unified else 0.0
        limit = min(limit, (request.free_bytes / GIB - taken) / total)
    return max(STEP, math.floor(min(limit, HIGHEST_FRACTION) / STEP + 1e-9) * STEP)


def load_bytes(request: MemoryRequest) -> int:
    """Bytes of KV cache for max_num_seqs requests of max_model_len on one rank."""
    return request.max_num_seqs * math.ceil(request.max_model_len / BLOCK_TOKENS) * request.block_bytes


def longest_context(plan: MemoryPlan, request: MemoryRequest, *, requests: int) -> int:
    """Tokens that each of `requests` concurrent requests can hold, at most the model's own limit."""
    return min(plan.kv_cache_blocks // requests * BLOCK_TOKENS, request.model.shape.max_position)


def _steps(ceiling: float) -> list[float]:
    return [round(number * STEP, 2) for number in range(1, round(ceiling / STEP) + 1)]


def _load(request: MemoryRequest) -> str:
    return f"{request.max_num_seqs} requests of {request.max_model_len} tokens"


# What to change, and the effect.


def advice(request: MemoryRequest, plan: MemoryPlan, *, host_reserve_gib: float = HOST_RESERVE_GIB) -> tuple[str, ...]:
    """Sentences, most useful first."""
    return tuple(_advice(request, plan, host_reserve_gib))


def _advice(request: MemoryRequest, plan: MemoryPlan, reserve: float) -> Iterator[str]:
    fraction = request.gpu_memory_utilization
    best = solve(request, host_reserve_gib=reserve)
    ceiling = highest_fraction(request, host_reserve_gib=reserve)
    other = abs(best.fraction - fraction) >= 0.005
    if other and (best.serves or (best.plan.fits and best.fraction > fraction)):
        yield f"gpu_memory_utilization {best.fraction:g} is {best.reason}"
    if fraction > ceiling + 1e-9:
        why = f"{reserve:g} GiB for the host" if request.gpu.unified else "room for allocations outside the request"
        yield f"{fraction:g} leaves less than {why}: {ceiling:g} is the highest safe value"
    exact = not flag_trouble("kv-cache-memory-bytes", request.vllm)
    if exact and request.gpu.unified and request.kv_cache_memory_bytes is None:
        size = load_bytes(request)
        if size / GIB <= plan.kv_cache_gib + plan.error_range_gib:
            yield (
                f"kv_cache_memory_bytes {size} is exactly {_load(request)}, whatever else runs on this host:"
                f" --set kv_cache_memory_bytes={size}"
            )
    if plan.fits:
        each = longest_context(plan, request, requests=request.max_num_seqs)
        one = longest_context(plan, request, requests=1)
        yield f"longest context: {one:,} tokens for one request, {each:,} for each of {request.max_num_seqs} at once"
    yield from _what_if(request, plan)


def _what_if(request: MemoryRequest, plan: MemoryPlan) -> Iterator[str]:
    short = plan.max_concurrency < request.max_num_seqs
    if request.kv_cache_dtype in ("auto", "bfloat16", "float16"):
        fp8 = estimate(replace(request, kv_cache_dtype="fp8"))
        if fp8.fits:
            yield f"with kv_cache_dtype fp8: {fp8.kv_cache_tokens:,} tokens of KV cache"
    if short and plan.max_num_batched_tokens > 2048:
        small = estimate(replace(request, max_num_batched_tokens=max(2048, request.max_num_seqs)))
        gained = small.kv_cache_gib - plan.kv_cache_gib
        if gained > 0.1:
            tokens = small.max_num_batched_tokens
            yield f"with max_num_batched_tokens {tokens}: {gained:.1f} GiB more KV cache, slower prefill"
    if short and plan.fits and plan.max_concurrency >= 1:
        served = int(plan.max_concurrency)
        yield (
            f"with max_num_seqs {served}: every request has its full context;"
            f" {request.max_num_seqs} would need {load_bytes(request) / GIB:.1f} GiB of KV cache"
        )
    if short and plan.fits and request.tensor_parallel_size == 1 and not request.gpu.unified:
        yield "with a second GPU: a second engine (data parallel) doubles the requests"


TOKENS_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMemory:
    """What an engine's log says about its memory; None: not stated."""

    weights_gib: float | None = None
    kv_cache_gib: float | None = None
    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one start on this host showed. overhead_gib: what the plan's other terms do not explain.

    gpu, vllm, weights, first_start: only plans with the same values use it.
    """

    gpu: str
    vllm: str
    weights: str
    first_start: bool
    overhead_gib: float


def compare_with_log(plan: MemoryPlan, measured: MeasuredMemory) -> tuple[Result, ...]:
    """One result per figure: OK within the stated range, else a warning with the difference."""
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
    observed = f"{seen:,.{digits}f} {unit} (planned {planned:,.{digits}f}{percent})"
    expected = f"± {tolerance:,.{digits}f} {unit}"
    if within:
        return ok(observed, expected, check=check)
    return warn(observed, expected, remedy="recorded: the next plan on this host uses it", check=check)


def learn_from_starts(request: MemoryRequest, plan: MemoryPlan, measured: MeasuredMemory) -> Observation | None:
    """The overhead that would have made this plan exact; None if the log says too little or contradicts the plan."""
    if measured.kv_cache_gib is None:
        return None
    weights = plan.weights_gib if measured.weights_gib is None else measured.weights_gib
    rest = plan.requested_gib - weights - plan.activation_gib - plan.graph_counted_gib - measured.kv_cache_gib
    if not -1 <= rest <= 0.2 * plan.total_gib:
        return None  # not this engine's log, or other settings
    return Observation(
        gpu=request.gpu.name,
        vllm=".".join(map(str, request.vllm)),
        weights=str(request.model.weights),
        first_start=request.first_start,
        overhead_gib=round(rest, 3),
    )


def sharpen(request: MemoryRequest, observations: Iterable[Observation]) -> MemoryRequest:
    """The request with the latest overhead observed for the same GPU, version, weights and kind of start."""
    version = ".".join(map(str, request.vllm))
    fitting = [
        seen.overhead_gib
        for seen in observations
        if (seen.gpu, seen.vllm, seen.weights, seen.first_start)
        == (request.gpu.name, version, str(request.model.weights), request.first_start)
    ]
    return replace(request, overhead_bytes=fitting[-1] * GIB) if fitting else request
