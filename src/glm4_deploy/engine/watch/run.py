"""The loop: look, judge, publish, and, where asked, restart. The clock is monotonic: a wall clock may jump."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Protocol

from glm4_deploy.engine.watch.canary import Schedule, put
from glm4_deploy.engine.watch.exporter import Exporter
from glm4_deploy.engine.watch.judge import Canary, Judge, Limits, Look, Said, State, Verdict
from glm4_deploy.engine.watch.look import LOOK_S, look
from glm4_deploy.engine.watch.restart import Keeper, Policy
from glm4_deploy.errors import DeployError
from glm4_deploy.facts.gpu import read_gpus
from glm4_deploy.probe.client import Client
from glm4_deploy.probe.target import Target

GPU_S = 60.0
HEARTBEAT_S = 3600.0
DOUBTFUL = frozenset({Said.SICK, Said.BROKEN, Said.SILENT})


class Teller(Protocol):
    """Writes one event; see cli/watch.py."""

    def __call__(self, event: str, /, **fields: Any) -> None: ...


async def judged(
    target: Target, limits: Limits, schedule: Schedule | None, exporter: Exporter, tell: Teller
) -> AsyncIterator[Verdict]:
    """Look every interval, with canaries beside, for ever."""
    judge = Judge(limits, at=time.monotonic())
    asking: asyncio.Task[Canary] | None = None
    async with Client(target) as client:
        try:
            while True:
                begin = time.monotonic()
                sample = await look(client, target.model, begin, min(LOOK_S, limits.stall_s / 3))
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


def _came_back(canary: Canary, state: State, schedule: Schedule | None, exporter: Exporter, tell: Teller) -> None:
    """Tell of a canary, and ask the next one sooner where there is doubt."""
    exporter.canary(canary)
    tell("canary", name=canary.name, said=canary.said.value, why=canary.why, tokens=canary.tokens)
    if schedule and (canary.said in DOUBTFUL or not state.good):
        schedule.hurry(canary.at)
    elif schedule:
        schedule.calm()


async def watch(
    verdicts: AsyncIterator[Verdict],
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
    verdict: Verdict,
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
