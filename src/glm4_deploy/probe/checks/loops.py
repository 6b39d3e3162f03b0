"""Long free texts, greedy and sampled, English and Chinese: damage that passes short probes shows here."""

from collections.abc import Mapping
from typing import Any

from glm4_deploy.probe.canaries import Canary, family
from glm4_deploy.probe.outcome import fail, ok, warn
from glm4_deploy.probe.probe import GREEDY, SAMPLED, Probe
from glm4_deploy.probe.registry import FULL, GATE, SOAK, Stage, check
from glm4_deploy.probe.together import together
from glm4_deploy.probe.words import quote
from glm4_deploy.result import Result
from glm4_deploy.samples import Sample

LOOP = (
    "do not serve it as it is: check the end tokens and the chat template first, then the checkpoint and the NVFP4 "
    "kernel; `glm4-deploy detect --help` explains the finding"
)

SHORT = 32  # tokens: a story of four hundred words has ten times as many
TERSE = "a story was asked for: read the answer; an end token that comes at once is damage too"


@check(
    "loop-greedy",
    stage=Stage.LOOPS,
    proves="up to 512 tokens at temperature 0 fall into no loop, in English and in Chinese",
    suites=GATE | SOAK,
    seconds=4,
    limit_s=600,
)
async def loop_greedy(probe: Probe) -> Result:
    return await _free_texts(probe, 512, [GREEDY])


@check(
    "loop-sampled",
    stage=Stage.LOOPS,
    proves="up to 512 tokens at temperature 0.7 fall into no loop and into no soup of words",
    suites=GATE | SOAK,
    seconds=4,
    limit_s=600,
)
async def loop_sampled(probe: Probe) -> Result:
    return await _free_texts(probe, 512, [{**SAMPLED, "seed": 1}])


@check(
    "loop-long",
    stage=Stage.LOOPS,
    proves="1024 tokens without a stop, greedy and with four seeds, fall into no loop",
    suites=FULL,
    needs=("loop-greedy",),
    seconds=12,
    limit_s=900,
)
async def loop_long(probe: Probe) -> Result:
    return await _free_texts(probe, 1024, [GREEDY, *({**SAMPLED, "seed": seed} for seed in range(2, 6))])


async def _free_texts(probe: Probe, tokens: int, ways: list[Mapping[str, Any]]) -> Result:
    samples = await together(_one(probe, canary, tokens, way) for way in ways for canary in family("long"))
    lengths = [sample.timing.tokens or len(sample.timing.arrivals) for sample in samples if sample.timing]
    bad = [sample for sample in samples if fault_of(sample)]
    expected = f"no loop in up to {tokens} tokens"
    if bad:
        words = f"{len(bad)} of {len(samples)} texts: {fault_of(bad[0])}"
        return fail(words, expected, ("prompt", bad[0].prompt), ("answer", bad[0].answer), remedy=LOOP)
    seen = f"{len(samples)} texts of {min(lengths)} to {max(lengths)} tokens, no loop found"
    if min(lengths) < SHORT:
        shortest = min(samples, key=lambda sample: len(sample.answer))
        evidence = (("prompt", shortest.prompt), ("answer", shortest.answer))
        return warn(f"{seen}: too short to show one: {quote(shortest.answer)}", expected, *evidence, remedy=TERSE)
    return ok(seen, expected)


async def _one(probe: Probe, canary: Canary, tokens: int, way: Mapping[str, Any]) -> Sample:
    answer = await probe.ask(canary.messages, tokens, extras=True, **way)
    return probe.keep(canary.prompt, answer)


def fault_of(sample: Sample) -> str | None:
    """Why a text is not sound, with the detector's words; None where it is."""
    if sample.finding is not None and sample.finding.degenerate:
        return f"{sample.finding.verdict}: {sample.finding.why}"
    return None if sample.answer.strip() else f"an empty answer: {quote(sample.answer)}"
