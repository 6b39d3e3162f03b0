"""What is too long is refused with a clear 400, and max_tokens is obeyed."""

from glm4_deploy.probe.canaries import named
from glm4_deploy.probe.outcome import fail, ok, skipped, warn
from glm4_deploy.probe.probe import CHAT, Probe
from glm4_deploy.probe.registry import QUICK, Stage, check
from glm4_deploy.probe.trouble import Refused
from glm4_deploy.probe.words import shorten
from glm4_deploy.result import Result, Status

CUT = 8
NO_LENGTH = "the server does not tell its context length: give it with --max-model-len"


@check(
    "max-tokens",
    stage=Stage.PROTOCOL,
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
    stage=Stage.PROTOCOL,
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
    stage=Stage.PROTOCOL,
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
        seen = f"HTTP {refused.status}: {shorten(refused.message, 100)}"
        return ok(seen, "HTTP 400") if refused.status in {400, 413, 422} else fail(seen, "HTTP 400")
    seen = f"{what} was taken: {answer.timing.tokens} tokens of answer"
    if probe.served.is_vllm:
        return fail(seen, "HTTP 400", remedy="look for a proxy that cuts prompts or limits in silence")
    return warn(f"{seen}; this server cuts in silence", "HTTP 400")
