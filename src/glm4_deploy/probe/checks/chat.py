"""One question, streamed and not: the shape of the answer, its counts, and the same words both ways."""

from glm4_deploy.probe.answer import Answer
from glm4_deploy.probe.canaries import named
from glm4_deploy.probe.outcome import fail, ok, warn
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.registry import GATE, SOAK, Stage, check
from glm4_deploy.probe.words import parting, quote
from glm4_deploy.result import Result

LONGER = 96  # tokens
LOG = "read the engine's log at this moment; a proxy in front may rewrite answers"


@check(
    "chat",
    stage=Stage.PROTOCOL,
    proves="a chat completion comes back whole: words, a reason to stop, token counts that add up",
    suites=GATE | SOAK,
    needs=("identity",),
    seconds=0.5,
    limit_s=300,
)
async def chat(probe: Probe) -> Result:
    answer = await probe.ask_canary(named("add"), stream=False)
    faults = _faults(probe, answer)
    seen = f"{quote(answer.text)}, {answer.finish_reason}, {_counts(answer)} tokens, {answer.timing.total:.2f} s"
    expected = "words, stop or length, prompt + completion = total"
    if faults:
        return fail(f"{'; '.join(faults)}: {seen}", expected, ("answer", answer.text), remedy=LOG)
    return ok(seen, expected)


@check(
    "stream",
    stage=Stage.PROTOCOL,
    proves="the stream is whole and in order, carries its token counts, comes bit by bit, and says what chat says",
    suites=GATE,
    seconds=0.5,
)
async def stream(probe: Probe) -> Result:
    whole = await probe.ask_canary(named("recall-name"), stream=False)
    answer = await probe.ask_canary(named("recall-name"))
    faults = _faults(probe, answer) + list(answer.oddities)
    first = f"{(answer.timing.ttft or 0) * 1000:.0f} ms"
    seen = f"{len(answer.timing.arrivals)} chunks, first after {first}, {_counts(answer)} tokens"
    expected = "role, content, finish_reason, usage, [DONE]; the same text as not streamed"
    evidence = (("streamed", answer.text), ("not streamed", whole.text))
    if faults:
        return fail(f"{'; '.join(faults)}: {seen}", expected, *evidence, remedy=LOG)
    if answer.text != whole.text:
        return await _differ(probe, answer, whole)
    # Asked again, and longer: a client that was not scheduled for a moment sees the same as one behind a buffer.
    if _buffered(answer) and _buffered(await probe.ask(named("long-en").messages, LONGER)):
        remedy = "turn off response buffering and compression in the proxy (X-Accel-Buffering: no)"
        return warn(f"all {seen} came at once", "chunks as they are made", remedy=remedy)
    return ok(seen, expected)


async def _differ(probe: Probe, answer: Answer, whole: Answer) -> Result:
    """At temperature 0 an engine that is alone says the same thing twice; one with other guests need not."""
    seen = parting(answer.text, whole.text)
    evidence = (("streamed", answer.text), ("not streamed", whole.text))
    metrics = await probe.metrics()
    running = metrics.sum("vllm:num_requests_running") if metrics else None
    if running:
        return warn(f"{seen}, with {running:.0f} other requests running", "the same text both ways", *evidence)
    return fail(seen, "the same text both ways at temperature 0", *evidence, remedy=LOG)


def _faults(probe: Probe, answer: Answer) -> list[str]:
    faults = []
    if not answer.text.strip():
        faults.append("an empty answer")
    if answer.finish_reason not in {"stop", "length"}:
        faults.append(f"finish_reason {answer.finish_reason!r}")
    if answer.role not in {"assistant", None}:
        faults.append(f"role {answer.role!r}")
    if answer.model is not None and answer.model != probe.served.model:
        faults.append(f"answered as model {answer.model[:60]!r}")
    usage = answer.usage
    if usage is None:
        faults.append("no usage")
    elif not usage.adds_up:
        faults.append(f"usage {_counts(answer)} does not add up")
    elif answer.token_ids is not None and usage.completion != len(answer.token_ids):
        faults.append(f"usage counts {usage.completion} tokens, {len(answer.token_ids)} were sent")
    elif usage.completion is not None and not 0 < usage.completion <= max(8, 8 * len(answer.text.encode())):
        faults.append(f"usage counts {usage.completion} tokens for {len(answer.text)} characters")
    return faults


def _counts(answer: Answer) -> str:
    usage = answer.usage
    return f"{usage.prompt} + {usage.completion} = {usage.total}" if usage else "no"


def _buffered(answer: Answer) -> bool:
    """Several chunks, all at the very end: something in between collected them."""
    arrivals = answer.timing.arrivals
    spread = arrivals[-1] - arrivals[0] if arrivals else 0.0
    return len(arrivals) >= 8 and spread < 0.0005 * len(arrivals) and spread < 0.02 * arrivals[-1]
