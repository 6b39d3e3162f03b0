"""Samples → what state the engine is in. Pure: time comes with each sample, nothing is asked for here.

What counts as movement is in `probe.progress`; here it is what is seen over time, and how often before it is believed.
"""

from dataclasses import dataclass
from enum import StrEnum

from glm4_deploy.plan.engine_rules import STALL_SECONDS
from glm4_deploy.probe.progress import Counters
from glm4_deploy.result import Result, fail, ok, unknown


class State(StrEnum):
    """What the engine is doing. UNKNOWN: it could not be judged (starting, or its counters cannot be read)."""

    OK = "ok"
    BUSY = "busy"
    HUNG = "hung"
    BABBLING = "babbling"
    UNREACHABLE = "unreachable"
    WRONG_ENGINE = "wrong-engine"
    UNKNOWN = "unknown"

    @property
    def good(self) -> bool:
        return self in (State.OK, State.BUSY)


class Look(StrEnum):
    """How /metrics was answered. SILENT: a connection and no answer. STRANGE: an answer without vLLM's counters."""

    ANSWERED = "answered"
    SILENT = "silent"
    REFUSED = "refused"
    WRONG = "wrong"
    STRANGE = "strange"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSample:
    """One look. at: monotonic seconds. why: what was seen, where it was not answered.
    model: what is served, where it is known. waited: seconds that the question waited for an answer in vain.
    epoch: the same moment by the clock that `Counters.started` is of.
    """

    at: float
    look: Look
    counters: Counters | None = None
    why: str = ""
    model: str | None = None
    waited: float = 0.0
    epoch: float | None = None


class Said(StrEnum):
    """How a canary came back. SILENT: no whole answer in time. BROKEN: an error. UNJUDGED: nothing to judge by."""

    SOUND = "sound"
    SICK = "sick"
    SILENT = "silent"
    BROKEN = "broken"
    UNJUDGED = "unjudged"


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """A small generation that has come back. asked, at: monotonic seconds. tokens: None where none were counted."""

    name: str
    asked: float
    at: float
    said: Said
    why: str = ""
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchVerdict:
    """The state, why, and since when (monotonic seconds)."""

    state: State
    why: str
    since: float

    def result(self) -> Result:
        """The verdict as a row of a report; `code` is the state."""
        if self.state is State.UNKNOWN:
            return unknown(self.why, check="engine", code=self.state.value)
        judge = ok if self.state.good else fail
        return judge(self.why, "an engine that answers and makes progress", check="engine", code=self.state.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds and counts. confirm: samples or canaries in a row before a state is believed, either way."""

    interval_s: float = 10.0
    stall_s: float = STALL_SECONDS
    start_grace_s: float = 900.0
    confirm: int = 2
    canaries: bool = True


class Judge:
    """Feed it samples and canaries in the order in which they come; each returns the verdict after it."""

    def __init__(self, limits: Limits, *, at: float) -> None:
        self.limits = limits
        self.verdict = WatchVerdict(state=State.UNKNOWN, why="nothing was seen yet", since=at)
        self.last: Counters | None = None
        self.frozen_s = 0.0
        self.starts = 0  # of the engine, seen since
        self._began = self._sampled = self._moved = at
        self._answered = False
        self._silent_s = 0.0
        self._silences = 0
        self._generated_s = 0.0
        self._pending: tuple[State, int] = (State.UNKNOWN, 0)
        self._seen: MetricsSample | None = None
        self._sick = self._sound = self._broken = 0
        self._corrupt = self._warm = False
        self._stuck = self._reason = ""

    def restarted(self, at: float) -> None:
        """A new start: what counted against the old engine is forgotten, and the new one gets its grace."""
        self._began = self._moved = at
        self.starts += 1
        self._answered, self.last = False, None
        self.frozen_s = self._silent_s = self._generated_s = 0.0
        self._sick = self._sound = self._broken = 0
        self._corrupt, self._stuck, self._reason = False, "", ""
        self._warm = False

    def sample(self, sample: MetricsSample) -> WatchVerdict:
        # A gap means that the watch itself stood still (suspended, starved): it proves nothing about the engine.
        step = min(sample.at - self._sampled, 3 * self.limits.interval_s + sample.waited)
        self._sampled, self._seen = sample.at, sample
        self._silent_s = self._silent_s + step if sample.look is Look.SILENT else 0.0
        self._silences = self._silences + 1 if sample.look is Look.SILENT else 0
        if sample.counters is not None:
            self._count(sample.counters, sample.at, step)
        return self._settle(*self._raw(sample), sample.at)

    def canary(self, canary: CanaryResult) -> WatchVerdict:
        if canary.asked < self._began:
            return self.verdict  # it was asked of an engine that has gone
        self._warm = self._warm or canary.said in (Said.SOUND, Said.SICK)
        if canary.said is Said.SOUND:
            self._sound, self._stuck = self._sound + 1, ""
            if self._sound >= self.limits.confirm:
                self._sick = self._broken = 0
                self._corrupt, self._reason = False, ""
        elif canary.said is Said.SICK:
            self._sick, self._sound = self._sick + 1, 0
            self._reason = f"{canary.name}: {canary.why}"
        elif canary.said is Said.SILENT and self._moved < canary.asked:
            waited = canary.at - canary.asked
            self._stuck = f"a request of our own got no answer in {waited:.0f} s and no counter moved"
        elif canary.said is Said.BROKEN:
            self._broken, self._sound = self._broken + 1, 0
            self._reason = f"{canary.name}: {canary.why}"
        return self._settle(*self._raw(self._seen), canary.at) if self._seen else self.verdict

    def _count(self, now: Counters, at: float, step: float) -> None:
        before = self.last
        if before is not None and now.started != before.started:
            self.restarted(at)
            before = None
        if before is None or now.moved_since(before):
            self._moved, self.frozen_s = at, 0.0
            self._stuck = ""
        else:
            self.frozen_s = self.frozen_s + step if now.stuck_since(before) else 0.0
        moved = before is not None and now.generation_tokens != before.generation_tokens
        self._generated_s = 0.0 if moved or not now.running else self._generated_s + step
        if before is not None and (now.corrupted or 0) > (before.corrupted or 0):
            self._corrupt, self._sound = True, 0
            self._reason = f"{now.corrupted or 0:.0f} requests with NaN logits since its start"
        self.last, self._answered = now, True

    def _raw(self, sample: MetricsSample) -> tuple[State, str]:
        """What this moment says by itself."""
        now = self.last
        if sample.look is not Look.ANSWERED or now is None:
            return self._unanswered(sample)
        still = self._stuck
        if self.frozen_s >= self.limits.stall_s:
            still = f"{now.held:.0f} requests in it and no counter moved for {self.frozen_s:.0f} s"
        if still and self._cold(now, sample):
            return State.UNKNOWN, f"{still}; but it has not answered once since its start, and a cold engine compiles"
        if still:
            return State.HUNG, still
        if self._broken >= self.limits.confirm:
            return State.HUNG, f"/metrics answers, a generation does not: {self._reason}"
        if self._corrupt or self._sick >= self.limits.confirm:
            return State.BABBLING, self._reason
        return self._fine(now)

    def _cold(self, now: Counters, sample: MetricsSample) -> bool:
        """Whether it may still be compiling for its first requests, when it stands as still as a hung engine."""
        if self._warm or not self.limits.canaries:
            return False
        known = sample.epoch is not None and now.started is not None
        age = sample.epoch - now.started if known else sample.at - self._began  # type: ignore[operator]  # known
        return age < self.limits.start_grace_s

    def _fine(self, now: Counters) -> tuple[State, str]:
        load = f"{now.running:.0f} running, {now.waiting:.0f} waiting"
        if now.waiting or (now.running and self._generated_s >= self.limits.stall_s / 2):
            still = self.frozen_s >= 2 * self.limits.interval_s
            return State.BUSY, f"{load}; {f'no counter moved for {self.frozen_s:.0f} s' if still else 'counters move'}"
        if self.limits.canaries and not self._sound:
            return State.UNKNOWN, f"no canary has come back sound yet; {load}{self._doubt()}"
        return State.OK, load + self._doubt()

    def _doubt(self) -> str:
        return f"; one sick answer, to be confirmed ({self._reason})" if self._sick else ""

    def _unanswered(self, sample: MetricsSample) -> tuple[State, str]:
        starting = not self._answered and sample.at - self._began < self.limits.start_grace_s
        if starting and sample.look in (Look.REFUSED, Look.SILENT):
            left = self.limits.start_grace_s - (sample.at - self._began)
            return State.UNKNOWN, f"starting, or not there: {sample.why}; {left:.0f} s of grace left"
        if sample.look is Look.SILENT:
            if self._silent_s >= self.limits.stall_s and self._silences >= self.limits.confirm:
                return State.HUNG, f"takes connections and says nothing for {self._silent_s:.0f} s"
            if self.verdict.state.good:
                return State.BUSY, f"slow to answer: {sample.why}"
            return self.verdict.state, self.verdict.why
        known = {Look.REFUSED: State.UNREACHABLE, Look.WRONG: State.WRONG_ENGINE, Look.STRANGE: State.UNKNOWN}
        return known.get(sample.look, State.UNKNOWN), sample.why

    def _settle(self, state: State, why: str, at: float) -> WatchVerdict:
        """Hysteresis: what is seen for the first time after good states, or after bad ones, has to be seen again."""
        seen = self._pending[1] + 1 if self._pending[0] is state else 1
        self._pending = (state, seen)
        now = self.verdict
        # HUNG and BABBLING were confirmed before they got here; between OK, BUSY and UNKNOWN nothing is at stake.
        needs_more = state in (State.UNREACHABLE, State.WRONG_ENGINE) or (state.good and now.state in _BAD)
        if state is not now.state and needs_more and seen < self.limits.confirm:
            return now
        since = now.since if state is now.state else at
        self.verdict = WatchVerdict(state=state, why=why, since=since)
        return self.verdict


_BAD = frozenset({State.HUNG, State.BABBLING, State.UNREACHABLE, State.WRONG_ENGINE})
