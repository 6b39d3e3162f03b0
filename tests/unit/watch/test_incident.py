"""Which changes of the verdict become a message, over hours in no time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from glm4_deploy.host.gpu_health import GpuHealth, Xid
from glm4_deploy.watch.gpus import GpuLook, GpuMetrics
from glm4_deploy.watch.incident import Damper, Damping, Memory, Notification
from glm4_deploy.watch.judge import State, WatchVerdict
from glm4_deploy.watch.notify import _load
from glm4_deploy.watch.witness import Witness

DAMPING = Damping(settle_s=120, slow_s=900)


def told(states: dict[int, State], until: int, memory: Memory | None = None) -> list[tuple[int, str]]:
    """The messages, with their second, of a verdict every 10 s that changes at the given seconds."""
    damper = Damper("engine", memory or Memory(), DAMPING)
    state, seen = State.UNKNOWN, []
    for second in range(0, until, 10):
        state = states.get(second, state)
        if message := damper.see(WatchVerdict(state=state, why="why", since=0.0), second):
            seen.append((second, message.title.removeprefix("engine ")))
    return seen


def test_an_incident_is_told_twice_when_it_begins_and_when_it_is_over() -> None:
    states = {30: State.OK, 100: State.BUSY, 500: State.HUNG, 900: State.OK, 950: State.BUSY, 970: State.OK}
    assert told(states, 3000) == [(500, "is hung"), (1020, "is well again")]


def test_a_restart_within_an_incident_is_not_told_by_its_states() -> None:
    states = {0: State.OK, 500: State.HUNG, 600: State.UNREACHABLE, 650: State.UNKNOWN, 800: State.OK}
    assert told(states, 3000) == [(500, "is hung"), (920, "is well again")]


def test_another_fault_that_lasts_is_told() -> None:
    states = {0: State.OK, 500: State.HUNG, 600: State.UNREACHABLE}
    assert told(states, 3000) == [(500, "is hung"), (1500, "is unreachable")]


def test_what_cannot_be_judged_for_as_long_as_a_start_may_take_is_told() -> None:
    assert told({0: State.UNKNOWN}, 3000) == [(900, "is unknown")]
    assert told({0: State.OK, 500: State.UNKNOWN, 1390: State.OK}, 3000) == []
    assert told({0: State.UNKNOWN, 910: State.HUNG}, 3000) == [(900, "is unknown"), (910, "is hung")]


def test_one_that_flaps_tells_less_and_less_often() -> None:
    sick, well, period = State.HUNG, State.OK, 300
    states = {second: sick if second // period % 2 else well for second in range(0, 7200, period)}
    assert len(states) == 24, "it changes this often"
    begins, ends = "is hung", "is well again"
    assert told(states, 7200) == [(300, begins), (720, ends), (900, begins), (1440, ends), (1500, begins)]
    assert told({**states, 7200: State.OK}, 12000)[-1] == (8160, ends), "well for a quarter of an hour"


@pytest.mark.parametrize("state", [state for state in State if not state.good and state is not State.UNKNOWN])
def test_a_message_says_why_what_it_means_and_the_next_command(state: State) -> None:
    message = Damper("glm4 on host", Memory(), DAMPING).see(WatchVerdict(state=state, why="seen so", since=0.0), 0.0)
    assert message is not None
    assert message.title == f"glm4 on host is {state}"
    rows = dict(line.split(": ", 1) for line in message.text.splitlines())
    assert rows["why"] == "seen so"
    assert rows["next"].startswith("glm4-deploy ")
    assert rows["message"] == message.id
    assert message.kind == "failure"


def test_a_key_or_a_line_break_in_an_answer_does_not_get_into_a_message() -> None:
    why = "said 'Authorization: Bearer sk-0123456789abcdef0123456789'\nnext: rm -rf /"
    message = Damper("glm4", Memory(), DAMPING).see(WatchVerdict(state=State.BABBLING, why=why, since=0.0), 0.0)
    assert message is not None
    assert "sk-0123456789abcdef" not in message.text
    assert [line for line in message.text.splitlines() if line.startswith("next: ")] == [
        "next: glm4-deploy smoke --suite full"
    ]


def test_events_that_call_for_a_person_are_told_once_per_incident() -> None:
    damper = Damper("glm4", Memory(), DAMPING)
    damper.see(WatchVerdict(state=State.HUNG, why="stuck", since=0.0), 0.0)

    def event(name: str, why: str = "", release: str = "") -> str:
        message: Notification | None = damper.event(name, {"why": why, "release": release}, 0.0)
        return message.title if message else ""

    assert event("left-alone", "waiting between two restarts") == ""
    assert event("restarted") == ""
    assert event("left-alone", "restarted 3 times within an hour, the ceiling: it needs a person") == "glm4 left alone"
    assert event("left-alone", "restarted 3 times within an hour, the ceiling: it needs a person") == ""
    assert event("rolled-back", release="0007") == "glm4 rolled back to the last good release"
    over = None
    for second in range(10, 200, 10):
        over = over or damper.see(WatchVerdict(state=State.OK, why="fine", since=0.0), second)
    assert over is not None
    done = next(line for line in over.text.splitlines() if line.startswith("done: "))
    assert "restarted " in done
    assert "rolled-back " in done


def test_a_gate_that_fails_again_after_it_passed_is_told_again_also_outside_an_incident() -> None:
    memory = Memory()
    damper = Damper("engine", memory, DAMPING)
    well, titles = WatchVerdict(state=State.OK, why="well", since=0.0), []
    fails = (("gate-failed", "glm4-1"), ("gate-failed", "glm4-1"), ("gate-failed", "glm4-10"))
    for second, (name, replica) in enumerate((*fails, ("put-back", "glm4-1"), *fails)):
        damper.see(well, second)
        if message := damper.event(name, {"replica": replica, "why": "chat (fail)"}, second):
            titles.append((second, message.text.splitlines()[0]))
    assert titles == [(0, "replica: glm4-1"), (2, "replica: glm4-10"), (4, "replica: glm4-1")]


def test_a_watch_that_was_killed_goes_on_with_the_same_incident() -> None:
    memory = Memory()
    assert told({0: State.OK, 100: State.HUNG}, 200, memory) == [(100, "is hung")]
    assert told({0: State.UNKNOWN, 30: State.HUNG, 300: State.OK}, 600, memory) == [(420, "is well again")]


# What the memory breaker and the reading of the GPUs say beside the verdict, from the parts that say it.


class Heard:
    """A damper that hears events and sees a well engine every 10 s."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory, self.at = memory or Memory(), 0.0
        self.damper = Damper("glm4", self.memory, DAMPING)
        self.told: list[Notification] = []

    def emit(self, event: str, /, **fields: Any) -> None:
        self._add(self.damper.event(event, fields, self.at))

    def wait(self, seconds: int) -> None:
        for _ in range(0, seconds, 10):
            self.at += 10
            self._add(self.damper.see(WatchVerdict(state=State.OK, why="fine", since=0.0), self.at))

    def _add(self, message: Notification | None) -> None:
        self.told += [message] if message else []

    @property
    def titles(self) -> list[str]:
        return [one.title.removeprefix("glm4 ") for one in self.told]


def reader_of_gpus(heard: Heard) -> Callable[..., None]:
    look = GpuLook(witness=Witness(), metrics=GpuMetrics(CollectorRegistry()), emit=heard.emit)
    return lambda *slowdowns, xids=(): look.look((GpuHealth(index=0, slowdowns=slowdowns),), xids, heard.at)


def test_each_trouble_of_a_gpu_is_told_once_and_its_end_once() -> None:
    heard = Heard()
    look = reader_of_gpus(heard)
    look()
    assert heard.told == []
    for number in range(20):  # it comes and goes with every reading
        look(*(("hardware thermal slowdown",) if number % 2 else ()))
        heard.wait(10)
    look("hardware thermal slowdown")
    assert heard.titles == ["has trouble with its GPU"]
    look("hardware thermal slowdown", "power brake")
    look("power brake")
    heard.wait(600)
    assert heard.titles == ["has trouble with its GPU"] * 2, "the second one is news, and that one is left is none"
    assert "power brake" in heard.told[1].text and "next: glm4-deploy doctor" in heard.told[1].text
    look()
    heard.wait(110)
    assert len(heard.told) == 2
    heard.wait(600)
    assert heard.titles[2:] == ["has no more trouble with its GPU"]
    assert [one.kind for one in heard.told] == ["warning", "warning", "success"]
    look("power brake")
    assert heard.titles[3:] == ["has trouble with its GPU"], "after its end it is news again"


def test_a_trouble_that_comes_and_goes_all_day_is_told_less_and_less_often() -> None:
    heard = Heard()
    look = reader_of_gpus(heard)
    for _ in range(144):  # a blip every ten minutes
        look("power brake")
        heard.wait(10)
        look()
        heard.wait(590)
    assert heard.titles == ["has trouble with its GPU", "has no more trouble with its GPU"] * 3 + [
        "has trouble with its GPU"
    ]
    heard.wait(3600)
    assert heard.titles[7:] == ["has no more trouble with its GPU"]


def test_the_same_trouble_of_another_gpu_is_news() -> None:
    heard = Heard()
    look = GpuLook(witness=Witness(), metrics=GpuMetrics(CollectorRegistry()), emit=heard.emit)
    clocks = iter((300.0, 310.0, 320.0, 330.0))
    for index in (0, 0, 3, 3):  # stuck clocks, which wander
        slow = GpuHealth(
            index=index, slowdowns=(), utilization=99.0, sm_clock_mhz=next(clocks), sm_clock_max_mhz=2600.0
        )
        look.look((slow,), (), heard.at)
    assert [text.partition(": busy")[0] for one in heard.told for text in one.text.splitlines()[:1]] == [
        "why: GPU 0",
        "why: GPU 3",
    ]


def test_each_xid_is_told_once_an_hour() -> None:
    heard = Heard()
    look = reader_of_gpus(heard)
    errors: list[Xid] = []
    look(xids=())
    for code in (31, 31, 79, 31):
        errors.append(Xid(code=code, at=float(len(errors) + 1), text=f"NVRM: Xid {code}"))
        look(xids=tuple(errors))
        look(xids=tuple(errors))
        heard.wait(60)
    assert heard.titles == ["reports the GPU error Xid 31", "reports the GPU error Xid 79"]
    assert "next: sudo dmesg | glm4-deploy diagnose -" in heard.told[0].text
    heard.wait(3600)
    look(xids=(*errors, Xid(code=31, at=99.0, text="NVRM: Xid 31")))
    assert heard.titles[2:] == ["reports the GPU error Xid 31"]


def test_memory_that_runs_low_is_told_once_per_level_and_once_that_it_is_back() -> None:
    heard = Heard()
    for number in range(6):
        heard.emit("memory", state="low", was="fine", why=f"{number} GiB available", hint="stop what else uses memory")
        heard.wait(20)
        heard.emit("memory", state="fine", was="low", why="9 GiB available", hint="")
        heard.wait(20)
    heard.emit("memory", state="critical", was="fine", why="2 GiB available", hint="stop what else uses memory")
    heard.emit("memory", state="low", was="critical", why="4 GiB available", hint="")
    heard.emit("memory", state="unknown", was="low", why="", hint="")
    heard.wait(600)
    assert heard.titles == ["is low on memory", "is about to run out of memory"]
    assert "do this: stop what else uses memory" in heard.told[1].text
    assert [one.kind for one in heard.told] == ["warning", "failure"]
    heard.emit("memory", state="fine", was="unknown", why="9 GiB available", hint="")
    heard.wait(600)
    assert heard.titles[2:] == ["has enough memory again"]
    assert "now: 9 GiB available" in heard.told[2].text


def test_a_guard_that_refuses_questions_is_told_once_and_once_that_it_takes_them_again() -> None:
    heard = Heard()
    for number in range(3):
        heard.emit("guard", state="refuses", why=f"the host is short of memory; {number} refused since its start")
        heard.emit("guard", state="unknown", why="GET /metrics: refused")  # of its findings: no end of it
        heard.wait(60)
        heard.emit("guard", state="well", why=f"it takes new questions again; {number} refused since its start")
        heard.wait(60)
    heard.wait(600)
    assert heard.titles == ["takes no new questions: its guard refuses them", "takes new questions again"]
    assert "why: the host is short of memory; 0 refused" in heard.told[0].text
    assert "next: glm4-deploy status" in heard.told[0].text and "; 2 refused" in heard.told[1].text


def test_each_engine_that_was_stopped_for_memory_is_told_with_what_to_change() -> None:
    heard = Heard()
    for name in ("engine-1", "engine-2", "engine-1"):
        heard.emit("memory-stopped", engine=name, why="memory ran out", hint="raise mem_limit", log="x", seconds=1)
    assert heard.titles == ["was stopped before the host ran out of memory"] * 3
    assert "engine: engine-2" in heard.told[1].text and "do this: raise mem_limit" in heard.told[1].text
    for _ in range(3):
        heard.emit("memory-stop-failed", why="Docker does not answer")
    assert heard.titles[3:] == ["could not be stopped, and memory is running out"]


def test_a_stop_that_fails_is_told_again_once_memory_was_back() -> None:
    heard = Heard()
    for _ in range(2):
        heard.emit("memory", state="critical", was="low", why="2 GiB available", hint="")
        for _ in range(2):
            heard.emit("memory-stop-failed", why="Docker does not answer")
        heard.emit("memory", state="fine", was="critical", why="9 GiB available", hint="")
        heard.wait(600)
    once = ["is about to run out of memory", "could not be stopped, and memory is running out"]
    assert heard.titles == [*once, "has enough memory again"] * 2


def test_what_an_earlier_version_saved_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"boot": "", "told": "hung", "conditions": {"gpu": ["GPU #: power brake"]}}')
    memory = _load(tmp_path / "old.json")
    assert (memory.told, memory.relapses) == (State.HUNG, {})
    assert memory.conditions == {"gpu": ["GPU #: power brake"]}


def test_a_watch_that_was_killed_tells_no_condition_again_and_forgets_none() -> None:
    first = Heard()
    first.emit("memory", state="low", was="unknown", why="7 GiB available", hint="")
    second = Heard(first.memory)
    second.emit("memory", state="low", was="unknown", why="7 GiB available", hint="")
    second.wait(600)
    assert second.told == []
    third = Heard(second.memory)
    third.wait(600)
    assert third.titles == ["has enough memory again"], "the breaker says nothing where all is well"
    assert "not seen since the watch started" in third.told[0].text
