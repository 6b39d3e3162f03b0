"""The loop: look, judge, publish, and, where asked, restart. The clock is monotonic: a wall clock may jump."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, Protocol

from glm4_deploy.detect import scan
from glm4_deploy.errors import DeployError
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.probe.client import ChatAnswer, Client, FailureKind, ProbeTarget, Refused, Reply, RequestFailure
from glm4_deploy.probe.endpoints import model_rows, parse_metrics
from glm4_deploy.probe.probe import (
    CHAT,
    EXTRAS,
    GREEDY,
    SAMPLED,
    CanaryPrompt,
    family,
    fault,
    named,
)
from glm4_deploy.probe.progress import RUNNING, Counters, counters
from glm4_deploy.text import one_line
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.judge import (
    CanaryResult,
    Judge,
    Limits,
    Look,
    MetricsSample,
    Said,
    State,
    WatchVerdict,
)
from glm4_deploy.watch.restart import Keeper, Policy

# One look at the engine: GET /metrics, and /v1/models only where /metrics leaves in doubt who answers.

LOOK_S = 8.0  # an event loop that is busy with long prompts answers within a second or two


async def read_sample(client: Client, model: str | None, at: float, limit_s: float = LOOK_S) -> MetricsSample:
    """Ask once. model: the name that must be served; None: any. limit_s: seconds until silence is silence."""
    try:
        reply = await client.get("/metrics", timeout_s=limit_s)
    except RequestFailure as trouble:
        silent = trouble.kind in (FailureKind.HANG, FailureKind.SLOW)
        strange = trouble.kind in (
            FailureKind.REDIRECT,
            FailureKind.ENCODING,
            FailureKind.TOO_BIG,
            FailureKind.NOT_OPENAI,
        )
        found = Look.SILENT if silent else Look.WRONG if strange else Look.REFUSED
        return MetricsSample(
            at=at, look=found, why=f"GET /metrics: {trouble.detail}", waited=limit_s if silent else 0.0
        )
    metrics = parse_metrics(reply.text) if reply.status == 200 else None
    read = counters(metrics) if metrics else None
    if metrics and read and model in (None, metrics.label(RUNNING, "model_name")):
        model = metrics.label(RUNNING, "model_name")
        return MetricsSample(at=at, look=Look.ANSWERED, counters=read, model=model, epoch=time.time())
    return await _doubtful(client, model, at, reply, read)


async def _doubtful(client: Client, model: str | None, at: float, reply: Reply, read: Counters | None) -> MetricsSample:
    """/metrics names another model (an engine may serve one under several names), or is no vLLM's."""
    try:
        answer = await client.get("/v1/models", timeout_s=LOOK_S)
    except RequestFailure as trouble:
        return MetricsSample(at=at, look=Look.SILENT, why=f"GET /v1/models: {trouble.detail}")
    names = [str(row["id"]) for row in model_rows(answer.json()) or ()]
    if answer.status in (401, 403):
        why = f"GET /v1/models: HTTP {answer.status}: the key is missing or wrong"
        return MetricsSample(at=at, look=Look.STRANGE, why=why)
    if not names or (model is not None and model not in names):
        served = f"serves {one_line(', '.join(names), 80)}" if names else f"no list of models (HTTP {answer.status})"
        return MetricsSample(at=at, look=Look.WRONG, why=f"{served}, expected {model or 'a model'}")
    if read is None:
        why = f"GET /metrics: HTTP {reply.status} without vLLM's counters: whether it moves is not known"
        return MetricsSample(at=at, look=Look.STRANGE, why=why)
    return MetricsSample(at=at, look=Look.ANSWERED, counters=read, model=model or names[0], epoch=time.time())


# A small generation on a schedule: sums with known answers, and free texts for the detector; within a budget.

CONFIRM_S = 15.0  # after a sick answer the next one comes sooner, and each further one half as soon
SLACK = 2  # the budget allows twice the schedule: what is over is for confirming


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked next, how, and the most tokens it may take."""

    question: CanaryPrompt
    sampled: bool
    max_tokens: int

    @property
    def name(self) -> str:
        return f"{self.question.id} ({'sampled' if self.sampled else 'greedy'})"


class Schedule:
    """Which question when. Free texts take turns in language and sampling; between them come sums, greedy.

    A sum is asked greedily only: at temperature 0.7 a sound model may miss one.
    """

    def __init__(self, *, every_s: float, max_tokens: int) -> None:
        self.every_s = every_s
        self.max_tokens = max_tokens
        self.budget = int(SLACK * 3600 / every_s * max_tokens)  # tokens an hour
        self._asks = self._turns()
        self._spent: deque[tuple[float, int]] = deque()
        self._hurry_s = CONFIRM_S
        self.due = 0.0

    def _turns(self) -> Iterator[Ask]:
        sums = cycle(family("arithmetic"))
        for name, sampled in cycle((("long-en", False), ("long-zh", True), ("long-en", True), ("long-zh", False))):
            yield Ask(question=named(name), sampled=sampled, max_tokens=self.max_tokens)
            total = next(sums)
            yield Ask(question=total, sampled=False, max_tokens=min(total.max_tokens, self.max_tokens))

    def spent(self, at: float) -> int:
        """Tokens asked for in the last hour: the most that each question could take."""
        while self._spent and at - self._spent[0][0] > 3600:
            self._spent.popleft()
        return sum(tokens for _, tokens in self._spent)

    def take(self, at: float) -> Ask | None:
        """The next question where one is due and the budget allows it."""
        if at < self.due or self.spent(at) + self.max_tokens > self.budget:
            return None
        self.due = at + self.every_s
        ask = next(self._asks)
        self._spent.append((at, ask.max_tokens))
        return ask

    def hurry(self, at: float) -> None:
        """Ask again soon: the last answer was sick, or broken, or none."""
        self.due = min(self.due, at + self._hurry_s)
        self._hurry_s = min(2 * self._hurry_s, self.every_s)

    def calm(self) -> None:
        """All is well again: the next doubt is looked into as quickly as the first."""
        self._hurry_s = CONFIRM_S

    def anew(self, at: float) -> None:
        """The engine was started anew: ask at once."""
        self.due = at
        self.calm()


async def put(
    client: Client, model: str, ask: Ask, *, asked: float, limit_s: float, extras: bool = True
) -> CanaryResult:
    """Ask one question. asked: monotonic seconds; limit_s: for the whole answer."""
    how: Mapping[str, Any] = SAMPLED if ask.sampled else GREEDY
    body = {"model": model, "messages": list(ask.question.messages), "max_tokens": ask.max_tokens, **how}

    def back(said: Said, why: str, seconds: float = limit_s, tokens: int | None = None) -> CanaryResult:
        return CanaryResult(name=ask.name, asked=asked, at=asked + seconds, said=said, why=why, tokens=tokens)

    try:
        answer = await client.ask_stream(CHAT, {**body, **(EXTRAS if extras else {})}, limit_s=limit_s)
    except Refused as refused:
        if refused.not_a_number:
            return back(Said.SICK, f"NaN: {refused.message}", 0)
        if refused.not_offered and extras:
            return await put(client, model, ask, asked=asked, limit_s=limit_s, extras=False)
        return back(Said.BROKEN if refused.status >= 500 else Said.UNJUDGED, str(refused), 0)
    except RequestFailure as trouble:
        # Who is not there or is someone else is seen by the samples; here it is no answer to judge.
        elsewhere = trouble.kind in (FailureKind.UNREACHABLE, FailureKind.REDIRECT, FailureKind.RESET)
        said = Said.SILENT if trouble.kind is FailureKind.HANG else Said.UNJUDGED if elsewhere else Said.BROKEN
        return back(Said.UNJUDGED if trouble.kind is FailureKind.SLOW else said, str(trouble))
    sick = fault_of(ask, answer)
    tokens = answer.timing.tokens or len(answer.timing.arrivals)
    return back(Said.SICK if sick else Said.SOUND, sick or "sound", answer.timing.total, tokens)


def fault_of(ask: Ask, answer: ChatAnswer) -> str | None:
    """What is wrong with an answer; None where nothing was found. Pure."""
    finding = scan(
        answer.text,
        prompt=ask.question.prompt,
        finish_reason=answer.finish_reason,
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
    )
    if finding.degenerate:
        return f"{finding.verdict}: {finding.why}"
    return fault(ask.question, answer.text)


GPU_S = 60.0
HEARTBEAT_S = 3600.0
DOUBTFUL = frozenset({Said.SICK, Said.BROKEN, Said.SILENT})


class Teller(Protocol):
    """Writes one event; see cli/watch.py."""

    def __call__(self, event: str, /, **fields: Any) -> None: ...


async def judged(
    target: ProbeTarget, limits: Limits, schedule: Schedule | None, exporter: Exporter, tell: Teller
) -> AsyncIterator[WatchVerdict]:
    """Look every interval, with canaries beside, for ever."""
    judge = Judge(limits, at=time.monotonic())
    asking: asyncio.Task[CanaryResult] | None = None
    async with Client(target) as client:
        try:
            while True:
                begin = time.monotonic()
                sample = await read_sample(client, target.model, begin, min(LOOK_S, limits.stall_s / 3))
                exporter.requests.labels("look").inc()
                starts = judge.starts
                verdict = judge.sample(replace(sample, at=time.monotonic()))
                if schedule and judge.starts != starts:
                    schedule.anew(begin)
                if asking is not None and asking.done():
                    canary = replace(asking.result(), at=time.monotonic())
                    asking = None
                    verdict = judge.canary(canary)
                    _came_back(canary, verdict.state, schedule, exporter, tell)
                if asking is None and schedule and sample.look is Look.ANSWERED and (ask := schedule.take(begin)):
                    exporter.requests.labels("canary").inc()
                    question = put(
                        client,
                        target.model or sample.model or "",
                        ask,
                        asked=time.monotonic(),
                        limit_s=2 * limits.stall_s,
                    )
                    asking = asyncio.create_task(question)
                exporter.spent.set(schedule.spent(begin) if schedule else 0)
                exporter.publish(verdict, judge, time.monotonic())
                yield verdict
                await asyncio.sleep(max(limits.interval_s - (time.monotonic() - begin), 0.1))
        finally:
            if asking is not None:
                asking.cancel()


def _came_back(canary: CanaryResult, state: State, schedule: Schedule | None, exporter: Exporter, tell: Teller) -> None:
    """Tell of a canary, and ask the next one sooner where there is doubt."""
    exporter.canary(canary)
    tell("canary", name=canary.name, said=canary.said.value, why=canary.why, tokens=canary.tokens)
    if schedule and (canary.said in DOUBTFUL or not state.good):
        schedule.hurry(canary.at)
    elif schedule:
        schedule.calm()


async def run_watch(
    verdicts: AsyncIterator[WatchVerdict],
    *,
    exporter: Exporter,
    tell: Teller,
    policy: Policy | None,
    keeper: Keeper | None,
    wall: Callable[[], float] = time.time,
) -> None:
    """Tell each change of state, and restart where a policy allows it, for ever."""
    state, beat, gpu_at, left_alone = None, time.monotonic(), 0.0, ""
    async for verdict in verdicts:
        at = time.monotonic()
        if verdict.state is not state:
            tell("state", state=verdict.state.value, was=state and state.value, why=verdict.why)
            state, beat = verdict.state, at
        elif at - beat >= HEARTBEAT_S:
            tell("still", state=verdict.state.value, why=verdict.why, seconds=round(at - verdict.since))
            beat = at
        if at - gpu_at >= GPU_S:
            exporter.gpus(await asyncio.to_thread(read_gpus))
            gpu_at = at
        if policy is not None and keeper is not None:
            left_alone = await _mend(verdict, policy, keeper, exporter, tell, left_alone, wall)


async def _mend(
    verdict: WatchVerdict,
    policy: Policy,
    keeper: Keeper,
    exporter: Exporter,
    tell: Teller,
    told: str,
    wall: Callable[[], float],
) -> str:
    """Restart, or say once why not. Returns what was said last."""
    at = time.monotonic()
    try:
        container = await asyncio.to_thread(keeper.state)
        up_s = wall() - container.started_at if container and container.running else None
        why_not = policy.why_not(verdict.state, at, container, up_s=up_s, since_s=at - verdict.since)
        exporter.given_up.set("ceiling" in (why_not or ""))
        if why_not is not None:
            if why_not and why_not.split(" ")[:2] != told.split(" ")[:2]:
                tell("left-alone", state=verdict.state.value, why=why_not)
            return why_not
        tell("restarting", state=verdict.state.value, why=verdict.why)
        policy.done(at)
        kept = await asyncio.to_thread(keeper.restart, verdict.why)
    except DeployError as error:
        if error.message != told:
            tell("restart-failed", why=error.message)
        return error.message
    exporter.restarts.inc()
    tell("restarted", log=str(kept), of_last_hour=policy.recent(at), ceiling=policy.rules.ceiling)
    return ""
