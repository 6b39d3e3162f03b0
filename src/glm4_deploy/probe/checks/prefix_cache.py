"""The prefix cache: a warm answer is as good as a cold one, and a bad one is asked again past the cache."""

from glm4_deploy.probe.answer import Answer
from glm4_deploy.probe.checks.loops import fault_of
from glm4_deploy.probe.filler import days
from glm4_deploy.probe.metrics import Metrics
from glm4_deploy.probe.outcome import fail, ok, skipped, warn
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.registry import QUICK, Stage, check
from glm4_deploy.probe.words import parting, quote
from glm4_deploy.result import Result

HITS = "vllm:prefix_cache_hits_total"
INFO = "vllm:cache_config_info"
TOKENS = 48
EXPECTED = "the same answer cold and warm, and hits counted"


@check(
    "prefix-cache",
    stage=Stage.CONTEXT,
    proves="the same prompt twice: the second comes from the prefix cache and says the same",
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
    words = f"cold {quote(cold.text, 40)}, warm {quote(warm.text, 40)}, {_hit_words(hits)}"
    evidence = (("cold", cold.text), ("warm", warm.text))
    if fault_of(probe.samples[-1]) and not fault_of(probe.samples[-2]):
        again = await _ask(probe, _prompt(probe, before) or messages)
        after = f"a new prompt gives {quote(again.text, 40)}"
        remedy = "restart the engine, or run it with --no-enable-prefix-caching: cached blocks are spoilt"
        return fail(f"the warm answer is degenerate: {words}; {after}", EXPECTED, *evidence, remedy=remedy)
    if hits == 0:
        remedy = "look for --no-enable-prefix-caching, or several replicas behind this address"
        return fail(f"no hit counted: {words}", EXPECTED, *evidence, remedy=remedy)
    if cold.text != warm.text:
        return warn(f"{parting(cold.text, warm.text)}; {_hit_words(hits)}", EXPECTED, *evidence)
    return ok(words, EXPECTED)


def _prompt(probe: Probe, metrics: Metrics | None) -> list[dict[str, str]] | None:
    """A prompt of about six cache blocks whose first words no cache has seen."""
    size = metrics.label(INFO, "block_size") if metrics else None
    block = int(size) if size and size.isdigit() else 16
    lines = days(300, max(6, 6 * block // 20))
    text = "\n".join([f"Log number {probe.nonce}.", *lines, "Which ships passed?"])
    # Half a token a byte is far more than any of these lines costs.
    if probe.room is not None and len(text) // 2 + TOKENS > probe.room:
        lines = lines[: max(0, (2 * (probe.room - TOKENS) - 200) // len(lines[0]))]
        text = "\n".join([f"Log number {probe.nonce}.", *lines, "Which ships passed?"])
    return [{"role": "user", "content": text}] if len(text) // 6 > 2 * block else None


async def _ask(probe: Probe, messages: list[dict[str, str]]) -> Answer:
    answer = await probe.ask(messages, TOKENS, stream=False, prompt_tokens=len(messages[0]["content"]) // 2)
    probe.keep(messages[0]["content"], answer)
    return answer


def _hits(before: Metrics | None, after: Metrics | None, warm: Answer) -> float | None:
    """Cached tokens of the warm answer; None where the server does not count them."""
    if before is not None and after is not None and HITS in after.rows:
        return (after.sum(HITS) or 0.0) - (before.sum(HITS) or 0.0)
    return warm.usage.cached if warm.usage else None


def _hit_words(hits: float | None) -> str:
    return "hits not counted by this server" if hits is None else f"{hits:.0f} tokens from the cache"
