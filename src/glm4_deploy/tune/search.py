"""Which settings to try next, and which won. Pure: the caller starts, gates and measures them.

A greedy walk, because a start takes minutes: the settings as they are and the plan's are measured first; then each
change is tried once, on top of the best so far, in the order of what it brought in earlier runs on this card (before
that, of what is expected of it). A change stays only if it gains more than the noise.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from glm4_deploy.report_model import BenchLevel
from glm4_deploy.tune.space import Move, TuneLoad

NOISE = 0.03  # the same settings, started twice on one H200, differed by up to 2.3 % (docs/lab/gpu.md)
PATIENCE = 1.3  # a candidate that needs this much longer than the best for the same requests has lost
CONFIGURED, PLANNED = "as configured", "the plan for this load"


class Outcome(StrEnum):
    """MEASURED: it passed its gate and the whole load was sent. SLOWER: cut off, it had lost already.

    FAILED: it did not start, or did not pass its gate. REFUSED: the plan says that it cannot start; none was tried.
    """

    MEASURED = "measured"
    SLOWER = "slower"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What to start next. settings: all changes against the settings as configured. move: the last of them."""

    label: str
    settings: Mapping[str, Any]
    move: Move | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An attempt and what came of it.

    level: None unless the load was sent whole. seconds: of everything, from the start on.
    gain: against the best before it, as a share; None where there was none or nothing was measured.
    """

    label: str
    settings: Mapping[str, Any]
    outcome: Outcome
    level: BenchLevel | None = None
    reason: str = ""
    seconds: float = 0.0
    axis: str = ""
    value: str = ""
    gain: float | None = None

    @property
    def rate(self) -> float:
        """Output tokens per second; 0 if nothing was measured."""
        return self.level.output_tokens_per_s if self.level else 0.0

    @property
    def keeps_limits(self) -> bool:
        return self.level is not None and not self.level.broken


class Search:
    """The search: call `next`, then `add` its result, until `next` is None."""

    def __init__(
        self,
        load: TuneLoad,
        moves: Iterable[Move],
        planned: Mapping[str, Any] | None,
        history: Mapping[tuple[str, str], float],
        configured: Mapping[str, Any],
    ) -> None:
        """
        Args:
            planned: what the plan would set for the load; None if it is what is configured.
            configured: the current settings, with the engine's own choices; a value equal to them is not a change.
            history: (axis, value) → the gain seen in earlier runs on this card with this vLLM.
        """
        self._load = load
        self._history = history
        self._configured = configured
        self._moves = sorted(moves, key=self._expected, reverse=True)
        self._starts = [Attempt(label=CONFIGURED, settings={})]
        if planned:
            self._starts.append(Attempt(label=PLANNED, settings=planned))
        self.trials: list[Trial] = []

    def _expected(self, move: Move) -> float:
        return self._history.get((move.axis, move.value), move.prior)

    def next(self) -> Attempt | None:
        """The next attempt that was not made yet; None when all were made."""
        if self._starts:
            return self._starts.pop(0)
        best = self.best
        base = best.settings if best else {}
        while self._moves:
            move = self._moves.pop(0)
            settings = merged(base, move.settings)
            if all(self._differ(settings, trial.settings) for trial in self.trials):
                return Attempt(label=describe(settings), settings=settings, move=move)
        return None

    def _differ(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        return merged(self._configured, one) != merged(self._configured, other)

    def add(self, attempt: Attempt, trial: Trial) -> Trial:
        """Take the outcome; returns it with its gain."""
        before = self.best
        gain = None
        if attempt.move is not None and before is not None and trial.level is not None:
            gain = trial.rate / before.rate - 1
        elif trial.outcome is Outcome.SLOWER:
            gain = 1 / PATIENCE - 1
        if attempt.move is not None:
            trial = replace(trial, axis=attempt.move.axis, value=attempt.move.value, gain=gain)
        self.trials.append(trial)
        return trial

    @property
    def best(self) -> Trial | None:
        """The trial to build on: first what keeps the limits, then the rate, where an earlier one wins a draw."""
        best: Trial | None = None
        for trial in self.trials:
            if trial.level is None or trial.level.failed:
                continue
            if best is None or _beats(trial, best):
                best = trial
        return best

    @property
    def winner(self) -> Trial | None:
        """The best that keeps every limit; None if none does."""
        return self.best if self.best is not None and self.best.keeps_limits else None


def _beats(trial: Trial, best: Trial) -> bool:
    if trial.keeps_limits != best.keeps_limits:
        return trial.keeps_limits
    return trial.rate > best.rate * (1 + NOISE)


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Both changes, the second on top; their `args` are merged."""
    args = {**base.get("args", {}), **more.get("args", {})}
    return {**base, **more, **({"args": args} if args else {})}


def describe(settings: Mapping[str, Any]) -> str:
    """`max_num_seqs 128, performance-mode throughput`."""
    flat = {**{name: value for name, value in settings.items() if name != "args"}, **settings.get("args", {})}
    return ", ".join(name if value is None else f"{name} {value}" for name, value in flat.items())


def front(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The Pareto front: no other trial has more tokens/s and a shorter TTFT and TPOT (p50)."""
    measured = [trial for trial in trials if trial.level is not None and not trial.level.failed]
    return tuple(one for one in measured if not any(_dominates(other, one) for other in measured))


def _dominates(other: Trial, one: Trial) -> bool:
    if other.level is None or one.level is None:
        return False
    pairs = (
        (other.level.output_tokens_per_s, one.level.output_tokens_per_s),
        (-other.level.ttft.p50, -one.level.ttft.p50),
        (-other.level.tpot.p50, -one.level.tpot.p50),
    )
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def learned(trials: Iterable[Trial]) -> dict[tuple[str, str], float]:
    """(axis, value) → the mean gain of earlier trials, on a log scale; those without a gain teach nothing."""
    gains: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        if trial.axis and trial.gain is not None and trial.gain > -1:
            gains.setdefault((trial.axis, trial.value), []).append(math.log1p(trial.gain))
    return {key: math.expm1(sum(values) / len(values)) for key, values in gains.items()}
