"""The second witness of a hang: what the GPU draws while no token comes.

A GPU's utilization says that a kernel is resident, not that it gets anywhere: a deadlocked engine on a GB10 shows 95 %
at 13 to 27 W, where it draws 45 W and more when it generates; a long prefill, which makes no token either, draws what
work draws (eugr/spark-vllm-docker#260, AEON-7/Qwen3.6-27B-AEON-Ultimate-Uncensored-DFlash#10). What is not reported is
unknown: then the counters alone decide.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from glm4_deploy.host.gpu_health import GpuHealth

LOOK_S = 10.0  # between two readings of the GPU
WORKED_S = 15.0  # a reading this soon after tokens is one of work
FRESH_S = 45.0  # an older reading says nothing
IDLE = 5.0  # percent
REST = 0.65  # of what it draws at work: 27 of 45 W is a deadlock
LOW, HIGH = 0.25, 0.5  # of its limit, while it is not known what it draws at work
LEARNT, KEPT = 3, 30  # readings at work


class Opinion(StrEnum):
    """What the GPU says about a hang that the counters show."""

    CONFIRMS = "confirms"
    DENIES = "denies"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Witness:
    """Learns what the GPU draws at work. Pure: readings and times (monotonic seconds) are arguments."""

    _last: GpuHealth | None = None
    _read_at: float = float("-inf")
    _worked_at: float = float("-inf")
    _several: bool = False
    _work: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def worked(self, at: float) -> None:
        """The engine generated tokens."""
        self._worked_at = at

    def saw(self, gpus: tuple[GpuHealth, ...], at: float) -> None:
        """A reading of the GPUs."""
        self._several, self._read_at = len(gpus) > 1, at
        self._last = gpus[0] if len(gpus) == 1 else None
        busy = self._last is not None and (self._last.utilization or 0) > IDLE
        if self._last is not None and self._last.power_w is not None and busy and at - self._worked_at <= WORKED_S:
            self._work.append(self._last.power_w)

    def opinion(self, at: float) -> tuple[Opinion, str]:
        """What the latest reading says, with its figures."""
        if self._several:
            return Opinion.UNKNOWN, "there are several GPUs, and which of them it uses is not known"
        if self._last is None or at - self._read_at > FRESH_S:
            return Opinion.UNKNOWN, "what the GPU does is not known here"
        power, use, limit = self._last.power_w, self._last.utilization, self._last.power_limit_w
        shown = f"{_or_unknown(use)} % busy at {_or_unknown(power)} W"
        if use is not None and use <= IDLE:
            return Opinion.CONFIRMS, f"the GPU does nothing ({shown})"
        if power is None:
            return Opinion.UNKNOWN, f"the GPU's power is not known ({shown})"
        if len(self._work) >= LEARNT:
            work = median(self._work)
            if power < REST * work:
                return Opinion.CONFIRMS, f"the GPU spins: {shown}, where work draws {work:.0f} W"
            return Opinion.DENIES, f"the GPU works: {shown} ({work:.0f} W when tokens came)"
        if limit and power < LOW * limit:
            return Opinion.CONFIRMS, f"the GPU spins: {shown} of at most {limit:.0f} W"
        if limit and power > HIGH * limit:
            return Opinion.DENIES, f"the GPU works: {shown} of at most {limit:.0f} W"
        return Opinion.UNKNOWN, f"the GPU is {shown}, and what it draws at work is not known yet"


def _or_unknown(figure: float | None) -> str:
    return "unknown" if figure is None else f"{figure:.0f}"
