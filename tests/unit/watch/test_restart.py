"""When the engine is restarted and when it is left alone; what canaries cost; how an answer is judged."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from glm4_deploy.deploy.docker import ContainerState
from glm4_deploy.errors import DeployError, RollbackFailed
from glm4_deploy.probe.answers import ChatAnswer
from glm4_deploy.probe.hang import Counters
from glm4_deploy.report_model import Timing
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.judge import Judge, Limits, State, WatchVerdict
from glm4_deploy.watch.loop import Schedule, canary_fault, run_watch
from glm4_deploy.watch.restart import Policy, Rules


def container(**changes: Any) -> ContainerState:
    state: dict[str, Any] = {
        "id": "x", "name": "x", "image": "x", "image_id": "x", "status": "running", "started_at": 0.0, "restarts": 0,
        "exit_code": None, "oom_killed": False, "health": None, "ports": (), "restart_policy": "no",
    }  # fmt: skip
    return ContainerState(**{**state, **changes})


def why_not(policy: Policy, state: State, at: float, up_s: float | None = 5000, **changes: Any) -> str | None:
    return policy.why_not(state, at, container(**changes), up_s=up_s, since_s=0)


@pytest.mark.parametrize("state", State)
def test_only_states_that_a_restart_can_fix_are_restarted(state: State) -> None:
    restarted = why_not(Policy(Rules()), state, 0) is None
    assert restarted == (state in (State.HUNG, State.BABBLING, State.UNREACHABLE))


def test_what_its_restart_policy_gave_up_needs_a_person() -> None:
    changes = {"status": "exited", "exit_code": 0, "restart_policy": "on-failure", "restarts": 3}
    why = why_not(Policy(Rules()), State.UNREACHABLE, 0, None, **changes)
    assert why is not None and "the ceiling" in why


@pytest.mark.parametrize(
    ("policy", "code", "restarted"),
    [("no", 137, True), ("no", 1, True), ("no", 0, False), ("on-failure", 143, False), ("unless-stopped", 137, False)],
)
def test_what_a_person_stopped_is_left_alone(policy: str, code: int, restarted: bool) -> None:
    changes = {"status": "exited", "exit_code": code, "restart_policy": policy}
    assert (why_not(Policy(Rules()), State.UNREACHABLE, 0, None, **changes) is None) == restarted


def test_a_paused_or_absent_container_is_left_alone() -> None:
    assert why_not(Policy(Rules()), State.HUNG, 0, None, status="paused")
    assert Policy(Rules()).why_not(State.HUNG, 0, None, up_s=None, since_s=0)


def test_an_engine_that_is_loading_is_left_alone() -> None:
    assert "may take" in (why_not(Policy(Rules(grace_s=300)), State.UNREACHABLE, 0, up_s=200) or "")
    assert why_not(Policy(Rules(grace_s=300)), State.UNREACHABLE, 0, up_s=301) is None
    compiling = Policy(Rules(grace_s=300)).why_not(State.HUNG, 0, container(), up_s=100, since_s=5)
    assert compiling, "a cold engine compiles in its first requests"
    old_verdict = Policy(Rules(grace_s=300)).why_not(State.BABBLING, 0, container(), up_s=10, since_s=60)
    assert old_verdict, "it was started after it was judged"


@pytest.mark.parametrize("status", ["running", "exited"])
@pytest.mark.parametrize("state", [State.HUNG, State.BABBLING, State.UNREACHABLE])
def test_what_is_held_is_left_alone_while_it_still_runs_and_after(status: str, state: State) -> None:
    policy = Policy(Rules(), held=lambda one: "memory ran out" if one.started_at < 100 else "")
    code = None if status == "running" else 137
    up_s = 5000.0 if status == "running" else None
    assert why_not(policy, state, 0, up_s, status=status, exit_code=code) == "memory ran out"
    assert why_not(policy, state, 0, up_s, status=status, exit_code=code, started_at=200.0) is None


def test_backoff_doubles_and_the_ceiling_holds_for_an_hour() -> None:
    policy = Policy(Rules(backoff_s=60, ceiling=3))
    done = []
    for at in range(0, 3600, 10):
        if why_not(policy, State.HUNG, at) is None:
            policy.done(at, State.HUNG)
            done.append(at)
    assert done == [0, 60, 180]
    assert "ceiling" in (why_not(policy, State.HUNG, 3599) or "")
    assert why_not(policy, State.HUNG, 3600) is None


def test_canaries_stay_within_their_budget_however_sick_the_engine_is() -> None:
    schedule = Schedule(every_s=300, max_tokens=256)
    asked = 0
    for second in range(3600):
        if ask := schedule.take(second):
            asked += ask.max_tokens
            schedule.hurry(second)
    assert asked <= schedule.budget == 2 * 12 * 256


def test_a_restarted_engine_gets_a_canary_at_once_even_after_a_bad_hour() -> None:
    schedule = Schedule(every_s=300, max_tokens=256)
    for second in range(3500):
        if schedule.take(second):
            schedule.hurry(second)
    schedule.restarted(3500)
    assert schedule.take(3500)


def test_canaries_take_turns() -> None:
    schedule = Schedule(every_s=10, max_tokens=256)
    asks = [ask for second in range(0, 80, 10) if (ask := schedule.take(second))]
    free = [(ask.question.id, ask.sampled) for ask in asks[::2]]
    assert free == [("long-en", False), ("long-zh", True), ("long-en", True), ("long-zh", False)]
    assert {ask.question.family for ask in asks[1::2]} == {"arithmetic"}
    assert not any(ask.sampled for ask in asks[1::2])


def test_how_an_answer_is_judged() -> None:
    asks = [ask for second in range(0, 40, 10) if (ask := Schedule(every_s=10, max_tokens=256).take(second))]
    free = asks[0]
    loop = ChatAnswer(text="I am here. " * 60, finish_reason="length", timing=Timing(total=1))
    assert "EXACT_LOOP" in (canary_fault(free, loop) or "")
    nan = ChatAnswer(text="!!!!", finish_reason="length", timing=Timing(total=1), logprobs=(None, None, None, None))
    assert canary_fault(free, nan)
    assert canary_fault(free, ChatAnswer(text="", finish_reason="stop", timing=Timing(total=1)))
    good = "The keeper climbed the stair, lit the lamp and wrote of the wind in his book before the storm broke."
    assert canary_fault(free, ChatAnswer(text=good, finish_reason="stop", timing=Timing(total=1))) is None


def test_what_babbles_again_within_an_hour_of_its_restart_is_rolled_back_once_a_day() -> None:
    policy = Policy(Rules(ceiling=1, rollbacks=1))
    assert not policy.rolls_back(State.BABBLING, 0), "a restart comes first"
    policy.done(0, State.BABBLING)
    assert why_not(policy, State.BABBLING, 30) == "waiting between two restarts"
    assert not policy.rolls_back(State.HUNG, 100)
    assert policy.rolls_back(State.BABBLING, 100)
    assert why_not(policy, State.BABBLING, 100) is None, "the ceiling is one for restarts"
    assert not policy.rolls_back(State.BABBLING, 3600), "an hour later it is another fault: a restart"
    policy.rolled_back(100)
    assert "ceiling" in (why_not(policy, State.BABBLING, 200) or "")
    policy.done(4000, State.BABBLING)
    assert not policy.rolls_back(State.BABBLING, 4100), "one a day"
    policy.done(86_500, State.BABBLING)
    assert policy.rolls_back(State.BABBLING, 86_600)
    assert not Policy(Rules()).rolls_back(State.BABBLING, 0)


def test_without_permission_nothing_is_rolled_back() -> None:
    policy = Policy(Rules())
    policy.done(0, State.BABBLING)
    assert not policy.rolls_back(State.BABBLING, 100)


class Babbling:
    """Stands for a keeper whose restarts do not help; its rollback heals, or fails."""

    def __init__(self, trouble: str = "") -> None:
        self.trouble = trouble
        self.done: list[str] = []

    def state(self) -> ContainerState:
        return container()

    def restart(self, why: str, begin: Callable[[], None]) -> Path:
        begin()
        self.done.append("restart")
        return Path("log")

    def roll_back(self, why: str) -> str:
        self.done.append("rollback")
        if self.trouble:
            raise RollbackFailed(self.trouble)
        return "0007"


@pytest.mark.parametrize("trouble", ["", "there is no good release to go back to"])
def test_a_rollback_follows_a_restart_that_did_not_help(trouble: str) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    keeper = Babbling(trouble)

    async def verdicts() -> AsyncIterator[WatchVerdict]:
        for _ in range(6):
            yield WatchVerdict(state=State.BABBLING, why="the guard found 9 of 20 sick", since=0.0)

    policy = Policy(Rules(backoff_s=0, ceiling=2, rollbacks=1))
    run = run_watch(
        verdicts(), exporter=Exporter(stale_s=60), emit=lambda event, /, **fields: events.append((event, fields)),
        policy=policy, keeper=keeper,
    )  # fmt: skip
    asyncio.run(run)
    assert keeper.done == ["restart", "rollback", "restart"], "then the ceiling holds"
    names = [event for event, _ in events if event.startswith("roll")]
    assert names == ["rolling-back", "rollback-failed" if trouble else "rolled-back"]
    assert any("ceiling" in fields.get("why", "") for event, fields in events if event == "left-alone")


class Broken:
    """Stands for a keeper whose log cannot be written: nothing must be restarted then."""

    def state(self) -> ContainerState:
        return container()

    def restart(self, why: str, begin: Callable[[], None]) -> Path:
        raise DeployError("cannot write: disk full")

    def roll_back(self, why: str) -> str:
        raise DeployError("cannot write: disk full")


def test_a_failed_restart_is_reported_and_the_watch_continues() -> None:
    events: list[tuple[str, dict[str, Any]]] = []

    async def verdicts() -> AsyncIterator[WatchVerdict]:
        for _ in range(5):
            yield WatchVerdict(state=State.HUNG, why="frozen", since=0.0)

    exporter = Exporter(stale_s=60)
    policy = Policy(Rules(backoff_s=1000, grace_s=0))
    run = run_watch(
        verdicts(), exporter=exporter, emit=lambda event, /, **fields: events.append((event, fields)),
        policy=policy, keeper=Broken(),
    )  # fmt: skip
    asyncio.run(run)
    names = [event for event, _ in events]
    assert names.count("restarting") == 1
    assert names.count("restart-failed") == 1
    assert exporter.registry.get_sample_value("glm4_watch_restarts_total") == 0


def test_healthz_is_green_only_for_an_engine_known_to_be_well() -> None:
    exporter = Exporter(stale_s=60)
    assert exporter.health()[0] == 503
    judge = Judge(Limits(), at=0.0)
    for state in State:
        exporter.publish(WatchVerdict(state=state, why="why", since=0.0), judge, 1.0)
        assert exporter.health()[0] == (200 if state in (State.OK, State.BUSY) else 503)
    exporter.publish(WatchVerdict(state=State.OK, why="why", since=0.0), judge, 1.0)
    exporter._stale_s = -1.0
    assert exporter.health()[0] == 503, "a watch that stopped looking says nothing of the engine"


def test_what_the_engine_does_not_report_has_no_series() -> None:
    exporter, judge = Exporter(stale_s=60), Judge(Limits(), at=0.0)
    ok = WatchVerdict(state=State.OK, why="why", since=0.0)
    for corrupted, expected in ((None, None), (0.0, 0.0), (3.0, 3.0)):
        judge.last = Counters(generation_tokens=1.0, running=2.0, waiting=0.0, corrupted=corrupted)
        exporter.publish(ok, judge, 1.0)
        assert exporter.registry.get_sample_value("glm4_watch_engine_corrupted_requests") == expected
    assert exporter.registry.get_sample_value("glm4_watch_engine_requests_running") == 2.0
