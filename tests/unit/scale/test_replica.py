"""The replica, which sums up many steps, compared with a scheduler that takes one step at a time."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4_deploy.scale.request import EngineLimits, StepCost
from glm4_deploy.scale.simulator import IDLE, SimulatedEngine, SimulatedRequest
from unit.scale.reference import Job, serve

COST = StepCost(base=0.01, per_seq=0.0007, per_prefill=0.0001, per_context=0.000003)


def replay(
    limits: EngineLimits, jobs: list[Job], cost: StepCost = COST
) -> tuple[list[SimulatedRequest], SimulatedEngine]:
    """The same jobs through the replica."""
    replica = SimulatedEngine(cost=cost, limits=limits)
    requests = [SimulatedRequest(prompt=job.prompt, answer=job.answer, sent=job.arrival) for job in jobs]
    for request in sorted(requests, key=lambda request: request.sent):
        while replica.due <= request.sent:
            replica.advance()
        replica.arrive(request, request.sent)
    while replica.due != IDLE:
        replica.advance()
    return requests, replica


job = st.builds(
    Job,
    prompt=st.integers(1, 90),
    answer=st.integers(1, 70),
    arrival=st.floats(0, 3).map(lambda at: round(at, 3) + 0.00017),
)


@settings(max_examples=150, deadline=None)
@given(
    jobs=st.lists(job, min_size=1, max_size=25),
    seqs=st.integers(1, 12),
    spare=st.integers(0, 60),
    blocks=st.integers(11, 60),
)
def test_every_time_is_the_same_as_with_single_steps(jobs: list[Job], seqs: int, spare: int, blocks: int) -> None:
    limits = EngineLimits(
        max_num_seqs=seqs, max_num_batched_tokens=seqs + spare, kv_cache_tokens=16 * (blocks + 1), block_tokens=16
    )
    for number, one in enumerate(jobs):
        one.arrival += 1e-6 * number  # two arrivals at the same moment would be ordered differently
    serve(COST, limits, jobs)
    requests, replica = replay(limits, jobs)
    for one, other in zip(requests, jobs, strict=True):
        assert math.isclose(one.first, other.first, rel_tol=1e-9)
        assert math.isclose(one.done, other.done, rel_tol=1e-9)
        assert one.preempted == other.preempted
    assert replica.load == 0
    assert replica._free == limits.blocks  # nothing leaks


def test_with_too_little_cache_it_preempts_and_the_times_are_still_the_same() -> None:
    limits = EngineLimits(max_num_seqs=8, max_num_batched_tokens=64, kv_cache_tokens=16 * 13)
    jobs = [Job(prompt=30, answer=60, arrival=0.001 * i) for i in range(12)]
    serve(COST, limits, jobs)
    requests, replica = replay(limits, jobs)
    assert replica.seen.preemptions == sum(job.preempted for job in jobs) > 0
    assert [round(one.done, 9) for one in requests] == [round(other.done, 9) for other in jobs]


def test_the_simulated_time_is_linear_in_the_cost() -> None:
    """Times are linear in the cost, which the fit relies on."""
    limits = EngineLimits(max_num_seqs=4, max_num_batched_tokens=48, kv_cache_tokens=16 * 40)
    requests, _ = replay(limits, [Job(prompt=50, answer=20, arrival=0.013 * i) for i in range(10)])
    parts = (COST.base, COST.per_seq, COST.per_prefill, COST.per_context)
    for one in requests:
        assert sum(p * (b - a) for p, a, b in zip(parts, one.sent_work, one.first_work, strict=True)) == pytest.approx(
            one.ttft
        )
        assert sum(p * (b - a) for p, a, b in zip(parts, one.first_work, one.done_work, strict=True)) == pytest.approx(
            one.done - one.first
        )
