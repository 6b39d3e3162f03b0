"""What is asked: the users, the engine and the limits as values, and how each option becomes one.

Seconds everywhere, except where a name ends in _ms. Each refusal is one sentence.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import StrEnum

from glm4_deploy.errors import UsageError
from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.text import seconds_of

MOST_GPUS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """One engine step takes base + per_seq · sequences + per_prefill · prompt tokens + per_context · KV tokens.

    sequences: all in the step, decoding or in prefill. KV tokens: the context that the decoding sequences read.
    front: time before a request reaches the scheduler (HTTP, chat template, tokenizer); no step waits for it.
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
    """Under vLLM's own names. kv_cache_tokens: as the engine logs it. max_model_len: None if only the cache limits."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: int
    block_tokens: int = 16
    max_model_len: int | None = None

    @property
    def blocks(self) -> int:
        """Blocks available to requests: the engine keeps one for itself (v1/core/block_pool.py, null_block)."""
        return self.kv_cache_tokens // self.block_tokens - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest possible request, prompt plus answer."""
        fits = self.blocks * self.block_tokens
        return min(fits, self.max_model_len) if self.max_model_len else fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of prompts or answers: lognormal with this median and p95, or all the same if p95 is None."""

    median: float
    p95: float | None = None


class RouterPolicy(StrEnum):
    """How requests are spread. CACHE_AWARE keeps a user on the same replica unless that one is far busier."""

    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    CACHE_AWARE = "cache-aware"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Who asks for what.

    users: a closed loop: each asks, reads the answer, thinks (exponential, mean think_s) and asks again.
    rate: an open loop instead: requests per second, gamma gaps of shape `burstiness` (1: Poisson; below 1: burstier).
    pairs: (prompt, answer) lengths to draw from instead of the two distributions.
    cached_tokens: how much of each prompt's start is still in the prefix cache of the user's replica.
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
        """The size of the load: users, or requests per second."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Limits of each engine as the settings give them. None: as measured.

    memory: the GPU and the engine that a KV cache is planned for. gpu_named: the plan replaces what was measured;
    otherwise it only stands in where nothing was. solved: the memory fraction is solved for.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_tokens: int | None = None
    memory: MemoryRequest | None = None
    gpu_named: bool = False
    solved: bool = True
    gpus_each: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRequest:
    """The whole question.

    replicas: the range to search; equal ends evaluate that number.
    requests: how many each simulation counts. seeds: simulations per number of replicas, the first with `seed`.
    failures_per_gpu_year: None if no spares are asked for. The kit knows no failure rate of the reader's machines.
    """

    workload: Workload
    slo: tuple[Limit, ...]
    router: RouterPolicy
    replicas: tuple[int, int]
    engine: EngineOptions
    requests: int
    seeds: int
    seed: int
    failures_per_gpu_year: float | None = None
    repair_hours: float = 24.0


EXCLUDES = {
    "rate": ("think_time",),
    "users": ("burstiness",),
    "lengths": ("prompt_tokens", "prompt_p95", "output_tokens", "output_p95"),
}
"""Options that mean nothing together with another."""


def check_options(given: Set[str]) -> None:
    """Raises UsageError for an option that the rest of the command line makes meaningless."""
    for chosen, others in EXCLUDES.items():
        for other in others:
            if chosen in given and other in given:
                flag = f"--{other.replace('_', '-')}"
                raise UsageError(f"{flag} has no effect with --{chosen}", hint=f"leave out {flag} or --{chosen}")


def check_load(workload: Workload) -> None:
    if (workload.users is None) == (workload.rate is None):
        raise UsageError("give either --users or --rate", hint="for example --users 2000, or --rate 12")


def check_lengths(workload: Workload, engine: EngineLimits) -> None:
    typical = workload.prompt.median + workload.answer.median
    if workload.pairs:
        typical = max(prompt + answer for prompt, answer in workload.pairs)
    if typical > engine.longest:
        raise UsageError(
            f"requests of {typical:g} tokens do not fit into a KV cache of {engine.kv_cache_tokens:,} tokens",
            hint="shorten them, or give the engine more: --kv-cache-tokens",
        )


def lengths_of(option: str, median: float, p95: float | None) -> Lengths:
    if p95 is not None and p95 < median:
        raise UsageError(f"--{option}-p95 {p95:g} is below the median {median:g}", hint="give the larger one as p95")
    return Lengths(median=median, p95=p95)


def parse_pairs(text: str, name: str) -> tuple[tuple[int, int], ...]:
    """Lines of `prompt,answer`; a header line without digits is skipped."""
    hint = "each line is `prompt tokens,answer tokens`"
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"\s*(\d{1,8})\s*[,;\s]\s*(\d{1,8})\s*", line)
        if match and int(match[1]) and int(match[2]):
            pairs.append((int(match[1]), int(match[2])))
        elif line.strip() and not (number == 1 and not re.search(r"\d", line)):
            raise UsageError(f"{name} line {number}: {line[:40]!r}", hint=hint)
    if not pairs:
        raise UsageError(f"{name} contains no lengths", hint=hint)
    return tuple(pairs)


def limits_of(ttft_p95: str | None, tpot_p95: str | None, stored: Mapping[str, object]) -> tuple[Limit, ...]:
    """Latency limits from the fields of an SLO file, overridden by the options."""
    wanted: dict[tuple[str, int], float] = {}
    for key, value in stored.items():
        match = re.fullmatch(r"(ttft|tpot)_p(\d\d)_ms", key)
        if match is None or not isinstance(value, int | float):
            raise UsageError(
                f"the SLO file limits {key}, which `scale` does not judge", hint="limit ttft and tpot alone"
            )
        wanted[match[1], int(match[2])] = value
    for metric, text in (("ttft", ttft_p95), ("tpot", tpot_p95)):
        if text is not None:
            wanted[metric, 95] = 1000 * seconds_of(text, zero=True)
    if any(ms <= 0 for ms in wanted.values()):
        raise UsageError("a latency limit must be greater than 0", hint="write it like --ttft-p95 500ms")
    if not wanted:
        raise UsageError("no latency limit was given", hint="give --ttft-p95 1s, --tpot-p95 50ms or --slo FILE")
    return tuple(Limit(metric=metric, share=share, ms=ms) for (metric, share), ms in wanted.items())


def replicas_of(gpus: str, each: int) -> tuple[int, int]:
    """The range of replicas in a range of GPUs: `1..10000`, or `8`."""
    match = re.fullmatch(r"(\d{1,6})(?:\.\.(\d{1,6}))?", gpus.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= MOST_GPUS:
        raise UsageError(f"--gpus {gpus[:20]!r} is not a valid range", hint=f"write 1..{MOST_GPUS}, or one number")
    if -(-low // each) > high // each:
        raise UsageError(
            f"--gpus {gpus[:20]} has no room for whole engines of {each} GPUs", hint=f"give a multiple of {each}"
        )
    return -(-low // each), high // each


def router_of(name: str) -> RouterPolicy:
    try:
        return RouterPolicy(name)
    except ValueError:
        raise UsageError(f"unknown router {name[:40]!r}", hint=f"one of {', '.join(RouterPolicy)}") from None
