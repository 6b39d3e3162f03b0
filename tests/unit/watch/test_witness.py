"""Two witnesses of a hang: counters that stand still, and what the GPU draws meanwhile."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from glm4_deploy.host.gpu_health import GpuHealth, Xid
from glm4_deploy.probe.hang import Counters
from glm4_deploy.watch.gpus import GpuLook, GpuMetrics
from glm4_deploy.watch.judge import Judge, Limits, MetricsSample, Scrape, State
from glm4_deploy.watch.witness import Opinion, Witness

LIMITS = Limits(interval_s=10, stall_s=60, canaries=False)


def gpu(power: float | None, use: float | None = 95.0, limit: float | None = None) -> GpuHealth:
    return GpuHealth(index=0, power_w=power, utilization=use, power_limit_w=limit)


def taught(*watts: float) -> Witness:
    """A witness that saw an engine at work: the figures of eugr/spark-vllm-docker#260 are 45 W, up to 90."""
    witness = Witness()
    for number, power in enumerate(watts):
        witness.worked(10.0 * number)
        witness.saw((gpu(power),), 10.0 * number)
    return witness


@pytest.mark.parametrize(
    ("witness", "now", "opinion", "words"),
    [
        (taught(44, 46, 90), gpu(22), Opinion.CONFIRMS, "spins: 95 % busy at 22 W, where work draws 46 W"),
        (taught(44, 46, 90), gpu(46), Opinion.DENIES, "the GPU works: 95 % busy at 46 W"),
        (taught(44, 46, 90), gpu(4, use=0), Opinion.CONFIRMS, "the GPU does nothing"),
        (taught(44, 46), gpu(22), Opinion.UNKNOWN, "what it draws at work is not known yet"),
        (Witness(), gpu(90, limit=600), Opinion.CONFIRMS, "spins: 95 % busy at 90 W of at most 600 W"),
        (Witness(), gpu(400, limit=600), Opinion.DENIES, "the GPU works"),
        (Witness(), gpu(200, limit=600), Opinion.UNKNOWN, "not known yet"),
        (taught(44, 46, 90), gpu(None), Opinion.UNKNOWN, "power is not known"),
        (taught(44, 46, 90), gpu(None, use=None), Opinion.UNKNOWN, "unknown % busy at unknown W"),
    ],
)
def test_what_the_gpu_says(witness: Witness, now: GpuHealth, opinion: Opinion, words: str) -> None:
    witness.saw((now,), 100.0)
    said, why = witness.opinion(101.0)
    assert said is opinion and words in why


def test_no_gpu_an_old_reading_and_several_gpus_say_nothing() -> None:
    witness = taught(44, 46, 90)
    assert Witness().opinion(0.0)[0] is Opinion.UNKNOWN
    assert witness.opinion(1000.0)[0] is Opinion.UNKNOWN
    witness.saw((gpu(400), gpu(400)), 1000.0)
    assert witness.opinion(1000.0) == (
        Opinion.UNKNOWN, "there are several GPUs, and which of them it uses is not known",
    )  # fmt: skip


def verdicts(watts: float | None, seconds: int) -> list[tuple[int, State, str]]:
    """An engine that generates for a minute and then holds a request for `seconds` while its GPU draws `watts`."""
    witness = Witness()
    judge = Judge(LIMITS, at=0.0, witness=witness)
    seen = []
    for at in range(0, 60 + seconds, 10):
        tokens = 100.0 + min(at, 60)
        witness.saw((gpu(46.0 if at <= 60 else watts),) if watts is not None else (), at)
        counters = Counters(generation_tokens=tokens, running=1.0, waiting=0.0, work=(tokens,))
        verdict = judge.sample(MetricsSample(at=at, outcome=Scrape.ANSWERED, counters=counters))
        seen.append((at, verdict.state, verdict.why))
    return seen


def test_a_deadlock_at_low_power_is_hung_at_once_and_says_both() -> None:
    first = next(row for row in verdicts(22.0, 120) if row[1] is State.HUNG)
    assert first[0] == 120, "the stall of 60 s, and no longer"
    assert "no counter moved for 60 s; the GPU spins: 95 % busy at 22 W, where work draws 46 W" in first[2]


def test_a_gpu_that_works_gets_three_times_as_long() -> None:
    rows = verdicts(46.0, 300)
    first = next(row for row in rows if row[1] is State.HUNG)
    assert first[0] == 240 and "the GPU works" in first[2]
    assert all(state in (State.OK, State.BUSY) for at, state, _ in rows if at < 240)


def test_after_an_idle_hour_too_it_gets_three_times_as_long() -> None:
    witness = Witness()
    judge = Judge(LIMITS, at=0.0, witness=witness)
    hung = []
    for at in range(0, 4000, 10):
        tokens = float(min(at, 60))
        witness.saw((gpu(9.0, use=0.0) if 60 < at < 3600 else gpu(46.0),), at)
        counters = Counters(
            generation_tokens=tokens, running=float(at <= 60 or at >= 3600), waiting=0.0, work=(tokens,)
        )
        verdict = judge.sample(MetricsSample(at=at, outcome=Scrape.ANSWERED, counters=counters))
        hung += [at] * (verdict.state is State.HUNG)
    assert hung[0] == 3780, "no counter moved since 60 s, but it held nothing until 3600 s"


def test_without_a_gpu_in_sight_the_counters_decide_alone() -> None:
    first = next(row for row in verdicts(None, 120) if row[1] is State.HUNG)
    assert first[0] == 120 and "what the GPU does is not known here" in first[2]


def test_troubles_and_new_xids_are_reported_once_and_published() -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    registry = CollectorRegistry()
    look = GpuLook(
        witness=Witness(), metrics=GpuMetrics(registry), emit=lambda name, /, **rest: events.append((name, rest))
    )
    old, new = Xid(code=31, at=1.0, text="old"), Xid(code=79, at=2.0, text="fallen off the bus")
    hot = GpuHealth(index=0, power_w=90.0, slowdowns=("power brake",))
    well = GpuHealth(index=0, slowdowns=())
    rounds = (((hot,), (old,)), ((), (old,)), ((hot,), (new,)), ((hot,), None), ((hot,), (new,)), ((well,), (new,)))
    for gpus, xids in rounds:  # one look that fails, and a buffer of the kernel that drops its oldest line
        look.look(gpus, xids, 0.0)
    assert [name for name, _ in events] == ["gpu", "xid", "gpu"]
    assert (events[0][1]["why"], events[1][1]["code"], events[2][1]["state"]) == ("GPU 0: power brake", 79, "well")
    assert registry.get_sample_value("glm4_watch_gpu_troubles", {"gpu": "0"}) == 0
    assert registry.get_sample_value("glm4_watch_gpu_xids", {"code": "79"}) == 1
    assert registry.get_sample_value("glm4_watch_gpu_new_xids_total") == 1
    assert registry.get_sample_value("glm4_watch_gpu_utilization_percent", {"gpu": "0"}) is None
