"""`glm4-deploy up | down | status | logs`."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.catalog.rows import Profile
from glm4_deploy.cli.output import show_steps
from glm4_deploy.cli.params import (
    STATE,
    DryRun,
    Json,
    JsonLines,
    Requested,
    StateDir,
    resolve_spec,
    with_settings,
)
from glm4_deploy.cli.progress import Progress
from glm4_deploy.deploy.caches import Volume, project_volumes, remove_volumes
from glm4_deploy.deploy.candidates import (
    Candidate,
    check_model_directory,
    compose_candidate,
    preflight,
    process_candidate,
    recorded_engine,
)
from glm4_deploy.deploy.endpoint import EngineKind
from glm4_deploy.deploy.engines import Engine
from glm4_deploy.deploy.inspection import ask_image
from glm4_deploy.deploy.outcome import DeploymentResult, StartResult
from glm4_deploy.deploy.plan_check import compare_plan, free_memory, gpu_of_host, keep_free
from glm4_deploy.deploy.preview import preview_down, preview_up
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
from glm4_deploy.deploy.transaction import Transaction
from glm4_deploy.deploy.upgrade import check_driver
from glm4_deploy.errors import ComposeMissing, DeployError, DockerMissing, Judged, UsageError
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.plan.image import engine_image
from glm4_deploy.plan.resolved import ResolvedPlan
from glm4_deploy.plan.spec import DeploymentSpec
from glm4_deploy.report.wire import dumps, report_json
from glm4_deploy.result import Result
from glm4_deploy.settings import Settings
from glm4_deploy.text import one_line, strip_controls

# What `up` and `rollback` share: the lock, what an interrupt leaves, and the report.


@contextmanager
def exclusive(state_dir: Path, what: str, progress: Progress) -> Iterator[None]:
    """Hold the lock, report what an earlier deployment left, and treat SIGTERM and a lost terminal like Ctrl-C.

    Raises:
        Locked, StorageError
    """
    with hold_lock(state_dir, what):
        if (left := interrupted_entry(state_dir)) is not None:
            sentence, _ = describe_journal(state_dir, at_work=False)
            progress.note(f"an earlier {sentence}")
            if left.touched:
                progress.note(f"this {what} continues from that state")
        handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
        for name, handler in handlers.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(name, signal.default_int_handler)
        try:
            yield
        except KeyboardInterrupt:
            sentence, unjudged = describe_journal(state_dir, at_work=False)
            left_as = f" ({sentence})" if unjudged else ""
            progress.note(
                f"interrupted: the engine is left as it is{left_as}; see `glm4-deploy status`, stop it with `down`"
            )
            raise
        finally:
            progress.close()
            for name, handler in handlers.items():
                signal.signal(name, handler)


def report_result(result: DeploymentResult, what: str, progress: Progress, *, json_: bool) -> None:
    """Print the report, whose last line says what serves now, then raise the error that the command ends in."""
    if json_:
        typer.echo(report_json(result.report(what), result), nl=False)
    else:
        for start in (result.start, result.restored):
            if start is not None and start.results:
                progress.table((*start.results, *start.planned))
                if start.facts.kernel:
                    typer.echo(f"NVFP4 kernel: {start.facts.kernel_path}")
                typer.echo(_outcome(start))
        if result.serves is None:
            typer.echo(_nothing_serves(result.restored or result.start))
    if result.error is not None:
        raise result.error


def _outcome(start: StartResult) -> str:
    model, release = repr(start.endpoint.model), f", release {start.release}" if start.release else ""
    if start.good:
        return f"{start.endpoint.base_url}/v1 serves {model}: {start.verdict}{release}"
    return f"{model} did not pass its gate: {start.verdict}{release}"


def _nothing_serves(last: StartResult) -> str:
    address = f"{last.endpoint.base_url}/v1"
    if last.serving:
        return f"the other replicas keep serving at {address}"
    return f"nothing serves at {address}: {'the engine is stopped' if last.stopped else 'see glm4-deploy status'}"


@with_settings(profile="that of this host's GPU")
def up(
    requested: Requested,
    runner: Annotated[
        str,
        typer.Option(help="compose, process (no Docker; the cpu profile only), or auto: compose where Docker answers."),
    ] = "compose",
    override: Annotated[
        list[Path] | None,
        typer.Option("--override", help="A Compose file that overrides the rendered one; repeatable."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, max=86_400, help="Seconds a start may take.", show_default="start_period")
    ] = None,
    no_rollback: Annotated[
        bool, typer.Option("--no-rollback", help="If it fails, do not restore the last good release.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start even if the checkpoint is faulty.")] = False,
    dry_run: DryRun = False,
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Start the engine and gate it: green only if it answers sanely.

    Renders, starts, waits until the engine is ready, then checks that this very container serves this model. If it
    passes, it is recorded as a release. If it fails, it is stopped, and the last good release is restored and gated.

    Example: glm4-deploy up --profile gb10 --model-dir /models/glm-4-9b-chat-hf-nvfp4
    """
    progress = Progress()
    if dry_run:
        plan = requested.plan_here(partial(free_memory, state_dir))
        kind = _kind(runner, plan.settings, plan.deployment)
        show_steps(preview_up(plan.deployment, kind, state_dir, force=force, rollback=not no_rollback), json_=json_)
        return
    result = bring_up(
        requested,
        progress,
        state_dir=state_dir,
        runner=runner,
        overrides=tuple(override or ()),
        timeout=timeout,
        force=force,
        rollback=not no_rollback,
    )
    report_result(result, "up", progress, json_=json_)


def bring_up(
    requested: Requested,
    progress: Progress,
    *,
    state_dir: Path,
    runner: str,
    overrides: tuple[Path, ...] = (),
    timeout: float | None = None,
    force: bool = False,
    rollback: bool = True,
) -> DeploymentResult:
    """`up`, without its report.

    Raises:
        DeployError: refused before anything was started; a start that failed is in the result.
    """
    ask = _ask_nothing if runner == EngineKind.PROCESS else partial(ask_for_sets, progress)
    plan = requested.plan_here(lambda free: _free(state_dir, free), ask)
    settings, deployment = plan.settings, plan.deployment
    if deployment.memory:
        check_driver(engine_image(settings), read_gpus())
    progress.note(f"profile {deployment.profile}: {deployment.summary}")
    for flag in deployment.flags:
        if flag.note and flag.name.replace("-", "_") in (*dict(deployment.reasons), "gpu_memory_utilization"):
            progress.note(f"{' '.join(flag.words)}: {flag.note}")
    for warning in (*deployment.warnings, *deployment.router_warnings):
        progress.note(f"warning: {warning}")
    with exclusive(state_dir, "up", progress):
        candidate = _candidate(settings, deployment, runner, overrides, state_dir, progress)
        candidate = preflight(candidate, state_dir, force=force, note=progress.note)
        compare = partial(_compare, plan, state_dir)
        transaction = Transaction(state_dir, candidate, progress, timeout=timeout, compare=compare)
        return transaction.run("up", rollback=rollback)


def _compare(plan: ResolvedPlan, state_dir: Path, facts: EngineFacts) -> tuple[Result, ...]:
    """The memory plan of this host's card compared with the engine's log."""
    host_gpu = gpu_of_host(plan.settings.tensor_parallel_size) if plan.deployment.memory else None
    return compare_plan(plan.settings, plan.profile, plan.deployment, facts, state_dir, host_gpu)


def _ask_nothing(_settings: Settings, _profile: Profile) -> tuple[str, ...]:
    return ()


def ask_for_sets(progress: Progress, settings: Settings, _profile: Profile) -> tuple[str, ...]:
    """
    Raises:
        As `image_answers`.
    """
    return tuple(f"{name}={value}" for name, value in image_answers(progress, settings).items())


def image_answers(progress: Progress, settings: Settings) -> dict[str, str]:
    """What the image itself says about its vLLM and its command, as settings, if nothing else does.

    Raises:
        UsageError, PlanRefused, ImageMissing, StorageError, DockerMissing, DockerDenied
    """
    image = engine_image(settings)
    if image.vllm is not None and image.command is not None:
        return {}
    progress.note(f"image {settings.image}: its contents are not known, so it is queried")
    found = ask_image(image, settings.pinned_image, progress.pull)
    answers = {} if image.vllm is not None else {"image_vllm": found.vllm}
    answers |= {} if image.command is not None else {"image_command": str(found.command)}
    if settings.user is None and found.runs_as_another:
        # The cache volume belongs to root, so another user could not write to it.
        answers["user"] = "0:0"
    shown = ", ".join(f"{name}={value}" for name, value in answers.items())
    progress.note(f"image {settings.image}: {shown}, as the image reports")
    return answers


def _free(state_dir: Path, free: int | None) -> int | None:
    """The free memory to solve for: what is free now, unless an engine of this directory holds some of it."""
    record = load_record(state_dir)
    with suppress(DeployError):  # an engine that cannot be asked holds nothing that is known
        if record is not None and recorded_engine(record, state_dir).state().running:
            return free_memory(state_dir, free)
    keep_free(state_dir, free)
    return free


def _candidate(
    settings: Settings,
    spec: DeploymentSpec,
    runner: str,
    overrides: tuple[Path, ...],
    state_dir: Path,
    progress: Progress,
) -> Candidate:
    _kind(runner, settings, spec)
    # Report mistakes in the command before faults of the host.
    check_model_directory(Path.cwd() / spec.model_dir)
    kept = settings.model_dump(mode="json")
    if runner != EngineKind.PROCESS:
        try:
            return compose_candidate(spec, overrides, state_dir, kept)
        except (DockerMissing, ComposeMissing) as error:
            if runner == EngineKind.COMPOSE or spec.engine != "cpu" or settings.replicas > 1:
                raise
            progress.note(f"no Docker ({error.message}): the same plan runs as a local process")
    return process_candidate(spec, state_dir, os.environ.get("GLM4_CPU_PYTHON"), kept)


def _kind(runner: str, settings: Settings, spec: DeploymentSpec) -> EngineKind:
    """What --runner asks for; `auto` is Compose where that can be had.

    Raises:
        UsageError: no such runner, or it cannot run these settings.
    """
    if runner not in (*EngineKind, "auto"):
        raise UsageError(f"--runner {runner!r} is not known", hint="compose, process or auto")
    if runner == EngineKind.PROCESS and spec.engine != "cpu":
        raise UsageError("--runner process serves the cpu profile only", hint="use --profile cpu, or --runner compose")
    if runner == EngineKind.PROCESS and settings.replicas > 1:
        raise UsageError(
            f"--runner process serves one engine, not replicas {settings.replicas}", hint="use --runner compose"
        )
    return EngineKind.COMPOSE if runner == "auto" else EngineKind(runner)


def announce_removal(what: Iterable[str], *, yes: bool) -> None:
    """Say what is about to be removed, and ask unless `yes`.

    Raises:
        typer.Abort: the answer is no.
    """
    lines = tuple(what)
    for line in lines:
        typer.echo(f"to remove: {line}", err=True)
    if lines and not yes:
        typer.confirm("Remove them?", abort=True, err=True)


def volume_line(volume: Volume) -> str:
    return f"volume {volume.name}{', compiled kernels' if volume.cache else ''}, {volume.size}"


def down(
    volumes: Annotated[
        bool,
        typer.Option(
            "--volumes", help="Remove the volumes too, with the caches of all releases: the next start compiles again."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before removing volumes.")] = False,
    dry_run: DryRun = False,
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Stop the engine and remove its container and network.

    Volumes and the model stay. With --volumes, it first says what will be removed, and how big it is.

    Example: glm4-deploy down
    """
    if dry_run:
        record, _ = _recorded(state_dir)
        show_steps(preview_down(record, state_dir, volumes=volumes, describe=volume_line), json_=json_)
        return
    with hold_lock(state_dir, "down"):
        record, engine = _recorded(state_dir)
        project = record.endpoint.project
        doomed = project_volumes(project) if volumes and record.endpoint.in_container else ()
        announce_removal(map(volume_line, doomed), yes=yes)
        before = engine.state()
        engine.remove(volumes=volumes)
        _, left = remove_volumes(one.name for one in doomed)
        forget_journal(state_dir)
    for sentence in left:
        typer.echo(f"not removed: {sentence}", err=True)
    if json_:
        names = [one.name for one in doomed]
        typer.echo(
            dumps({"project": project, "was_running": before.running, "removed_volumes": volumes, "volumes": names})
        )
    else:
        typer.echo(f"{project}: " + ("stopped and removed" if before.started else "nothing was running"))


def status(state_dir: StateDir = STATE, json_: Json = False) -> None:
    """Show what runs, since when, and how healthy it is.

    At most ten lines, and one for each fault and each replica; --json has every detail. Version, kernel and KV cache
    are read from the engine's log. Exit 1 unless it is up: it runs, /health answers 200, the model is served, its core
    gives one token within 15 s or at least moves its counters, and the guard, if there is one, answers.

    Example: glm4-deploy status --json
    """
    record, engine = _recorded(state_dir)
    report = read_status(record, engine, state_dir)
    if json_:
        typer.echo(report_json(report.report(), report), nl=False)
    else:
        for name, value in report.rows():
            typer.echo(f"{name:18} {one_line(str(value), 1000)}")
    if not report.up:
        raise Judged(f"not up: {report.why}", hint=report.hints)


def logs(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing lines as they arrive.")] = False,
    tail: Annotated[str, typer.Option(help="Lines from the end, or all.")] = "200",
    state_dir: StateDir = STATE,
    json_: JsonLines = False,
) -> None:
    """Show the engine's log. Exit 1 if there is no engine.

    Example: glm4-deploy logs -f
    """
    if tail != "all" and not tail.isdigit():
        raise UsageError(f"--tail {tail!r} is not a number of lines", hint="for example --tail 200, or --tail all")
    record, engine = _recorded(state_dir)
    if engine.state().started is None:
        raise Judged(
            f"project {record.endpoint.project!r} has no engine on this host, so there is no log",
            hint="start it with `glm4-deploy up`",
        )
    for line in log_tail(engine, None if tail == "all" else int(tail), follow=follow):
        if json_:
            typer.echo(dumps({"line": line}, indent=None))
        else:
            typer.echo(strip_controls(line))


def _recorded(state_dir: Path) -> tuple[Record, Engine]:
    """What this directory brought up last, else what its settings name."""
    record = load_record(state_dir) or expected_record(resolve_spec({}))
    return record, recorded_engine(record, state_dir)
