"""What `glm4-deploy scale` is asked, turned into what is simulated; each refusal is one sentence."""

import math
import re
from collections.abc import Set
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from glm4_deploy.errors import UsageError
from glm4_deploy.files import read_text
from glm4_deploy.scale.measured import MeasuredRun, example, examples, joined, parse_measured

# What is simulated: an engine's cost of a step and its limits, the users, and the limits that must hold.
#
# Seconds everywhere, except where a name ends in _ms.


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


class RouterPolicy(StrEnum):
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


# How many engines more, so that enough are up: failures that are independent, and a time to replace.

HOURS_A_YEAR = 8766.0
MOST_SPARES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spares:
    """engines: how many beside those that are needed; None: more than MOST_SPARES."""

    failures_per_gpu_year: float
    repair_hours: float
    availability: float
    engines: int | None


def down_share(failures_a_year: float, repair_hours: float, gpus_each: int = 1) -> float:
    """Share of the time that an engine of `gpus_each` GPUs is down, each GPU failing so often and taking so long."""
    up = 1 / (1 + failures_a_year * repair_hours / HOURS_A_YEAR)
    return float(1 - up**gpus_each)


def spares(needed: int, down: float, availability: float) -> int | None:
    """The least number of engines beside `needed` with which at least `needed` are up that share of the time.

    None: not even MOST_SPARES do.
    """
    for more in range(MOST_SPARES + 1):
        if at_most(more, needed + more, down) >= availability:
            return more
    return None


def at_most(failed: int, engines: int, down: float) -> float:
    """Probability that no more than `failed` of `engines` are down at once (binomial)."""
    if down <= 0:
        return 1.0
    total = 0.0
    for count in range(failed + 1):
        ways = math.lgamma(engines + 1) - math.lgamma(count + 1) - math.lgamma(engines - count + 1)
        total += math.exp(ways + count * math.log(down) + (engines - count) * math.log1p(-down))
    return total


IDLE_WITH = {
    "rate": ("think_time",),
    "users": ("burstiness",),
    "lengths": ("prompt_tokens", "prompt_p95", "output_tokens", "output_p95"),
}
"""Options that say nothing beside another."""


def check_options(given: Set[str]) -> None:
    """Raises UsageError: an option that the rest of the command line makes meaningless."""
    for chosen, others in IDLE_WITH.items():
        for other in others:
            if chosen in given and other in given:
                flag = f"--{other.replace('_', '-')}"
                raise UsageError(f"{flag} says nothing beside --{chosen}", hint=f"leave out {flag} or --{chosen}")


def check_load(workload: Workload) -> None:
    if (workload.users is None) == (workload.rate is None):
        raise UsageError("give either --users or --rate", hint="for example --users 2000, or --rate 12")


def scale_seconds(text: str) -> float:
    """`30s`, `500ms`, `2m`, `1h`; 0 is a time too."""
    match = re.fullmatch(r"(\d{1,7}(?:\.\d+)?)(ms|s|m|h)?", text.strip())
    if match is None:
        raise UsageError(f"not a time: {text[:40]!r}", hint="write it like 500ms, 30s or 2m")
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[match[2] or "s"]


def lengths_of(what: str, median: float, p95: float | None) -> Lengths:
    if p95 is not None and p95 < median:
        raise UsageError(f"--{what}-p95 {p95:g} is below the median {median:g}", hint="give the larger one as p95")
    return Lengths(median=median, p95=p95)


def read_pairs(path: Path) -> tuple[tuple[int, int], ...]:
    """Lines of `prompt,answer`; a first line of words is passed over."""
    pairs = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        match = re.fullmatch(r"\s*(\d{1,8})\s*[,;\s]\s*(\d{1,8})\s*", line)
        if match and int(match[1]) and int(match[2]):
            pairs.append((int(match[1]), int(match[2])))
        elif line.strip() and not (number == 1 and not re.search(r"\d", line)):
            raise UsageError(f"{path} line {number}: {line[:40]!r}", hint="each line is `prompt tokens,answer tokens`")
    if not pairs:
        raise UsageError(f"{path} holds no lengths", hint="each line is `prompt tokens,answer tokens`")
    return tuple(pairs)


def limits_of(ttft_p95: str | None, tpot_p95: str | None, file: Path | None) -> tuple[Limit, ...]:
    """From a file, and from the options, which win."""
    from glm4_deploy.probe.limits import read_slo

    wanted: dict[tuple[str, int], float] = {}
    if file is not None:
        stored = read_slo(file)
        if stored.goodput is not None or stored.output_tokens_per_s is not None:
            raise UsageError(
                f"{file}: goodput and output_tokens_per_s are not judged here",
                hint="give limits on ttft and tpot alone",
            )
        for metric in ("ttft", "tpot"):
            for share in (50, 95, 99):
                value = getattr(stored, f"{metric}_p{share}_ms")
                if value is not None:
                    wanted[metric, share] = value
    for metric, text in (("ttft", ttft_p95), ("tpot", tpot_p95)):
        if text is not None:
            wanted[metric, 95] = 1000 * scale_seconds(text)
    if any(ms <= 0 for ms in wanted.values()):
        raise UsageError("a limit of 0 is held by nothing", hint="write it like --ttft-p95 500ms")
    if not wanted:
        raise UsageError("no limit to hold", hint="give --ttft-p95 1s, --tpot-p95 50ms or --slo FILE")
    return tuple(Limit(metric=metric, share=share, ms=ms) for (metric, share), ms in wanted.items())


def replicas_of(text: str, each: int, most: int) -> tuple[int, int]:
    """Replicas, from GPUs: `1..10000` or `8`."""
    match = re.fullmatch(r"(\d{1,6})(?:\.\.(\d{1,6}))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= most:
        raise UsageError(f"--gpus {text[:20]!r} is no range", hint=f"write it like 1..{most}, or one number")
    if -(-low // each) > high // each:
        raise UsageError(f"--gpus {text[:20]} holds no whole engines of {each} GPUs", hint=f"a multiple of {each}")
    return -(-low // each), high // each


def router_of(name: str) -> RouterPolicy:
    try:
        return RouterPolicy(name)
    except ValueError:
        raise UsageError(f"no router is named {name[:40]!r}", hint=f"one of {', '.join(RouterPolicy)}") from None


def read_calibrations(names: list[str]) -> MeasuredRun:
    """Files, or the name of an example that ships with the kit."""
    if not names:
        shipped = f"; or look at an example: --calibration {' or '.join(examples())}" if examples() else ""
        raise UsageError(
            "without a measured load of an engine this cannot be answered",
            hint=f"measure yours: glm4-deploy bench --json bench.json, then --calibration bench.json{shipped}",
        )
    return joined([_one(name) for name in names])


def _one(name: str) -> MeasuredRun:
    """A file, or else an example of that name."""
    if name in examples() and not Path(name).exists():
        return example(name)
    return parse_measured(read_text(Path(name)), name)


def engine_of(
    measured: MeasuredRun, seqs: int | None, batched: int | None, cache: int | None, gpu: str | None, ranks: int
) -> tuple[EngineLimits, tuple[str, ...]]:
    """The limits of each engine, and what of them is an assumption."""

    assumed = []
    if seqs is None and measured.max_num_seqs is None:
        assumed.append("max_num_seqs 64: the calibration does not tell")
    if batched is None and measured.max_num_batched_tokens is None:
        assumed.append("max_num_batched_tokens 2048: the calibration does not tell")
    seqs = seqs or measured.max_num_seqs or 64
    batched = batched or measured.max_num_batched_tokens or 2048
    if batched < seqs:
        raise UsageError(f"max_num_batched_tokens {batched} is below max_num_seqs {seqs}", hint="vLLM refuses that too")
    if cache is None and gpu is not None:
        cache = _planned_cache(gpu, seqs, batched, ranks)
        assumed.append(f"KV cache {cache:,} tokens: planned for {gpu} (docs/explanation/planner.md), not measured")
    cache = cache or measured.kv_cache_tokens
    if cache is None:
        raise UsageError(
            "the size of the KV cache is not known", hint="give --kv-cache-tokens from the engine's log, or --gpu NAME"
        )
    limits = EngineLimits(
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        kv_cache_tokens=cache,
        block_tokens=measured.block_tokens or 16,
    )
    if limits.blocks < 1:
        raise UsageError(f"a KV cache of {cache} tokens holds no request", hint="give the engine's own figure")
    return limits, tuple(assumed)


def _planned_cache(gpu: str, seqs: int, batched: int, ranks: int) -> int:
    from glm4_deploy.catalog.rows import default_tag, gpu_by_name, resolve_version
    from glm4_deploy.errors import PlanRefused
    from glm4_deploy.plan.engine_rules import glm4_9b
    from glm4_deploy.plan.memory import MemoryRequest
    from glm4_deploy.plan.sizing import solve

    row = gpu_by_name(gpu, other="--kv-cache-tokens, from the engine's log")
    wish = MemoryRequest(
        gpu=row, model=glm4_9b(), vllm=resolve_version(default_tag()), gpu_memory_utilization=0.5,
        max_num_seqs=seqs, max_num_batched_tokens=batched, tensor_parallel_size=ranks,
    )  # fmt: skip
    plan = solve(wish).plan
    if not plan.fits:
        raise PlanRefused(f"an engine does not start on {gpu}: {plan.refusal}", hint=plan.remedy)
    return plan.kv_cache_tokens


def as_measured(measured: MeasuredRun, engine: EngineLimits) -> EngineLimits:
    """The limits that the engine had when it was measured, where the calibration tells them."""

    return replace(
        engine,
        max_num_seqs=measured.max_num_seqs or engine.max_num_seqs,
        max_num_batched_tokens=measured.max_num_batched_tokens or engine.max_num_batched_tokens,
        kv_cache_tokens=measured.kv_cache_tokens or engine.kv_cache_tokens,
    )


def check_lengths(workload: Workload, engine: EngineLimits) -> None:
    typical = workload.prompt.median + workload.answer.median
    if workload.pairs:
        typical = max(prompt + answer for prompt, answer in workload.pairs)
    if typical > engine.longest:
        raise UsageError(
            f"requests of {typical:g} tokens do not fit into a KV cache of {engine.kv_cache_tokens:,} tokens",
            hint="shorten them, or give the engine more: --kv-cache-tokens",
        )


AVAILABILITY = 0.999


def spares_of(replicas: int, failures: float | None, repair: str, ranks: int) -> Spares | None:
    """None where no rate of failures was given: the kit knows none for the reader's machines."""
    if failures is None:
        return None
    hours = scale_seconds(repair) / 3600
    return Spares(
        failures_per_gpu_year=failures,
        repair_hours=hours,
        availability=AVAILABILITY,
        engines=spares(replicas, down_share(failures, hours, ranks), AVAILABILITY),
    )
