"""The memory breaker: what warns, what stops, and what does neither."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from glm4_deploy.cli.watch import _memory_stop
from glm4_deploy.deploy.docker import ContainerState
from glm4_deploy.deploy.state import MemoryStop, load_stop, save_stop
from glm4_deploy.host.memory import MemoryFacts, MemoryGroup, Pressure
from glm4_deploy.watch.breaker import CONFIRM_S, GIB, Breaker, MemoryState, remedy
from glm4_deploy.watch.judge import State
from glm4_deploy.watch.restart import Policy, Rules


def look(available_gib: float, *, full: float | None = 0.0, groups: tuple[MemoryGroup, ...] = ()) -> MemoryFacts:
    pressure = None if full is None else Pressure(some=full, full=full)
    return MemoryFacts(
        total=round(121.69 * GIB), available=round(available_gib * GIB), pressure=pressure, groups=groups
    )


def looks(breaker: Breaker, gibs: Iterable[float], *, full: float | None = 0.0, start: float = 0.0) -> list[float]:
    """The times at which it stops the engine, for looks half a second apart."""
    return [
        at for number, gib in enumerate(gibs) if breaker.look(look(gib, full=full), at := start + number / 2)
    ]  # fmt: skip


LOW, CRITICAL, FINE = MemoryState.LOW, MemoryState.CRITICAL, MemoryState.FINE


def test_a_level_alone_stops_nothing() -> None:
    breaker = Breaker(8.0)
    assert not looks(breaker, [40, 8.1, 7.9, 3.9, *[3.8, 3.82] * 600]), "a warning is all that a steady engine gets"
    assert breaker.state is LOW
    assert not looks(Breaker(8.0), [3.0] * 1200), "nor one that was there before the watch"


def test_an_engine_that_loads_and_comes_to_rest_below_half_of_the_floor_goes_on() -> None:
    loading = [40 - gib for gib in range(36)]
    assert not looks(Breaker(8.0), [*loading, 3.6, *[3.6, 3.5] * 600])


def test_other_programs_that_come_and_go_are_no_fall() -> None:
    assert not looks(Breaker(8.0), [9.0, *[3.9, 3.9, 3.7, 3.7] * 300])
    assert not looks(Breaker(8.0), [9.0, *[3.9] * 20, *[3.2] * 4, *[3.9] * 100]), "two seconds are not enough"


@pytest.mark.parametrize("per_second", [0.05, 0.1, 0.3, 0.6, 1.0, 2.0])
def test_what_goes_on_falling_is_stopped_before_the_end(per_second: float) -> None:
    falling = [9.0 - per_second * number / 2 for number in range(int(18 / per_second))]
    breaker = Breaker(8.0)
    (first, *_) = looks(breaker, falling)
    left = 9.0 - per_second * first
    assert 0 < left < 4.0
    assert left >= min(per_second, 2.0), "a second before the end, or more"
    assert breaker.room is not None and breaker.state is CRITICAL


def test_a_fall_in_steps_is_stopped() -> None:
    steps = [9.0, *[3.9] * 8, *[3.3] * 8, *[2.7] * 8, *[2.1] * 8, *[1.5] * 8]
    (first, *_) = looks(Breaker(8.0), steps)
    assert steps[int(first * 2)] >= 2.1
    every_second = [9.0, 5.4, 5.4, 3.9, 3.9, 2.4, 2.4]
    assert looks(Breaker(8.0), every_second)[0] == 2.5


def test_one_large_allocation_is_no_fall() -> None:
    """A KV cache is allocated in one go."""
    assert not looks(Breaker(8.0), [60.0, 60.0, 3.2, *[3.1, 3.2] * 100])


@pytest.mark.parametrize(("full", "stops"), [(0.0, False), (2.0, False), (6.0, True)])
def test_stalls_below_half_of_the_floor_stop_it_after_some_seconds(full: float, stops: bool) -> None:
    found = looks(Breaker(8.0), [3.5] * 60, full=full)
    assert bool(found) is stops
    assert not stops or found[0] == CONFIRM_S


def test_a_stop_leaves_the_next_engine_its_time() -> None:
    breaker = Breaker(8.0)
    assert looks(breaker, [3.5] * 8, full=30.0)
    breaker.stopped()
    assert looks(breaker, [3.5] * 8, full=30.0, start=4.0) == [7.0, 7.5]


def test_one_look_that_is_critical_stops_nothing() -> None:
    assert not looks(Breaker(8.0), (3.0, 12.0, 1.0, 12.0))


def test_a_warning_ends_only_well_above_the_floor() -> None:
    breaker = Breaker(8.0)
    states = []
    for at, gib in enumerate((7.9, 8.1, 8.7, 8.9)):
        breaker.look(look(gib), at)
        states.append(breaker.state)
    assert states == [MemoryState.LOW] * 3 + [MemoryState.FINE]


@pytest.mark.parametrize(("gib", "full", "stops"), [(6.0, 30.0, True), (6.0, 5.0, False), (40.0, 90.0, False)])
def test_a_host_that_stalls_below_its_floor_is_an_emergency(gib: float, full: float, stops: bool) -> None:
    found = looks(Breaker(8.0), [gib] * 20, full=full)
    assert bool(found) is stops
    assert not stops or found[0] == CONFIRM_S


def test_a_kernel_without_figures_is_unknown_and_stops_nothing() -> None:
    breaker = Breaker(8.0)
    assert not any(breaker.look(MemoryFacts(), at) for at in range(5))
    assert breaker.state is MemoryState.UNKNOWN
    assert not breaker.look(look(7.0, full=None), 5.0)
    assert breaker.state is MemoryState.LOW


def test_a_cgroup_has_a_floor_of_its_own() -> None:
    def group(used: float) -> MemoryGroup:
        return MemoryGroup(path="/engine", used=round(used * GIB), limit=16 * GIB)

    breaker = Breaker(8.0)
    stops = [breaker.look(look(90, groups=(group(used),)), at) for at, used in enumerate((14, 15.25, 15.275, 15.3))]
    assert not any(stops) and breaker.state is LOW
    for at in range(10):
        stopped = breaker.look(look(90, groups=(group(15.3 + 0.06 * min(at, 6)),)), 4.0 + at)
        if stopped:
            break
    assert stopped and breaker.room is not None and breaker.room.group == "/engine"
    breaker = Breaker(8.0)
    breaker.look(look(90, groups=(group(15.3),)), 0.0)
    assert breaker.room is not None
    assert "717 MiB of 16.0 GiB available in the cgroup /engine, 1.6 GiB are to stay" in str(breaker.room)
    assert "mem_limit" in remedy(breaker.room, frozenset())
    roomy = Breaker(8.0)
    assert not any(roomy.look(look(90, groups=(group(13.0),)), at) for at in range(20))
    assert roomy.state is FINE


def test_the_remedy_names_by_how_much() -> None:
    breaker = Breaker(8.0)
    breaker.look(look(2.0), 0.0)
    assert breaker.room is not None
    text = remedy(breaker.room, frozenset())
    assert "gpu_memory_utilization lower by 0.05" in text and text.endswith("then: glm4-deploy up")


def test_what_was_stopped_for_memory_stays_down_until_it_is_started_again(tmp_path: Path) -> None:
    stop = MemoryStop(at=100.0, what=("glm4",), why="memory ran out", remedy="stop the browser", log="x")
    save_stop(stop, tmp_path)
    assert load_stop(tmp_path, since=90.0) == stop
    assert load_stop(tmp_path, since=110.0) is None, "it was started after that"
    assert load_stop(tmp_path / "none", since=0.0) is None
    policy = Policy(Rules(), held=partial(_memory_stop, tmp_path))
    killed = ContainerState(
        id="i", name="glm4", image="v", image_id="i", status="exited", started_at=90.0, restarts=0, exit_code=137,
        oom_killed=False, health=None, ports=(), restart_policy="no",
    )  # fmt: skip
    why = "memory ran out: it needs a person (stop the browser)"
    assert policy.why_not(State.UNREACHABLE, 0.0, killed, up_s=None, since_s=60.0) == why
    ending = replace(killed, status="running", exit_code=None)
    assert policy.why_not(State.HUNG, 0.0, ending, up_s=5000.0, since_s=60.0) == why
    other = replace(ending, name="glm4-2")
    assert policy.why_not(State.HUNG, 0.0, other, up_s=5000.0, since_s=60.0) is None, "another engine was stopped"
    again = replace(ending, started_at=110.0)
    assert policy.why_not(State.HUNG, 0.0, again, up_s=5000.0, since_s=60.0) is None, "it was started after that"
