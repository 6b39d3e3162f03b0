"""Long prompts, and the limits on prompts and answers."""

from collections.abc import Awaitable, Callable

from glm4_deploy.probe.answers import Refused
from glm4_deploy.probe.checks.loops import LOOP, fault_of
from glm4_deploy.probe.probe import CHAT, LineCost, Probe, filler_lines, measure_line_cost, named
from glm4_deploy.probe.suite import FULL, NOT_KNOWN, QUICK, CheckStage, check
from glm4_deploy.result import Result, Status, fail, ok, skipped, unknown, warn
from glm4_deploy.text import one_line, quote

# A fact hidden at several depths of a long prompt is found, and long answers to long prompts stay sound.

DEPTHS = (0.1, 0.5, 0.9)
AGAIN = 3  # further words at a depth where the first is not found
ANSWER = 48  # tokens
MARGIN = 160  # tokens for the question, the template and the error of the line cost
NO_LENGTH = "the server does not report its context length: give it with --max-model-len"
REMEDY = "check rope scaling and --max-model-len, then the KV cache type (fp8 without scales harms long context first)"


def _needle(tokens: int) -> Callable[[Probe], Awaitable[Result]]:
    async def run(probe: Probe) -> Result:
        if probe.room is None:
            return skipped(NO_LENGTH)
        # A server with exactly 4096 tokens is asked about its own 4k.
        if probe.room < tokens:
            return skipped(f"the context is {probe.room} tokens")
        cost = await measure_line_cost(probe)
        if cost is None:
            return unknown("the server counts no prompt tokens, so the prompt cannot be sized")
        expected = f"found at {', '.join(f'{depth:.0%}' for depth in DEPTHS)} of {tokens} tokens"
        slips: list[str] = []
        faults: list[str] = []
        for depth in DEPTHS:
            missed = await _misses(probe, cost, min(tokens, probe.room - ANSWER - MARGIN), depth)
            (slips if len(missed) == 1 else faults).extend(missed)
        if faults:
            return fail("; ".join([*faults, *slips]), expected, remedy=REMEDY)
        found = f"found {len(DEPTHS)} of {len(DEPTHS)}"
        return ok("; ".join([found, *(f"{slip}, then right {AGAIN} times" for slip in slips)]), expected)

    return run


async def _misses(probe: Probe, cost: LineCost, tokens: int, depth: float) -> list[str]:
    """What was answered instead of the hidden words at one depth: none if the first is found, one if only that is lost.

    A healthy small model miscopies a digit now and then. A model that has lost its context loses other words there too.
    """
    first = await _find_needle(probe, cost, tokens, depth)
    if first is None:
        return []
    again = [await _find_needle(probe, cost, tokens, depth) for _ in range(AGAIN)]
    return [first, *(fault for fault in again if fault)]


async def _find_needle(probe: Probe, cost: LineCost, tokens: int, depth: float) -> str | None:
    """The answer given instead of the hidden word; None if the word was found."""
    word = f"{int(probe.nonce, 16) % 9_000_000 + 1_000_000}"
    lines = filler_lines(0, cost.lines(tokens - MARGIN // 2))
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
    proves="512 tokens after a prompt of up to 32k tokens contain no loop",
    suites=FULL,
    needs=("loop-greedy",),
    seconds=8,
    limit_s=900,
)
async def loop_context(probe: Probe) -> Result:
    room = min(probe.room or 0, 33_000) - 512 - MARGIN
    if room < 3000:
        return skipped(f"the context is {probe.room or NOT_KNOWN}: too short for a long prompt and 512 tokens")
    cost = await measure_line_cost(probe)
    if cost is None:
        return unknown("the server counts no prompt tokens, so the prompt cannot be sized")
    story = named("long-en").prompt
    text = "\n".join([*filler_lines(0, cost.lines(room)), "", f"That was the log. Now leave it. {story}"])
    answer = await probe.ask([{"role": "user", "content": text}], 512, prompt_tokens=room + MARGIN, extras=True)
    sample = probe.keep(f"a log of about {room} tokens, then: {story}", answer)
    problem = fault_of(sample)
    if problem:
        return fail(problem, "no loop in 512 tokens", ("answer", answer.text), remedy=LOOP)
    return ok(f"{answer.timing.tokens} tokens after about {room}, no loop found", "no loop in 512 tokens")


# Limits: max_tokens is obeyed, and what is too long is refused with a 400.

CUT = 8


@check(
    "max-tokens",
    stage=CheckStage.PROTOCOL,
    proves="an answer that reaches max_tokens ends there with finish_reason `length`",
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
    proves="a prompt longer than the context is refused with HTTP 400, not silently truncated",
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
    if result.status is Status.WARN:  # llama.cpp, Ollama: generation just ends at the end of the context
        return skipped("this server accepts any max_tokens and stops at the end of its context")
    return result


async def _refused(probe: Probe, messages: list[dict[str, str]], tokens: int, what: str) -> Result:
    body = {"model": probe.served.model, "messages": messages, "max_tokens": tokens, "temperature": 0}
    try:
        answer = await probe.client.ask_whole(CHAT, body, limit_s=probe.target.timeout_s)
    except Refused as refused:
        seen = f"HTTP {refused.status}: {one_line(refused.message, 100)}"
        return ok(seen, "HTTP 400") if refused.status in {400, 413, 422} else fail(seen, "HTTP 400")
    seen = f"{what} was accepted: an answer of {answer.timing.tokens} tokens"
    if probe.served.is_vllm:
        return fail(seen, "HTTP 400", remedy="look for a proxy that silently truncates prompts or lowers limits")
    return warn(f"{seen}; this server truncates silently", "HTTP 400")
