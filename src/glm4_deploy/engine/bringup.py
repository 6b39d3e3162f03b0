"""Start one engine, wait, prove that it is the one that answers, and gate it: what was seen, good or bad."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from glm4_deploy.engine import keyfile
from glm4_deploy.engine.images import PullState
from glm4_deploy.engine.ready import Boot
from glm4_deploy.engine.release import Service
from glm4_deploy.engine.runner import Runner, Started
from glm4_deploy.errors import DeployError, Judged
from glm4_deploy.facts.enginelog import EngineFacts, LogFinding
from glm4_deploy.probe import Suite, Target, run_suite
from glm4_deploy.result import Result, Status, verdict


class Listener(Protocol):
    """Told of progress; prints nothing to stdout."""

    def note(self, text: str) -> None: ...
    def expect(self, ready_seconds: float | None) -> None: ...
    def pull(self, state: PullState) -> None: ...
    def phase(self, facts: EngineFacts, seconds: float) -> None: ...
    def check_started(self, check: str) -> None: ...
    def check_done(self, result: Result) -> None: ...


@dataclass(slots=True, kw_only=True)
class Seen:
    """What one start showed, filled as it goes. Times are seconds; `error` says what ended it before or at the gate.

    ready_seconds: from start to /health; gate_seconds: from there to the verdict; phases: from start to each.
    serving: whether others serve on where it failed, so that what must not serve is stopped already.
    """

    started: Started | None = None
    results: tuple[Result, ...] = ()
    facts: EngineFacts = field(default_factory=EngineFacts)
    findings: tuple[LogFinding, ...] = ()
    log: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    ready_seconds: float | None = None
    gate_seconds: float | None = None
    error: DeployError | None = None
    serving: bool = False

    @property
    def verdict(self) -> Status:
        if self.error is not None and not isinstance(self.error, Judged):
            return Status.FAIL
        return verdict(self.results)


def bring_up(
    service: Service,
    runner: Runner,
    *,
    timeout: float,
    listener: Listener,
    fresh: bool = False,
    on_ready: Callable[[], None] = lambda: None,
    address: Callable[[], str] | None = None,
) -> Seen:
    """Never raises what a deployment can suffer: the error is part of what was seen. An interrupt passes through.

    Args:
        timeout: seconds until /health must answer.
        fresh: start anew even what already runs with these settings.
        on_ready: called between the start and the gate.
        address: asked after the start for the URL that is to be judged; None: the service's own.
    """
    seen = Seen()
    boot: Boot | None = None
    try:
        seen.started = runner.start(fresh=fresh)
        listener.note(f"started {runner.kind} {seen.started.id[:12]}")
        if address is not None:
            service = replace(service, base_url=address())
        boot = Boot(runner, seen.started, service.base_url, listener.phase, logs_requests=service.logs_requests)
        seen.ready_seconds = round(boot.wait_ready(timeout), 1)
        on_ready()
        _gate(service, boot, listener, seen)
    except DeployError as error:
        seen.error = error
    if boot is not None:
        seen.facts, seen.findings = boot.reader.facts, tuple(boot.reader.findings)
        seen.log, seen.phases = boot.log, boot.phases
    return seen


def _gate(service: Service, boot: Boot, listener: Listener, seen: Seen) -> None:
    proof = boot.prove_identity()
    listener.check_done(proof)
    seen.results = (proof,)
    report = asyncio.run(
        run_suite(_target(service), suite=Suite.GATE, on_start=listener.check_started, on_result=listener.check_done)
    )
    seen.results, seen.gate_seconds = (proof, *report.results), round(report.seconds, 1)
    boot.check()
    judge(seen.results)


def judge(results: tuple[Result, ...]) -> None:
    """Raises Judged where a check failed or could not be judged."""
    failed = [row for row in results if row.status in (Status.FAIL, Status.UNKNOWN)]
    if failed or verdict(results) is Status.UNKNOWN:
        what = f"{failed[0].check}: {failed[0].observed or failed[0].reason}" if failed else "nothing could be judged"
        raise Judged(
            f"the engine came up but did not pass: {what}",
            details=[f"{row.check}: {row.observed or row.reason}" for row in failed[1:]],
            hint=failed[0].remedy if failed else "",
        )


def _target(service: Service) -> Target:
    """No start time is given: prove_identity() has tied the address to this start by something better than clocks."""
    return Target(
        base_url=service.base_url,
        model=service.model,
        max_model_len=service.max_model_len,
        api_key=SecretStr(keyfile.read(Path(service.api_key_file))) if service.api_key_file else None,
    )


def stop(runner: Runner, listener: Listener) -> None:
    """What failed must not serve; where it cannot be stopped that is said, and the work goes on."""
    try:
        runner.stop()
    except DeployError as error:
        listener.note(f"could not stop it: {error.message}")
