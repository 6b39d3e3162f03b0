"""The loop: scrape, send canaries, judge, publish and, if configured, restart. It uses the monotonic clock."""

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, Protocol

from glm4_deploy.detect import scan
from glm4_deploy.errors import DeployError, RollbackFailed
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.probe.answers import ChatAnswer, FailureKind, Refused, RequestFailure
from glm4_deploy.probe.client import Client, ProbeTarget, Reply
from glm4_deploy.probe.endpoints import model_rows, parse_metrics
from glm4_deploy.probe.guard_counts import guard_counts
from glm4_deploy.probe.hang import RUNNING, Counters, counters
from glm4_deploy.probe.probe import (
    CHAT,
    EXTRAS,
    GREEDY,
    SAMPLED,
    CanaryPrompt,
    answer_fault,
    family,
    named,
)
from glm4_deploy.text import one_line
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.judge import (
    AnswerCounts,
    CanaryOutcome,
    CanaryResult,
    Judge,
    Limits,
    MetricsSample,
    Scrape,
    State,
    WatchVerdict,
)
from glm4_deploy.watch.restart import RESTARTABLE, Keeper, Policy
from glm4_deploy.watch.witness import Witness


class EventWriter(Protocol):
    """Writes one event; see cli/watch.py."""

    def __call__(self, event: str, /, **fields: Any) -> None: ...


# One scrape of the engine: GET /metrics, and /v1/models only if /metrics leaves open which engine answers. Then
# GET /health: a server that outlives its engine (VLLM_KEEP_ALIVE_ON_ENGINE_DEATH=1) still shows its last counters.

SCRAPE_S = 8.0  # an event loop that is busy with long prompts answers within a second or two


async def read_sample(client: Client, model: str | None, at: float, limit_s: float = SCRAPE_S) -> MetricsSample:
    """Scrape once. model: the name that must be served; None: any. limit_s: seconds until it counts as silent."""
    try:
        return await _read(client, model, at, limit_s)
    except Exception as error:  # noqa: BLE001 (no answer may end the watch)
        return MetricsSample(at=at, outcome=Scrape.WRONG, why=_unreadable(error))


def _unreadable(error: Exception) -> str:
    return f"an answer that cannot be read: {type(error).__name__}: {one_line(str(error), 80)}"


async def _read(client: Client, model: str | None, at: float, limit_s: float) -> MetricsSample:
    try:
        reply = await client.get("/metrics", timeout_s=limit_s)
    except RequestFailure as failure:
        silent = failure.kind in (FailureKind.HANG, FailureKind.SLOW)
        strange = failure.kind in (
            FailureKind.REDIRECT,
            FailureKind.ENCODING,
            FailureKind.TOO_BIG,
            FailureKind.NOT_OPENAI,
        )
        outcome = Scrape.SILENT if silent else Scrape.WRONG if strange else Scrape.REFUSED
        return MetricsSample(
            at=at, outcome=outcome, why=f"GET /metrics: {failure.detail}", waited=limit_s if silent else 0.0
        )
    metrics = parse_metrics(reply.text) if reply.status == 200 else None
    progress = counters(metrics) if metrics else None
    if metrics and progress and model in (None, metrics.label(RUNNING, "model_name")):
        model = metrics.label(RUNNING, "model_name")
        sample = MetricsSample(at=at, outcome=Scrape.ANSWERED, counters=progress, model=model, epoch=time.time())
    else:
        sample = await _check_identity(client, model, at, reply, progress)
    return await _check_health(client, sample, limit_s) if sample.outcome is Scrape.ANSWERED else sample


async def _check_health(client: Client, sample: MetricsSample, limit_s: float) -> MetricsSample:
    """The sample of a server that answers, unless /health reports that its engine is dead. No answer proves nothing."""
    try:
        status = (await client.get("/health", timeout_s=limit_s)).status
    except RequestFailure:
        return sample
    if status < 500:
        return sample
    why = f"the engine has died: its server answers, and GET /health gives HTTP {status}"
    return MetricsSample(at=sample.at, outcome=Scrape.DEAD, why=why, model=sample.model)


async def _check_identity(
    client: Client, model: str | None, at: float, reply: Reply, progress: Counters | None
) -> MetricsSample:
    """/metrics names another model (an engine may serve one under several names), or is not from vLLM."""
    try:
        answer = await client.get("/v1/models", timeout_s=SCRAPE_S)
    except RequestFailure as failure:
        return MetricsSample(at=at, outcome=Scrape.SILENT, why=f"GET /v1/models: {failure.detail}")
    names = [str(row["id"]) for row in model_rows(answer.json()) or ()]
    if answer.status in (401, 403):
        why = f"GET /v1/models: HTTP {answer.status}: the key is missing or wrong"
        return MetricsSample(at=at, outcome=Scrape.STRANGE, why=why)
    if not names or (model is not None and model not in names):
        served = f"serves {one_line(', '.join(names), 80)}" if names else f"no list of models (HTTP {answer.status})"
        return MetricsSample(at=at, outcome=Scrape.WRONG, why=f"{served}, expected {model or 'a model'}")
    if progress is None:
        why = f"GET /metrics: HTTP {reply.status} without vLLM's counters: its progress is unknown"
        return MetricsSample(at=at, outcome=Scrape.STRANGE, why=why)
    return MetricsSample(at=at, outcome=Scrape.ANSWERED, counters=progress, model=model or names[0], epoch=time.time())


# One scrape of a guard, if there is one in front of the engine.


async def read_answers(client: Client) -> AnswerCounts | str:
    """What the guard has counted, or why that is unknown, which proves nothing about the engine."""
    try:
        reply = await client.get("/metrics", timeout_s=SCRAPE_S)
        counts = guard_counts(parse_metrics(reply.text))
        if reply.status != 200 or counts is None:
            return f"GET /metrics: HTTP {reply.status} without a guard's counters"
    except RequestFailure as failure:
        return f"GET /metrics: {failure.detail}"
    except Exception as error:  # noqa: BLE001 (no answer may end the watch)
        return _unreadable(error)
    return AnswerCounts(
        at=time.monotonic(),
        judged=counts.judged,
        sick=counts.sick,
        refuses=counts.refuses,
        refused=counts.refused,
    )


async def _ask_guard(client: Client, judge: Judge, exporter: Exporter, emit: EventWriter) -> None:
    """Tell the judge what the guard counts; report when that becomes unknown or known, or it refuses new questions."""
    seen, before, refused = await read_answers(client), judge.unread, judge.refuses
    if isinstance(seen, AnswerCounts):
        judge.answers(seen)
    else:
        judge.no_answers(seen, time.monotonic())
    exporter.guard(read=not judge.unread)
    if bool(judge.unread) != bool(before):
        emit("guard", state="unknown" if judge.unread else "read again", why=judge.unread)
    if isinstance(seen, AnswerCounts) and seen.refuses != refused:
        why = "the host is short of memory" if seen.refuses else "it takes new questions again"
        state = "refuses" if seen.refuses else "well"
        emit("guard", state=state, why=f"{why}; {seen.refused:.0f} refused since its start")


# Canaries: small generations on a schedule, within a budget: sums with known answers, and free texts for the detector.

CONFIRM_S = 15.0  # after a bad answer the next one comes this soon, then at doubling intervals
SLACK = 2  # the budget is twice the schedule, to leave room for confirmation
# Other failures are BROKEN. An unreachable or wrong server is detected by the scrapes; a canary cannot judge it.
FAILED_CANARIES = {
    FailureKind.HANG: CanaryOutcome.SILENT,
    FailureKind.SLOW: CanaryOutcome.UNJUDGED,
    FailureKind.UNREACHABLE: CanaryOutcome.UNJUDGED,
    FailureKind.REDIRECT: CanaryOutcome.UNJUDGED,
    FailureKind.RESET: CanaryOutcome.UNJUDGED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRequest:
    """One question, how it is sampled, and its maximum of tokens."""

    question: CanaryPrompt
    sampled: bool
    max_tokens: int

    @property
    def name(self) -> str:
        return f"{self.question.id} ({'sampled' if self.sampled else 'greedy'})"


class Schedule:
    """Decides which canary to send when. Free texts alternate in language and sampling, with greedy sums between them.

    Sums are greedy only: at temperature 0.7 a sound model may get one wrong.
    """

    def __init__(self, *, every_s: float, max_tokens: int) -> None:
        self.every_s = every_s
        self.max_tokens = max_tokens
        self.budget = int(SLACK * 3600 / every_s * max_tokens)  # tokens per hour
        self._requests = self._turns()
        self._spent: deque[tuple[float, int]] = deque()
        self._hurry_s = CONFIRM_S
        self.due = 0.0

    def _turns(self) -> Iterator[CanaryRequest]:
        sums = cycle(family("arithmetic"))
        for name, sampled in cycle((("long-en", False), ("long-zh", True), ("long-en", True), ("long-zh", False))):
            yield CanaryRequest(question=named(name), sampled=sampled, max_tokens=self.max_tokens)
            total = next(sums)
            yield CanaryRequest(question=total, sampled=False, max_tokens=min(total.max_tokens, self.max_tokens))

    def spent(self, at: float) -> int:
        """Maximum tokens of the canaries sent in the last hour."""
        while self._spent and at - self._spent[0][0] > 3600:
            self._spent.popleft()
        return sum(tokens for _, tokens in self._spent)

    def take(self, at: float) -> CanaryRequest | None:
        """The next canary, if one is due and within the budget."""
        if at < self.due or self.spent(at) + self.max_tokens > self.budget:
            return None
        self.due = at + self.every_s
        request = next(self._requests)
        self._spent.append((at, request.max_tokens))
        return request

    def hurry(self, at: float) -> None:
        """Ask again soon: the last answer was bad or missing."""
        self.due = min(self.due, at + self._hurry_s)
        self._hurry_s = min(2 * self._hurry_s, self.every_s)

    def calm(self) -> None:
        """All is well again: the next bad answer is confirmed as quickly as the first."""
        self._hurry_s = CONFIRM_S

    def restarted(self, at: float) -> None:
        """The engine was restarted: ask at once."""
        self.due = at
        self.calm()


async def send_canary(
    client: Client, model: str, request: CanaryRequest, *, asked: float, limit_s: float, extras: bool = True
) -> CanaryResult:
    """Send one canary. asked: monotonic seconds; limit_s: time limit of the complete answer."""
    sampling: Mapping[str, Any] = SAMPLED if request.sampled else GREEDY
    body = {"model": model, "messages": list(request.question.messages), "max_tokens": request.max_tokens, **sampling}

    def result(outcome: CanaryOutcome, why: str, seconds: float = limit_s, tokens: int | None = None) -> CanaryResult:
        return CanaryResult(name=request.name, asked=asked, at=asked + seconds, outcome=outcome, why=why, tokens=tokens)

    try:
        answer = await client.ask_stream(CHAT, {**body, **(EXTRAS if extras else {})}, limit_s=limit_s)
    except Refused as refused:
        if refused.not_a_number:
            return result(CanaryOutcome.SICK, f"NaN: {refused.message}", 0)
        if refused.not_offered and extras:
            return await send_canary(client, model, request, asked=asked, limit_s=limit_s, extras=False)
        return result(CanaryOutcome.BROKEN if refused.status >= 500 else CanaryOutcome.UNJUDGED, str(refused), 0)
    except RequestFailure as failure:
        return result(FAILED_CANARIES.get(failure.kind, CanaryOutcome.BROKEN), str(failure))
    except Exception as error:  # noqa: BLE001 (no answer may end the watch)
        return result(CanaryOutcome.BROKEN, _unreadable(error))
    fault = canary_fault(request, answer)
    tokens = answer.timing.tokens or len(answer.timing.arrivals)
    return result(CanaryOutcome.SICK if fault else CanaryOutcome.SOUND, fault or "sound", answer.timing.total, tokens)


def canary_fault(request: CanaryRequest, answer: ChatAnswer) -> str | None:
    """What is wrong with an answer; None if nothing."""
    finding = scan(
        answer.text,
        prompt=request.question.prompt,
        finish_reason=answer.finish_reason,
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
    )
    if finding.degenerate:
        return f"{finding.verdict}: {finding.why}"
    return answer_fault(request.question, answer.text)


# The loop itself.

GPU_S = 60.0  # between two readings of the GPUs
HEARTBEAT_S = 3600.0  # between two reports of an unchanged state
DOUBTFUL = frozenset({CanaryOutcome.SICK, CanaryOutcome.BROKEN, CanaryOutcome.SILENT})


async def judge_engine(
    target: ProbeTarget,
    limits: Limits,
    schedule: Schedule | None,
    exporter: Exporter,
    emit: EventWriter,
    guard: ProbeTarget | None = None,
    witness: Witness | None = None,
) -> AsyncIterator[WatchVerdict]:
    """Scrape at every interval, with canaries alongside, forever; yields a verdict after each scrape."""
    judge = Judge(limits, at=time.monotonic(), witness=witness)
    pending: asyncio.Task[CanaryResult] | None = None
    async with Client(target) as client, AsyncExitStack() as held:
        beside = await held.enter_async_context(Client(guard)) if guard else None
        try:
            while True:
                begin = time.monotonic()
                if beside is not None:
                    await _ask_guard(beside, judge, exporter, emit)
                sample = await read_sample(client, target.model, begin, min(SCRAPE_S, limits.stall_s / 3))
                exporter.requests.labels("look").inc()
                starts = judge.starts
                verdict = judge.sample(replace(sample, at=time.monotonic()))
                if schedule and judge.starts != starts:
                    schedule.restarted(begin)
                if pending is not None and pending.done():
                    canary = replace(pending.result(), at=time.monotonic())
                    pending = None
                    verdict = judge.canary(canary)
                    _record_canary(canary, verdict.state, schedule, exporter, emit)
                answered = sample.outcome is Scrape.ANSWERED
                if pending is None and schedule and answered and (request := schedule.take(begin)):
                    exporter.requests.labels("canary").inc()
                    question = send_canary(
                        client,
                        target.model or sample.model or "",
                        request,
                        asked=time.monotonic(),
                        limit_s=2 * limits.stall_s,
                    )
                    pending = asyncio.create_task(question)
                exporter.spent.set(schedule.spent(begin) if schedule else 0)
                exporter.publish(verdict, judge, time.monotonic())
                yield verdict
                await asyncio.sleep(max(limits.interval_s - (time.monotonic() - begin), 0.1))
        finally:
            if pending is not None:
                pending.cancel()


def _record_canary(
    canary: CanaryResult, state: State, schedule: Schedule | None, exporter: Exporter, emit: EventWriter
) -> None:
    """Report a canary, and send the next one sooner if there is doubt."""
    exporter.canary(canary)
    emit("canary", name=canary.name, said=canary.outcome.value, why=canary.why, tokens=canary.tokens)
    if schedule and (canary.outcome in DOUBTFUL or not state.good):
        schedule.hurry(canary.at)
    elif schedule:
        schedule.calm()


async def run_watch(
    verdicts: AsyncIterator[WatchVerdict],
    *,
    exporter: Exporter,
    emit: EventWriter,
    policy: Policy | None,
    keeper: Keeper | None,
    wall: Callable[[], float] = time.time,
) -> None:
    """Report each change of state, and restart if a policy allows it, forever."""
    state, beat, gpu_at, said = None, time.monotonic(), 0.0, _Said()
    gpus: asyncio.Task[None] | None = None
    async for verdict in verdicts:
        at = time.monotonic()
        if verdict.state is not state:
            emit("state", state=verdict.state.value, was=state and state.value, why=verdict.why)
            state, beat = verdict.state, at
        elif at - beat >= HEARTBEAT_S:
            emit("still", state=verdict.state.value, why=verdict.why, seconds=round(at - verdict.since))
            beat = at
        if at - gpu_at >= GPU_S and (gpus is None or gpus.done()):
            # Not awaited: a driver that hangs is a reason to act on the verdict, not to wait.
            gpus, gpu_at = asyncio.create_task(_publish_gpus(exporter)), at
        if policy is not None and keeper is not None:
            await _restart_if_allowed(verdict, policy, keeper, exporter, emit, said, wall)


async def _publish_gpus(exporter: Exporter) -> None:
    exporter.gpus(await asyncio.to_thread(read_gpus))


@dataclass(slots=True)
class _Said:
    """What was reported last, so that it is reported once: why it was left alone, and what failed."""

    left_alone: str = ""
    failed: str = ""

    def alone(self, emit: EventWriter, state: State, why: str) -> None:
        if why and why.split(" ")[:2] != self.left_alone.split(" ")[:2]:
            emit("left-alone", state=state.value, why=why)
        self.left_alone = why
        if not why:  # it is well again
            self.failed = ""

    def failure(self, emit: EventWriter, event: str, why: str) -> None:
        # Without figures: a log that cannot be written has the time in its name.
        new = " ".join((event, *re.sub(r"\d+", "#", why).split(" ")[:4]))
        if new != self.failed:
            emit(event, why=why)
        self.failed = new


async def _restart_if_allowed(
    verdict: WatchVerdict,
    policy: Policy,
    keeper: Keeper,
    exporter: Exporter,
    emit: EventWriter,
    said: _Said,
    wall: Callable[[], float],
) -> None:
    """Restart, or report once why not."""
    at = time.monotonic()
    try:
        container = await asyncio.to_thread(keeper.state)
    except DeployError as error:
        # Asked at every verdict: while nothing is to be restarted, no restart has failed.
        said.failure(emit, "restart-failed" if verdict.state in RESTARTABLE else "container-unknown", error.message)
        return
    try:
        up_s = policy.uptime(container.started_at, wall(), at) if container and container.running else None
        why_not = policy.why_not(verdict.state, at, container, up_s=up_s, since_s=at - verdict.since)
        exporter.given_up.set("ceiling" in (why_not or ""))
        if why_not is not None:
            said.alone(emit, verdict.state, why_not)
            return
        if policy.rolls_back(verdict.state, at):
            await _roll_back(verdict, at, policy, keeper, exporter, emit)
        else:
            await _restart(verdict, at, policy, keeper, exporter, emit, announce=not said.failed)
        said.left_alone = said.failed = ""
    except RollbackFailed as error:
        said.failure(emit, "rollback-failed", error.message)
    except (DeployError, OSError) as error:  # whatever the disk does, the watch goes on
        policy.failed(time.monotonic())  # not `at`: an attempt may take longer than the pause
        why = error.message if isinstance(error, DeployError) else one_line(str(error), 200)
        said.failure(emit, "restart-failed", why)


async def _roll_back(
    verdict: WatchVerdict, at: float, policy: Policy, keeper: Keeper, exporter: Exporter, emit: EventWriter
) -> None:
    policy.rolled_back(at)
    emit("rolling-back", state=verdict.state.value, why=f"a restart did not help: {verdict.why}")
    exporter.rollbacks.inc()
    emit("rolled-back", release=await asyncio.to_thread(keeper.roll_back, verdict.why))


async def _restart(
    verdict: WatchVerdict,
    at: float,
    policy: Policy,
    keeper: Keeper,
    exporter: Exporter,
    emit: EventWriter,
    *,
    announce: bool,
) -> None:
    if announce:
        emit("restarting", state=verdict.state.value, why=verdict.why)
    # Counted, on disk, once nothing but the restart itself is left to do: what was not restarted does not count.
    log = await asyncio.to_thread(keeper.restart, verdict.why, lambda: policy.done(at, verdict.state))
    exporter.restarts.inc()
    emit("restarted", log=str(log), of_last_hour=policy.recent(at), ceiling=policy.rules.ceiling)
