"""What to change, and what that would give. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from glm4_deploy.plan.memory import MemoryPlan, Wish, estimate
from glm4_deploy.plan.memory_model import GIB
from glm4_deploy.plan.memory_solve import HOST_RESERVE_GIB, highest_fraction, load_bytes, longest_context, solve


def advice(wish: Wish, plan: MemoryPlan, *, host_reserve_gib: float = HOST_RESERVE_GIB) -> tuple[str, ...]:
    """Sentences, the most useful first."""
    return tuple(_advice(wish, plan, host_reserve_gib))


def _advice(wish: Wish, plan: MemoryPlan, reserve: float) -> Iterator[str]:
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


def _what_if(wish: Wish, plan: MemoryPlan) -> Iterator[str]:
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
