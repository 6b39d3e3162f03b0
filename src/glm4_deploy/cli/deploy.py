"""`glm4-deploy up | down | status | logs | version`."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.cli.output import Progress
from glm4_deploy.cli.params import (
    STATE,
    Json,
    JsonLines,
    Requested,
    StateDir,
    profile_of_this_host,
    resolve_spec,
    with_settings,
)
from glm4_deploy.deploy.candidates import (
    Candidate,
    check_model_directory,
    compose_candidate,
    preflight,
    process_candidate,
    runner_of,
)
from glm4_deploy.deploy.engines import Runner
from glm4_deploy.deploy.plan_check import gpu_here, hold_plan
from glm4_deploy.deploy.state import (
    Record,
    describe_journal,
    expected_record,
    forget_journal,
    hold_lock,
    interrupted_entry,
    load_record,
)
from glm4_deploy.deploy.status import log_tail, read_status
from glm4_deploy.deploy.transaction import DeploymentResult, Transaction
from glm4_deploy.errors import ComposeMissing, DeployError, DockerMissing, Judged, UsageError
from glm4_deploy.plan.spec import DeploymentSpec
from glm4_deploy.report.wire import dumps
from glm4_deploy.settings import Settings
from glm4_deploy.text import one_line, strip_controls

# What `up` and `rollback` share: one hand at a time, an end that can be interrupted, and how the outcome is told.


@contextmanager
def exclusive(state_dir: Path, what: str, progress: "Progress") -> Iterator[None]:
    """Hold the lock; say what an earlier deployment left; end like Ctrl-C on SIGTERM and on a lost terminal.

    Raises:
        Locked, StorageError
    """
    with hold_lock(state_dir, what):
        if (left := interrupted_entry(state_dir)) is not None:
            sentence, _ = describe_journal(state_dir, at_work=False)
            progress.note(f"an earlier {sentence}")
            if left.touched:
                progress.note(f"this {what} goes on from what is there")
        before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
        for name, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(name, signal.default_int_handler)
        try:
            yield
        except KeyboardInterrupt:
            sentence, unjudged = describe_journal(state_dir, at_work=False)
            left_as = f" ({sentence})" if unjudged else ""
            progress.note(
                f"interrupted: the engine is left as it is{left_as}; see `glm4-deploy status`, end it with `down`"
            )
            raise
        finally:
            progress.close()
            for name, handler in before.items():
                signal.signal(name, handler)


def report_result(
    outcome: "DeploymentResult", error: "DeployError | None", progress: "Progress", *, json_: bool
) -> None:
    """The report on stdout, then the error that the command ends in."""
    if json_:
        typer.echo(dumps(outcome))
    else:
        for one in (outcome, outcome.restored):
            if one is not None and one.results:
                progress.table(one.results)
                release = f", release {one.release}" if one.release else ""
                model = repr(one.record.model)
                what = f"{one.record.base_url}/v1 serves {model}" if one.good else f"{model} did not pass its gate"
                typer.echo(f"{what}: {one.verdict}{release}")
    if error is not None:
        raise error


@with_settings(profile="that of this host's GPU")
def up(
    requested: Requested,
    runner: Annotated[
        str,
        typer.Option(help="compose, process (no Docker; the cpu profile only), or auto: compose where Docker answers."),
    ] = "compose",
    override: Annotated[
        list[Path] | None, typer.Option("--override", help="A Compose file laid over the rendered one.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds a start may take. [start_period]")] = None,
    no_rollback: Annotated[
        bool, typer.Option("--no-rollback", help="Where it fails, do not put the last good release back.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start in spite of a faulty checkpoint.")] = False,
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Render, start, wait through the phases, and gate: green only when this container serves this model sanely.

    What passes is recorded as a release. What fails is stopped, and the last good release is put back and gated too.

    Example: glm4-deploy up --profile gb10 --model-dir /models/glm-4-9b-chat-hf-nvfp4
    """
    from dataclasses import replace

    wish = requested.plan(profile_of_this_host)
    settings, deployment = wish.settings, wish.deployment
    progress = Progress()
    progress.note(f"profile {deployment.profile}: {deployment.summary}")
    for flag in deployment.flags:
        if flag.name.replace("-", "_") in (*dict(deployment.reasons), "gpu_memory_utilization"):
            progress.note(f"--{flag.name} {flag.value or ''}: {flag.note}")
    for warning in (*deployment.warnings, *deployment.router_warnings):
        progress.note(f"warning: {warning}")
    with exclusive(state_dir, "up", progress):
        candidate = _candidate(settings, deployment, runner, tuple(override or ()), state_dir, progress)
        candidate = preflight(candidate, state_dir, force=force, note=progress.note)
        work = Transaction(state_dir, progress, timeout=timeout)
        outcome, error = work.run(candidate, what="up", rollback=not no_rollback)
    here = gpu_here() if deployment.memory else None
    planned = hold_plan(settings, wish.profile, deployment, outcome.facts, state_dir, here)
    outcome = replace(outcome, results=(*outcome.results, *planned))
    report_result(outcome, error, progress, json_=json_)


def _candidate(
    settings: "Settings",
    deployment: "DeploymentSpec",
    wished: str,
    overrides: tuple[Path, ...],
    state_dir: Path,
    progress: "Progress",
) -> "Candidate":
    if wished not in ("compose", "process", "auto"):
        raise UsageError(f"--runner {wished!r} is not known", hint="compose, process or auto")
    if wished == "process" and deployment.engine != "cpu":
        raise UsageError("--runner process serves the cpu profile only", hint="use --profile cpu, or --runner compose")
    if wished == "process" and settings.replicas > 1:
        raise UsageError(
            f"--runner process serves one engine, not replicas {settings.replicas}", hint="--runner compose"
        )
    # What is wrong with the command comes before what is wrong with the host.
    check_model_directory(Path.cwd() / deployment.model_dir)
    wish = settings.model_dump(mode="json")
    if wished != "process":
        try:
            return compose_candidate(deployment, overrides, state_dir, wish)
        except (DockerMissing, ComposeMissing) as error:
            if wished == "compose" or deployment.engine != "cpu" or settings.replicas > 1:
                raise
            progress.note(f"no Docker ({error.message}): the same plan runs as a local process")
    return process_candidate(deployment, state_dir, os.environ.get("GLM4_CPU_PYTHON"), wish)


def down(
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Remove the cache volume too: the next start compiles anew.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before removing volumes.")] = False,
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Stop the engine and remove its container and network; volumes and the model stay.

    Example: glm4-deploy down
    """
    if volumes and not yes:
        typer.confirm("Remove the cache volume (compiled kernels)?", abort=True, err=True)
    with hold_lock(state_dir, "down"):
        record, runner = _recorded(state_dir)
        before = runner.state()
        runner.remove(volumes=volumes)
        forget_journal(state_dir)
    if json_:
        typer.echo(dumps({"project": record.project, "was_running": before.running, "removed_volumes": volumes}))
    else:
        typer.echo(f"{record.project}: " + ("stopped and removed" if before.started else "nothing was there"))


def status(state_dir: StateDir = STATE, json_: Json = False) -> None:
    """Show what runs, since when, how healthy, and what its log says of the path it took. Exit 1 unless it is up.

    Example: glm4-deploy status --json
    """
    record, runner = _recorded(state_dir)
    found = read_status(record, runner, state_dir)
    if json_:
        typer.echo(dumps(found))
    else:
        for name, value in found.rows():
            typer.echo(f"{name:18} {one_line(str(value), 1000)}")
    if not found.up:
        raise Judged(f"not up: {found.why}", hint="start it with `glm4-deploy up`; see why with `glm4-deploy diagnose`")


def logs(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines come.")] = False,
    tail: Annotated[str, typer.Option(help="Lines from the end, or all.")] = "200",
    state_dir: StateDir = STATE,
    json_: JsonLines = False,
) -> None:
    """Show the engine's log. Exit 1 where there is no engine.

    Example: glm4-deploy logs -f
    """
    if tail != "all" and not tail.isdigit():
        raise UsageError(f"--tail {tail!r} is not a number of lines", hint="for example --tail 200, or --tail all")
    record, runner = _recorded(state_dir)
    if runner.state().started is None:
        raise Judged(f"nothing of {record.project!r} is here: no log", hint="start it with `glm4-deploy up`")
    for line in log_tail(runner, None if tail == "all" else int(tail), follow=follow):
        if json_:
            typer.echo(dumps({"line": line}, indent=None))
        else:
            typer.echo(strip_controls(line))


def _recorded(state_dir: Path) -> tuple["Record", "Runner"]:
    """What this directory brought up last, or else what its settings name."""
    record = load_record(state_dir) or expected_record(resolve_spec({}))
    return record, runner_of(record, state_dir)
