"""The judge: recorded counters of a real engine, and cases that cannot be recorded."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from glm4_deploy.plan.engine_rules import WORK_COUNTERS
from glm4_deploy.probe.endpoints import parse_metrics
from glm4_deploy.probe.hang import Counters, counters
from glm4_deploy.watch.judge import (
    AnswerCounts,
    CanaryOutcome,
    CanaryResult,
    Judge,
    Limits,
    MetricsSample,
    Scrape,
    State,
)

RECORDED = Path(__file__).parents[2] / "data/watch/vllm-0.32-cpu.jsonl.gz"
LIMITS = Limits(interval_s=10, stall_s=60, start_grace_s=900, canaries=False)
IDLE = Counters(generation_tokens=100, running=0, waiting=0, started=1.0)
STUCK = replace(IDLE, running=3)


def feed(
    judge: Judge, start: float, seconds: float, found: Counters | None, look: Scrape = Scrape.ANSWERED
) -> Iterator:
    """The same sample at every interval."""
    at = start
    while at < start + seconds:
        at += LIMITS.interval_s
        yield judge.sample(MetricsSample(at=at, outcome=look, counters=found, why=look.value)).state


def canary(at: float, outcome: CanaryOutcome, why: str = "EXACT_LOOP") -> CanaryResult:
    return CanaryResult(name="long-en", asked=at - 5, at=at, outcome=outcome, why=why)


def judge(**changes: object) -> Judge:
    return Judge(replace(LIMITS, **changes), at=0.0)  # type: ignore[arg-type]  # a test's keywords


def recorded() -> list[tuple[float, str, Counters | None]]:
    rows = [json.loads(line) for line in gzip.decompress(RECORDED.read_bytes()).decode().splitlines()]
    first = rows[0]["at"]
    return [(row["at"] - first, row["phase"], counters(parse_metrics(row["text"]))) for row in rows]


def test_a_real_engine_idle_under_load_frozen_and_thawed() -> None:
    """The phases of the recording: idle, load, core-stopped (SIGSTOP of the engine core, /health 200), core-cont."""
    one = Judge(Limits(interval_s=1, stall_s=10, canaries=False), at=0.0)
    states: dict[str, list[State]] = {}
    began: dict[str, float] = {}
    hung_at = None
    for at, phase, found in recorded():
        began.setdefault(phase, at)
        state = one.sample(
            MetricsSample(at=at, outcome=Scrape.ANSWERED if found else Scrape.SILENT, counters=found)
        ).state
        states.setdefault(phase, []).append(state)
        if state is State.HUNG and hung_at is None:
            hung_at = at - began["core-stopped"]
    assert set(states["idle"]) <= {State.OK, State.UNKNOWN}
    assert State.HUNG not in states["load"]
    assert hung_at is not None
    assert hung_at < 13
    assert states["core-cont"][-1].good
    assert State.HUNG not in states["drain"]


def test_requests_that_stand_still_are_hung_within_the_promised_time() -> None:
    one = judge()
    assert all(state.good for state in feed(one, 0, 60, STUCK))
    assert list(feed(one, 60, 20, STUCK))[-1] is State.HUNG
    assert "3 requests" in one.verdict.why


@pytest.mark.parametrize("name", [*WORK_COUNTERS, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"])
def test_any_counter_that_moves_is_work(name: str) -> None:
    """A long prefill generates no token for minutes, but another counter moves."""
    one = judge()
    for step in range(60):
        page = f"vllm:num_requests_running 3\n{name} {step}\n"
        page += "" if name == "vllm:generation_tokens_total" else "vllm:generation_tokens_total 100\n"
        found = counters(parse_metrics(page))
        state = one.sample(MetricsSample(at=10.0 * step, outcome=Scrape.ANSWERED, counters=found)).state
        assert state.good
    assert state is (State.OK if name == "vllm:generation_tokens_total" else State.BUSY)


def test_an_idle_engine_may_stand_still_forever() -> None:
    one = judge()
    assert set(feed(one, 0, 7200, IDLE)) == {State.OK}
    assert State.HUNG not in feed(one, 7200, 50, STUCK), "its first request after hours has its time, too"
    assert list(feed(one, 7250, 40, STUCK))[-1] is State.HUNG


def test_clients_that_give_up_are_not_progress() -> None:
    one = judge()
    for step in range(12):
        state = one.sample(
            MetricsSample(at=10.0 * step, outcome=Scrape.ANSWERED, counters=replace(STUCK, running=float(1 + step % 3)))
        ).state
    assert state is State.HUNG


def test_a_watch_that_was_suspended_does_not_blame_the_engine() -> None:
    one = judge()
    list(feed(one, 0, 20, STUCK))
    assert one.sample(MetricsSample(at=5000, outcome=Scrape.ANSWERED, counters=STUCK)).state.good


def test_an_engine_that_froze_while_idle_is_found_by_the_canary() -> None:
    one = judge()
    list(feed(one, 0, 100, IDLE))
    assert one.canary(CanaryResult(name="add", asked=40, at=100, outcome=CanaryOutcome.SILENT)).state is State.HUNG
    moving = judge()
    for step in range(10):
        moving.sample(
            MetricsSample(
                at=10.0 * step, outcome=Scrape.ANSWERED, counters=replace(STUCK, generation_tokens=float(step))
            )
        )
    assert moving.canary(CanaryResult(name="add", asked=40, at=100, outcome=CanaryOutcome.SILENT)).state.good, (
        "a queue, not a hang"
    )


def test_one_sick_answer_is_doubt_and_two_are_babbling_and_two_sound_ones_clear_it() -> None:
    one = judge(canaries=True)
    list(feed(one, 0, 10, IDLE))
    assert one.verdict.state is State.UNKNOWN, "nothing that it said is known"
    assert one.canary(canary(11, CanaryOutcome.SOUND)).state is State.OK
    assert one.canary(canary(20, CanaryOutcome.SICK)).state is not State.BABBLING
    assert one.canary(canary(30, CanaryOutcome.SICK)).state is State.BABBLING
    assert "EXACT_LOOP" in one.verdict.why
    assert one.canary(canary(40, CanaryOutcome.SOUND)).state is State.BABBLING
    one.canary(canary(50, CanaryOutcome.SOUND))
    assert list(feed(one, 50, 20, IDLE))[-1] is State.OK


def test_nan_logits_are_babbling_at_once() -> None:
    one = judge()
    list(feed(one, 0, 20, replace(IDLE, corrupted=0.0)))
    assert next(feed(one, 20, 10, replace(IDLE, corrupted=1.0))) is State.BABBLING


def test_a_generation_that_fails_twice_while_metrics_answer_is_hung() -> None:
    one = judge()
    list(feed(one, 0, 20, IDLE))
    assert one.canary(canary(21, CanaryOutcome.BROKEN, "HTTP 500")).state is State.OK
    assert one.canary(canary(30, CanaryOutcome.SOUND)).state is State.OK, "a short one may pass between two that fail"
    assert one.canary(canary(40, CanaryOutcome.BROKEN, "HTTP 500")).state is State.HUNG


def test_a_start_has_its_grace_and_then_it_is_unreachable() -> None:
    one = judge()
    assert set(feed(one, 0, 890, None, Scrape.REFUSED)) == {State.UNKNOWN}
    assert list(feed(one, 890, 40, None, Scrape.REFUSED))[-1] is State.UNREACHABLE


def test_one_refusal_is_nothing_and_two_are_unreachable() -> None:
    one = judge()
    list(feed(one, 0, 30, IDLE))
    assert list(feed(one, 30, 20, None, Scrape.REFUSED)) == [State.OK, State.UNREACHABLE]
    assert list(feed(one, 50, 20, IDLE)) == [State.UNREACHABLE, State.OK]


def test_a_server_that_outlives_its_engine_is_hung_once_that_is_confirmed() -> None:
    one = judge()
    list(feed(one, 0, 30, IDLE))
    assert list(feed(one, 30, 20, None, Scrape.DEAD)) == [State.OK, State.HUNG]
    assert list(feed(one, 50, 20, IDLE)) == [State.HUNG, State.OK]
    assert next(feed(one, 70, 10, None, Scrape.DEAD)) is State.OK, "confirmed anew"


def test_silence_is_busy_first_and_hung_in_the_end() -> None:
    one = judge()
    list(feed(one, 0, 30, IDLE))
    found = list(feed(one, 30, 70, None, Scrape.SILENT))
    assert found[0] is State.BUSY
    assert found[-1] is State.HUNG
    assert found.index(State.HUNG) >= 5


def test_silence_counts_for_as_long_as_the_request_waited() -> None:
    """A scrape every second that waits 8 s in vain: two of them are more than 10 s of silence."""
    one = Judge(Limits(interval_s=1, stall_s=10, canaries=False), at=0.0)
    one.sample(MetricsSample(at=1, outcome=Scrape.ANSWERED, counters=IDLE))
    found = [one.sample(MetricsSample(at=at, outcome=Scrape.SILENT, waited=8)).state for at in (10.0, 19.0)]
    assert found == [State.BUSY, State.HUNG]


def test_a_restarted_engine_is_judged_from_scratch() -> None:
    one = judge()
    list(feed(one, 0, 90, STUCK))
    assert one.verdict.state is State.HUNG
    assert list(feed(one, 90, 20, replace(IDLE, generation_tokens=0, started=2.0)))[-1] is State.OK


def test_a_canary_sent_before_a_restart_does_not_count() -> None:
    one = judge()
    list(feed(one, 0, 20, IDLE))
    list(feed(one, 20, 20, replace(IDLE, started=2.0)))
    for _ in range(2):
        one.canary(CanaryResult(name="add", asked=15, at=45, outcome=CanaryOutcome.SICK))
    assert one.verdict.state is State.OK


def test_another_model_is_the_wrong_engine_and_no_counters_are_unknown() -> None:
    assert list(feed(judge(), 0, 20, None, Scrape.WRONG)) == [State.UNKNOWN, State.WRONG_ENGINE]
    assert set(feed(judge(), 0, 7200, None, Scrape.STRANGE)) == {State.UNKNOWN}


@pytest.mark.parametrize(
    ("age", "answered", "state"), [(30, False, State.UNKNOWN), (30, True, State.HUNG), (5000, False, State.HUNG)]
)
def test_a_cold_engine_that_compiles_is_not_called_hung(age: float, answered: bool, state: State) -> None:
    one = judge(canaries=True)
    started = replace(STUCK, started=1000.0)
    one.sample(MetricsSample(at=1, outcome=Scrape.ANSWERED, counters=started, epoch=1000 + age))
    if answered:
        one.canary(canary(8, CanaryOutcome.SOUND))
    for step in range(1, 12):
        at = 10.0 * step
        found = one.sample(MetricsSample(at=at, outcome=Scrape.ANSWERED, counters=started, epoch=1000 + age + at)).state
    assert found is state
    one = judge(canaries=True)
    idle = replace(IDLE, started=1000.0)
    one.sample(MetricsSample(at=1, outcome=Scrape.ANSWERED, counters=idle, epoch=1000 + age))
    if answered:
        one.canary(canary(8, CanaryOutcome.SOUND))
    one.sample(MetricsSample(at=10, outcome=Scrape.ANSWERED, counters=idle, epoch=1010 + age))
    assert one.canary(CanaryResult(name="add", asked=20, at=30, outcome=CanaryOutcome.SILENT)).state is state


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
@pytest.mark.parametrize(("age", "state"), [(30, State.UNKNOWN), (5000, State.HUNG)])
def test_a_changed_date_makes_no_engine_cold_or_warm(age: float, state: State, jump: float) -> None:
    one = judge(canaries=True)
    started = replace(STUCK, started=10**6)
    one.sample(MetricsSample(at=1, outcome=Scrape.ANSWERED, counters=started, epoch=10**6 + age))
    for step in range(1, 12):
        at, date = 10.0 * step, 10**6 + age + 10.0 * step + jump
        found = one.sample(MetricsSample(at=at, outcome=Scrape.ANSWERED, counters=started, epoch=date)).state
    assert found is state


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_one_that_restarts_while_the_date_changes_is_cold_for_as_long_as_a_start_may_take(jump: float) -> None:
    one, grace = judge(canaries=True), Limits().start_grace_s
    date, states = 10**6, []
    one.sample(MetricsSample(at=1, outcome=Scrape.ANSWERED, counters=replace(STUCK, started=date - 5000), epoch=date))
    for at in range(10, 1200, 10):
        again = replace(STUCK, started=date + 5)
        sample = MetricsSample(at=float(at), outcome=Scrape.ANSWERED, counters=again, epoch=date + at + jump)
        states.append((at, one.sample(sample).state))
    assert State.HUNG not in {state for at, state in states if at < grace}
    assert states[-1][1] is State.HUNG


def guarded(one: Judge, *counts: tuple[float, float, float]) -> State:
    """The state after a guard has counted (at, judged, sick)."""
    for at, judged, sick in counts:
        one.answers(AnswerCounts(at=at, judged=judged, sick=sick))
    return one.sample(MetricsSample(at=counts[-1][0], outcome=Scrape.ANSWERED, counters=IDLE)).state


def test_many_sick_answers_among_those_that_a_guard_judged_are_babbling() -> None:
    assert guarded(judge(), (10, 0, 0), (20, 100, 20)) is State.OK  # a fifth, the limit
    assert guarded(judge(), (10, 0, 0), (20, 100, 21)) is State.BABBLING
    assert guarded(judge(), (10, 0, 0), (20, 19, 19)) is State.OK  # too few
    assert guarded(judge(), (10, 500, 400), (20, 600, 410)) is State.OK  # what was before the watch does not count


def test_sick_answers_are_forgotten_after_the_window_and_after_a_restart() -> None:
    one = judge()
    assert guarded(one, (10, 0, 0), (20, 40, 40)) is State.BABBLING
    guarded(one, (700, 140, 40))
    assert guarded(one, (710, 150, 40)) is State.OK
    assert guarded(one, (720, 0, 0), (730, 30, 30)) is State.BABBLING  # the guard was restarted, and began again at 0
    one.restarted(740)
    guarded(one, (750, 60, 60))
    assert guarded(one, (760, 60, 60)) is State.OK


def test_what_a_guard_finds_is_unknown_while_it_cannot_be_read_and_old_counts_do_not_stay() -> None:
    one = judge()
    assert guarded(one, (10, 0, 0), (20, 40, 40)) is State.BABBLING
    one.no_answers("refused", 30)
    assert one.sample(MetricsSample(at=30, outcome=Scrape.ANSWERED, counters=IDLE)).state is State.BABBLING
    for at in (700, 710):
        one.no_answers("refused", at)
        verdict = one.sample(MetricsSample(at=at, outcome=Scrape.ANSWERED, counters=IDLE))
    assert verdict.state is State.OK
    assert verdict.why.endswith("what the guard finds is unknown (refused)")
    guarded(one, (720, 50, 40))
    assert "guard" not in one.verdict.why
