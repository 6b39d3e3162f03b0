"""Whether an engine makes progress: the counters of its core, and the one rule for a hung engine.

An engine is hung if it holds requests and none of its counters moves; /health stays green then. The limits and the
names of the counters are in `plan.engine_rules`, because rendered files use them too.
"""

from dataclasses import dataclass

from glm4_deploy.plan.engine_rules import HELD_REQUESTS, WORK_COUNTERS
from glm4_deploy.probe.endpoints import Metrics

RUNNING, WAITING = HELD_REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the engine core reported last, summed over the engines behind one address.

    Attributes:
        running, waiting: requests now.
        work: each of WORK_COUNTERS since the start, and the share of the KV cache in use; None for one not reported.
        corrupted: requests with NaN logits since the start.
        started: epoch seconds.
    """

    generation_tokens: float
    running: float
    waiting: float
    work: tuple[float | None, ...] = ()
    corrupted: float | None = None
    started: float | None = None

    @property
    def held(self) -> float:
        """Requests in the engine."""
        return self.running + self.waiting

    def moved_since(self, before: "Counters") -> bool:
        """Whether the engine core has done any work.

        Requests that come and go are not work: a client that gives up changes `running` too. Every work counter
        matters, so that a long prefill or a full queue is not mistaken for a hang.
        """
        return (self.generation_tokens, self.work) != (before.generation_tokens, before.work)

    def stuck_since(self, before: "Counters") -> bool:
        """Whether it held requests all the time and did no work; an idle engine may stand still."""
        return bool(self.held and before.held) and not self.moved_since(before)


def counters(metrics: Metrics) -> Counters | None:
    """vLLM's counters (names as in vLLM 0.9 to 0.33); None if the page has none."""
    generated, running = metrics.sum("vllm:generation_tokens_total"), metrics.sum(RUNNING)
    if generated is None or running is None:
        return None
    used = metrics.sum("vllm:kv_cache_usage_perc")
    return Counters(
        generation_tokens=generated,
        running=running,
        waiting=metrics.sum(WAITING) or 0.0,
        work=(
            *(metrics.sum(name) for name in WORK_COUNTERS),
            metrics.sum("vllm:gpu_cache_usage_perc") if used is None else used,
        ),
        corrupted=metrics.sum("vllm:corrupted_requests_total"),
        started=metrics.sum("process_start_time_seconds"),
    )
