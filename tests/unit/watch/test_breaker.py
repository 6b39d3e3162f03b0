"""The memory breaker: what warns, what stops, and what does neither."""

from pathlib import Path

import pytest

from glm4_deploy.deploy.docker import ContainerState
from glm4_deploy.deploy.state import MemoryStop, load_stop, save_stop
from glm4_deploy.host.memory import MemoryFacts, MemoryGroup, Pressure
from glm4_deploy.watch.judge import State
from glm4_deploy.watch.memory import GIB, Breaker, MemoryState, remedy
from glm4_deploy.watch.restart import Policy, Rules


def look(available_gib: float, *, full: float | None = 0.0, groups: tuple[MemoryGroup, ...] = ()) -> MemoryFacts:
    pressure = None if full is None else Pressure(some=full, full=full)
    return MemoryFacts(
        total=round(121.69 * GIB), available=round(available_gib * GIB), pressure=pressure, groups=groups
    )


def test_it_warns_below_the_floor_and_stops_below_half_of_it_if_seen_twice() -> None:
    breaker = Breaker(8.0)
    seen = [(breaker.look(look(gib)), breaker.state) for gib in (40, 8.1, 7.9, 3.9, 3.8, 3.7)]
    fine, low, critical = MemoryState.FINE, MemoryState.LOW, MemoryState.CRITICAL
    assert [state for _, state in seen] == [fine, fine, low, low, critical, critical]
    assert [stop for stop, _ in seen] == [False, False, False, False, True, True]


def test_one_look_that_is_critical_stops_nothing() -> None:
    breaker = Breaker(8.0)
    assert not any(breaker.look(look(gib)) for gib in (3.0, 12.0, 3.0, 12.0))


def test_a_warning_ends_only_well_above_the_floor() -> None:
    breaker = Breaker(8.0)
    states = []
    for gib in (7.9, 8.1, 8.7, 8.9):
        breaker.look(look(gib))
        states.append(breaker.state)
    assert states == [MemoryState.LOW] * 3 + [MemoryState.FINE]


@pytest.mark.parametrize(("gib", "full", "stops"), [(6.0, 30.0, True), (6.0, 5.0, False), (40.0, 90.0, False)])
def test_a_host_that_stalls_below_its_floor_is_an_emergency(gib: float, full: float, stops: bool) -> None:
    breaker = Breaker(8.0)
    breaker.look(look(gib, full=full))
    assert breaker.look(look(gib, full=full)) is stops


def test_a_kernel_without_figures_is_unknown_and_stops_nothing() -> None:
    breaker = Breaker(8.0)
    assert not any(breaker.look(MemoryFacts()) for _ in range(5))
    assert breaker.state is MemoryState.UNKNOWN
    assert not breaker.look(look(7.0, full=None))
    assert breaker.state is MemoryState.LOW


def test_a_cgroup_has_a_floor_of_its_own() -> None:
    breaker = Breaker(8.0)
    full = MemoryGroup(path="/engine", used=round(15.3 * GIB), limit=16 * GIB)
    breaker.look(look(90, groups=(full,)))
    assert breaker.look(look(90, groups=(full,)))
    assert breaker.room is not None
    assert "717 MiB of 16.0 GiB available in the cgroup /engine, 1.6 GiB are to stay" in str(breaker.room)
    assert "mem_limit" in remedy(breaker.room, frozenset())
    roomy = MemoryGroup(path="/engine", used=13 * GIB, limit=16 * GIB)
    assert not any(Breaker(8.0).look(look(90, groups=(roomy,))) for _ in range(3))


def test_the_remedy_names_by_how_much() -> None:
    breaker = Breaker(8.0)
    breaker.look(look(2.0))
    assert breaker.room is not None
    text = remedy(breaker.room, frozenset())
    assert "gpu_memory_utilization lower by 0.05" in text and text.endswith("then: glm4-deploy up")


def test_what_was_stopped_for_memory_stays_down_until_it_is_started_again(tmp_path: Path) -> None:
    stop = MemoryStop(at=100.0, what=("glm4",), why="memory ran out", remedy="stop the browser", log="x")
    save_stop(stop, tmp_path)
    assert load_stop(tmp_path, since=90.0) == stop
    assert load_stop(tmp_path, since=110.0) is None, "it was started after that"
    assert load_stop(tmp_path / "none", since=0.0) is None
    policy = Policy(Rules(), held=lambda started: "memory ran out" if started <= 100 else "")
    killed = ContainerState(
        id="i", name="glm4", image="v", image_id="i", status="exited", started_at=90.0, restarts=0, exit_code=137,
        oom_killed=False, health=None, ports=(), restart_policy="no",
    )  # fmt: skip
    assert policy.why_not(State.UNREACHABLE, 0.0, killed, up_s=None, since_s=60.0) == "memory ran out"
