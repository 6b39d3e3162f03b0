"""`glm4-deploy watch`, and `glm4-deploy fleet smoke | status`."""

import asyncio
import errno
import json
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from glm4_deploy.cli.output import JUnit, Outputs, stdout_if
from glm4_deploy.cli.params import STATE, Json, JsonLines, StateDir, resolve_spec
from glm4_deploy.cli.smoke import BaseUrl, KeyFile, make_target
from glm4_deploy.deploy.candidates import recorded_engine
from glm4_deploy.deploy.docker import ContainerState
from glm4_deploy.deploy.replicas import ReplicaSet, RouterClient, address_of
from glm4_deploy.deploy.state import LastCanary, Record, expected_record, load_record, load_stop, save_canary
from glm4_deploy.errors import DeployError, Judged, UsageError
from glm4_deploy.host.memory import read_memory
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.fleet import HostAnswer, ask_fleet, read_inventory
from glm4_deploy.report.terminal import results_text
from glm4_deploy.report.wire import to_wire
from glm4_deploy.report_model import Suite, make_report
from glm4_deploy.text import one_line, seconds_of
from glm4_deploy.watch.breaker import GIB, Breaker
from glm4_deploy.watch.cause import CauseFinder, EngineLog
from glm4_deploy.watch.exporter import Exporter, Published, serve
from glm4_deploy.watch.gpus import GpuLook, GpuMetrics
from glm4_deploy.watch.incident import Damping
from glm4_deploy.watch.judge import Limits
from glm4_deploy.watch.kept import KeptPolicy
from glm4_deploy.watch.loop import Schedule, judge_engine, run_watch
from glm4_deploy.watch.memory import Defence, Engines, MemoryMetrics, NamedContainer, RecordedEngines
from glm4_deploy.watch.notify import Notifier, read_services, send_test
from glm4_deploy.watch.replicas import Causes, ReplicaExporter, Rotation, RoutedEngine, Together, watch_replicas
from glm4_deploy.watch.restart import ContainerKeeper, Rules
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
    replica: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL", help="An engine behind --router, once for each; default: what `up` started."),
    ] = None,
    router: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The router of --replica: a sick engine leaves it until it is well."),
    ] = None,
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
            help="Stop the engine when less than half of --host-reserve-gib is available and it gets worse, before the "
            "host freezes; --restart and --rollback imply it.",
        ),
    ] = False,
    notify_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Tell these addresses when the engine is sick and when it is well again (docs/how-to/notify.md).",
        ),
    ] = None,
    notify_name: Annotated[
        str | None, typer.Option(help="What messages call the engine.", show_default="project or address, and host")
    ] = None,
    notify_settle: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds that it must be well again before that is told.")
    ] = 120.0,
    test_notification: Annotated[
        bool, typer.Option("--test-notification", help="Send a test message to each address of --notify-file, and end.")
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
    name = notify_name or f"{_deployment(base_url, state_dir)} on {socket.gethostname()}"
    if test_notification:
        _test(notify_file, name)
        return
    services = read_services(notify_file) if notify_file else ()
    seconds = None if duration is None else seconds_of(duration)
    if 0 < canary_every < interval:
        raise UsageError(f"--canary-every {canary_every:g} is shorter than --interval {interval:g}", hint="0: none")
    limits = Limits(
        interval_s=interval, stall_s=stall, start_grace_s=grace, canaries=canary_every > 0, sick_share=sick_share
    )
    restart = restart or rollback
    may_stop = restart or stop_for_memory
    if rollback and container is not None:
        raise UsageError("--rollback and --container exclude each other", hint="a release has a container of its own")
    several = bool(replica or router) or (base_url is None and bool(_replicas_on_record(state_dir)))
    if several:
        _refuse_of_several(
            replica, router, restart, {"--guard": guard, "--rollback": rollback, "--container": container}
        )
    elif restart and _replicas_on_record(state_dir):
        raise UsageError("--restart and --base-url: several engines run here", hint="leave out --base-url")
    first = replica[0].partition("=")[2] if replica else None
    target = make_target(base_url or first, model, api_key_file, stall, state_dir=state_dir)
    beside = ProbeTarget(base_url=guard) if guard else None
    # Raises for a wrong address or key before anything starts.
    _ = (target.root, target.key, beside and beside.root)
    rules = Rules(backoff_s=backoff, ceiling=max_restarts, grace_s=grace, rollbacks=int(rollback))
    emit = _event_printer(json_)
    if base_url is None and not several:
        emit = _with_canary_kept(emit, state_dir)
    schedule = Schedules(every_s=canary_every, max_tokens=canary_tokens)
    replicas: tuple[RoutedEngine, ...] = ()
    exporter: Exporter | Together
    if several:
        replicas = (
            _given_replicas(replica, target)
            if replica
            else _recorded_replicas(target, state_dir, rules if restart else None)
        )
        exporter = Together({one.name: ReplicaExporter(stale_s=max(5 * interval, 30.0)) for one in replicas})
    else:
        exporter = Exporter(stale_s=max(5 * interval, 30.0))
    with ExitStack() as ends:
        ends.callback(serve(exporter, listen, port))
        notifier = finder = causes = None
        if isinstance(exporter, Together):
            causes = Causes(replicas, exporter, emit)
        elif base_url is None or container is not None:
            finder = CauseFinder(EngineLog(state_dir, container).tail, exporter, emit)
        if services:
            asked = causes or finder
            damping = Damping(settle_s=notify_settle, slow_s=max(grace, notify_settle, 60.0))
            notifier = Notifier(
                services, name=name, directory=state_dir, registry=exporter.registry, emit=emit, damping=damping,
                cause=asked.wait if asked else lambda *_: None,
            )  # fmt: skip
            ends.callback(notifier.end)
            emit = notifier.hearing(emit)
        defence = _defence(
            host_reserve_gib, container, state_dir, exporter, emit, may_stop=may_stop, own=base_url is None
        )
        if stop_for_memory and defence is None:
            raise UsageError(
                "--stop-for-memory has no floor: what `up` started here does not share the host's memory",
                hint="give one: --host-reserve-gib 8",
            )
        gpus = GpuLook(witness=Witness(), metrics=GpuMetrics(exporter.registry), emit=emit)
        if isinstance(exporter, Together):
            client = RouterClient(base_url=router or target.root)
            rotation = Rotation(router=client, replicas=replicas, directory=state_dir, emit=emit)
            watching = watch_replicas(rotation, exporter, limits, schedule.make, emit, causes, notifier)
        else:
            verdicts = judge_engine(target, limits, schedule.make(exporter), exporter, emit, beside, gpus.witness)
            verdicts = finder.following(verdicts) if finder else verdicts  # before the notifier, which waits for it
            verdicts = notifier.following(verdicts) if notifier else verdicts
            policy, keeper = (_policy(rules, state_dir), _keeper(container, state_dir)) if restart else (None, None)
            watching = run_watch(verdicts, exporter=exporter, emit=emit, policy=policy, keeper=keeper)
        asyncio.run(_run(watching, (gpus, defence), seconds))
        last = exporter.last
    # Without --for, only a signal ends the watch, and that is not a verdict.
    report = make_report("watch", [last.result()], code=None if seconds is not None else 0)
    emit("ended", state=last.state.value, **(to_wire(report) if json_ else {}))
    if report.exit_code:
        raise Judged(
            f"the engine is not known to be well: {last.state}", hint="see the lines above, and docs/how-to/watch.md"
        )


def _deployment(base_url: str | None, state_dir: Path) -> str:
    record = None if base_url else load_record(state_dir)
    return record.endpoint.project if record else (urlsplit(base_url or "").netloc.rpartition("@")[2] or "the engine")


def _test(file: Path | None, name: str) -> None:
    """Send the test message; exit 1 if an address did not take it."""
    if file is None:
        raise UsageError("--test-notification needs --notify-file", hint="see docs/how-to/notify.md")
    failures = send_test(read_services(file), name)
    for label, why in failures.items():
        typer.echo(f"{label}: {f'failed: {why}' if why else 'sent'}")
    if failed := [label for label, why in failures.items() if why]:
        raise Judged(
            f"{len(failed)} of {len(failures)} addresses did not take the message",
            hint="check the address, its token and the network; the time limit is Apprise's (cto= and rto=)",
        )


def _replicas_on_record(state_dir: Path) -> tuple[str, ...]:
    record = load_record(state_dir)
    return record.endpoint.replicas if record else ()


def _refuse_of_several(replica: list[str] | None, router: str | None, restart: bool, others: dict[str, object]) -> None:
    hint = "docs/how-to/replicas.md"
    if bool(replica) != bool(router):
        raise UsageError("--replica and --router belong together", hint=hint)
    pairs = dict(one.partition("=")[::2] for one in replica or ())
    if len(pairs) != len(replica or ()) or not all((*pairs.keys(), *pairs.values())):
        raise UsageError("--replica is not NAME=URL, or a name is given twice", hint=hint)
    if given := next((name for name, value in others.items() if value), None):
        raise UsageError(f"{given} is for one engine, and there are several behind a router", hint=hint)
    if replica and restart:
        raise UsageError("--restart needs what `up` started here, not --replica", hint="leave out --replica")


def _given_replicas(given: list[str], target: ProbeTarget) -> tuple[RoutedEngine, ...]:
    """NAME=URL, as the router knows it too."""
    pairs = dict(one.partition("=")[::2] for one in given)
    targets = {name: replace(target, base_url=url) for name, url in pairs.items()}
    return tuple(
        RoutedEngine(name=name, routed=one.root, address=partial(str, one.root), target=one)
        for name, one in targets.items()
    )


def _recorded_replicas(target: ProbeTarget, state_dir: Path, rules: Rules | None) -> tuple[RoutedEngine, ...]:
    """Those that `up` started; each is restarted under its own rules, if any."""
    record = load_record(state_dir)
    engine = recorded_engine(record, state_dir) if record else None
    if record is None or not isinstance(engine, ReplicaSet):
        raise UsageError(f"no replicas on record in {state_dir}", hint="glm4-deploy up --replicas 2")
    project = record.endpoint.project
    return tuple(
        RoutedEngine(
            name=name,
            routed=address_of(name),
            address=one.address,
            target=target,
            policy=_policy(rules, state_dir, name) if rules else None,
            keeper=ContainerKeeper(name=None, project=project, service=name, directory=state_dir) if rules else None,
            tail=EngineLog(state_dir, service=name).tail,
        )
        for name, one in engine.replicas.items()
    )


def _keeper(container: str | None, state_dir: Path) -> ContainerKeeper:
    endpoint = (load_record(state_dir) or expected_record(resolve_spec({}))).endpoint
    return ContainerKeeper(name=container, project=endpoint.project, service=endpoint.service, directory=state_dir)


def _policy(rules: Rules, state_dir: Path, service: str = "engine") -> KeptPolicy:
    return KeptPolicy(rules, state_dir / f"watch/restarts-{service}.json", held=partial(_memory_stop, state_dir))


def _memory_stop(state_dir: Path, container: ContainerState) -> str:
    """Why it is to stay down; '' if it is not. Others, which were started before that stop too, may be restarted."""
    stop = load_stop(state_dir, since=container.started_at, of=container.name)
    return f"{stop.why}: it needs a person ({stop.remedy})" if stop else ""


def _defence(
    floor_gib: float | None,
    container: str | None,
    state_dir: Path,
    exporter: Published,
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
    return Defence(
        breaker=Breaker(floor_gib),
        metrics=MemoryMetrics(exporter.registry),
        emit=emit,
        engines=_engines(container, record, state_dir, may_stop=may_stop),
        may_stop=may_stop,
        directory=state_dir,
    )


def _engines(container: str | None, record: Record | None, state_dir: Path, *, may_stop: bool) -> Engines | None:
    """What may be stopped, and whose cgroups count. None: only the host's memory can be watched."""
    if container is not None:
        return NamedContainer(container)
    if record is None:
        return None
    try:
        return RecordedEngines(record, state_dir)
    except DeployError:  # no Docker, or no right to use it; a warning needs neither
        if may_stop:
            raise
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedules:
    """Makes each engine's schedule of canaries. every_s: 0 for none."""

    every_s: float
    max_tokens: int

    def make(self, exporter: Exporter) -> Schedule | None:
        schedule = Schedule(every_s=self.every_s, max_tokens=self.max_tokens) if self.every_s else None
        exporter.budget.set(schedule.budget if schedule else 0)
        return schedule


async def _run(
    watch: Coroutine[Any, Any, None], beside: Iterable[GpuLook | Defence | None], duration: float | None
) -> None:
    """Watch until a signal, or for a number of seconds."""
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    stopped = asyncio.create_task(stop.wait())
    endless: set[asyncio.Task[Any]] = {asyncio.create_task(watch)}
    endless |= {asyncio.create_task(one.run()) for one in beside if one}
    await asyncio.wait({*endless, stopped}, timeout=duration, return_when=asyncio.FIRST_COMPLETED)
    for task in endless:
        if task.done():
            task.result()  # it ends only with an error
    for task in (*endless, stopped):
        task.cancel()


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
        try:
            print(line + "\n", end="", flush=True)  # noqa: T201 (flushed: a pipe must not delay a line)
        except OSError as error:
            # The line stays in the buffer, and is written once there is room.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

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
