"""`glm4-deploy watch`, and `glm4-deploy fleet smoke | status`."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy.cli.output import JUnit, Outputs, stdout_if
from glm4_deploy.cli.params import STATE, Json, JsonLines, StateDir, resolve_spec
from glm4_deploy.cli.smoke import BaseUrl, KeyFile, make_target
from glm4_deploy.deploy.state import LastCanary, expected_record, load_record, load_stop, save_canary
from glm4_deploy.errors import Judged, UsageError
from glm4_deploy.host.memory import read_memory
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.fleet import HostAnswer, ask_fleet, read_inventory
from glm4_deploy.report.terminal import results_text
from glm4_deploy.report.wire import to_wire
from glm4_deploy.report_model import Suite, make_report
from glm4_deploy.text import one_line, seconds_of
from glm4_deploy.watch.exporter import Exporter, serve
from glm4_deploy.watch.gpus import GpuLook, GpuMetrics
from glm4_deploy.watch.judge import Limits, WatchVerdict
from glm4_deploy.watch.loop import Schedule, judge_engine, run_watch
from glm4_deploy.watch.memory import GIB, Breaker, Defence, MemoryMetrics, NamedContainer, RecordedEngines
from glm4_deploy.watch.restart import ContainerKeeper, Policy, Rules
from glm4_deploy.watch.witness import Witness


def watch(
    base_url: BaseUrl = None,
    model: Annotated[str | None, typer.Option("--model", help="The served name that must answer.")] = None,
    api_key_file: KeyFile = None,
    interval: Annotated[float, typer.Option(min=0.5, max=300, help="Seconds between two looks at /metrics.")] = 10.0,
    stall: Annotated[
        float, typer.Option(min=2, max=3600, help="Seconds without progress until it counts as hung.")
    ] = 60.0,
    canary_every: Annotated[
        float, typer.Option(min=0, max=86400, help="Seconds between two canaries (short generations); 0: none.")
    ] = 300.0,
    canary_tokens: Annotated[int, typer.Option(min=32, max=1024, help="Maximum tokens per canary.")] = 256,
    grace: Annotated[float, typer.Option(min=0, max=86400, help="Seconds that a start may take.")] = 900.0,
    guard: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A guard's own address (port 9110): what it finds in the answers counts too."),
    ] = None,
    sick_share: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Share of sick answers in 10 minutes that counts as babbling."),
    ] = 0.2,
    listen: Annotated[str, typer.Option(help="Address of the watch's own /metrics and /healthz.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port for the watch's own /metrics and /healthz.")] = 9109,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Restart the engine's container when it hangs, produces garbage or has ended."),
    ] = False,
    rollback: Annotated[
        bool,
        typer.Option(
            "--rollback",
            help="As --restart; and if it produces garbage again within an hour of a restart, put the last good "
            "release back, once a day.",
        ),
    ] = False,
    backoff: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds before a second restart; doubles each time.")
    ] = 60.0,
    max_restarts: Annotated[
        int, typer.Option(min=1, max=60, help="Restarts per hour, after which it stops restarting.")
    ] = 3,
    container: Annotated[
        str | None, typer.Option(help="Container to restart.", show_default="what `up` started from this directory")
    ] = None,
    host_reserve_gib: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1000,
            help="GiB of this host's memory that are to stay available: below it watch warns. 0: it does not look.",
            show_default="the setting host_reserve_gib of what `up` started, on unified memory; else 0",
        ),
    ] = None,
    stop_for_memory: Annotated[
        bool,
        typer.Option(
            "--stop-for-memory",
            help="Stop the engine when less than half of --host-reserve-gib is available, before the host freezes; "
            "--restart and --rollback imply it.",
        ),
    ] = False,
    duration: Annotated[
        str | None,
        typer.Option("--for", help="How long to watch: 90s, 30m, 8h; then exit 0 if the engine is well, else 1."),
    ] = None,
    state_dir: StateDir = STATE,
    json_: JsonLines = False,
) -> None:
    """Watch a running engine and publish its verdict.

    It judges progress and answers. Without --restart, --rollback or --stop-for-memory it changes nothing.

    Example: glm4-deploy watch --json
    """
    seconds = None if duration is None else seconds_of(duration)
    if 0 < canary_every < interval:
        raise UsageError(f"--canary-every {canary_every:g} is shorter than --interval {interval:g}", hint="0: none")
    limits = Limits(
        interval_s=interval, stall_s=stall, start_grace_s=grace, canaries=canary_every > 0, sick_share=sick_share
    )
    exporter = Exporter(stale_s=max(5 * interval, 30.0))
    restart = restart or rollback
    may_stop = restart or stop_for_memory
    if base_url is None or restart:
        _one_engine(state_dir)
    if rollback and container is not None:
        raise UsageError("--rollback and --container exclude each other", hint="a release has a container of its own")
    target = make_target(base_url, model, api_key_file, stall, state_dir=state_dir)
    beside = ProbeTarget(base_url=guard) if guard else None
    # Raises for a wrong address or key before anything starts.
    _ = (target.root, target.key, beside and beside.root)
    rules = Rules(backoff_s=backoff, ceiling=max_restarts, grace_s=grace, rollbacks=int(rollback))
    emit = _event_printer(json_)
    if base_url is None:
        emit = _with_canary_kept(emit, state_dir)
    policy, keeper = None, None
    if restart:
        policy, keeper = Policy(rules, held=partial(_memory_stop, state_dir)), _keeper(container, state_dir)
    defence = _defence(host_reserve_gib, container, state_dir, exporter, emit, may_stop=may_stop, own=base_url is None)
    if stop_for_memory and defence is None:
        raise UsageError(
            "--stop-for-memory has no floor: what `up` started here does not share the host's memory",
            hint="give one: --host-reserve-gib 8",
        )
    end = serve(exporter, listen, port)
    try:
        gpus = GpuLook(witness=Witness(), metrics=GpuMetrics(exporter.registry), emit=emit)
        verdicts = _verdicts(target, limits, canary_every, canary_tokens, exporter, emit, beside, gpus.witness)
        last = asyncio.run(_run(verdicts, exporter, emit, policy, keeper, (gpus, defence), seconds))
    finally:
        end()
    # Without --for, only a signal ends the watch, and that is not a verdict.
    report = make_report("watch", [last.result()], code=None if seconds is not None else 0)
    emit("ended", state=last.state.value, **(to_wire(report) if json_ else {}))
    if report.exit_code:
        raise Judged(
            f"the engine is not known to be well: {last.state}", hint="see the lines above, and docs/how-to/watch.md"
        )


def _one_engine(state_dir: Path) -> None:
    """Refuse several engines: a router makes no progress to judge, and no one container could be restarted."""
    record = load_record(state_dir)
    if record is not None and record.endpoint.replicas:
        raise UsageError(
            f"watch judges one engine, and {record.endpoint.project!r} has "
            f"{len(record.endpoint.replicas)} replicas behind a router",
            hint="give the address of one engine, without --restart; docs/how-to/replicas.md says how to find it",
        )


def _keeper(container: str | None, state_dir: Path) -> ContainerKeeper:
    endpoint = (load_record(state_dir) or expected_record(resolve_spec({}))).endpoint
    return ContainerKeeper(name=container, project=endpoint.project, service=endpoint.service, directory=state_dir)


def _memory_stop(state_dir: Path, started_at: float) -> str:
    """Why the engine that was started then is to stay down; '' if it is not."""
    stop = load_stop(state_dir, since=started_at)
    return f"{stop.why}: it needs a person ({stop.remedy})" if stop else ""


def _defence(
    floor_gib: float | None,
    container: str | None,
    state_dir: Path,
    exporter: Exporter,
    emit: Callable[..., None],
    *,
    may_stop: bool,
    own: bool,
) -> Defence | None:
    """What defends this host's memory; None where nothing is to stay available, or another host's engine is watched."""
    record = load_record(state_dir) if own or may_stop else None
    if floor_gib is None:
        floor_gib = record.endpoint.host_reserve_gib if record else None
    if not floor_gib:
        return None
    total = read_memory().total
    if total is not None and floor_gib * GIB > total / 2:
        raise UsageError(
            f"--host-reserve-gib {floor_gib:g}: this host has {total / GIB:.1f} GiB, and that floor stops any engine",
            hint="it is in GiB, and at most half of the host's memory",
        )
    if may_stop and record is None and container is None:
        record = expected_record(resolve_spec({}))
    engines = NamedContainer(container) if container else RecordedEngines(record, state_dir) if record else None
    return Defence(
        breaker=Breaker(floor_gib),
        metrics=MemoryMetrics(exporter.registry),
        emit=emit,
        engines=engines,
        may_stop=may_stop,
        directory=state_dir,
    )


def _verdicts(
    target: ProbeTarget,
    limits: Limits,
    every: float,
    tokens: int,
    exporter: Exporter,
    emit: Callable[..., None],
    guard: ProbeTarget | None,
    witness: Witness,
) -> AsyncIterator[WatchVerdict]:
    schedule = Schedule(every_s=every, max_tokens=tokens) if every else None
    exporter.budget.set(schedule.budget if schedule else 0)
    return judge_engine(target, limits, schedule, exporter, emit, guard, witness)


async def _run(
    verdicts: AsyncIterator[WatchVerdict],
    exporter: Exporter,
    emit: Callable[..., None],
    policy: Policy | None,
    keeper: ContainerKeeper | None,
    beside: Iterable[GpuLook | Defence | None],
    duration: float | None,
) -> WatchVerdict:
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    watching = asyncio.create_task(run_watch(verdicts, exporter=exporter, emit=emit, policy=policy, keeper=keeper))
    stopped = asyncio.create_task(stop.wait())
    endless: set[asyncio.Task[Any]] = {watching, *(asyncio.create_task(one.run()) for one in beside if one)}
    await asyncio.wait({*endless, stopped}, timeout=duration, return_when=asyncio.FIRST_COMPLETED)
    for task in endless:
        if task.done():
            task.result()  # it ends only with an error
    for task in (*endless, stopped):
        task.cancel()
    return exporter.last


def _event_printer(json_: bool) -> Callable[..., None]:
    """A function that prints one line per event on stdout: JSON, or text with control characters escaped."""

    def emit(event: str, /, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if json_:
            line = json.dumps({"time": now, "event": event, **fields}, ensure_ascii=True)
        else:
            shown = "  ".join(
                f"{name}: {one_line(str(value), 600)}" for name, value in fields.items() if value not in (None, "")
            )
            line = f"{now[11:19]} {event:12} {shown}"
        print(line, flush=True)  # noqa: T201 (flushed: a pipe must not delay a line)

    return emit


def _with_canary_kept(emit: Callable[..., None], state_dir: Path) -> Callable[..., None]:
    """The same, and `status` can say what the last canary found."""

    def keep(event: str, /, **fields: Any) -> None:
        emit(event, **fields)
        if event == "canary":
            at = datetime.now(UTC).isoformat(timespec="seconds")
            canary = LastCanary(at=at, name=fields["name"], outcome=fields["said"], why=str(fields["why"]))
            save_canary(canary, state_dir)

    return keep


File = Annotated[Path, typer.Option("-i", "--inventory", help="The inventory (docs/how-to/fleet.md).")]
AtOnce = Annotated[int, typer.Option(min=1, max=256, help="Hosts asked at the same time.")]
INVENTORY = Path("fleet.yaml")


def fleet_smoke(
    inventory: File = INVENTORY,
    suite: Annotated[str, typer.Option(help="gate, quick or full.")] = "quick",
    at_once: AtOnce = 8,
    json_: Json = False,
    junit: JUnit = None,
) -> None:
    """Run the smoke suite against every host.

    One table. Exit 1 unless all pass.

    Example: glm4-deploy fleet smoke -i fleet.yaml --suite full
    """
    if suite not in ("gate", "quick", "full"):
        raise UsageError(f"--suite {suite!r} is not known", hint="gate, quick or full")
    _ask("smoke", inventory, suite, (), at_once, json_, junit)


def fleet_status(inventory: File = INVENTORY, at_once: AtOnce = 8, json_: Json = False, junit: JUnit = None) -> None:
    """Check that every host serves the expected model.

    Exit 1 unless all do.

    Example: glm4-deploy fleet status -i fleet.yaml
    """
    _ask("status", inventory, "gate", ("alive", "identity"), at_once, json_, junit)


def _ask(
    command: str, inventory: Path, suite: str, only: tuple[str, ...], at_once: int, json_: bool, junit: Path | None
) -> None:
    def show(answer: HostAnswer) -> None:
        typer.echo(f"{answer.row.status:8}{answer.host}", err=True)

    outputs = Outputs(json=stdout_if(json_), junit=junit)
    outputs.check()

    answers = asyncio.run(
        ask_fleet(
            read_inventory(inventory),
            suite=Suite(suite),
            only=only,
            keys_from=inventory.parent,
            at_once=at_once,
            on_answer=show,
        )
    )
    rows = [answer.row for answer in answers]
    good = sum(row.status.passed for row in rows)
    report = make_report(f"fleet {command}", rows)
    text = f"{results_text(rows)}{good} of {len(rows)} hosts: no failure seen\n"
    outputs.write(report, lambda: text, details={"hosts": answers})
    if report.exit_code:
        raise typer.Exit(report.exit_code)


fleet = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check many engines at once, by address or through SSH."
)
fleet.command("smoke")(fleet_smoke)
fleet.command("status")(fleet_status)
