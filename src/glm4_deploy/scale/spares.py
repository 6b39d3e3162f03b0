"""How many engines more, so that enough are up: failures that are independent, and a time to replace."""

import math
from dataclasses import dataclass

HOURS_A_YEAR = 8766.0
MOST_SPARES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spares:
    """engines: how many beside those that are needed; None: more than MOST_SPARES."""

    failures_per_gpu_year: float
    repair_hours: float
    availability: float
    engines: int | None


def down_share(failures_a_year: float, repair_hours: float, gpus_each: int = 1) -> float:
    """Share of the time that an engine of `gpus_each` GPUs is down, each GPU failing so often and taking so long."""
    up = 1 / (1 + failures_a_year * repair_hours / HOURS_A_YEAR)
    return float(1 - up**gpus_each)


def spares(needed: int, down: float, availability: float) -> int | None:
    """The least number of engines beside `needed` with which at least `needed` are up that share of the time.

    None: not even MOST_SPARES do.
    """
    for more in range(MOST_SPARES + 1):
        if at_most(more, needed + more, down) >= availability:
            return more
    return None


def at_most(failed: int, engines: int, down: float) -> float:
    """Probability that no more than `failed` of `engines` are down at once (binomial)."""
    if down <= 0:
        return 1.0
    total = 0.0
    for count in range(failed + 1):
        ways = math.lgamma(engines + 1) - math.lgamma(count + 1) - math.lgamma(engines - count + 1)
        total += math.exp(ways + count * math.log(down) + (engines - count) * math.log1p(-down))
    return total
