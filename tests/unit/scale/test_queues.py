"""The simulation on queues with exact formulas. Seeds are fixed; a wrong result is far outside the tolerance."""

import math

import pytest

from glm4_deploy.scale.request import EngineLimits, Lengths, RouterPolicy, StepCost, Workload
from glm4_deploy.scale.simulator import Cell, CellResult

# A step costs only its prompt tokens, 0.1 ms each, and an answer is one token: a server with a queue.
PLAIN = StepCost(base=0.0, per_seq=0.0, per_prefill=1e-4, per_context=0.0)
ONE_AT_A_TIME = EngineLimits(max_num_seqs=1, max_num_batched_tokens=10**6, kv_cache_tokens=10**7)
MEAN = 10_000  # tokens of a prompt: 1 s


def exponential() -> tuple[tuple[int, int], ...]:
    """Prompts whose service time is exponential with mean 1 s: 4000 equidistant quantiles."""
    return tuple((max(1, round(-MEAN * math.log(1 - (i + 0.5) / 4000))), 1) for i in range(4000))


def served(load: Workload, replicas: int, router: RouterPolicy, requests: int = 40_000, seed: int = 1) -> CellResult:
    cell = Cell(PLAIN, ONE_AT_A_TIME, load, replicas=replicas, router=router, seed=seed)
    return cell.run(requests, warm=requests // 10)


def mean_wait(outcome: CellResult) -> float:
    """Seconds in the queue: the time to the answer minus that of the prompt."""
    waits = [request.ttft - request.prompt * PLAIN.per_prefill for request in outcome.requests]
    return sum(waits) / len(waits)


@pytest.mark.parametrize("busy", [0.5, 0.7, 0.8])
def test_one_server_is_an_m_m_1_queue(busy: float) -> None:
    outcome = served(Workload(rate=busy, pairs=exponential()), 1, RouterPolicy.ROUND_ROBIN)
    assert mean_wait(outcome) == pytest.approx(busy / (1 - busy), rel=0.1)
    spent = sorted(request.ttft for request in outcome.requests)
    p95 = spent[int(0.95 * len(spent))]
    assert p95 == pytest.approx(math.log(20) / (1 - busy), rel=0.12)  # the time in the system is exponential


def test_equal_service_waits_half_as_long() -> None:
    """M/D/1: the Pollaczek-Khinchine formula."""
    outcome = served(
        Workload(rate=0.7, prompt=Lengths(median=MEAN), answer=Lengths(median=1)), 1, RouterPolicy.ROUND_ROBIN
    )
    assert mean_wait(outcome) == pytest.approx(0.7 / (2 * 0.3), rel=0.08)


def test_round_robin_is_an_erlang_arrival_queue() -> None:
    """Every second arrival of a Poisson stream: E2/M/1, whose wait is s/(1 - s) with the root s of s = A*(1 - s)."""
    outcome = served(Workload(rate=2 * 0.7, pairs=exponential()), 2, RouterPolicy.ROUND_ROBIN)
    rate, root = 2 * 0.7, 0.5
    for _ in range(200):
        root = (rate / (rate + 1 - root)) ** 2
    assert mean_wait(outcome) == pytest.approx(root / (1 - root), rel=0.08)


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival waits, M/M/c."""
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


@pytest.mark.parametrize("servers", [4, 16])
def test_the_least_loaded_of_many_waits_little_more_than_one_queue_for_all(servers: int) -> None:
    """Joining the shortest queue has bounds: M/M/c (one queue for all) below, c separate queues above."""
    busy = 0.8
    outcome = served(Workload(rate=busy * servers, pairs=exponential()), servers, RouterPolicy.LEAST_LOADED)
    shared = erlang_c(servers, busy * servers) / (servers * (1 - busy))
    assert 0.95 * shared < mean_wait(outcome) < 0.5 * busy / (1 - busy)


@pytest.mark.parametrize("seats", [1, 8])
def test_a_batch_without_a_price_is_erlangs_many_servers(seats: int) -> None:
    """Answers of exponential length; a step costs the same for any number of requests: `seats` servers, one queue."""
    answers = tuple((1, max(1, round(-200 * math.log(1 - (i + 0.5) / 4000)))) for i in range(4000))
    mean = 0.01 * sum(answer for _, answer in answers) / len(answers)
    cost = StepCost(base=0.01, per_seq=0.0, per_prefill=0.0, per_context=0.0)
    limits = EngineLimits(max_num_seqs=seats, max_num_batched_tokens=10**4, kv_cache_tokens=10**7)
    offered = 0.75 * seats
    outcome = Cell(cost, limits, Workload(rate=offered / mean, pairs=answers), replicas=1, seed=3).run(
        30_000, warm=3000
    )
    wait = sum(r.ttft - 0.01 for r in outcome.requests) / len(outcome.requests)
    exact = erlang_c(seats, offered) / (seats * 0.25) * mean
    # A request also waits for the current step (5 ms on average), and its own first step is complete.
    assert wait == pytest.approx(exact + 0.005, rel=0.12)


def test_littles_law() -> None:
    """Requests in the system = arrivals per second x time in it; closed loop: users = rate x (time + think time)."""
    load = Workload(users=40, think_s=2.0, prompt=Lengths(median=200, p95=900), answer=Lengths(median=60, p95=200))
    limits = EngineLimits(max_num_seqs=16, max_num_batched_tokens=256, kv_cache_tokens=16 * 2000)
    cost = StepCost(base=0.01, per_seq=0.0005, per_prefill=0.00005, per_context=1e-7)
    outcome = Cell(cost, limits, load, replicas=2, seed=5).run(20_000, warm=2000)
    spent = sum(r.done - r.sent for r in outcome.requests) / len(outcome.requests)
    rate = len(outcome.requests) / outcome.seconds
    assert rate * (spent + 2.0) == pytest.approx(40, rel=0.02)


def test_the_same_seed_gives_the_same_times() -> None:
    load = Workload(users=20, think_s=1.0)
    limits = EngineLimits(max_num_seqs=8, max_num_batched_tokens=1024, kv_cache_tokens=16 * 3000)
    cost = StepCost(base=0.01, per_seq=0.0005, per_prefill=0.00005, per_context=1e-7)
    runs = [[r.done for r in Cell(cost, limits, load, replicas=3, seed=seed).run(300).requests] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
