"""What is too long is refused with a clear 400, and max_tokens is obeyed."""

from collections.abc import Awaitable, Callable

from glm4_deploy.probe.checks.loops import LOOP, fault_of
from glm4_deploy.probe.client import Refused
from glm4_deploy.probe.probe import CHAT, Probe, Scale, days, measure, named
from glm4_deploy.probe.suite import FULL, QUICK, CheckStage, check
from glm4_deploy.result import Result, Status, fail, ok, skipped, unknown, warn
from glm4_deploy.text import one_line, quote

# Long prompts: a fact hidden at several depths is found, and long texts stay sound behind a long prompt.

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
        stage=CheckStage.CONTEXT,
        proves=f"a number hidden in {_level} tokens is found at {len(DEPTHS)} depths",
        suites=QUICK if _level == 4096 else FULL,
        needs=("recall",),
        seconds=_seconds,
        limit_s=900,
    )(_needle(_level))


@check(
    "loop-context",
    stage=CheckStage.CONTEXT,
    proves="512 tokens written behind a prompt of up to 32k tokens fall into no loop",
    suites=FULL,
    needs=("loop-greedy",),
    seconds=8,
    limit_s=900,
)
async def loop_context(probe: Probe) -> Result:
    room = min(probe.room or 0, 33_000) - 512 - MARGIN
    if room < 3000:
        return skipped(f"the context is {probe.room or 'unknown'}: too short for a long prompt and 512 tokens")
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


CUT = 8
NO_LENGTH = "the server does not tell its context length: give it with --max-model-len"


@check(
    "max-tokens",
    stage=CheckStage.PROTOCOL,
    proves="an answer that reaches max_tokens ends there and says `length`",
    suites=QUICK,
    seconds=0.5,
)
async def max_tokens(probe: Probe) -> Result:
    answer = await probe.ask(named("long-en").messages, CUT, extras=True)
    tokens = answer.timing.tokens
    seen = f"{tokens} tokens, finish_reason {answer.finish_reason}"
    expected = f"{CUT} tokens, finish_reason length"
    if answer.finish_reason == "length" and tokens == CUT:
        return ok(seen, expected)
    if answer.finish_reason == "stop" and tokens is not None and tokens < CUT:
        return warn(f"{seen}: a story of {tokens} tokens", expected, ("answer", answer.text))
    return fail(seen, expected, ("answer", answer.text), remedy="look for a proxy that changes max_tokens")


@check(
    "overflow",
    stage=CheckStage.PROTOCOL,
    proves="a prompt longer than the context is refused with HTTP 400, not cut in silence",
    suites=QUICK,
    seconds=0.5,
)
async def overflow(probe: Probe) -> Result:
    if probe.room is None:
        return skipped(NO_LENGTH)
    # Each of these words is at least one token in any vocabulary.
    words = "".join(f" {number % 10}" for number in range(probe.room + 16))
    return await _refused(probe, [{"role": "user", "content": words}], 1, f"a prompt of more than {probe.room} tokens")


@check(
    "max-tokens-limit",
    stage=CheckStage.PROTOCOL,
    proves="max_tokens beyond the context is refused with HTTP 400",
    suites=QUICK,
    seconds=0.1,
)
async def max_tokens_limit(probe: Probe) -> Result:
    if probe.room is None:
        return skipped(NO_LENGTH)
    result = await _refused(probe, list(named("add").messages), probe.room + 1, f"max_tokens {probe.room + 1}")
    if result.status is Status.WARN:  # llama.cpp, Ollama: generation merely ends where the context does
        return skipped("this server takes any max_tokens and ends where its context does")
    return result


async def _refused(probe: Probe, messages: list[dict[str, str]], tokens: int, what: str) -> Result:
    body = {"model": probe.served.model, "messages": messages, "max_tokens": tokens, "temperature": 0}
    try:
        answer = await probe.client.ask_whole(CHAT, body, limit_s=probe.target.timeout_s)
    except Refused as refused:
        seen = f"HTTP {refused.status}: {one_line(refused.message, 100)}"
        return ok(seen, "HTTP 400") if refused.status in {400, 413, 422} else fail(seen, "HTTP 400")
    seen = f"{what} was taken: {answer.timing.tokens} tokens of answer"
    if probe.served.is_vllm:
        return fail(seen, "HTTP 400", remedy="look for a proxy that cuts prompts or limits in silence")
    return warn(f"{seen}; this server cuts in silence", "HTTP 400")
