"""The engine's own counters move by what was asked: they are what a later watch relies on."""

from glm4_deploy.probe.canaries import named
from glm4_deploy.probe.metrics import Metrics
from glm4_deploy.probe.outcome import fail, ok, skipped, warn
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.registry import QUICK, SOAK, Stage, check
from glm4_deploy.result import Result

SUCCESS = "vllm:request_success_total"
TOKENS = "vllm:generation_tokens_total"
CUT = 4
EXPECTED = f"1 more length, {CUT} more tokens"


@check(
    "metrics",
    stage=Stage.PROTOCOL,
    proves="/metrics counts what was asked: finished requests by reason, and generated tokens",
    suites=QUICK | SOAK,
    seconds=0.5,
)
async def metrics(probe: Probe) -> Result:
    before = await probe.metrics()
    if before is None or SUCCESS not in before.rows:
        return skipped("the server has no /metrics with vLLM's counters")
    answer = await probe.ask(named("long-en").messages, CUT)
    after = await probe.metrics()
    if after is None:
        return fail("/metrics answered before the question and not after it", "counters", remedy="read the log")
    reason = answer.finish_reason or "length"
    finished = _delta(before, after, SUCCESS, finished_reason=reason)
    tokens = _delta(before, after, TOKENS)
    seen = f"{finished:.0f} more {reason}, {tokens:.0f} more tokens; {_state(after)}"
    sent = answer.timing.tokens or CUT
    if finished < 1 or tokens < sent:
        remedy = "another process may answer /metrics (several API servers, a proxy): scrape each"
        return fail(seen, EXPECTED, remedy=remedy)
    if finished > 1:
        return warn(f"{seen}; others use this engine now", EXPECTED)
    return ok(seen, EXPECTED)


def _delta(before: Metrics, after: Metrics, name: str, **labels: str) -> float:
    return (after.sum(name, **labels) or 0.0) - (before.sum(name, **labels) or 0.0)


def _state(metrics: Metrics) -> str:
    preempted = metrics.sum("vllm:num_preemptions_total") or 0.0
    used = metrics.sum("vllm:kv_cache_usage_perc") or 0.0
    return f"{preempted:.0f} preemptions since its start, KV cache {used * 100:.0f} % used"
