"""Loops in long free texts, and answers from the prefix cache."""

from collections.abc import Mapping
from typing import Any

from glm4_deploy.probe.answers import ChatAnswer
from glm4_deploy.probe.endpoints import Metrics
from glm4_deploy.probe.probe import GREEDY, SAMPLED, CanaryPrompt, Probe, family, filler_lines, together
from glm4_deploy.probe.suite import FULL, GATE, QUICK, SOAK, CheckStage, check
from glm4_deploy.report_model import AnswerSample
from glm4_deploy.result import Result, fail, ok, skipped, warn
from glm4_deploy.text import first_difference, quote

# Long free texts, greedy and sampled, in English and Chinese: damage that short questions miss shows here.

LOOP = (
    "do not serve it like this: check the end tokens and the chat template first, then the checkpoint and the NVFP4 "
    "kernel; `glm4-deploy detect --help` explains the finding"
)

BEFORE = 16  # characters quoted of the text before a loop
SHORT = 32  # tokens: the story asked for, of four hundred words, has ten times as many
TOO_SHORT = "the question asks for a story: read the answer; an end token that comes at once is damage too"


@check(
    "loop-greedy",
    stage=CheckStage.LOOPS,
    proves="up to 512 tokens at temperature 0 contain no loop, in English and in Chinese",
    suites=GATE | SOAK,
    seconds=4,
    limit_s=600,
)
async def loop_greedy(probe: Probe) -> Result:
    return await _free_texts(probe, 512, [GREEDY])


@check(
    "loop-sampled",
    stage=CheckStage.LOOPS,
    proves="up to 512 tokens at temperature 0.7 contain no loop and no word salad",
    suites=GATE | SOAK,
    seconds=4,
    limit_s=600,
)
async def loop_sampled(probe: Probe) -> Result:
    return await _free_texts(probe, 512, [{**SAMPLED, "seed": 1}])


@check(
    "loop-long",
    stage=CheckStage.LOOPS,
    proves="1024 tokens without a stop, greedy and with four seeds, contain no loop",
    suites=FULL,
    needs=("loop-greedy",),
    seconds=12,
    limit_s=900,
)
async def loop_long(probe: Probe) -> Result:
    return await _free_texts(probe, 1024, [GREEDY, *({**SAMPLED, "seed": seed} for seed in range(2, 6))])


async def _free_texts(probe: Probe, tokens: int, ways: list[Mapping[str, Any]]) -> Result:
    samples = await together(_free_text(probe, canary, tokens, way) for way in ways for canary in family("long"))
    lengths = [sample.timing.tokens or len(sample.timing.arrivals) for sample in samples if sample.timing]
    bad = [sample for sample in samples if fault_of(sample)]
    expected = f"no loop in up to {tokens} tokens"
    if bad:
        seen = f"{len(bad)} of {len(samples)} texts: {fault_of(bad[0])}{_loop_of(bad[0])}"
        return fail(seen, expected, ("prompt", bad[0].prompt), ("answer", bad[0].answer), remedy=LOOP)
    seen = f"{len(samples)} texts of {min(lengths)} to {max(lengths)} tokens, no loop found"
    if min(lengths) < SHORT:
        shortest = min(samples, key=lambda sample: len(sample.answer))
        evidence = (("prompt", shortest.prompt), ("answer", shortest.answer))
        return warn(
            f"{seen}, one too short to show a loop: {quote(shortest.answer)}",
            expected,
            *evidence,
            remedy=TOO_SHORT,
        )
    return ok(seen, expected)


async def _free_text(probe: Probe, canary: CanaryPrompt, tokens: int, way: Mapping[str, Any]) -> AnswerSample:
    answer = await probe.ask(canary.messages, tokens, extras=True, **way)
    return probe.keep(canary.prompt, answer)


def _loop_of(sample: AnswerSample) -> str:
    """The text at the place where the loop begins, quoted; '' where there is no such place."""
    start = sample.finding.start if sample.finding else None
    return "" if start is None else f": {quote(sample.answer[max(0, start - BEFORE) :])}"


def fault_of(sample: AnswerSample) -> str | None:
    """What is wrong with a text, in the detector's words; None if nothing."""
    if sample.finding is not None and sample.finding.degenerate:
        return f"{sample.finding.verdict}: {sample.finding.why}"
    return None if sample.answer.strip() else f"an empty answer: {quote(sample.answer)}"


# The prefix cache: a warm answer is as good as a cold one; if not, a new prompt shows whether the cache is to blame.

HITS = "vllm:prefix_cache_hits_total"
INFO = "vllm:cache_config_info"
TOKENS = 48
EXPECTED = "the same answer cold and warm, and hits counted"


@check(
    "prefix-cache",
    stage=CheckStage.CONTEXT,
    proves="of the same prompt sent twice, the second is served from the prefix cache with the same answer",
    suites=QUICK,
    needs=("chat", "loop-greedy"),
    seconds=1,
)
async def prefix_cache(probe: Probe) -> Result:
    before = await probe.metrics()
    if before is not None and before.label(INFO, "enable_prefix_caching") == "False":
        return skipped("prefix caching is off")
    messages = _prompt(probe, before)
    if messages is None:
        return skipped(f"the context of {probe.room} tokens is too short for a prompt of several cache blocks")
    cold = await _ask(probe, messages)
    middle = await probe.metrics()
    warm = await _ask(probe, messages)
    hits = _hits(middle, await probe.metrics(), warm)
    seen = f"cold {quote(cold.text, 40)}, warm {quote(warm.text, 40)}, {_hit_words(hits)}"
    evidence = (("cold", cold.text), ("warm", warm.text))
    if fault_of(probe.samples[-1]) and not fault_of(probe.samples[-2]):
        again = await _ask(probe, _prompt(probe, before) or messages)
        after = f"a new prompt gives {quote(again.text, 40)}"
        remedy = "restart the engine, or run it with --no-enable-prefix-caching: cached blocks are corrupt"
        return fail(f"the warm answer is degenerate: {seen}; {after}", EXPECTED, *evidence, remedy=remedy)
    if hits == 0:
        remedy = "look for --no-enable-prefix-caching, or several replicas behind this address"
        return fail(f"no hit counted: {seen}", EXPECTED, *evidence, remedy=remedy)
    if cold.text != warm.text:
        return warn(f"{first_difference(cold.text, warm.text)}; {_hit_words(hits)}", EXPECTED, *evidence)
    return ok(seen, EXPECTED)


def _prompt(probe: Probe, metrics: Metrics | None) -> list[dict[str, str]] | None:
    """A prompt of about six cache blocks that starts with words no cache contains; None if the context is too short."""
    size = metrics.label(INFO, "block_size") if metrics else None
    block = int(size) if size and size.isdigit() else 16
    lines = filler_lines(300, max(6, 6 * block // 20))
    text = "\n".join([f"Log number {probe.nonce}.", *lines, "Which ships passed?"])
    # Half a token per byte is far more than any of these lines costs.
    if probe.room is not None and len(text) // 2 + TOKENS > probe.room:
        lines = lines[: max(0, (2 * (probe.room - TOKENS) - 200) // len(lines[0]))]
        text = "\n".join([f"Log number {probe.nonce}.", *lines, "Which ships passed?"])
    return [{"role": "user", "content": text}] if len(text) // 6 > 2 * block else None


async def _ask(probe: Probe, messages: list[dict[str, str]]) -> ChatAnswer:
    answer = await probe.ask(messages, TOKENS, stream=False, prompt_tokens=len(messages[0]["content"]) // 2)
    probe.keep(messages[0]["content"], answer)
    return answer


def _hits(before: Metrics | None, after: Metrics | None, warm: ChatAnswer) -> float | None:
    """Cached tokens of the warm answer; None if the server does not count them."""
    if before is not None and after is not None and HITS in after.rows:
        return (after.sum(HITS) or 0.0) - (before.sum(HITS) or 0.0)
    return warm.usage.cached if warm.usage else None


def _hit_words(hits: float | None) -> str:
    return "hits not counted by this server" if hits is None else f"{hits:.0f} tokens from the cache"
