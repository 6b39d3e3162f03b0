"""Speed as a user feels it: time to first token, time per token, tokens per second; a verdict only against an SLO."""

import math
import time

from glm4_deploy.probe.answer import Answer
from glm4_deploy.probe.canaries import named
from glm4_deploy.probe.outcome import fail, ok, unknown
from glm4_deploy.probe.probe import SAMPLED, Probe
from glm4_deploy.probe.registry import QUICK, SOAK, Stage, check
from glm4_deploy.probe.slo import Goodput, Slo
from glm4_deploy.probe.stats import milliseconds, percentile
from glm4_deploy.probe.together import together
from glm4_deploy.result import Result
from glm4_deploy.samples import Timing

PROMPT = named("long-en")
TOKENS = 128
STREAMS = 4
ROUNDS = 4
SHARES = (0.5, 0.95, 0.99)


@check(
    "speed",
    stage=Stage.SPEED,
    proves=f"TTFT, TPOT and tokens per second of {STREAMS * ROUNDS} streams, {STREAMS} at once; judged with --slo",
    suites=QUICK | SOAK,
    seconds=6,
    limit_s=600,
)
async def speed(probe: Probe) -> Result:
    begin = time.perf_counter()
    answers: list[Answer] = []
    for turn in range(ROUNDS):
        answers += await together(_one(probe, STREAMS * turn + number) for number in range(STREAMS))
    seconds = time.perf_counter() - begin
    for answer in answers:
        probe.keep(PROMPT.prompt, answer)
    timings = [answer.timing for answer in answers]
    tokens = sum(timing.tokens or len(timing.arrivals) for timing in timings)
    ttft = [timing.ttft for timing in timings if timing.ttft is not None]
    tpot = [timing.tpot for timing in timings if timing.tpot is not None]
    if not ttft:
        return unknown("no stream carried a token")
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


async def _one(probe: Probe, seed: int) -> Answer:
    # ignore_eos is vLLM's (and SGLang's); others pass over it and stop where they stop.
    return await probe.ask(PROMPT.messages, TOKENS, seed=seed, ignore_eos=True, **SAMPLED)


def _spread(values: list[float]) -> str:
    shown = [milliseconds(percentile(values, share)) for share in SHARES]
    return f"p50 {shown[0]} p95 {shown[1]} p99 {shown[2]}"


def _good(limits: Goodput, timings: list[Timing]) -> int:
    """How many answers kept both limits; one without a token kept none."""
    return sum(
        (timing.ttft or math.inf) * 1000 <= limits.ttft_ms and (timing.tpot or 0) * 1000 <= limits.tpot_ms
        for timing in timings
    )


def _broken(slo: Slo, timings: list[Timing], ttft: list[float], tpot: list[float], rate: float) -> list[str]:
    """Each limit that is not kept, with the value seen."""
    found = []
    for name, values in (("ttft", ttft), ("tpot", tpot)):
        for share in SHARES:
            limit = getattr(slo, f"{name}_p{share * 100:.0f}_ms")
            value = percentile(values, share)
            if limit is not None and (value is None or value * 1000 > limit):
                found.append(f"{name} p{share * 100:.0f} {milliseconds(value)} (limit {limit:g} ms)")
    if slo.output_tokens_per_s is not None and rate < slo.output_tokens_per_s:
        found.append(f"{rate:.1f} tokens/s (limit {slo.output_tokens_per_s:g})")
    if slo.goodput is not None:
        good = _good(slo.goodput, timings)
        if good < slo.goodput.share * len(timings):
            found.append(f"goodput {good} of {len(timings)} (limit {slo.goodput.share:.0%})")
    return found
