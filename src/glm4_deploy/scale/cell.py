"""Several engines behind a router, and the users that ask them: one event after another, the same for the same seed."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from glm4_deploy.scale.replica import IDLE, Replica, Request, Seen
from glm4_deploy.scale.shape import EngineLimits, Lengths, Router, StepCost, Workload

P95 = 1.6448536269514722  # of the normal distribution
# vllm-router's cache_aware policy leaves a user's replica when the busiest has this many requests more than the idlest,
# and this many times as many (--balance-abs-threshold, --balance-rel-threshold; its defaults).
BALANCE_ABS, BALANCE_REL = 64, 1.5
# An open loop whose backlog grows by more than this share of what arrives does not keep up, however short the look.
GROWTH = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of the counted requests, and of the replicas over the whole run.

    seconds: from the first counted request's arrival to the last one's.
    backlog: how many more requests were under way at the end of that time than at its start.
    """

    requests: tuple[Request, ...]
    seconds: float
    backlog: int
    seen: tuple[Seen, ...]


class Cell:
    """`replicas` engines and their share of the load.

    hit_share: probability that a router that does not look for it sends a user to the replica that has his prefix.
    """

    def __init__(
        self,
        cost: StepCost,
        limits: EngineLimits,
        workload: Workload,
        *,
        replicas: int,
        router: Router = Router.LEAST_LOADED,
        seed: int = 0,
        hit_share: float = 1.0,
    ) -> None:
        self.cost, self.limits, self.workload, self.router = cost, limits, workload, router
        self.replicas = [Replica(cost=cost, limits=limits) for _ in range(replicas)]
        self.hit_share = 1.0 if router is Router.CACHE_AWARE else hit_share
        self.random = random.Random(seed)  # noqa: S311 (a simulation)
        self._events: list[
            tuple[float, int, int | Request]
        ] = []  # a replica whose steps end, or a request that arrives
        self._serial = 0
        self._turn = 0

    def run(self, requests: int, *, warm: int = 0, drain: bool = False) -> Outcome:
        """Let `requests` be served and counted, after `warm` others. drain: nobody asks after those."""
        wanted, started = warm + requests, self._start(warm + requests if drain else None)
        counted: list[Request] = []
        delivered = finished = done = 0
        under_way, times = [0, 0], [0.0, 0.0]
        while done < requests:
            now, _, what = heappop(self._events)
            if isinstance(what, Request):
                what.counted = warm <= delivered < wanted
                for edge, at in enumerate((warm, wanted - 1)):
                    if delivered == at:
                        under_way[edge], times[edge] = delivered - finished, now
                delivered += 1
                if what.counted:
                    counted.append(what)
                self._deliver(what, now)
                if self.workload.users is None and not (delivered >= wanted and _grows(under_way, requests)):
                    next(started, None)
                continue
            for request in self._advance(what, now):
                finished += 1
                done += request.counted
                if self.workload.users is not None and (not drain or self._sent < wanted):
                    self._send(now + self._think(), request.user)
        seen = tuple(replica.seen for replica in self.replicas)
        return Outcome(
            requests=tuple(counted), seconds=times[1] - times[0], backlog=under_way[1] - under_way[0], seen=seen
        )

    def _start(self, most: int | None) -> Iterator[None]:
        """The first request of each user, or of the open loop: then each `next` sends one more."""
        self._sent = 0
        if self.workload.users is not None:
            for user in range(self.workload.users if most is None else min(most, self.workload.users)):
                self._send(self._think(), user)
            return iter(())
        arrivals = self._arrivals(most)
        next(arrivals)
        return arrivals

    def _arrivals(self, most: int | None) -> Iterator[None]:
        rate, shape, now = self.workload.rate or 1.0, self.workload.burstiness, 0.0
        while most is None or self._sent < most:
            now += self.random.gammavariate(shape, 1 / (rate * shape))
            self._send(now, -1)
            yield

    def _think(self) -> float:
        mean = self.workload.think_s
        return self.random.expovariate(1 / mean) if mean > 0 else 0.0

    def _send(self, at: float, user: int) -> None:
        prompt, answer = self._lengths()
        cached = self.workload.cached_tokens
        if cached and self.hit_share < 1 and self.random.random() >= self.hit_share:
            cached = 0
        request = Request(prompt=prompt, answer=answer, sent=at, user=user, cached=cached)
        self._sent += 1
        self._push(at + self.cost.front, request)

    def _lengths(self) -> tuple[int, int]:
        """Prompt and answer, cut so that the engine would take the request."""
        if self.workload.pairs:
            prompt, answer = self.random.choice(self.workload.pairs)
        else:
            prompt, answer = draw(self.random, self.workload.prompt), draw(self.random, self.workload.answer)
        prompt = min(prompt, self.limits.longest - 1)
        return prompt, min(answer, self.limits.longest - prompt)

    def _push(self, at: float, what: int | Request) -> None:
        self._serial += 1
        heappush(self._events, (at, self._serial, what))

    def _deliver(self, request: Request, now: float) -> None:
        index = self._choose(request.user)
        replica = self.replicas[index]
        before = replica.due
        replica.arrive(request, now)
        if replica.due != before:
            self._push(replica.due, index)

    def _advance(self, index: int, now: float) -> list[Request]:
        replica = self.replicas[index]
        if replica.due != now:  # cut short by an arrival; the shorter one is in the queue too
            return []
        finished = replica.advance()
        if replica.due != IDLE:
            self._push(replica.due, index)
        return finished

    def _choose(self, user: int) -> int:
        count = len(self.replicas)
        if count == 1:
            return 0
        if self.router is Router.ROUND_ROBIN:
            self._turn = (self._turn + 1) % count
            return self._turn
        loads = [replica.load for replica in self.replicas]
        least = min(loads)
        if self.router is Router.CACHE_AWARE and user >= 0:
            most = max(loads)
            if most - least <= BALANCE_ABS or most <= BALANCE_REL * least:
                return user % count
        # Which of several equally idle ones comes by turns, else the first would have all the light load.
        self._turn = (self._turn + 1) % count
        return min(range(count), key=lambda i: (loads[i], (i - self._turn) % count))


def _grows(under_way: list[int], requests: int) -> bool:
    """Nobody is asked for more then: it would only lengthen a queue that is too long already."""
    return under_way[1] - under_way[0] > GROWTH * requests


def draw(source: random.Random, lengths: Lengths) -> int:
    """One length in tokens, at least 1."""
    if lengths.p95 is None or lengths.p95 <= lengths.median:
        return max(1, round(lengths.median))
    sigma = math.log(lengths.p95 / lengths.median) / P95
    return max(1, round(lengths.median * math.exp(source.gauss(0.0, sigma))))


def quantile(ascending: list[float], share: float) -> float:
    """Linear between neighbours, as NumPy does it; nan of nothing."""
    if not ascending:
        return math.nan
    at = share / 100 * (len(ascending) - 1)
    low = int(at)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (at - low) * (ascending[high] - ascending[low])
