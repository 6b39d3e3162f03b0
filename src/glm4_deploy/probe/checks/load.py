"""The engine under load: many requests at once, speed, and the counters that the watch relies on later."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from glm4_deploy.probe.answers import ChatAnswer, FailureKind, Refused, RequestFailure
from glm4_deploy.probe.checks.loops import fault_of
from glm4_deploy.probe.endpoints import Metrics
from glm4_deploy.probe.limits import Goodput, Slo
from glm4_deploy.probe.probe import (
    GREEDY,
    SAMPLED,
    CanaryPrompt,
    Probe,
    answer_fault,
    family,
    filler_lines,
    milliseconds,
    named,
    together,
)
from glm4_deploy.probe.suite import FULL, QUICK, SOAK, CheckStage, check
from glm4_deploy.report_model import Timing, percentile
from glm4_deploy.result import Result, fail, ok, skipped, unknown, warn

# Many requests at once: mixed prefill and decode, staggered. Meaning is compared, not bytes: batching changes rounding.

STAGGER_S = 0.02
FREE_TEXT = 256  # tokens
LEVELS = {1: FULL, 4: FULL | SOAK, 16: QUICK, 64: FULL}
REMEDY = "sound alone but not under load: check preemptions, the KV cache type and known faults of this image"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """One request and its answer, or why there is none. canary: None for a long prompt."""

    prompt: str
    canary: CanaryPrompt | None = None
    answer: ChatAnswer | None = None
    trouble: str | None = None
    partial: str = ""


def _crowd(size: int) -> Callable[[Probe], Awaitable[Result]]:
    async def run(probe: Probe) -> Result:
        requests = await together(_send(probe, number) for number in range(size))
        # Judged only now: a scan between two tokens of another stream would delay their stamps.
        faults = [(problem, request) for request in requests if (problem := _fault(probe, request))]
        timings = [request.answer.timing for request in requests if request.answer]
        ttft = [timing.ttft for timing in timings if timing.ttft is not None]
        seen = f"{size - len(faults)} of {size} sound, TTFT p95 {milliseconds(percentile(ttft, 0.95))}"
        expected = f"{size} of {size} sound"
        if not faults:
            return ok(seen, expected)
        problem, first = faults[0]
        text = first.answer.text if first.answer else first.partial
        return fail(f"{seen}: {problem}", expected, ("prompt", first.prompt), ("answer", text), remedy=REMEDY)

    return run


async def _send(probe: Probe, number: int) -> LoadRequest:
    """In turn a sum, a name, a long text and a long prompt, so that short and long phases overlap."""
    await asyncio.sleep(STAGGER_S * number)
    canary = _canary(number)
    tokens = canary.max_tokens if canary else 8
    messages = list(canary.messages) if canary else [{"role": "user", "content": _log(probe, number)}]
    prompt = canary.prompt if canary else messages[0]["content"]
    sampling = {**SAMPLED, "seed": number} if number % 16 == 10 else GREEDY
    try:
        answer = await probe.ask(messages, min(tokens, FREE_TEXT), extras=number % 4 > 1, **sampling)
    except Refused as refused:
        return LoadRequest(prompt=prompt, trouble=str(refused))
    except RequestFailure as failure:
        if failure.kind in {FailureKind.HANG, FailureKind.SLOW}:
            raise
        return LoadRequest(prompt=prompt, trouble=str(failure), partial=failure.partial)
    return LoadRequest(prompt=prompt, canary=canary, answer=answer)


def _canary(number: int) -> CanaryPrompt | None:
    """The canary of request `number`; None: a long prompt, whose prefill runs while others decode."""
    if number % 4 == 3:
        return None
    names = ("arithmetic", "recall", "long")
    choices = family(names[number % 4])
    return choices[number // 4 % len(choices)]


def _log(probe: Probe, number: int) -> str:
    return "\n".join(filler_lines(40 * number, 12 if (probe.room or 4096) < 4096 else 60))


def _fault(probe: Probe, request: LoadRequest) -> str | None:
    """What is wrong with an answer. After a long prompt only logprobs count: a small model need not follow a log."""
    answer, canary = request.answer, request.canary
    if answer is None:
        return request.trouble
    if canary is None:
        null = answer.logprobs is not None and None in answer.logprobs
        return "a logprob is null after a long prompt" if null else None
    sample = probe.keep(request.prompt, answer)
    problem = fault_of(sample) if canary.family == "long" else answer_fault(canary, answer.text)
    return f"{canary.id}: {problem}" if problem else None


for _size, _suites in LEVELS.items():
    check(
        f"concurrency-{_size}",
        stage=CheckStage.LOAD,
        proves=f"{_size} mixed requests at once get answers as sound as one alone"
        if _size > 1
        else "one request alone",
        suites=_suites,
        needs=("arithmetic", "recall", "loop-greedy") if _size != 4 else ("arithmetic", "loop-greedy"),
        seconds=2 + _size / 8,
        limit_s=900,
    )(_crowd(_size))


# Speed as users see it: time to first token, time per token, tokens per second; judged only with an SLO.

PROMPT = named("long-en")
TOKENS = 128
STREAMS = 4
ROUNDS = 4
SHARES = (0.5, 0.95, 0.99)


@check(
    "speed",
    stage=CheckStage.SPEED,
    proves=f"TTFT, TPOT and tokens per second of {STREAMS * ROUNDS} streams, {STREAMS} at once; judged with --slo",
    suites=QUICK | SOAK,
    seconds=6,
    limit_s=600,
)
async def speed(probe: Probe) -> Result:
    begin = time.perf_counter()
    answers: list[ChatAnswer] = []
    for turn in range(ROUNDS):
        answers += await together(_timed_request(probe, STREAMS * turn + number) for number in range(STREAMS))
    seconds = time.perf_counter() - begin
    for answer in answers:
        probe.keep(PROMPT.prompt, answer)
    timings = [answer.timing for answer in answers]
    tokens = sum(timing.tokens or len(timing.arrivals) for timing in timings)
    ttft = [timing.ttft for timing in timings if timing.ttft is not None]
    tpot = [timing.tpot for timing in timings if timing.tpot is not None]
    if not ttft:
        return unknown("no stream contained a token")
    seen = f"TTFT {_spread(ttft)}, TPOT {_spread(tpot)}, {tokens / seconds:.1f} tokens/s"
    slo = probe.options.slo
    if slo is None:
        return ok(seen, "no SLO given")
    if slo.goodput is not None:
        seen += f", goodput {_good(slo.goodput, timings)} of {len(timings)}"
    broken = _broken(slo, timings, ttft, tpot, tokens / seconds)
    if broken:
        remedy = "compare with `glm4-deploy bench`; look for other load, and for the kernel named in the engine's log"
        return fail(f"{'; '.join(broken)}: {seen}", "within the SLO", remedy=remedy)
    return ok(seen, "within the SLO")


async def _timed_request(probe: Probe, seed: int) -> ChatAnswer:
    # Only vLLM and SGLang know ignore_eos; others ignore it and stop where they stop.
    return await probe.ask(PROMPT.messages, TOKENS, seed=seed, ignore_eos=True, **SAMPLED)


def _spread(values: list[float]) -> str:
    shown = [milliseconds(percentile(values, share)) for share in SHARES]
    return f"p50 {shown[0]} p95 {shown[1]} p99 {shown[2]}"


def _good(limits: Goodput, timings: list[Timing]) -> int:
    """How many answers kept both limits; one without a token does not."""
    return sum(
        (timing.ttft or math.inf) * 1000 <= limits.ttft_ms and (timing.tpot or 0) * 1000 <= limits.tpot_ms
        for timing in timings
    )


def _broken(slo: Slo, timings: list[Timing], ttft: list[float], tpot: list[float], rate: float) -> list[str]:
    """Each limit that is exceeded, with the value seen."""
    broken = []
    for name, values in (("ttft", ttft), ("tpot", tpot)):
        for share in SHARES:
            limit = getattr(slo, f"{name}_p{share * 100:.0f}_ms")
            value = percentile(values, share)
            if limit is not None and (value is None or value * 1000 > limit):
                broken.append(f"{name} p{share * 100:.0f} {milliseconds(value)} (limit {limit:g} ms)")
    if slo.output_tokens_per_s is not None and rate < slo.output_tokens_per_s:
        broken.append(f"{rate:.1f} tokens/s (limit {slo.output_tokens_per_s:g})")
    if slo.goodput is not None:
        good = _good(slo.goodput, timings)
        if good < slo.goodput.share * len(timings):
            broken.append(f"goodput {good} of {len(timings)} (limit {slo.goodput.share:.0%})")
    return broken


# The engine's own counters.

SUCCESS = "vllm:request_success_total"
METRIC_TOKENS = "vllm:generation_tokens_total"
CUT = 4
EXPECTED = f"1 more length, {CUT} more tokens"


@check(
    "metrics",
    stage=CheckStage.PROTOCOL,
    proves="/metrics counts finished requests by reason, and generated tokens",
    suites=QUICK | SOAK,
    seconds=0.5,
)
async def metrics(probe: Probe) -> Result:
    before = await probe.metrics()
    if before is None or SUCCESS not in before.rows:
        return skipped("the server has no /metrics with vLLM's counters")
    answer = await probe.ask(named("long-en").messages, CUT)
    after = await probe.metrics()
    if after is None:
        return fail("/metrics answered before the request but not after it", "counters", remedy="read the engine's log")
    reason = answer.finish_reason or "length"
    finished = _delta(before, after, SUCCESS, finished_reason=reason)
    tokens = _delta(before, after, METRIC_TOKENS)
    seen = f"{finished:.0f} more {reason}, {tokens:.0f} more tokens; {_state(after)}"
    sent = answer.timing.tokens or CUT
    if finished < 1 or tokens < sent:
        remedy = "another process may answer /metrics (several API servers, a proxy): scrape each"
        return fail(seen, EXPECTED, remedy=remedy)
    if finished > 1:
        return warn(f"{seen}; other clients use this engine now", EXPECTED)
    return ok(seen, EXPECTED)


def _delta(before: Metrics, after: Metrics, name: str, **labels: str) -> float:
    return (after.sum(name, **labels) or 0.0) - (before.sum(name, **labels) or 0.0)


def _state(metrics: Metrics) -> str:
    preempted = metrics.sum("vllm:num_preemptions_total") or 0.0
    used = metrics.sum("vllm:kv_cache_usage_perc") or 0.0
    return f"{preempted:.0f} preemptions since its start, KV cache {used * 100:.0f} % used"
