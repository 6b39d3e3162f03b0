"""Log probabilities: NaN logits, and the perplexity of fixed texts compared with a baseline from a good day."""

import math

from glm4_deploy.probe.answers import ChatAnswer, FailureKind, Refused, RequestFailure
from glm4_deploy.probe.endpoints import Metrics
from glm4_deploy.probe.probe import CHAT, EXTRAS, Passage, Probe, named, passages
from glm4_deploy.probe.suite import GATE, QUICK, SOAK, CheckStage, check
from glm4_deploy.result import Result, fail, ok, skipped
from glm4_deploy.text import BRIEF, one_line, quote

# NaN logits look healthy from outside: only token ids, logprobs and one counter reveal them.

CORRUPTED = "vllm:corrupted_requests_total"
NAN = (
    "the engine computes NaN: do not serve it. Verify the checkpoint (`glm4-deploy checkpoint verify`), then try "
    "another NVFP4 kernel or a newer image"
)
TOKENS = 64


@check(
    "numbers",
    stage=CheckStage.PROTOCOL,
    proves="the model computes numbers, not NaN: logprobs are finite, streamed and not; no corrupt request counted",
    suites=GATE | SOAK,
    needs=("identity",),
    seconds=1,
)
async def numbers(probe: Probe) -> Result:
    before = await probe.metrics()
    body = {"model": probe.served.model, "messages": list(named("long-en").messages), "temperature": 0, **EXTRAS}
    body["max_tokens"] = probe.fit(named("long-en").messages, TOKENS)
    limit_s = probe.target.timeout_s * 1.5
    # The stream goes first: it shows the null and the text, while the answer not streamed would just be refused.
    for how, send in (("streamed", probe.client.ask_stream), ("not streamed", probe.client.ask_whole)):
        try:
            answer = await send(CHAT, body, limit_s=limit_s)
        except Refused as refused:
            return _refused(probe, refused)
        fault = _fault(answer)
        if fault:
            return fail(f"{how}: {fault}", "finite logprobs", ("answer", answer.text), remedy=NAN)
    moved = _moved(before, await probe.metrics())
    if moved:
        return fail(f"{CORRUPTED} moved by {moved:.0f}", "0", remedy=NAN)
    if answer.logprobs is None:
        probe.served.extras = False
        return skipped("the server sends no logprobs")
    low = min(answer.finite_logprobs or (0.0,))
    seen = f"{len(answer.logprobs)} logprobs from {low:.3g} to 0, none null; {_counter_words(moved)}"
    return ok(seen, "finite logprobs")


def _refused(probe: Probe, refused: Refused) -> Result:
    if refused.not_a_number:
        return fail(f"HTTP {refused.status}: {refused.message}", "finite logprobs", remedy=NAN)
    if refused.not_offered:
        probe.served.extras = False
        return skipped(f"the server refuses logprobs: {refused}")
    return fail(str(refused), "HTTP 200", remedy="read the engine's log")


def _fault(answer: ChatAnswer) -> str | None:
    if answer.logprobs and None in answer.logprobs:
        first = answer.logprobs.index(None)
        return f"logprob null at token {first + 1} of {len(answer.logprobs)}, answer {quote(answer.text, 40)}"
    if answer.token_ids and len(answer.token_ids) >= 4 and set(answer.token_ids) == {0}:
        return f"token id 0 {len(answer.token_ids)} times, answer {quote(answer.text, 40)}"
    return None


def _moved(before: Metrics | None, after: Metrics | None) -> float | None:
    if before is None or after is None:
        return None
    new, old = after.sum(CORRUPTED), before.sum(CORRUPTED)
    return None if new is None else new - (old or 0.0)


def _counter_words(moved: float | None) -> str:
    if moved is None:
        return "corrupted requests are not counted (VLLM_COMPUTE_NANS_IN_LOGITS=1 counts them)"
    return "no corrupted request counted"


# Perplexity. A different kernel or batch shape changes it by about 1 %; a bad quantisation by 10 % or more.
LIMIT = 1.10
REMEDY = "compare checkpoint, image and KV cache type with those of the baseline"


@check(
    "perplexity",
    stage=CheckStage.SENSE,
    proves=f"fixed texts are no more than {LIMIT - 1:.0%} less likely than in the stored baseline",
    suites=QUICK,
    needs=("numbers",),
    seconds=0.5,
)
async def perplexity(probe: Probe) -> Result:
    for passage in passages():
        try:
            value = await _measure(probe, passage)
        except Refused as refused:
            if refused.not_a_number or not refused.not_offered:
                raise
            return skipped(f"the server refuses prompt_logprobs: {refused}")
        if value is None:
            return skipped("the server returns no prompt_logprobs")
        if not math.isfinite(value):
            return fail(f"{passage.id}: a logprob of the prompt is not a number", "finite logprobs", remedy=REMEDY)
        probe.perplexity[passage.id] = value
    return _judge(probe)


def _judge(probe: Probe) -> Result:
    measured = probe.perplexity
    seen = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
    baseline = probe.options.baseline
    if baseline is None:
        return skipped(f"no baseline stored ({seen} now): store one with --save-baseline while the engine is good")
    shared = [name for name in measured if name in baseline]
    if not shared:
        return skipped("the baseline contains none of these texts")
    worst = max(shared, key=lambda name: measured[name] / baseline[name])
    ratio = measured[worst] / baseline[worst]
    expected = f"at most {LIMIT:.2f} times the baseline"
    seen += f"; {worst} is {ratio:.3f} times its baseline of {baseline[worst]:.3f}"
    return ok(seen, expected) if ratio <= LIMIT else fail(seen, expected, remedy=REMEDY)


async def _measure(probe: Probe, passage: Passage) -> float | None:
    """exp of the mean negative logprob of the passage's tokens after the first; None if the server sends none."""
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
        message = error.get("message") if isinstance(error, dict) else reply.text
        raise Refused(reply.status, one_line(str(message), BRIEF))
    try:
        rows = parsed["choices"][0].get("prompt_logprobs")
        if rows is None:
            return None
        values = [next(iter(row.values()))["logprob"] for row in rows if row]
    except (TypeError, KeyError, IndexError, AttributeError, StopIteration) as error:
        raise RequestFailure(
            FailureKind.NOT_OPENAI, f"prompt_logprobs in an unknown form: {type(error).__name__}"
        ) from error
    if not values or any(not isinstance(value, int | float) for value in values):
        return math.nan
    return math.exp(-sum(values) / len(values)) if min(values) > -1e4 else math.inf
