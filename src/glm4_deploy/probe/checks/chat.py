"""The chat protocol: complete answers, streamed and not, that end where they should and leak no template token."""

import re

from glm4_deploy.probe.answers import ChatAnswer, Refused
from glm4_deploy.probe.probe import CanaryPrompt, Probe, family, named
from glm4_deploy.probe.suite import GATE, QUICK, SOAK, CheckStage, check
from glm4_deploy.result import Result, fail, ok, skipped, warn
from glm4_deploy.text import first_difference, quote

# One question, streamed and not: the shape of the answer, its token counts, and the same text both ways.

LONGER = 96  # tokens
READ_LOG = "read the engine's log at this moment; a proxy in front may rewrite answers"


@check(
    "chat",
    stage=CheckStage.PROTOCOL,
    proves="a chat completion is complete: text, a finish reason, token counts that add up",
    suites=GATE | SOAK,
    needs=("identity",),
    seconds=0.5,
    limit_s=300,
)
async def chat(probe: Probe) -> Result:
    answer = await probe.ask_canary(named("add"), stream=False)
    faults = _faults(probe, answer)
    seen = f"{quote(answer.text)}, {answer.finish_reason}, {_counts(answer)} tokens, {answer.timing.total:.2f} s"
    expected = "text, stop or length, prompt + completion = total"
    if faults:
        return fail(f"{'; '.join(faults)}: {seen}", expected, ("answer", answer.text), remedy=READ_LOG)
    return ok(seen, expected)


@check(
    "stream",
    stage=CheckStage.PROTOCOL,
    proves="a stream is complete and in order, has token counts, arrives bit by bit, and matches the plain answer",
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
        return fail(f"{'; '.join(faults)}: {seen}", expected, *evidence, remedy=READ_LOG)
    if answer.text != whole.text:
        return await _differ(probe, answer, whole)
    # Ask again, and for more: a client that was not scheduled for a moment sees the same as one behind a buffer.
    if _buffered(answer) and _buffered(await probe.ask(named("long-en").messages, LONGER)):
        remedy = "turn off response buffering and compression in the proxy (X-Accel-Buffering: no)"
        return warn(f"all {seen} came at once", "chunks as they are generated", remedy=remedy)
    return ok(seen, expected)


async def _differ(probe: Probe, answer: ChatAnswer, whole: ChatAnswer) -> Result:
    """At temperature 0 an idle engine repeats itself exactly; one with other requests need not."""
    seen = first_difference(answer.text, whole.text)
    evidence = (("streamed", answer.text), ("not streamed", whole.text))
    metrics = await probe.metrics()
    running = metrics.sum("vllm:num_requests_running") if metrics else None
    if running:
        return warn(f"{seen}, with {running:.0f} other requests running", "the same text both ways", *evidence)
    return fail(seen, "the same text both ways at temperature 0", *evidence, remedy=READ_LOG)


def _faults(probe: Probe, answer: ChatAnswer) -> list[str]:
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


def _counts(answer: ChatAnswer) -> str:
    usage = answer.usage
    return f"{usage.prompt} + {usage.completion} = {usage.total}" if usage else "no"


def _buffered(answer: ChatAnswer) -> bool:
    """Whether several chunks arrived all at the very end: something in between buffered them."""
    arrivals = answer.timing.arrivals
    spread = arrivals[-1] - arrivals[0] if arrivals else 0.0
    return len(arrivals) >= 8 and spread < 0.0005 * len(arrivals) and spread < 0.02 * arrivals[-1]


# Where an answer ends. GLM-4's template tokens first, then those of other model families, for other servers.
SPECIAL = re.compile(
    r"<\|(?:endoftext|user|assistant|system|observation|im_start|im_end|eot_id|end|begin_of_text)\|>"
    r"|\[gMASK\]|\[sMASK\]|<sop>|<eop>|</s>"
)
MAX_TOKENS = 256  # far more than a one-word answer needs
EOS = (
    "the engine does not know the model's end tokens: eos_token_id in generation_config.json must be "
    "[151329, 151336, 151338] for GLM-4; `glm4-deploy checkpoint` checks and repairs it"
)

WRONG_TOO = "the answer is wrong too: see `numbers` and `arithmetic` first, then the end tokens (eos_token_id)"


@check(
    "stops",
    stage=CheckStage.PROTOCOL,
    proves="short answers end by themselves; no `<|user|>` or other template token leaks or is run past",
    suites=QUICK | SOAK,
    seconds=1,
)
async def stops(probe: Probe) -> Result:
    for canary in (named("add"), *family("language")):
        answer = await probe.ask(canary.messages, MAX_TOKENS, extras=True)
        probe.keep(canary.prompt, answer)
        leak = SPECIAL.search(answer.text)
        if leak:
            seen = f"{leak[0]} in the answer to {canary.id}: {quote(answer.text)}"
            return fail(seen, "no template token in any answer", ("answer", answer.text), remedy=EOS)
        if answer.finish_reason != "stop":
            seen = f"{canary.id}: {answer.timing.tokens} tokens, then {answer.finish_reason}: {quote(answer.text)}"
            # A right answer that goes on is what missing end tokens look like ("42", then "6 乘以 …").
            remedy = EOS if _begins_right(canary, answer.text) else WRONG_TOO
            return fail(seen, "a short answer that ends by itself", ("answer", answer.text), remedy=remedy)
    return await _run_past(probe)


def _begins_right(canary: CanaryPrompt, text: str) -> bool:
    head = text[:40].casefold()
    return any(want.casefold() in head for want in canary.contains)


async def _run_past(probe: Probe) -> Result:
    """With special tokens shown, an end token amid the answer proves that the engine ran past it."""
    done = ok("3 short answers ended by themselves, no template token in them", "finish_reason stop")
    if not probe.served.is_vllm:
        return done
    canary = named("add")
    try:
        raw = await probe.ask(canary.messages, MAX_TOKENS, skip_special_tokens=False)
    except Refused:
        return done
    leak = SPECIAL.search(raw.text)
    if leak is None:
        return done
    return fail(
        f"the engine ran past {leak[0]}: {quote(raw.text)}",
        "the answer ends at the first end token",
        ("answer", raw.text),
        remedy=EOS,
    )


@check(
    "stop-strings",
    stage=CheckStage.PROTOCOL,
    proves="the `stop` field ends an answer before the given string",
    suites=QUICK,
    seconds=0.5,
)
async def stop_strings(probe: Probe) -> Result:
    canary = named("count-160")
    plain = await probe.ask(canary.messages, 32)
    if "," not in plain.text:
        return skipped(f"the answer to the counting question has no comma to stop at: {quote(plain.text)}")
    answer = await probe.ask(canary.messages, 32, stop=[","])
    expected = f"{quote(plain.text.split(',')[0])}, finish_reason stop"
    seen = f"{quote(answer.text)}, finish_reason {answer.finish_reason}"
    if answer.text == plain.text.split(",")[0] and answer.finish_reason == "stop":
        return ok(seen, expected)
    return fail(seen, expected, remedy="look for a proxy that drops the field `stop`")
