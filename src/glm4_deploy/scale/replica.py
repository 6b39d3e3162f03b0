"""One vLLM engine, step by step: continuous batching, chunked prefill, KV blocks, preemption by recomputation.

The rules are those of vLLM's v1 scheduler (v1/core/sched/scheduler.py `schedule`, v1/core/kv_cache_manager.py
`allocate_slots`; read in 0.32): running requests first, one token each, then the rest of the budget to prompts in
order of arrival; a prompt is admitted when all of it fits into the free blocks; when a decoding request finds no block,
the last admitted one is put back to the head of the queue and computed anew.

Between two events all running requests decode, and a stretch of such steps is one sum. The result is that of single
steps, to the last one; the cost is by the event, not by the token.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

from glm4_deploy.scale.shape import EngineLimits, StepCost

Work = tuple[float, float, float, float]  # steps, sequences, prompt tokens, KV tokens read: what StepCost is linear in
IDLE = math.inf


@dataclass(slots=True, eq=False)
class Request:
    """Times in seconds on the simulation's clock; `done` and `first` are nan until they are known."""

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
        """Mean time per output token after the first; 0 for answers of one token."""
        return (self.done - self.first) / (self.answer - 1) if self.answer > 1 else 0.0


@dataclass(slots=True)
class Seen:
    """What a replica saw. block_seconds / seconds is the mean of blocks in use while it was busy."""

    preemptions: int = 0
    busy: float = 0.0
    block_seconds: float = 0.0
    peak_blocks: int = 0
    peak_running: int = 0


@dataclass(slots=True)
class Replica:
    """`due` is when the present stretch of steps ends, IDLE without work. Call `advance` then, `arrive` in between."""

    cost: StepCost
    limits: EngineLimits
    due: float = IDLE
    seen: Seen = field(default_factory=Seen)
    load: int = 0
    _waiting: deque[Request] = field(default_factory=deque)
    _running: dict[Request, None] = field(default_factory=dict)  # in order of admission
    _partial: Request | None = None  # the one whose prompt is not through yet; always the last admitted
    _finish: list[tuple[int, int, int, Request]] = field(default_factory=list)
    _phases: list[int] = field(default_factory=list)  # decoding requests by the step at which they need a block
    _decoding: int = 0
    _context: int = 0
    _step: int = 0
    _free: int = 0
    _serial: int = 0
    _work: Work = (0.0, 0.0, 0.0, 0.0)
    _began: float = 0.0
    _steps: int = 0  # of the present stretch
    _chunks: list[tuple[Request, int]] = field(default_factory=list)  # prompts in the present step

    def __post_init__(self) -> None:
        self._phases = [0] * self.limits.block_tokens
        self._free = self.limits.blocks

    def arrive(self, request: Request, now: float) -> None:
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

    def advance(self) -> list[Request]:
        """End the present stretch, begin the next; the requests that were finished."""
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
        """Blocks for the decoding requests, by preemption where there are none; False where any was preempted."""
        size, undisturbed = self.limits.block_tokens, True
        while self._phases[-self._step % size] > self._free:
            victim, _ = self._running.popitem()
            undisturbed = False
            self._preempt(victim)
        return undisturbed

    def _preempt(self, victim: Request) -> None:
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

    def _leave(self, request: Request, context: int) -> None:
        """It decodes no more."""
        self._phases[(request.computed - request.since) % self.limits.block_tokens] -= 1
        self._decoding -= 1
        self._context -= context

    def _continue(self, request: Request, budget: int) -> int:
        """The next chunk of a prompt that is under way; 0 where it had to give its blocks back."""
        chunk = min(request.tokens - request.computed, budget)
        size = self.limits.block_tokens
        blocks = math.ceil((request.computed + chunk) / size) - math.ceil(request.computed / size)
        # The decoding requests have theirs first.
        if blocks > self._free - self._phases[-self._step % size]:
            self._running.pop(request)
            self._preempt(request)
            return 0
        if chunk > 0:
            self._free -= blocks
            self._chunks.append((request, chunk))
        return chunk

    def _admit(self, request: Request, budget: int) -> int:
        """Its first chunk; 0 where the whole prompt finds no room."""
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
        """Steps until a request ends or the blocks do."""
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
                return step  # the first step has its blocks: _make_room saw to that
        return most

    def _apply(self, now: float) -> list[Request]:
        """The steps are done: tokens are there, prompts are through, requests end."""
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

    def _first_token(self, request: Request, now: float) -> list[Request]:
        """Its prompt is through, which makes a token; [request] where that was all."""
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

    def _end(self, request: Request, held: int, now: float) -> Request:
        self._free += math.ceil(held / self.limits.block_tokens)
        request.done, request.done_work = now, self._work
        return request

    def _seconds(self, steps: int) -> float:
        """What the first `steps` steps of the present stretch take."""
        cost, prompt = self.cost, sum(chunk for _, chunk in self._chunks)
        first = cost.base + cost.per_seq * (self._decoding + len(self._chunks)) + cost.per_prefill * prompt
        grown = self._decoding * steps * (steps - 1) / 2
        return steps * first + cost.per_context * (steps * self._context + grown)

    def _steps_until(self, now: float) -> int:
        """The step of the present stretch within which `now` lies, counted from 1."""
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
        """Work at a moment within the present stretch: whole steps, and the share of the one under way."""
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
