"""Many at once: mixed prefill and decode, staggered. Sense is compared, not bytes: batches change rounding."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from glm4_deploy.probe.canaries import family, fault, named
from glm4_deploy.probe.checks.loops import LOOP, fault_of
from glm4_deploy.probe.filler import days
from glm4_deploy.probe.outcome import fail, ok
from glm4_deploy.probe.probe import GREEDY, SAMPLED, Probe
from glm4_deploy.probe.registry import FULL, QUICK, SOAK, Stage, check
from glm4_deploy.probe.stats import milliseconds, percentile
from glm4_deploy.probe.trouble import Kind, Refused, Trouble
from glm4_deploy.result import Result
from glm4_deploy.samples import Timing

STAGGER_S = 0.02
FREE = 256  # tokens of a free text
LEVELS = {1: FULL, 4: FULL | SOAK, 16: QUICK, 64: FULL}
REMEDY = "sound alone and not under load: look for preemptions, the KV cache type and known faults of this image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One of the requests: what is wrong with it (None: nothing), the answer, its timing."""

    fault: str | None
    answer: str = ""
    timing: Timing | None = None


def _crowd(size: int) -> Callable[[Probe], Awaitable[Result]]:
    async def run(probe: Probe) -> Result:
        outcomes = await asyncio.gather(*(_one(probe, number) for number in range(size)))
        bad = [outcome for outcome in outcomes if outcome.fault]
        timings = [outcome.timing for outcome in outcomes if outcome.timing]
        ttft = percentile([timing.ttft for timing in timings if timing.ttft is not None], 0.95)
        seen = f"{size - len(bad)} of {size} sound, TTFT p95 {milliseconds(ttft)}"
        expected = f"{size} of {size} sound"
        if bad:
            return fail(f"{seen}: {bad[0].fault}", expected, ("answer", bad[0].answer), remedy=REMEDY)
        return ok(seen, expected)

    return run


async def _one(probe: Probe, number: int) -> Outcome:
    """Every fourth request a sum, a name, a long text, a long prompt: short and long phases overlap."""
    await asyncio.sleep(STAGGER_S * number)
    kind = (_known, _known, _free, _long_prompt)[number % 4]
    try:
        return await kind(probe, number)
    except Refused as refused:
        return Outcome(fault=str(refused))
    except Trouble as trouble:
        if trouble.kind in {Kind.HANG, Kind.SLOW}:
            raise
        return Outcome(fault=f"{trouble.kind}: {trouble.detail}", answer=trouble.partial)


async def _known(probe: Probe, number: int) -> Outcome:
    asked = family("arithmetic") if number % 4 == 0 else family("recall")
    canary = asked[number // 4 % len(asked)]
    answer = await probe.ask_canary(canary, **GREEDY)
    what = fault(canary, answer.text)
    return Outcome(fault=f"{canary.id}: {what}" if what else None, answer=answer.text, timing=answer.timing)


async def _free(probe: Probe, number: int) -> Outcome:
    canary = named("long-zh" if number % 8 == 2 else "long-en")
    way = {**SAMPLED, "seed": number} if number % 16 > 7 else GREEDY
    answer = await probe.ask(canary.messages, FREE, extras=True, **way)
    what = fault_of(probe.keep(canary.prompt, answer))
    return Outcome(fault=f"{canary.id}: {what}; {LOOP}" if what else None, answer=answer.text, timing=answer.timing)


async def _long_prompt(probe: Probe, number: int) -> Outcome:
    """Prefill while others decode; only its soundness is judged: a small model need not follow a long log."""
    text = "\n".join(days(40 * number, 12 if (probe.room or 4096) < 4096 else 60))
    answer = await probe.ask([{"role": "user", "content": text}], 8, extras=True)
    null = answer.logprobs is not None and None in answer.logprobs
    return Outcome(fault="a logprob is null" if null else None, answer=answer.text, timing=answer.timing)


for _size, _suites in LEVELS.items():
    check(
        f"concurrency-{_size}",
        stage=Stage.LOAD,
        proves=f"{_size} at once, staggered and mixed, are answered as soundly as one" if _size > 1 else "one alone",
        suites=_suites,
        needs=("arithmetic", "recall", "loop-greedy") if _size != 4 else ("arithmetic", "loop-greedy"),
        seconds=2 + _size / 8,
        limit_s=900,
    )(_crowd(_size))
