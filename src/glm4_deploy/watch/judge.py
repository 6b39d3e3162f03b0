"""From samples to the state of the engine. Pure: time comes with each sample, and nothing is requested here.

What counts as progress is in `probe.hang`; here it is judged over time, with confirmation before a state changes.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from glm4_deploy.plan.engine_rules import STALL_SECONDS
from glm4_deploy.probe.hang import Counters
from glm4_deploy.result import Result, fail, ok, unknown
from glm4_deploy.watch.witness import Opinion, Witness

PATIENCE = 3  # times stall_s: how long a GPU that works holds back the verdict of counters that stand still


class State(StrEnum):
    """The state of the engine. UNKNOWN: it cannot be judged (it is starting, or its counters cannot be read)."""

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


class Scrape(StrEnum):
    """How /metrics responded. SILENT: a connection but no answer. STRANGE: an answer without vLLM's counters.

    DEAD: it answered, and /health reports that the engine behind it has died.
    """

    ANSWERED = "answered"
    SILENT = "silent"
    REFUSED = "refused"
    WRONG = "wrong"
    STRANGE = "strange"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSample:
    """One scrape of /metrics.

    Attributes:
        at: monotonic seconds.
        why: what was seen, if it was not a normal answer.
        model: the served name, if reported.
        waited: seconds that the request waited in vain.
        epoch: the same moment in epoch seconds, to compare with `Counters.started`.
    """

    at: float
    outcome: Scrape
    counters: Counters | None = None
    why: str = ""
    model: str | None = None
    waited: float = 0.0
    epoch: float | None = None


class CanaryOutcome(StrEnum):
    """How a canary ended. SILENT: no complete answer in time. BROKEN: an error. UNJUDGED: nothing to judge."""

    SOUND = "sound"
    SICK = "sick"
    SILENT = "silent"
    BROKEN = "broken"
    UNJUDGED = "unjudged"


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """A finished canary. asked, at: monotonic seconds of request and answer. tokens: None if not counted."""

    name: str
    asked: float
    at: float
    outcome: CanaryOutcome
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
    """Limits in seconds. confirm: consecutive samples or canaries that it takes to change the state, either way.

    sick_share: of the answers that a guard judged within sick_window_s, if they were at least sick_least.
    """

    interval_s: float = 10.0
    stall_s: float = STALL_SECONDS
    start_grace_s: float = 900.0
    confirm: int = 2
    canaries: bool = True
    sick_share: float = 0.2
    sick_window_s: float = 600.0
    sick_least: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCounts:
    """What a guard has counted since it started. at: monotonic seconds.

    refuses: it refuses new questions now, as the host is short of memory. refused: those that it refused for that.
    """

    at: float
    judged: float
    sick: float
    refuses: bool = False
    refused: float = 0.0


class Judge:
    """Takes samples and canaries in the order of their arrival; each call returns the verdict after it."""

    def __init__(self, limits: Limits, *, at: float, witness: Witness | None = None) -> None:
        self.limits = limits
        self._witness = witness
        self.verdict = WatchVerdict(state=State.UNKNOWN, why="nothing seen yet", since=at)
        self.last: Counters | None = None
        self.frozen_s = 0.0
        self.starts = 0  # restarts of the engine seen so far
        self._began = self._sampled = self._moved = at
        self._answered = False
        self._silent_s = 0.0
        self._silences = self._deaths = 0
        self._generated_s = 0.0
        self._candidate: tuple[State, int] = (State.UNKNOWN, 0)  # the state seen last, and how often in a row
        self._last_sample: MetricsSample | None = None
        self._sick = self._sound = self._broken = 0
        self._corrupt = self._warm = False
        self._stuck = self._fault = ""  # why it seems hung; what the last bad answer was
        self._stuck_at = 0.0  # since when it seems so
        self._age = self._age_at = 0.0  # how old the engine was at its first sample, and when that was
        self._answers: deque[AnswerCounts] = deque()
        self.unread = ""  # why the guard's counts cannot be read
        self.refuses = False  # whether it refused new questions when it was last read

    def restarted(self, at: float) -> None:
        """The engine was restarted: forget what was observed of the old one, and grant the new one its grace period."""
        self._began = self._moved = at
        self.starts += 1
        self._answered, self.last = False, None
        self.frozen_s = self._silent_s = self._generated_s = 0.0
        self._sick = self._sound = self._broken = 0
        self._corrupt, self._stuck, self._fault = False, "", ""
        self._warm = False
        self._answers.clear()

    def answers(self, counts: AnswerCounts) -> None:
        """What a guard in front of the engine has counted; it takes part in the verdict on the next sample."""
        if self._answers and counts.judged < self._answers[-1].judged:
            self._answers.clear()  # the guard was restarted
        self._answers.append(counts)
        self.unread, self.refuses = "", counts.refuses
        self._forget_answers(counts.at)

    def no_answers(self, why: str, at: float) -> None:
        """The guard cannot be read: what it counted before stays true until it is too old."""
        self.unread = why
        self._forget_answers(at)

    def _forget_answers(self, at: float) -> None:
        while self._answers and at - self._answers[0].at > self.limits.sick_window_s:
            self._answers.popleft()

    def _sick_answers(self) -> str:
        """Why the answers to clients are sick; '' if they are not, or too few."""
        if not self._answers:
            return ""
        first, last = self._answers[0], self._answers[-1]
        judged, sick = last.judged - first.judged, last.sick - first.sick
        if judged < self.limits.sick_least or sick <= self.limits.sick_share * judged:
            return ""
        return f"the guard found {sick:.0f} of {judged:.0f} answers sick within {last.at - first.at:.0f} s"

    def sample(self, sample: MetricsSample) -> WatchVerdict:
        # A gap means that the watch itself was stopped (suspended, starved): it says nothing about the engine.
        step = min(sample.at - self._sampled, 3 * self.limits.interval_s + sample.waited)
        self._sampled, self._last_sample = sample.at, sample
        self._silent_s = self._silent_s + step if sample.outcome is Scrape.SILENT else 0.0
        self._silences = self._silences + 1 if sample.outcome is Scrape.SILENT else 0
        self._deaths = self._deaths + 1 if sample.outcome is Scrape.DEAD else 0
        if sample.counters is not None:
            self._count(sample.counters, sample.at, step, sample.epoch)
        return self._settle(*self._raw(sample), sample.at)

    def canary(self, canary: CanaryResult) -> WatchVerdict:
        if canary.asked < self._began:
            return self.verdict  # it was sent to the engine before the restart
        self._warm = self._warm or canary.outcome in (CanaryOutcome.SOUND, CanaryOutcome.SICK)
        if canary.outcome is CanaryOutcome.SOUND:
            self._sound, self._stuck = self._sound + 1, ""
            if self._sound >= self.limits.confirm:
                self._sick = self._broken = 0
                self._corrupt, self._fault = False, ""
        elif canary.outcome is CanaryOutcome.SICK:
            self._sick, self._sound = self._sick + 1, 0
            self._fault = f"{canary.name}: {canary.why}"
        elif canary.outcome is CanaryOutcome.SILENT and self._moved < canary.asked:
            waited = canary.at - canary.asked
            self._stuck_at = canary.asked
            self._stuck = f"a canary got no answer in {waited:.0f} s and no counter moved"
        elif canary.outcome is CanaryOutcome.BROKEN:
            self._broken, self._sound = self._broken + 1, 0
            self._fault = f"{canary.name}: {canary.why}"
        return self._settle(*self._raw(self._last_sample), canary.at) if self._last_sample else self.verdict

    def _count(self, now: Counters, at: float, step: float, epoch: float | None) -> None:
        before = self.last
        again = before is not None and now.started != before.started
        if again:
            self.restarted(at)
            before = None
        if before is None:
            # By the date once: later it may have jumped. What was restarted is not older than the last look.
            known = epoch is not None and now.started is not None
            age = max(epoch - now.started, 0.0) if known else at - self._began  # type: ignore[operator]  # known
            self._age, self._age_at = min(age, step) if again else age, at
        if before is None or now.moved_since(before):
            self._moved, self.frozen_s = at, 0.0
            self._stuck = ""
        else:
            self.frozen_s = self.frozen_s + step if now.stuck_since(before) else 0.0
        moved = before is not None and now.generation_tokens != before.generation_tokens
        if moved and self._witness:
            self._witness.worked(at)
        self._generated_s = 0.0 if moved or not now.running else self._generated_s + step
        if before is not None and (now.corrupted or 0) > (before.corrupted or 0):
            self._corrupt, self._sound = True, 0
            self._fault = f"{now.corrupted or 0:.0f} requests with NaN logits since the engine started"
        self.last, self._answered = now, True

    def _raw(self, sample: MetricsSample) -> tuple[State, str]:
        """The state by the present evidence alone, before confirmation."""
        now = self.last
        if sample.outcome is not Scrape.ANSWERED or now is None:
            return self._unanswered(sample)
        still, since = self._stuck, self._stuck_at
        if self.frozen_s >= self.limits.stall_s:
            since = sample.at - self.frozen_s
            still = f"{now.held:.0f} requests in the engine and no counter moved for {self.frozen_s:.0f} s"
        if still and self._cold(sample.at):
            return State.UNKNOWN, f"{still}; but it has not answered since its start, and a cold engine compiles first"
        if still:
            return self._second_witness(still, since, sample.at)
        if self._broken >= self.limits.confirm:
            return State.HUNG, f"/metrics answers but generations fail: {self._fault}"
        if self._corrupt or self._sick >= self.limits.confirm:
            return State.BABBLING, self._fault
        if sick := self._sick_answers():
            return State.BABBLING, sick
        return self._fine(now)

    def _second_witness(self, still: str, since: float, at: float) -> tuple[State, str]:
        """A hang that the counters show, unless the GPU works: then it may take three times as long."""
        if self._witness is None:
            return State.HUNG, still
        opinion, why = self._witness.opinion(at)
        if opinion is Opinion.DENIES and at - since < PATIENCE * self.limits.stall_s:
            return State.BUSY, f"{still}; but {why}"
        return State.HUNG, f"{still}; {why}"

    def _cold(self, at: float) -> bool:
        """Whether it may still be compiling for its first requests, which looks the same as a hang."""
        if self._warm or not self.limits.canaries:
            return False
        return self._age + at - self._age_at < self.limits.start_grace_s

    def _fine(self, now: Counters) -> tuple[State, str]:
        load = f"{now.running:.0f} running, {now.waiting:.0f} waiting"
        if now.waiting or (now.running and self._generated_s >= self.limits.stall_s / 2):
            still = self.frozen_s >= 2 * self.limits.interval_s
            return State.BUSY, f"{load}; {f'no counter moved for {self.frozen_s:.0f} s' if still else 'counters move'}"
        if self.limits.canaries and not self._sound:
            return State.UNKNOWN, f"no canary has passed yet; {load}{self._doubt()}"
        return State.OK, load + self._doubt()

    def _doubt(self) -> str:
        unread = f"; what the guard finds is unknown ({self.unread})" if self.unread else ""
        return unread + (f"; one bad answer, not confirmed yet ({self._fault})" if self._sick else "")

    def _unanswered(self, sample: MetricsSample) -> tuple[State, str]:
        starting = not self._answered and sample.at - self._began < self.limits.start_grace_s
        if starting and sample.outcome in (Scrape.REFUSED, Scrape.SILENT):
            left = self.limits.start_grace_s - (sample.at - self._began)
            return State.UNKNOWN, f"starting, or not running: {sample.why}; {left:.0f} s of grace left"
        if sample.outcome is Scrape.SILENT:
            if self._silent_s >= self.limits.stall_s and self._silences >= self.limits.confirm:
                return State.HUNG, f"accepts connections but has not answered for {self._silent_s:.0f} s"
            if self.verdict.state.good:
                return State.BUSY, f"slow to answer: {sample.why}"
            return self.verdict.state, self.verdict.why
        if sample.outcome is Scrape.DEAD:
            confirmed = self._deaths >= self.limits.confirm
            return (State.HUNG, sample.why) if confirmed else (self.verdict.state, self.verdict.why)
        known = {
            Scrape.REFUSED: State.UNREACHABLE,
            Scrape.WRONG: State.WRONG_ENGINE,
            Scrape.STRANGE: State.UNKNOWN,
        }
        return known.get(sample.outcome, State.UNKNOWN), sample.why

    def _settle(self, state: State, why: str, at: float) -> WatchVerdict:
        """Hysteresis: a change between good and bad states must be seen again before it counts."""
        times = self._candidate[1] + 1 if self._candidate[0] is state else 1
        self._candidate = (state, times)
        now = self.verdict
        # HUNG and BABBLING are already confirmed here; between OK, BUSY and UNKNOWN nothing is at stake.
        needs_more = state in (State.UNREACHABLE, State.WRONG_ENGINE) or (state.good and now.state in _BAD)
        if state is not now.state and needs_more and times < self.limits.confirm:
            return now
        since = now.since if state is now.state else at
        self.verdict = WatchVerdict(state=state, why=why, since=since)
        return self.verdict


_BAD = frozenset({State.HUNG, State.BABBLING, State.UNREACHABLE, State.WRONG_ENGINE})
