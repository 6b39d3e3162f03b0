"""Simulated engines behind a router, and their users: event by event, and the same again for the same seed."""

import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from glm4_deploy.report_model import percentile
from glm4_deploy.scale.request import EngineLimits, Lengths, RouterPolicy, StepCost, Workload

# One vLLM engine, step by step: continuous batching, chunked prefill, KV blocks, preemption by recomputation.
#
# The rules are those of vLLM's v1 scheduler (v1/core/sched/scheduler.py `schedule`, v1/core/kv_cache_manager.py
# `allocate_slots`; read in 0.32): running requests first, one token each, then the rest of the budget to prompts in
# order of arrival; a prompt is admitted when all of it fits into the free blocks; when a decoding request finds no
# block, the last admitted one goes back to the head of the queue and is recomputed.
#
# Between two events all running requests decode, so a stretch of such steps is one sum. The result is exactly that of
# single steps, but the run time grows with the events, not with the tokens.

Work = tuple[float, float, float, float]  # steps, sequences, prompt tokens, KV tokens read: what StepCost is linear in
IDLE = math.inf


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """Times are seconds on the simulation's clock; `first` and `done` are nan until known."""

    prompt: int
    answer: int
    sent: float
    user: int = -1
    cached: int = 0
    counted: bool = True
    first: float = math.nan
    done: float = math.nan
    sent_work: Work = (0.0, 0.0, 0.0, 0.0)
    first_work: Work = (0.0, 0.0, 0.0, 0.0)
    done_work: Work = (0.0, 0.0, 0.0, 0.0)
    generated: int = 0
    computed: int = 0
    since: int = 0
    epoch: int = 0
    preempted: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.generated

    @property
    def ttft(self) -> float:
        return self.first - self.sent

    @property
    def tpot(self) -> float:
        """Mean time per output token after the first; 0 for one-token answers."""
        return (self.done - self.first) / (self.answer - 1) if self.answer > 1 else 0.0


@dataclass(slots=True)
class RequestTimes:
    """Counters of one replica. block_seconds / busy is the mean number of blocks in use while it was busy."""

    preemptions: int = 0
    busy: float = 0.0
    block_seconds: float = 0.0
    peak_blocks: int = 0
    peak_running: int = 0


@dataclass(slots=True)
class SimulatedEngine:
    """`due`: when the current stretch of steps ends and `advance` must be called; IDLE without work."""

    cost: StepCost
    limits: EngineLimits
    due: float = IDLE
    seen: RequestTimes = field(default_factory=RequestTimes)
    load: int = 0
    _waiting: deque[SimulatedRequest] = field(default_factory=deque)
    _running: dict[SimulatedRequest, None] = field(default_factory=dict)  # in order of admission
    _partial: SimulatedRequest | None = None  # the one whose prompt is still in prefill; always the last admitted
    _finish: list[tuple[int, int, int, SimulatedRequest]] = field(default_factory=list)
    _phases: list[int] = field(default_factory=list)  # decoding requests by the step at which they need a block
    _decoding: int = 0
    _context: int = 0
    _step: int = 0
    _free: int = 0
    _serial: int = 0
    _work: Work = (0.0, 0.0, 0.0, 0.0)
    _began: float = 0.0
    _steps: int = 0  # of the current stretch
    _chunks: list[tuple[SimulatedRequest, int]] = field(default_factory=list)  # prompts in the current step

    def __post_init__(self) -> None:
        self._phases = [0] * self.limits.block_tokens
        self._free = self.limits.blocks

    def arrive(self, request: SimulatedRequest, now: float) -> None:
        """A request reaches the scheduler."""
        self.load += 1
        self._waiting.append(request)
        if self.due == IDLE:
            request.sent_work = self._work
            self._plan(now)
            return
        request.sent_work = self._work_at(now)
        if self._steps > 1 and len(self._running) < self.limits.max_num_seqs and len(self._waiting) == 1:
            self._steps = self._steps_until(now)
            self.due = self._began + self._seconds(self._steps)

    def advance(self) -> list[SimulatedRequest]:
        """End the current stretch and begin the next. Returns the finished requests."""
        now = self.due
        finished = self._apply(now)
        self.load -= len(finished)
        if self._running or self._waiting:
            self._plan(now)
        else:
            self.due = IDLE
        return finished

    def _plan(self, now: float) -> None:
        """Schedule one step, or as many as nothing can interrupt."""
        limits, self._began, self._chunks = self.limits, now, []
        undisturbed = self._make_room()
        budget = limits.max_num_batched_tokens - self._decoding
        if self._partial is not None:
            budget -= self._continue(self._partial, budget)
        if undisturbed:
            while budget > 0 and self._waiting and len(self._running) < limits.max_num_seqs:
                taken = self._admit(self._waiting[0], budget)
                if not taken:
                    break
                budget -= taken
        self._steps = 1 if self._chunks or not self._decoding else self._free_run()
        self.due = now + self._seconds(self._steps)

    def _make_room(self) -> bool:
        """Free blocks for the decoding requests, by preemption if needed. False if any request was preempted."""
        size, undisturbed = self.limits.block_tokens, True
        while self._phases[-self._step % size] > self._free:
            victim, _ = self._running.popitem()
            undisturbed = False
            self._preempt(victim)
        return undisturbed

    def _preempt(self, victim: SimulatedRequest) -> None:
        if victim is self._partial:
            self._partial = None
            held = victim.computed
        else:
            held = victim.computed + self._step - victim.since
            victim.generated += self._step - victim.since
            self._leave(victim, held)
        self._free += math.ceil(held / self.limits.block_tokens)
        victim.epoch += 1
        victim.computed = victim.cached = 0
        victim.preempted += 1
        self.seen.preemptions += 1
        self._waiting.appendleft(victim)

    def _leave(self, request: SimulatedRequest, context: int) -> None:
        """The request stops decoding."""
        self._phases[(request.computed - request.since) % self.limits.block_tokens] -= 1
        self._decoding -= 1
        self._context -= context

    def _continue(self, request: SimulatedRequest, budget: int) -> int:
        """The next chunk of a prompt in prefill; 0 if the request was preempted instead."""
        chunk = min(request.tokens - request.computed, budget)
        size = self.limits.block_tokens
        blocks = math.ceil((request.computed + chunk) / size) - math.ceil(request.computed / size)
        # Decoding requests take their blocks first.
        if blocks > self._free - self._phases[-self._step % size]:
            self._running.pop(request)
            self._preempt(request)
            return 0
        if chunk > 0:
            self._free -= blocks
            self._chunks.append((request, chunk))
        return chunk

    def _admit(self, request: SimulatedRequest, budget: int) -> int:
        """The first chunk of a waiting request; 0 if its whole prompt does not fit."""
        size = self.limits.block_tokens
        spare = self._free - self._phases[-self._step % size]
        if math.ceil(request.tokens / size) > spare:
            return 0
        self._waiting.popleft()
        request.computed = min(request.cached, request.tokens - 1)
        chunk = min(request.tokens - request.computed, budget)
        self._free -= math.ceil((request.computed + chunk) / size)
        self._running[request] = None
        self._chunks.append((request, chunk))
        return chunk

    def _free_run(self) -> int:
        """Steps until a request ends or the blocks run out."""
        while self._finish[0][2] != self._finish[0][3].epoch:
            heappop(self._finish)
        most = self._finish[0][0] - self._step
        size = self.limits.block_tokens
        if self._decoding * (most // size + 1) <= self._free:
            return most
        left = self._free
        for step in range(most):
            left -= self._phases[-(self._step + step) % size]
            if left < 0:
                return step  # never 0: _make_room freed blocks for the first step
        return most

    def _apply(self, now: float) -> list[SimulatedRequest]:
        """Complete the steps: new tokens, finished prompts, finished requests."""
        self._count(now)
        steps, size = self._steps, self.limits.block_tokens
        whole, rest = divmod(steps, size)
        self._free -= whole * self._decoding
        self._free -= sum(self._phases[-(self._step + step) % size] for step in range(rest))
        self._work = self._work_after(steps)
        self._step += steps
        self._context += self._decoding * steps
        finished = []
        while self._finish and self._finish[0][0] <= self._step:
            _, _, epoch, request = heappop(self._finish)
            if epoch == request.epoch:
                del self._running[request]
                held = request.computed + self._step - request.since
                self._leave(request, held)
                finished.append(self._end(request, held, now))
        for request, chunk in self._chunks:
            request.computed += chunk
            if request.computed < request.tokens:
                self._partial = request
            else:
                self._partial = None if self._partial is request else self._partial
                finished += self._first_token(request, now)
        return finished

    def _first_token(self, request: SimulatedRequest, now: float) -> list[SimulatedRequest]:
        """The prompt is done, which yields the first token. Returns [request] if that was the whole answer."""
        if request.generated == 0:
            request.first, request.first_work = now, self._work
        request.generated += 1
        if request.generated >= request.answer:
            del self._running[request]
            return [self._end(request, request.computed, now)]
        request.since = self._step
        self._phases[(request.computed - request.since) % self.limits.block_tokens] += 1
        self._decoding += 1
        self._context += request.computed
        self._serial += 1
        left = request.answer - request.generated
        heappush(self._finish, (self._step + left, self._serial, request.epoch, request))
        return []

    def _end(self, request: SimulatedRequest, held: int, now: float) -> SimulatedRequest:
        self._free += math.ceil(held / self.limits.block_tokens)
        request.done, request.done_work = now, self._work
        return request

    def _seconds(self, steps: int) -> float:
        """Duration of the first `steps` steps of the current stretch."""
        cost, prompt = self.cost, sum(chunk for _, chunk in self._chunks)
        first = cost.base + cost.per_seq * (self._decoding + len(self._chunks)) + cost.per_prefill * prompt
        grown = self._decoding * steps * (steps - 1) / 2
        return steps * first + cost.per_context * (steps * self._context + grown)

    def _steps_until(self, now: float) -> int:
        """The step of the current stretch that contains `now`, counted from 1."""
        low, high = 1, self._steps
        while low < high:
            middle = (low + high) // 2
            if self._began + self._seconds(middle) >= now:
                high = middle
            else:
                low = middle + 1
        return low

    def _work_after(self, steps: int) -> Work:
        prompt = sum(chunk for _, chunk in self._chunks)
        count, seqs, prefill, context = self._work
        return (
            count + steps,
            seqs + steps * (self._decoding + len(self._chunks)),
            prefill + prompt,
            context + steps * self._context + self._decoding * steps * (steps - 1) / 2,
        )

    def _work_at(self, now: float) -> Work:
        """Work at a moment within the current stretch: whole steps, and a share of the one in progress."""
        within = self._steps_until(now)
        before, after = self._work_after(within - 1) if within > 1 else self._work, self._work_after(within)
        start, end = self._seconds(within - 1) if within > 1 else 0.0, self._seconds(within)
        share = (now - self._began - start) / (end - start) if end > start else 0.0
        share = min(1.0, max(0.0, share))
        return tuple(a + share * (b - a) for a, b in zip(before, after, strict=True))  # type: ignore[return-value]

    def _count(self, now: float) -> None:
        seconds, used = now - self._began, self.limits.blocks - self._free
        self.seen.busy += seconds
        self.seen.block_seconds += used * seconds
        self.seen.peak_blocks = max(self.seen.peak_blocks, used)
        self.seen.peak_running = max(self.seen.peak_running, len(self._running))


P95 = 1.6448536269514722  # of the normal distribution
# vllm-router's cache_aware policy leaves a user's replica when the busiest has this many more requests than the idlest,
# and this many times as many (the defaults of --balance-abs-threshold and --balance-rel-threshold).
BALANCE_ABS, BALANCE_REL = 64, 1.5
# An open loop whose backlog grows by more than this share of its arrivals cannot keep up, however short the run.
GROWTH = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """The counted requests, and the replicas over the whole run.

    seconds: from the first counted request's arrival to the last one's.
    backlog: how many more requests were in progress at the end of that time than at its start.
    """

    requests: tuple[SimulatedRequest, ...]
    seconds: float
    backlog: int
    seen: tuple[RequestTimes, ...]


class Cell:
    """`replicas` engines and their share of the load.

    hit_share: probability that a router that ignores prefixes sends a user to the replica that has the prefix.
    """

    def __init__(
        self,
        cost: StepCost,
        limits: EngineLimits,
        workload: Workload,
        *,
        replicas: int,
        router: RouterPolicy = RouterPolicy.LEAST_LOADED,
        seed: int = 0,
        hit_share: float = 1.0,
    ) -> None:
        self.cost, self.limits, self.workload, self.router = cost, limits, workload, router
        self.replicas = [SimulatedEngine(cost=cost, limits=limits) for _ in range(replicas)]
        self.hit_share = 1.0 if router is RouterPolicy.CACHE_AWARE else hit_share
        self.random = random.Random(seed)  # noqa: S311 (a simulation)
        self._events: list[
            tuple[float, int, int | SimulatedRequest]
        ] = []  # an int is a replica whose stretch ends; a request arrives
        self._serial = 0
        self._turn = 0

    def run(self, requests: int, *, warm: int = 0, drain: bool = False) -> CellResult:
        """Serve and count `requests`, after `warm` others. drain: no request is sent after those."""
        wanted, started = warm + requests, self._start(warm + requests if drain else None)
        counted: list[SimulatedRequest] = []
        delivered = finished = done = 0
        under_way, times = [0, 0], [0.0, 0.0]
        while done < requests:
            now, _, what = heappop(self._events)
            if isinstance(what, SimulatedRequest):
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
        return CellResult(
            requests=tuple(counted), seconds=times[1] - times[0], backlog=under_way[1] - under_way[0], seen=seen
        )

    def _start(self, most: int | None) -> Iterator[None]:
        """Send the first request of each user, or of the open loop; each `next` then sends one more."""
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
        request = SimulatedRequest(prompt=prompt, answer=answer, sent=at, user=user, cached=cached)
        self._sent += 1
        self._push(at + self.cost.front, request)

    def _lengths(self) -> tuple[int, int]:
        """Prompt and answer, cut to what the engine accepts."""
        if self.workload.pairs:
            prompt, answer = self.random.choice(self.workload.pairs)
        else:
            prompt, answer = draw(self.random, self.workload.prompt), draw(self.random, self.workload.answer)
        prompt = min(prompt, self.limits.longest - 1)
        return prompt, min(answer, self.limits.longest - prompt)

    def _push(self, at: float, what: int | SimulatedRequest) -> None:
        self._serial += 1
        heappush(self._events, (at, self._serial, what))

    def _deliver(self, request: SimulatedRequest, now: float) -> None:
        index = self._choose(request.user)
        replica = self.replicas[index]
        before = replica.due
        replica.arrive(request, now)
        if replica.due != before:
            self._push(replica.due, index)

    def _advance(self, index: int, now: float) -> list[SimulatedRequest]:
        replica = self.replicas[index]
        if replica.due != now:  # an arrival cut it short; the shorter stretch has its own event
            return []
        finished = replica.advance()
        if replica.due != IDLE:
            self._push(replica.due, index)
        return finished

    def _choose(self, user: int) -> int:
        count = len(self.replicas)
        if count == 1:
            return 0
        if self.router is RouterPolicy.ROUND_ROBIN:
            self._turn = (self._turn + 1) % count
            return self._turn
        loads = [replica.load for replica in self.replicas]
        least = min(loads)
        if self.router is RouterPolicy.CACHE_AWARE and user >= 0:
            most = max(loads)
            if most - least <= BALANCE_ABS or most <= BALANCE_REL * least:
                return user % count
        # Equally idle replicas take turns, or the first would get all of a light load.
        self._turn = (self._turn + 1) % count
        return min(range(count), key=lambda i: (loads[i], (i - self._turn) % count))


def _grows(under_way: list[int], requests: int) -> bool:
    """Stop sending: more requests would only lengthen a queue that is already too long."""
    return under_way[1] - under_way[0] > GROWTH * requests


def draw(source: random.Random, lengths: Lengths) -> int:
    """One length in tokens, at least 1."""
    if lengths.p95 is None or lengths.p95 <= lengths.median:
        return max(1, round(lengths.median))
    sigma = math.log(lengths.p95 / lengths.median) / P95
    return max(1, round(lengths.median * math.exp(source.gauss(0.0, sigma))))


def quantile(ascending: list[float], share: float) -> float:
    """share: 0 to 100; nan for an empty list."""
    found = percentile(ascending, share / 100)
    return math.nan if found is None else found
