"""What a guard in front of an engine counts in its own /metrics."""

import math
from dataclasses import dataclass

from glm4_deploy.probe.endpoints import Metrics

ANSWERS = "glm4_guard_answers_total"  # one series per outcome, once there is an answer
UNJUDGED = "glm4_guard_unjudged_total"
STREAMS = "glm4_guard_streams"  # always there
REFUSES = "glm4_guard_refuses"
REFUSED = "glm4_guard_refused_total"
STARTED = "process_start_time_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardCounts:
    """Answers since the guard's start.

    Attributes:
        judged: all that it read to their end.
        sick: of those, the ones that loop or are garbage, whatever was done with them.
        cut: of the sick ones, those that it ended or shortened.
        retried: of the sick ones, those for which it asked once more.
        unjudged: passed on without a verdict; not among `judged`.
        started: epoch seconds; None if it does not say.
        refuses: it refuses new questions now, as the host is short of memory.
        refused: questions that it refused for that.
    """

    judged: float
    sick: float
    cut: float
    retried: float
    unjudged: float
    started: float | None
    refuses: bool = False
    refused: float = 0.0


def guard_counts(metrics: Metrics) -> GuardCounts | None:
    """From its /metrics; None if they are not a guard's, or one of them is not a number."""
    counted = [value for name in (ANSWERS, UNJUDGED) for _, value in metrics.rows.get(name, ())]
    if metrics.sum(STREAMS) is None or not all(map(math.isfinite, counted)):
        return None
    outcomes = metrics.by(ANSWERS, "outcome")
    judged = sum(outcomes.values())
    return GuardCounts(
        judged=judged,
        sick=judged - outcomes.get("sound", 0.0),
        cut=outcomes.get("cut", 0.0),
        retried=outcomes.get("retried", 0.0),
        unjudged=metrics.sum(UNJUDGED) or 0.0,
        started=metrics.sum(STARTED),
        refuses=(metrics.sum(REFUSES) or 0.0) > 0,
        refused=metrics.sum(REFUSED) or 0.0,
    )
