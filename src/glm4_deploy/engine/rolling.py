"""Bring up several engines: all at once where nothing serves yet, one at a time behind the router where it does."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from glm4_deploy.engine import keyfile
from glm4_deploy.engine.bringup import Listener, Seen, bring_up, judge, stop
from glm4_deploy.engine.release import Service
from glm4_deploy.engine.replicas import ReplicaSet
from glm4_deploy.engine.router import RouterClient, wait_idle
from glm4_deploy.engine.runner import ComposeRunner
from glm4_deploy.errors import DeployError
from glm4_deploy.probe import Suite, Target, run_suite
from glm4_deploy.result import Result

DRAIN_SECONDS = 120.0
# Of the gate, what a router could spoil: the sense of the answers was judged at each engine.
ROUTER_CHECKS = ("alive", "identity", "chat", "stream")


def bring_up_replicas(
    service: Service,
    runner: ReplicaSet,
    *,
    timeout: float,
    listener: Listener,
    fresh: bool,
    on_ready: Callable[[], None],
) -> Seen:
    """Each engine is gated at its own address, then the router at the one that clients use.

    An engine that runs as wished is gated and left. Another is taken out of the router, has `DRAIN_SECONDS` to finish
    what it has, is made anew, gated, and put back. The first that fails is stopped and stays out; the rest serve on
    (`Seen.serving`). Nothing raises but an interrupt.
    """
    seen = Seen()
    router = RouterClient(base_url=service.base_url)
    try:
        seen.serving = runner.rolls()
        if not seen.serving:
            runner.start(fresh=fresh)
        for name, engine in zip(runner.services, runner.engines, strict=True):
            one = _replace(service, runner, name, engine, router if seen.serving else None, timeout, listener, on_ready)
            _add(seen, name, one)
            if one.error is not None:
                stop(engine, listener)
                raise one.error
            if seen.serving:
                router.put_back(name)
        if seen.serving:
            runner.settle()
        listener.note("the router")
        router.wait_ready(runner.services)
        _gate_router(service, listener, seen)
    except DeployError as error:
        seen.error = error
    return seen


def _replace(
    service: Service,
    runner: ReplicaSet,
    name: str,
    engine: ComposeRunner,
    router: RouterClient | None,
    timeout: float,
    listener: Listener,
    on_ready: Callable[[], None],
) -> Seen:
    kept = engine.keeps()
    listener.note(f"replica {name}" + (": as it runs" if kept else ""))
    if router is not None and not kept:
        _drain(runner, name, router, listener)
    return bring_up(
        service,
        engine,
        timeout=timeout,
        listener=listener,
        on_ready=on_ready,
        address=lambda: runner.address(name),
    )


def _drain(runner: ReplicaSet, name: str, router: RouterClient, listener: Listener) -> None:
    router.take_out(name)
    if runner.states()[name].running:
        left = wait_idle(runner.address(name), DRAIN_SECONDS)
        if left:
            listener.note(f"{name}: {left:.0f} requests run still after {DRAIN_SECONDS:.0f} s and are cut off here")


def _add(seen: Seen, name: str, one: Seen) -> None:
    """Put what one engine showed to the whole. The log is that of the last one: where one failed, it is the last."""
    seen.started = seen.started or one.started
    seen.results += _named(name, one.results)
    seen.facts, seen.findings, seen.log, seen.phases = one.facts, one.findings, one.log, one.phases
    seen.ready_seconds = max(
        (time for time in (seen.ready_seconds, one.ready_seconds) if time is not None), default=None
    )
    seen.gate_seconds = round((seen.gate_seconds or 0) + (one.gate_seconds or 0), 1)


def _named(name: str, results: tuple[Result, ...]) -> tuple[Result, ...]:
    return tuple(replace(row, check=f"{name}/{row.check}") for row in results)


def _gate_router(service: Service, listener: Listener, seen: Seen) -> None:
    key = SecretStr(keyfile.read(Path(service.api_key_file))) if service.api_key_file else None
    target = Target(base_url=service.base_url, model=service.model, max_model_len=service.max_model_len, api_key=key)
    report = asyncio.run(
        run_suite(
            target,
            suite=Suite.GATE,
            only=ROUTER_CHECKS,
            on_start=listener.check_started,
            on_result=listener.check_done,
        )
    )
    rows = _named("router", report.results)
    seen.results += rows
    judge(rows)
