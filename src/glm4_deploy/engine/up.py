"""render → start → ready → proof → smoke: green only when this container serves this model and speaks sanely."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from glm4_deploy.checkpoint.verify import verify
from glm4_deploy.engine import state
from glm4_deploy.engine.compose import Compose, find_compose
from glm4_deploy.engine.docker import connect, image_present
from glm4_deploy.engine.preflight import check_model_directory, check_port
from glm4_deploy.engine.process import ProcessRunner
from glm4_deploy.engine.ready import Boot
from glm4_deploy.engine.runner import ComposeRunner, Runner
from glm4_deploy.errors import CheckpointRefused, DeployError, ImageMissing, UsageError
from glm4_deploy.facts.enginelog import EngineFacts
from glm4_deploy.files import write_text
from glm4_deploy.plan.deployment import Deployment
from glm4_deploy.probe import Suite, Target, run_suite
from glm4_deploy.render.compose import COMPOSE, rendered
from glm4_deploy.result import Result, Status, verdict


class Listener(Protocol):
    """Told of progress; prints nothing to stdout."""

    def note(self, text: str) -> None: ...
    def phase(self, facts: EngineFacts, seconds: float) -> None: ...
    def check_started(self, check: str) -> None: ...
    def check_done(self, result: Result) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What `up` found. ready_seconds: from start to /health; gate_seconds: from there to the verdict."""

    verdict: Status
    results: tuple[Result, ...]
    facts: EngineFacts
    record: state.Record
    ready_seconds: float
    gate_seconds: float


def compose_runner(deployment: Deployment, overrides: tuple[Path, ...], directory: Path) -> ComposeRunner:
    """Write the rendered file and a runner for it.

    Raises:
        ComposeMissing, DockerMissing, DockerDenied, UsageError, StorageError
    """
    for override in overrides:
        if not override.is_file():
            raise UsageError(f"no override file at {override}", hint="check the path given with --override")
    command = find_compose()
    connect()
    for name, text in rendered(absolute(deployment)).items():
        write_text(directory / name, text)
    files = (directory / COMPOSE, *overrides)
    return ComposeRunner(
        compose=Compose(project=deployment.project, files=files, command=command), service=deployment.service
    )


def process_runner(deployment: Deployment, directory: Path, python: str | None) -> ProcessRunner:
    return ProcessRunner(deployment=deployment, directory=directory, python=python)


def absolute(deployment: Deployment) -> Deployment:
    """Relative model paths seen from here, since the rendered file lies elsewhere."""
    source = Path(deployment.model_source)
    return replace(deployment, model_source=str(source if source.is_absolute() else Path.cwd() / source))


def preflight(deployment: Deployment, runner: Runner, *, force: bool, note: Callable[[str], None]) -> None:
    """Everything that can be refused before something is started.

    Raises:
        ModelMissing, CheckpointRefused, PortTaken, ImageMissing
    """
    directory = Path(deployment.model_dir)
    check_model_directory(directory)
    _check_checkpoint(directory, deployment, force=force, note=note)
    check_port(deployment, runner.state())


def _check_checkpoint(directory: Path, deployment: Deployment, *, force: bool, note: Callable[[str], None]) -> None:
    failed = verify(directory, vllm=deployment.vllm).failures
    if not failed:
        return
    details = [f"{result.check}: {result.observed}" for result in failed]
    if not force:
        raise CheckpointRefused(
            f"the checkpoint at {directory} has {len(failed)} fault(s) that this engine would not survive",
            details=details,
            hint=f"{failed[0].remedy or 'mend it: glm4-deploy checkpoint repair'}; --force starts it all the same",
        )
    for line in details:
        note(f"forced past: {line}")


def pull(runner: ComposeRunner, deployment: Deployment, note: Callable[[str], None]) -> None:
    """Fetch the image where it is not here, with compose's own progress on stderr.

    Raises:
        ImageMissing
    """
    if image_present(connect(), deployment.image):
        return
    note(f"pulling {deployment.image}")
    done = subprocess.run(runner.pull_command(), stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise ImageMissing(
            f"the image {deployment.image} is not here and could not be pulled",
            hint="check the tag, the network and `docker login`; see compose's own words above",
        )


def up(deployment: Deployment, runner: Runner, *, directory: Path, timeout: float, listener: Listener) -> Outcome:
    """Start, wait, prove, gate. What fails its start or its gate is stopped; its log is kept.

    Raises:
        EngineDied, EngineTimeout, WrongEngine, ComposeFailed, PortTaken, Unreachable
    """
    started = runner.start()
    listener.note(f"started {runner.kind} {started.id[:12]}")
    boot = Boot(runner, started, deployment.base_url, listener.phase, logs_requests=_logs_requests(deployment))
    try:
        ready_seconds = boot.wait_ready(timeout)
        proof = boot.prove_identity()
        listener.check_done(proof)
        report = asyncio.run(
            run_suite(
                _target(deployment),
                suite=Suite.GATE,
                on_start=listener.check_started,
                on_result=listener.check_done,
            )
        )
        boot.check()
    except DeployError:
        _keep_log(boot, directory)
        runner.stop()
        raise
    results = (proof, *report.results)
    outcome = Outcome(
        verdict=verdict(results),
        results=results,
        facts=boot.reader.facts,
        record=_record(deployment, runner, started.id, started.started_at, ready_seconds, verdict(results)),
        ready_seconds=ready_seconds,
        gate_seconds=report.seconds,
    )
    if outcome.verdict in (Status.FAIL, Status.UNKNOWN):
        _keep_log(boot, directory)
        runner.stop()
    state.save(outcome.record, directory)
    return outcome


def _logs_requests(deployment: Deployment) -> bool:
    quiet = {"disable-uvicorn-access-log", "disable-access-log-for-endpoints", "uvicorn-log-level"}
    return quiet.isdisjoint(flag.name for flag in deployment.flags)


def _target(deployment: Deployment) -> Target:
    """No start time is given: prove_identity() has tied the address to this start by something better than clocks."""
    return Target(
        base_url=deployment.base_url, model=deployment.served_model_name, max_model_len=deployment.max_model_len
    )


def _record(
    deployment: Deployment, runner: Runner, identity: str, started_at: float, ready_seconds: float, found: Status
) -> state.Record:
    files = tuple(str(path) for path in runner.files) if isinstance(runner, ComposeRunner) else ()
    return state.Record(
        runner=runner.kind,
        project=deployment.project,
        service=deployment.service,
        profile=deployment.profile,
        base_url=deployment.base_url,
        model=deployment.served_model_name,
        max_model_len=deployment.max_model_len,
        files=files,
        id=identity,
        started_at=started_at,
        verdict=found,
        ready_seconds=round(ready_seconds, 1),
    )


def _keep_log(boot: Boot, directory: Path) -> None:
    """The log of a start that failed, where `glm4-deploy diagnose` can read it after the container is gone."""
    write_text(directory / "failed.log", "\n".join(boot.log) + "\n")
