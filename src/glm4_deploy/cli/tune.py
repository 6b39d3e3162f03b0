"""`glm4-deploy tune`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.catalog.rows import gpus
from glm4_deploy.cli.deploy import ask_for_sets, exclusive, report_result
from glm4_deploy.cli.params import STATE, HostCards, Json, Requested, StateDir, with_settings
from glm4_deploy.cli.progress import Progress
from glm4_deploy.deploy.candidates import check_model_directory, preflight
from glm4_deploy.deploy.endpoint import EngineKind
from glm4_deploy.deploy.outcome import DeploymentResult
from glm4_deploy.deploy.plan_check import free_memory
from glm4_deploy.deploy.transaction import Transaction
from glm4_deploy.errors import Judged, PlanRefused, UsageError
from glm4_deploy.files import ensure_writable, write_text
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.host.system import read_host
from glm4_deploy.plan.image import engine_version
from glm4_deploy.plan.sizing import HINT, parse_load
from glm4_deploy.plan.spec import Card, assumed_version
from glm4_deploy.probe.limits import read_slo
from glm4_deploy.report.terminal import table_text
from glm4_deploy.report.wire import dumps, to_wire
from glm4_deploy.settings import FILE
from glm4_deploy.text import one_line, seconds_of
from glm4_deploy.tune.report import HEAD, doubt, plot, table, write_settings
from glm4_deploy.tune.search import Outcome, Search, Trial, front, learned
from glm4_deploy.tune.space import TuneLoad, changed, moves
from glm4_deploy.tune.trials import Bench, Notebook, Subject, planned_for, walk

CHAT = 32
"""Tokens that the chat template adds to a prompt, rounded up."""


@with_settings(profile="that of this host's GPU")
def tune(
    load: Annotated[str, typer.Option("--for", help='The load: "64 users, 2k in, 256 out".')],
    requested: Requested,
    budget: Annotated[str, typer.Option(help="Time for all trials: 30m, 2h.")] = "30m",
    slo: Annotated[Path | None, typer.Option(help="Limits on speed to keep (YAML; docs/how-to/smoke.md).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be tried, and start nothing.")] = False,
    write: Annotated[bool, typer.Option(help="Write the winning settings into the settings file.")] = True,
    apply: Annotated[bool, typer.Option("--apply", help="Then start them, as `up` does.")] = False,
    svg: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Write the plot as SVG.")] = None,
    runner: Annotated[str, typer.Option(help="compose, or process (the cpu profile only).")] = "compose",
    timeout: Annotated[
        float | None, typer.Option(min=1, max=86_400, help="Seconds a start may take.", show_default="start_period")
    ] = None,
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Find the settings that serve a load fastest on this host.

    Starts, gates and measures one engine after another in place of the one that serves, which is restored at the end.
    A candidate that fails its gate never wins. If interrupted, it restores the engine; run again, it continues.

    Example: glm4-deploy tune --for "64 users, 2k in, 256 out" --budget 1h --slo slo.yaml
    """
    progress = Progress()
    subject = _subject(requested, _load(load), slo, runner, state_dir, progress, elsewhere=dry_run)
    notebook = Notebook(state_dir / "tune", subject)
    search = Search(
        subject.load,
        moves(subject.settings, subject.load, subject.vllm, subject.gpu),
        planned_for(subject),
        learned(notebook.here),
        subject.in_use,
    )
    if dry_run:
        _show_plan(search, subject)
        return
    seconds, file = seconds_of(budget), requested.config or FILE
    for path in filter(None, (svg, file if write else None)):
        ensure_writable(path)
    with exclusive(state_dir, "tune", progress):
        bench = Bench(state_dir, subject, progress, runner=runner, timeout=timeout)
        bench.clear()
        cut_off = False
        try:
            walk(search, bench.measure, notebook, seconds=seconds, note=progress.note)
        except KeyboardInterrupt:
            cut_off = True
            progress.note("interrupted: what was measured is kept")
        winner = search.winner
        why_not = doubt(winner) if winner else ""
        if why_not:
            progress.note(why_not)
        if apply and winner is not None and not cut_off:
            candidate = bench.make(changed(subject.settings, winner.settings), state_dir)
            bench.end()
            candidate = preflight(candidate, state_dir, force=False, note=progress.note)
            back: DeploymentResult | None = Transaction(state_dir, candidate, progress, timeout=timeout).run("tune")
        else:
            back = bench.put_back()
    _report(search, subject, json_=json_)
    if svg is not None:
        write_text(svg, plot(search.trials, winner, _title(subject)))
    if winner is not None and write and winner.settings:
        why = f"{_title(subject)}: {winner.rate:.0f} tokens/s, {_before(search, winner)}"
        why += f"; {why_not}" if why_not else ""
        for line in write_settings(file, subject.settings, winner, one_line(why, 300)):
            typer.echo(f"{file}: {line}", err=True)
    if back is not None and back.error is not None:
        report_result(back, "tune", progress, json_=False)
    if cut_off:
        raise typer.Exit(130)
    if winner is None:
        raise Judged(
            "none of the settings tried meets the limits" if slo else "nothing could be measured",
            hint="the table says why; more time: --budget; fewer users or looser limits",
        )


def _load(text: str) -> TuneLoad:
    asked = parse_load(text)
    if asked.requests is None or asked.prompt is None or asked.answer is None:
        raise UsageError(f"{text[:60]!r} does not name users, tokens in and tokens out", hint=HINT)
    return TuneLoad(users=asked.requests, input_len=asked.prompt, output_len=asked.answer)


def _subject(
    requested: Requested,
    load: TuneLoad,
    slo: Path | None,
    runner: str,
    state_dir: Path,
    progress: Progress,
    *,
    elsewhere: bool,
) -> Subject:
    """
    Args:
        elsewhere: without a GPU on this host, take the profile's.

    Raises:
        UsageError: settings that cannot be tuned.
        PlanRefused, ModelMissing, ImageMissing, DockerMissing
    """
    ask = (lambda _settings, _profile: ()) if runner == EngineKind.PROCESS else partial(ask_for_sets, progress)
    plan = requested.plan_here(lambda free: free_memory(state_dir, free), ask)
    settings, profile = plan.settings, plan.profile
    if runner not in tuple(EngineKind) or (runner == EngineKind.PROCESS and plan.deployment.engine != "cpu"):
        raise UsageError(f"--runner {runner!r} does not serve profile {profile.name}", hint="use --runner compose")
    if settings.replicas > 1:
        raise UsageError("tune measures one engine", hint="tune with --replicas 1, then set replicas")
    needed = load.input_len + load.output_len + CHAT
    if needed > settings.max_model_len:
        raise UsageError(
            f"{load.label} needs a context of {needed}, and max_model_len is {settings.max_model_len}",
            hint=f"--max-model-len {needed}, or shorter requests",
        )
    check_model_directory(Path.cwd() / plan.deployment.model_dir)
    card = None
    if profile.gpu is not None:
        card = HostCards(gpus=read_gpus(), host=read_host()).card(settings.tensor_parallel_size)
        if card is None and elsewhere:
            card = Card(gpu=gpus()[profile.gpu])
        if card is None:
            raise PlanRefused(
                "this host's GPU is not known, so nothing can be planned for it", hint="glm4-deploy doctor"
            )
        card = replace(card, free_bytes=free_memory(state_dir, card.free_bytes))
    return Subject(
        settings=settings,
        profile=profile,
        card=card,
        load=load,
        slo=read_slo(slo) if slo else None,
        vllm=engine_version(settings) or assumed_version(),
    )


def _show_plan(search: Search, subject: Subject) -> None:
    """The attempts, in order, if none gained anything; one that the plan refuses costs no start."""
    typer.echo(f"{_title(subject)}: at most these starts, in this order")
    while (attempt := search.next()) is not None:
        try:
            subject.spec(changed(subject.settings, attempt.settings))
            refused = ""
        except PlanRefused as error:
            refused = f"  (no start: {error.message})"
        typer.echo(one_line(f"  {attempt.label}{refused}", 400))
        search.add(attempt, Trial(label=attempt.label, settings=attempt.settings, outcome=Outcome.REFUSED))


def _title(subject: Subject) -> str:
    return f"{subject.load.label} on {subject.place}"


def _before(search: Search, winner: Trial) -> str:
    first = search.trials[0]
    return (
        f"{winner.rate / first.rate - 1:+.1%} against the configured settings"
        if first.rate
        else "nothing ran as configured"
    )


def _report(search: Search, subject: Subject, *, json_: bool) -> None:
    winner, trials = search.winner, search.trials
    if json_:
        best = front(trials)
        wire = [{**to_wire(trial), "won": trial is winner, "on_front": trial in best} for trial in trials]
        about = {"load": subject.load, "place": subject.place, "winner": winner.label if winner else None}
        about |= {"doubt": doubt(winner) if winner else ""}
        typer.echo(dumps({**about, "trials": wire}))
        return
    _, *rows = table(trials, winner)
    typer.echo(table_text(HEAD, rows), nl=False)
    if winner is not None:
        started = sum(trial.seconds > 0 for trial in trials)
        close = f"{_title(subject)}: {winner.label}, {winner.rate:.0f} tokens/s, {_before(search, winner)}"
        typer.echo(f"{close}; {started} starts")
