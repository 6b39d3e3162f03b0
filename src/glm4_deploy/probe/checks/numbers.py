"""NaN logits look healthy from outside: only token ids, logprobs and one counter show them."""

from glm4_deploy.probe.answer import Answer
from glm4_deploy.probe.canaries import named
from glm4_deploy.probe.metrics import Metrics
from glm4_deploy.probe.outcome import fail, ok, skipped
from glm4_deploy.probe.probe import CHAT, EXTRAS, Probe
from glm4_deploy.probe.registry import GATE, SOAK, Stage, check
from glm4_deploy.probe.trouble import Refused
from glm4_deploy.probe.words import quote
from glm4_deploy.result import Result

COUNTER = "vllm:corrupted_requests_total"
NAN = (
    "the engine computes NaN: do not serve it. Verify the checkpoint (`glm4-deploy checkpoint verify`), then try "
    "another NVFP4 kernel or a newer image"
)
TOKENS = 64


@check(
    "numbers",
    stage=Stage.PROTOCOL,
    proves="the model computes numbers, not NaN: logprobs are finite, streamed and not, and no corruption is counted",
    suites=GATE | SOAK,
    needs=("identity",),
    seconds=1,
)
async def numbers(probe: Probe) -> Result:
    before = await probe.metrics()
    body = {"model": probe.served.model, "messages": list(named("long-en").messages), "temperature": 0, **EXTRAS}
    body["max_tokens"] = probe.fit(named("long-en").messages, TOKENS)
    limit_s = probe.target.timeout_s * 1.5
    # The stream is judged first: it shows the null and the text, where the whole answer is only refused.
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
        return fail(f"{COUNTER} moved by {moved:.0f}", "0", remedy=NAN)
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


def _fault(answer: Answer) -> str | None:
    if answer.logprobs and None in answer.logprobs:
        first = answer.logprobs.index(None)
        return f"logprob null at token {first + 1} of {len(answer.logprobs)}, answer {quote(answer.text, 40)}"
    if answer.token_ids and len(answer.token_ids) >= 4 and set(answer.token_ids) == {0}:
        return f"token id 0 {len(answer.token_ids)} times, answer {quote(answer.text, 40)}"
    return None


def _moved(before: Metrics | None, after: Metrics | None) -> float | None:
    if before is None or after is None:
        return None
    new, old = after.sum(COUNTER), before.sum(COUNTER)
    return None if new is None else new - (old or 0.0)


def _counter_words(moved: float | None) -> str:
    if moved is None:
        return "corruption is not counted (VLLM_COMPUTE_NANS_IN_LOGITS=1 counts it)"
    return "no corrupted request counted"
