"""Which changes of the verdict become a message, over hours in no time."""

import pytest

from glm4_deploy.watch.incident import Damper, Damping, Memory, Notification
from glm4_deploy.watch.judge import State, WatchVerdict

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
        message: Notification | None = damper.event(name, {"why": why, "release": release})
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


def test_a_watch_that_was_killed_goes_on_with_the_same_incident() -> None:
    memory = Memory()
    assert told({0: State.OK, 100: State.HUNG}, 200, memory) == [(100, "is hung")]
    assert told({0: State.UNKNOWN, 30: State.HUNG, 300: State.OK}, 600, memory) == [(420, "is well again")]
