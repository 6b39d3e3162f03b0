"""Perplexity of fixed texts: the finest needle for a model that got worse, against a baseline from a good day."""

import math

from glm4_deploy.probe.canaries import Passage, passages
from glm4_deploy.probe.outcome import fail, ok, skipped
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.registry import QUICK, Stage, check
from glm4_deploy.probe.trouble import Kind, Refused, Trouble
from glm4_deploy.probe.words import shorten
from glm4_deploy.result import Result

# A different kernel or batch shape moves it by about a per cent; a bad quantisation by ten and more.
LIMIT = 1.10
REMEDY = "compare checkpoint, image and KV cache type with those of the baseline"


@check(
    "perplexity",
    stage=Stage.SENSE,
    proves=f"fixed texts are no more than {LIMIT - 1:.0%} less likely than in the stored baseline",
    suites=QUICK,
    needs=("numbers",),
    seconds=0.5,
)
async def perplexity(probe: Probe) -> Result:
    for passage in passages():
        try:
            found = await _measure(probe, passage)
        except Refused as refused:
            if refused.not_a_number or not refused.not_offered:
                raise
            return skipped(f"the server refuses prompt_logprobs: {refused}")
        if found is None:
            return skipped("the server answers no prompt_logprobs")
        if not math.isfinite(found):
            return fail(f"{passage.id}: a logprob of the prompt is no number", "finite logprobs", remedy=REMEDY)
        probe.perplexity[passage.id] = found
    return _judge(probe)


def _judge(probe: Probe) -> Result:
    measured = probe.perplexity
    seen = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
    baseline = probe.options.baseline
    if baseline is None:
        return skipped(f"no baseline stored ({seen} now): store one with --save-baseline on a good day")
    shared = [name for name in measured if name in baseline]
    if not shared:
        return skipped("the baseline holds none of these texts")
    worst = max(shared, key=lambda name: measured[name] / baseline[name])
    ratio = measured[worst] / baseline[worst]
    expected = f"at most {LIMIT:.2f} times the baseline"
    words = f"{seen}; {worst} is {ratio:.3f} times its baseline of {baseline[worst]:.3f}"
    return ok(words, expected) if ratio <= LIMIT else fail(words, expected, remedy=REMEDY)


async def _measure(probe: Probe, passage: Passage) -> float | None:
    """exp of the mean negative logprob of the passage's tokens after the first; None where none is sent."""
    body = {
        "model": probe.served.model,
        "prompt": passage.text,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
    }
    reply = await probe.client.post("/v1/completions", body)
    parsed = reply.json()
    if reply.status != 200:
        error = parsed.get("error") if isinstance(parsed, dict) else None
        raise Refused(reply.status, shorten(str(error.get("message") if isinstance(error, dict) else reply.text)))
    try:
        rows = parsed["choices"][0].get("prompt_logprobs")
        if rows is None:
            return None
        values = [next(iter(row.values()))["logprob"] for row in rows if row]
    except (TypeError, KeyError, IndexError, AttributeError, StopIteration) as error:
        raise Trouble(Kind.NOT_OPENAI, f"prompt_logprobs in no known form: {type(error).__name__}") from error
    if not values or any(not isinstance(value, int | float) for value in values):
        return math.nan
    return math.exp(-sum(values) / len(values)) if min(values) > -1e4 else math.inf
