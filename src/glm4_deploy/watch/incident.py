"""Which changes of the verdict are worth a message, and what it says. Pure: time comes with each verdict."""

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from glm4_deploy.text import one_line, redact
from glm4_deploy.watch.judge import State, WatchVerdict

# State → what it means, and the next command.
ADVICE = {
    State.HUNG: ("it holds requests and produces nothing; /health may still be green", "glm4-deploy diagnose"),
    State.BABBLING: ("it answers with loops or garbage", "glm4-deploy smoke --suite full"),
    State.UNREACHABLE: ("no server answers: it has ended, or is restarting", "glm4-deploy diagnose"),
    State.WRONG_ENGINE: ("another model or another program answers at its address", "glm4-deploy status"),
    State.UNKNOWN: ("it cannot be judged: it is starting, or its counters cannot be read", "glm4-deploy status"),
}
READS = frozenset({State.HUNG, State.BABBLING, State.UNREACHABLE})  # the engine's log may say why
# Events of the watch that change what a person has to do: reported once per incident.
NEEDS_A_PERSON = "needs a person"
EVENTS = {
    "left-alone": "left alone",
    "restart-failed": "could not be restarted",
    "rolled-back": "rolled back to the last good release",
    "rollback-failed": "could not be rolled back",
    "memory-stopped": "was stopped before the host ran out of memory",
    "memory-stop-failed": "could not be stopped, and memory is running out",
    "gate-failed": "did not pass its gate, and stays out of the router",
}
EACH_TIME = ("memory-stopped",)  # whatever was reported before
# Events about the host, which come and go beside the verdict: state → its title.
WELL = ("fine", "well")
CONDITIONS = {
    "memory": {
        "low": "is low on memory",
        "critical": "is about to run out of memory",
        "fine": "has enough memory again",
    },
    "gpu": {"trouble": "has trouble with its GPU", "well": "has no more trouble with its GPU"},
    "guard": {
        "refuses": "takes no new questions: its guard refuses them",
        "well": "takes new questions again",
    },
}
CONDITION_NEXT = {"memory": "glm4-deploy status", "gpu": "glm4-deploy doctor", "guard": "glm4-deploy status"}
XID_S = 3600.0  # the same code again within this is not news
DONE = ("restarted", "rolled-back", "taken-out", "put-back")  # what the message of the recovery lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One notification.

    Attributes:
        kind: failure, warning or success, as services colour it.
        to: addresses that still lack it.
        asks: whether the log may say its cause, which was not looked for yet.
    """

    id: str
    title: str
    text: str
    kind: str
    to: tuple[str, ...] = ()
    asks: bool = False

    def with_cause(self, why: str, fix: str) -> "Notification":
        """The same with the root cause, if there is one, above the next command."""
        rows = "".join(f"{key}: {one_line(redact(text), 400)}\n" for key, text in (("cause", why), ("do this", fix)))
        head, mark, rest = self.text.partition("\nnext: ")
        text = f"{head}\n{rows}{mark[1:]}{rest}" if why and mark else self.text
        return replace(self, text=text, asks=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damping:
    """Seconds that a change must last before it is reported.

    Attributes:
        settle_s: that it, or a condition, is well again; doubles with each time it fell ill in the last hour, to 3600.
        slow_s: that it cannot be judged, or that the fault is another one now: as long as a start may take.
    """

    settle_s: float = 120.0
    slow_s: float = 900.0


@dataclass(slots=True, kw_only=True)
class Memory:
    """What survives the watch.

    Attributes:
        boot: of which start of this host the monotonic times below are.
        told: the bad state reported last; None: no incident.
        since: when the incident was reported, for people.
        done: what was done about it.
        events: those reported of this incident.
        conditions: what was reported of each condition of the host that still holds, without its figures.
        relapses: when each condition began in the last hour, in monotonic seconds.
        xids: when each Xid code was reported last, in monotonic seconds.
        began: when it fell ill in the last hour, in monotonic seconds, which no change of the date moves.
        outbox: what is not delivered yet, oldest first.
    """

    boot: str = ""
    told: State | None = None
    since: str = ""
    done: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    conditions: dict[str, list[str]] = field(default_factory=dict)
    relapses: dict[str, list[float]] = field(default_factory=dict)
    xids: dict[str, float] = field(default_factory=dict)
    began: list[float] = field(default_factory=list)
    outbox: list[Notification] = field(default_factory=list)


class Damper:
    """Decides what is worth a message: that an incident begins, changes for long, needs a person, or is over.

    A condition of the host is reported when it begins, when it gets something new, and when it is over.
    """

    def __init__(self, name: str, memory: Memory, damping: Damping) -> None:
        self._name, self._memory, self._damping = name, memory, damping
        self._candidate: State | None = None  # what may be reported if it lasts
        self._seen = 0.0
        self._why = ""
        # Condition → since when it is over (None: not seen yet by this watch), and the figures then.
        self._over_since: dict[str, tuple[float | None, str]] = dict.fromkeys(
            memory.conditions.keys() & CONDITIONS.keys(), (None, "not seen since the watch started")
        )

    def see(self, verdict: WatchVerdict, at: float) -> Notification | None:
        return self._see(verdict, at) or self._condition_over(at)

    def _see(self, verdict: WatchVerdict, at: float) -> Notification | None:
        memory, state = self._memory, verdict.state
        self._why = verdict.why
        wait = self._wait(state, at)
        kind = State.OK if state.good else state  # `ok` and `busy` are the same news
        if memory.told is not None and self._candidate is State.OK and not state.good:
            memory.began = [*_recent(memory.began, at), at]  # a relapse
        if wait is None:
            self._candidate = None
            return None
        if kind is not self._candidate:
            self._candidate, self._seen = kind, at
        if at - self._seen < wait:
            return None
        self._candidate = None
        if state.good:
            return self._over(verdict)
        if memory.told is None:
            memory.began = [*_recent(memory.began, at), at]
            memory.since, memory.done, memory.events = now(), [], []
        was, memory.told = memory.told, state
        meaning, command = ADVICE[state]
        rows = [("why", verdict.why), ("it means", meaning), ("before", was or "well"), ("next", command)]
        message = self._message(f"is {state}", rows, "warning" if state is State.UNKNOWN else "failure")
        return replace(message, asks=state in READS)

    def event(self, name: str, fields: Mapping[str, Any], at: float) -> Notification | None:
        """An event of the watch, as it is written to its output. at: monotonic seconds."""
        if name in CONDITIONS:
            return self._condition(name, fields, at)
        if name == "xid":
            return self._xid(fields, at)
        memory, why, replica = self._memory, _text(fields, "why"), _text(fields, "replica")
        if name in DONE:
            memory.done = [*memory.done, f"{name} {replica}".strip() + f" {now()}"][-10:]
        if name == "put-back":  # its gate passed: that it fails the next time is news, also within one incident
            memory.events = [one for one in memory.events if one != f"gate-failed {replica}"]
        told = f"{name} {replica}".strip()
        if name not in EVENTS or (name == "left-alone" and NEEDS_A_PERSON not in why):
            return None
        if told in memory.events and name not in EACH_TIME:
            return None
        memory.events = [*memory.events, told][-50:]
        advice = ADVICE[memory.told or State.UNKNOWN][1]
        rows = [("replica", replica), ("engine", _text(fields, "engine")), ("why", why or self._why)]
        rows += [("do this", _text(fields, "hint")), ("release", _text(fields, "release")), ("next", advice)]
        return self._message(EVENTS[name], rows, "warning" if name == "rolled-back" else "failure")

    def _condition(self, name: str, fields: Mapping[str, Any], at: float) -> Notification | None:
        state, why = _text(fields, "state"), _text(fields, "why")
        told = self._memory.conditions.get(name, [])
        if state in WELL and told:
            self._over_since[name] = (at, why)
        if state in WELL or state not in CONDITIONS[name]:
            return None
        over, _ = self._over_since.pop(name, (None, ""))
        if not told or (over is not None and at - over >= self._damping.settle_s):
            relapses = _recent(self._memory.relapses.get(name, []), at)
            self._memory.relapses[name] = [*relapses, at][-20:]
        kinds = [without_figures(one) for one in why.split("; ")] if name == "gpu" else [state]
        new = [kind for kind in kinds if kind not in told]
        if not new:
            return None
        self._memory.conditions[name] = [*told, *new][-50:]
        rows = [("why", why), ("do this", _text(fields, "hint")), ("next", CONDITION_NEXT[name])]
        return self._message(CONDITIONS[name][state], rows, "failure" if state == "critical" else "warning")

    def _condition_over(self, at: float) -> Notification | None:
        """One that has been over for as long as an incident must be; one at a time."""
        for name, (since, why) in self._over_since.items():
            if since is None:
                self._over_since[name] = (at, why)
            elif at - since >= self._settle(self._memory.relapses.get(name, []), at):
                del self._over_since[name], self._memory.conditions[name]
                if name == "memory":  # the next time that an engine cannot be stopped is news
                    self._memory.events = [one for one in self._memory.events if one != "memory-stop-failed"]
                rows = [("now", why), ("next", CONDITION_NEXT[name])]
                return self._message(list(CONDITIONS[name].values())[-1], rows, "success")
        return None

    def _xid(self, fields: Mapping[str, Any], at: float) -> Notification | None:
        code, xids = _text(fields, "code"), self._memory.xids
        if 0 <= at - xids.get(code, float("-inf")) < XID_S:
            return None
        self._memory.xids = {**{key: seen for key, seen in xids.items() if 0 <= at - seen < XID_S}, code: at}
        rows = [("why", _text(fields, "why")), ("next", _text(fields, "hint"))]
        return self._message(f"reports the GPU error Xid {code}", rows, "failure")

    def _wait(self, state: State, at: float) -> float | None:
        """Seconds that the state must last before it is reported; None: it is not news."""
        told = self._memory.told
        if state.good:
            return None if told is None else self._settle(self._memory.began, at)
        if state is State.UNKNOWN:
            # During a restart it is unreachable and then unknown: both are part of the incident.
            return self._damping.slow_s if told is None else None
        if told in (None, State.UNKNOWN):
            return 0.0
        return None if state is told else self._damping.slow_s

    def _settle(self, began: list[float], at: float) -> float:
        """Seconds that it must be well: one that flaps is reported less and less often."""
        again = min(max(len(_recent(began, at)) - 1, 0), 20)
        return min(self._damping.settle_s * 2.0**again, 3600.0)

    def _over(self, verdict: WatchVerdict) -> Notification:
        memory = self._memory
        rows = [("was", f"{memory.told} since {memory.since}"), ("now", f"{verdict.state}: {verdict.why}")]
        rows += [("done", ", ".join(memory.done) or "nothing by this watch"), ("next", "glm4-deploy status")]
        memory.told, memory.since, memory.done, memory.events = None, "", [], []
        return self._message("is well again", rows, "success")

    def _message(self, title: str, rows: Iterable[tuple[str, str]], kind: str) -> Notification:
        name = secrets.token_hex(4)
        shown = [(key, one_line(redact(str(value)), 400)) for key, value in rows if value]
        text = "\n".join(f"{key}: {value}" for key, value in (*shown, ("time", now()), ("message", name)))
        return Notification(id=name, title=f"{self._name} {title}", text=text, kind=kind)


def _recent(began: list[float], at: float) -> list[float]:
    return [one for one in began if 0 <= at - one < 3600]


def without_figures(trouble: str) -> str:
    """`GPU 0: …` without the figures after its name: a clock that wanders is the same trouble, another GPU's is."""
    begin = trouble.find(": ") + 1
    return trouble[:begin] + re.sub(r"\d+", "#", trouble[begin:])


def _text(fields: Mapping[str, Any], name: str) -> str:
    return str(fields.get(name) or "")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
