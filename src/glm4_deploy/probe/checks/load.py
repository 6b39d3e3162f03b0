"""Many at once: mixed prefill and decode, staggered. Sense is compared, not bytes: batches change rounding."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from glm4_deploy.probe.answer import Answer
from glm4_deploy.probe.canaries import Canary, family, fault
from glm4_deploy.probe.checks.loops import fault_of
from glm4_deploy.probe.filler import days
from glm4_deploy.probe.outcome import fail, ok
from glm4_deploy.probe.probe import GREEDY, SAMPLED, Probe
from glm4_deploy.probe.registry import FULL, QUICK, SOAK, Stage, check
from glm4_deploy.probe.stats import milliseconds, percentile
from glm4_deploy.probe.together import together
from glm4_deploy.probe.trouble import Kind, Refused, Trouble
from glm4_deploy.result import Result

STAGGER_S = 0.02
FREE = 256  # tokens of a free text
LEVELS = {1: FULL, 4: FULL | SOAK, 16: QUICK, 64: FULL}
REMEDY = "sound alone and not under load: look for preemptions, the KV cache type and known faults of this image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request and its end: the answer, or why there is none. canary: None for a long prompt."""

    prompt: str
    canary: Canary | None = None
    answer: Answer | None = None
    trouble: str | None = None
    partial: str = ""


def _crowd(size: int) -> Callable[[Probe], Awaitable[Result]]:
    async def run(probe: Probe) -> Result:
        asked = await together(_one(probe, number) for number in range(size))
        # Judged only now: a scan between two tokens of another stream would delay its stamp.
        faults = [(fault, one) for one in asked if (fault := _fault(probe, one))]
        ttft = [one.answer.timing.ttft for one in asked if one.answer and one.answer.timing.ttft is not None]
        seen = f"{size - len(faults)} of {size} sound, TTFT p95 {milliseconds(percentile(ttft, 0.95))}"
        expected = f"{size} of {size} sound"
        if not faults:
            return ok(seen, expected)
        words, worst = faults[0]
        text = worst.answer.text if worst.answer else worst.partial
        return fail(f"{seen}: {words}", expected, ("prompt", worst.prompt), ("answer", text), remedy=REMEDY)

    return run


async def _one(probe: Probe, number: int) -> Asked:
    """Every fourth request a sum, a name, a long text, a long prompt: short and long phases overlap."""
    await asyncio.sleep(STAGGER_S * number)
    canary = _canary(number)
    tokens = canary.max_tokens if canary else 8
    messages = list(canary.messages) if canary else [{"role": "user", "content": _log(probe, number)}]
    prompt = canary.prompt if canary else messages[0]["content"]
    way = {**SAMPLED, "seed": number} if number % 16 == 10 else GREEDY
    try:
        answer = await probe.ask(messages, min(tokens, FREE), extras=number % 4 > 1, **way)
    except Refused as refused:
        return Asked(prompt=prompt, trouble=str(refused))
    except Trouble as trouble:
        if trouble.kind in {Kind.HANG, Kind.SLOW}:
            raise
        return Asked(prompt=prompt, trouble=f"{trouble.kind}: {trouble.detail}", partial=trouble.partial)
    return Asked(prompt=prompt, canary=canary, answer=answer)


def _canary(number: int) -> Canary | None:
    """What request `number` asks; None: a long prompt, prefill while others decode."""
    if number % 4 == 3:
        return None
    names = ("arithmetic", "recall", "long")
    choices = family(names[number % 4])
    return choices[number // 4 % len(choices)]


def _log(probe: Probe, number: int) -> str:
    return "\n".join(days(40 * number, 12 if (probe.room or 4096) < 4096 else 60))


def _fault(probe: Probe, one: Asked) -> str | None:
    """What is wrong with one answer. Of a long prompt only the numbers: a small model need not follow a log."""
    if one.answer is None:
        return one.trouble
    if one.canary is None:
        null = one.answer.logprobs is not None and None in one.answer.logprobs
        return "a logprob is null behind a long prompt" if null else None
    sample = probe.keep(one.prompt, one.answer)
    wrong = fault_of(sample) if one.canary.family == "long" else fault(one.canary, one.answer.text)
    return f"{one.canary.id}: {wrong}" if wrong else None


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
