"""What is simulated: an engine's cost of a step and its limits, the users, and the limits that must hold.

Seconds everywhere, except where a name ends in _ms.
"""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """One step of the engine takes base + per_seq · sequences + per_prefill · prompt tokens + per_context · KV tokens.

    sequences: those in the step, decoding or in prefill. KV tokens: the context that the decoding ones read.
    front: what a request takes before it reaches the scheduler (HTTP, chat template, tokenizer); no step waits for it.
    """

    base: float
    per_seq: float
    per_prefill: float
    per_context: float
    front: float = 0.0

    def scaled(self, factor: float) -> "StepCost":
        return StepCost(
            base=self.base * factor,
            per_seq=self.per_seq * factor,
            per_prefill=self.per_prefill * factor,
            per_context=self.per_context * factor,
            front=self.front * factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """vLLM's own names. kv_cache_tokens: as the engine logs it; max_model_len: None where only the cache bounds it."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: int
    block_tokens: int = 16
    max_model_len: int | None = None

    @property
    def blocks(self) -> int:
        """Blocks that requests can have: one is kept by the engine (v1/core/block_pool.py, null_block)."""
        return self.kv_cache_tokens // self.block_tokens - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and answer."""
        fits = self.blocks * self.block_tokens
        return min(fits, self.max_model_len) if self.max_model_len else fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of prompts or answers: lognormal by median and p95; the same for all where p95 is None."""

    median: float
    p95: float | None = None


class Router(StrEnum):
    """How requests are spread. CACHE_AWARE keeps a user on the replica that served him, unless that is far busier."""

    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    CACHE_AWARE = "cache-aware"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Who asks for what.

    users: closed loop: each asks, reads the answer, thinks (exponential, mean think_s) and asks again.
    rate: open loop instead: requests a second, gaps gamma with shape `burstiness` (1 is Poisson, below is burstier).
    pairs: (prompt, answer) lengths to draw from, in place of the two distributions.
    cached_tokens: the start of each prompt that the user's replica still has in its prefix cache.
    """

    users: int | None = None
    think_s: float = 0.0
    rate: float | None = None
    burstiness: float = 1.0
    prompt: Lengths = Lengths(median=512)
    answer: Lengths = Lengths(median=128)
    pairs: tuple[tuple[int, int], ...] = ()
    cached_tokens: int = 0

    @property
    def size(self) -> float:
        """What grows with the load: users, or requests a second."""
        return float(self.users) if self.users is not None else float(self.rate or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """`metric` ttft or tpot, `share` 50, 95 or 99: that percentile over requests is at most `ms`."""

    metric: str
    share: int
    ms: float

    @property
    def name(self) -> str:
        return f"{self.metric.upper()} p{self.share}"
