"""The walk: what is tried, in which order, what wins."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from glm4_deploy.catalog.rows import gpus
from glm4_deploy.report_model import BenchLevel, Quantiles
from glm4_deploy.settings import Settings
from glm4_deploy.tune.search import CONFIGURED, PLANNED, Attempt, Outcome, Search, Trial, front, learned
from glm4_deploy.tune.space import Move, TuneLoad, changed, moves
from glm4_deploy.tune.trials import walk

LOAD = TuneLoad(users=64, input_len=512, output_len=128)
MOVES = (
    Move(axis="a", value="1", settings={"max_num_batched_tokens": 4096}, prior=0.1),
    Move(axis="b", value="x", settings={"args": {"performance-mode": "throughput"}}, prior=0.3),
    Move(axis="c", value="y", settings={"args": {"async-scheduling": None}}, prior=0.2),
)


def level(rate: float, *, ttft: float = 10, tpot: float = 10, broken: tuple[str, ...] = ()) -> BenchLevel:
    def all_at(value: float) -> Quantiles:
        return Quantiles(p50=value, p95=value, p99=value)

    return BenchLevel(
        concurrency=64,
        requests=256,
        failed=0,
        seconds=10,
        ttft=all_at(ttft),
        tpot=all_at(tpot),
        output_tokens_per_s=rate,
        requests_per_s=rate / 128,
        broken=broken,
    )


def measured(attempt: Attempt, rate: float, **more: Any) -> Trial:
    return Trial(
        label=attempt.label,
        settings=attempt.settings,
        outcome=Outcome.MEASURED,
        level=level(rate, **more),
        seconds=60,
    )


def failed(attempt: Attempt) -> Trial:
    return Trial(label=attempt.label, settings=attempt.settings, outcome=Outcome.FAILED, reason="loop-greedy")


def run(search: Search, speed: Callable[[Mapping[str, Any]], float | None], **options: Any) -> list[str]:
    def measure(attempt: Attempt) -> Trial:
        rate = speed(attempt.settings)
        return failed(attempt) if rate is None else measured(attempt, rate)

    walk(search, measure, None, **{"seconds": 1e9, **options})
    return [trial.label for trial in search.trials]


def test_the_configured_and_the_planned_come_first_then_what_promises_most() -> None:
    search = Search(LOAD, MOVES, {"max_num_seqs": 64}, {}, {})
    assert run(search, lambda _: 100) == [
        CONFIGURED,
        PLANNED,
        "performance-mode throughput",
        "async-scheduling",
        "max_num_batched_tokens 4096",
    ]
    assert search.winner is not None
    assert search.winner.label == CONFIGURED, "a draw changes nothing"


def test_what_gains_stays_and_the_next_change_is_made_on_top_of_it() -> None:
    def speed(settings: Mapping[str, Any]) -> float:
        args = settings.get("args", {})
        return 100 + 20 * ("performance-mode" in args) + 10 * ("max_num_batched_tokens" in settings)

    search = Search(LOAD, MOVES, None, {}, {})
    run(search, speed)
    assert search.winner is not None
    assert search.winner.settings == {
        "args": {"performance-mode": "throughput"},
        "max_num_batched_tokens": 4096,
    }
    gains = {trial.axis: trial.gain for trial in search.trials if trial.axis}
    assert gains["b"] == pytest.approx(0.2)
    assert gains["c"] == pytest.approx(0.0)


def test_what_fails_its_gate_never_wins_however_fast() -> None:
    search = Search(LOAD, MOVES, None, {}, {})
    run(search, lambda settings: None if settings else 50)
    assert search.winner is not None
    assert search.winner.label == CONFIGURED


def test_nothing_wins_where_everything_fails_or_breaks_the_limits() -> None:
    search = Search(LOAD, MOVES, None, {}, {})
    run(search, lambda _: None)
    assert search.winner is None

    limited = Search(LOAD, MOVES, None, {}, {})
    while (attempt := limited.next()) is not None:
        limited.add(attempt, measured(attempt, 100, broken=("ttft p95 900 ms (limit 500)",)))
    assert limited.winner is None
    assert limited.best is not None


def test_what_keeps_the_limits_beats_what_is_faster() -> None:
    search = Search(LOAD, MOVES[:1], None, {}, {})
    first = search.next()
    assert first is not None
    search.add(first, measured(first, 500, broken=("tpot p50 40 ms (limit 20)",)))
    second = search.next()
    assert second is not None
    search.add(second, measured(second, 300))
    assert search.winner is not None
    assert search.winner.label == second.label


def test_earlier_runs_on_the_card_decide_the_order() -> None:
    history = {("b", "x"): -0.2, ("a", "1"): 0.25}
    labels = run(Search(LOAD, MOVES, None, history, {}), lambda _: 100)
    assert labels[1:] == ["max_num_batched_tokens 4096", "async-scheduling", "performance-mode throughput"]
    trials = [
        Trial(label="", settings={}, outcome=Outcome.MEASURED, axis="a", value="1", gain=gain) for gain in (0.1, 0.21)
    ]
    assert learned(trials) == {("a", "1"): pytest.approx((1.1 * 1.21) ** 0.5 - 1)}


def test_the_budget_ends_the_walk_before_a_trial_that_would_outlast_it() -> None:
    now = iter(range(0, 10_000, 30))
    labels = run(Search(LOAD, MOVES, None, {}, {}), lambda _: 100, seconds=200, clock=lambda: float(next(now)))
    assert 1 < len(labels) < 4


def test_what_equals_the_settings_in_use_is_not_started_again() -> None:
    configured = {"max_num_batched_tokens": 4096, "args": {"performance-mode": "throughput"}}
    assert run(Search(LOAD, MOVES, None, {}, configured), lambda _: 100) == [CONFIGURED, "async-scheduling"]


def test_the_front_is_what_nothing_beats_in_all_three() -> None:
    def trial(rate: float, ttft: float, tpot: float) -> Trial:
        seen = level(rate, ttft=ttft, tpot=tpot)
        return Trial(label=f"{rate:g}", settings={}, outcome=Outcome.MEASURED, level=seen)

    trials = [trial(100, 10, 10), trial(120, 20, 20), trial(90, 11, 11), trial(100, 10, 9)]
    assert [one.label for one in front(trials)] == ["120", "100"]


@pytest.mark.parametrize("version", [(0, 13, 0), (0, 24, 0), (0, 32, 0)])
@pytest.mark.parametrize("gpu", ["h100", "b200", "gb10"])
def test_every_change_gives_valid_settings(version: tuple[int, ...], gpu: str) -> None:
    settings = Settings.model_validate({"args": {"performance-mode": "balanced"}})
    possible = moves(settings, LOAD, version, gpus()[gpu])
    assert len({move.label for move in possible}) == len(possible)
    for move in possible:
        after = changed(settings, move.settings)
        assert after != settings or move.axis == "max_num_seqs"
        flags = set(move.settings.get("args", {}))
        assert not ("linear-backend" in flags and (version < (0, 24) or gpu == "h100"))


def test_steps_larger_than_all_prompts_together_are_tried_once() -> None:
    small = TuneLoad(users=4, input_len=600, output_len=16)
    sizes = [move.value for move in moves(Settings(), small, (0, 24, 0), None) if move.axis == "max_num_batched_tokens"]
    assert sizes == ["2048", "4096"]
