"""Whether an engine works: the counters of its core, and the one rule by which it hangs.

The sign of a hung engine is that requests are in it and none of its counters moves; /health stays green then. The
numbers and the names of the counters are in `plan.engine_rules`, because rendered files carry them too.
"""

from dataclasses import dataclass

from glm4_deploy.plan.engine_rules import HELD_REQUESTS, WORK_COUNTERS
from glm4_deploy.probe.endpoints import Metrics

RUNNING, WAITING = HELD_REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the engine core reported last, summed over the engines behind one address.

    work: each of WORK_COUNTERS, counted since its start, and the share of its KV cache in use; None: this engine does
    not tell. running, waiting: requests now. corrupted: requests. started: epoch seconds.
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
        """Whether the engine core has done anything. Requests that come and go are no work: a client that gives up
        changes `running`, too. Every counter counts, so that a long prefill or a full queue is not taken for a hang.
        """
        return (self.generation_tokens, self.work) != (before.generation_tokens, before.work)

    def stuck_since(self, before: "Counters") -> bool:
        """Whether it held requests all the while and did nothing: an idle engine may stand still."""
        return bool(self.held and before.held) and not self.moved_since(before)


def counters(metrics: Metrics) -> Counters | None:
    """vLLM's counters; None where they are not there. Names as in vLLM 0.9 to 0.33."""
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
