"""Long prompts: a fact hidden at several depths is found, and long texts stay sound behind a long prompt."""

from collections.abc import Awaitable, Callable

from glm4_deploy.probe.canaries import named
from glm4_deploy.probe.checks.loops import LOOP, fault_of
from glm4_deploy.probe.filler import Scale, days, measure
from glm4_deploy.probe.outcome import fail, ok, skipped, unknown
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.registry import FULL, QUICK, Stage, check
from glm4_deploy.probe.words import quote
from glm4_deploy.result import Result

DEPTHS = (0.1, 0.5, 0.9)
ANSWER = 48  # tokens
MARGIN = 160  # tokens for the question, the template and the scale's error
REMEDY = "check rope scaling and --max-model-len, then the KV cache type (fp8 without scales harms long context first)"


def _needle(tokens: int) -> Callable[[Probe], Awaitable[Result]]:
    async def run(probe: Probe) -> Result:
        if probe.room is None:
            return skipped("the server does not tell its context length: give it with --max-model-len")
        # A server of exactly 4096 tokens is asked for its own 4k.
        if probe.room < tokens:
            return skipped(f"the context is {probe.room} tokens")
        scale = await measure(probe)
        if scale is None:
            return unknown("the server counts no prompt tokens, so the prompt cannot be sized")
        missed = [await _hunt(probe, scale, min(tokens, probe.room - ANSWER - MARGIN), depth) for depth in DEPTHS]
        faults = [fault for fault in missed if fault]
        expected = f"found at {', '.join(f'{depth:.0%}' for depth in DEPTHS)} of {tokens} tokens"
        if faults:
            return fail("; ".join(faults), expected, remedy=REMEDY)
        return ok(f"found {len(DEPTHS)} of {len(DEPTHS)}", expected)

    return run


async def _hunt(probe: Probe, scale: Scale, tokens: int, depth: float) -> str | None:
    """What was said instead of the hidden word; None where it was found."""
    word = f"{int(probe.nonce, 16) % 9_000_000 + 1_000_000}"
    lines = days(0, scale.lines(tokens - MARGIN // 2))
    lines.insert(int(len(lines) * depth), f"The code word of the harbour is {word}.")
    question = "What is the code word of the harbour? Answer with the code word only."
    messages = [{"role": "user", "content": "\n".join([*lines, question])}]
    answer = await probe.ask(messages, ANSWER, prompt_tokens=tokens)
    probe.keep(f"{len(lines)} lines with the code word {word} at {depth:.0%}, then: {question}", answer)
    return None if word in answer.text else f"{quote(answer.text)} instead of {word} at {depth:.0%}"


for _level, _seconds in ((4096, 3), (8192, 4), (16384, 8), (32768, 16)):
    check(
        f"needle-{_level // 1024}k",
        stage=Stage.CONTEXT,
        proves=f"a number hidden in {_level} tokens is found at {len(DEPTHS)} depths",
        suites=QUICK if _level == 4096 else FULL,
        needs=("recall",),
        seconds=_seconds,
        limit_s=900,
    )(_needle(_level))


@check(
    "loop-context",
    stage=Stage.CONTEXT,
    proves="512 tokens written behind a prompt of up to 32k tokens fall into no loop",
    suites=FULL,
    needs=("loop-greedy",),
    seconds=8,
    limit_s=900,
)
async def loop_context(probe: Probe) -> Result:
    room = min(probe.room or 0, 33_000) - 512 - MARGIN
    if room < 3000:
        return skipped(f"the context is {probe.room or 'not told'}: too short for a long prompt and 512 tokens")
    scale = await measure(probe)
    if scale is None:
        return unknown("the server counts no prompt tokens, so the prompt cannot be sized")
    story = named("long-en").prompt
    text = "\n".join([*days(0, scale.lines(room)), "", f"That was the log. Now leave it. {story}"])
    answer = await probe.ask([{"role": "user", "content": text}], 512, prompt_tokens=room + MARGIN, extras=True)
    sample = probe.keep(f"a log of about {room} tokens, then: {story}", answer)
    fault = fault_of(sample)
    if fault:
        return fail(fault, "no loop in 512 tokens", ("answer", answer.text), remedy=LOOP)
    return ok(f"{answer.timing.tokens} tokens behind about {room}, no loop found", "no loop in 512 tokens")
