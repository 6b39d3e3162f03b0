"""`glm4-deploy releases | rollback | diff`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glm4_deploy.engine.release import Damaged, Release

Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]
StateDir = Annotated[Path, typer.Option("--state-dir", help="Where the releases are kept.")]
STATE = Path(".glm4")


def register(app: typer.Typer) -> None:
    """Add releases, rollback and diff."""
    for command in (releases, rollback, diff):
        app.command()(command)


def releases(state_dir: StateDir = STATE, json_: Json = False) -> None:
    """List what was deployed from here, oldest first. `*` marks the one that was last in service.

    Example: glm4-deploy releases
    """
    from glm4_deploy.engine import state
    from glm4_deploy.engine.release import Damaged
    from glm4_deploy.engine.store import Store

    store, record = Store(state_dir), state.load(state_dir)
    current = record.release if record else ""
    found = store.all()
    if json_:
        from glm4_deploy.report.wire import dumps, to_wire

        rows = [
            {**to_wire(one), "good": False, "in_service": False}
            if isinstance(one, Damaged)
            else {**to_wire(one), "good": one.good, "in_service": one.id == current, "content": one.content}
            for one in found
        ]
        typer.echo(dumps({"directory": str(store.root), "releases": rows}))
        return
    for one in found:
        typer.echo(_row(one, current))
    typer.echo(f"{len(found)} release(s); files, boot log and report of each: {store.root}/ID", err=True)


def rollback(
    release: Annotated[
        str | None, typer.Argument(help="Id, its number, or its beginning. [the last good one that differs]")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds a start may take. [start_period]")] = None,
    no_rollback: Annotated[
        bool, typer.Option("--no-rollback", help="Where it fails, do not put the last good release back.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even where its checkpoint changed, or it never was good.")
    ] = False,
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Put a recorded release back and gate it; it becomes a new release.

    Example: glm4-deploy rollback 12
    """
    from glm4_deploy.cli.deploying import deploying, tell
    from glm4_deploy.cli.progress import Progress
    from glm4_deploy.engine.deploy import Deployment
    from glm4_deploy.engine.restore import candidate_of, check, choose

    progress = Progress()
    with deploying(state_dir, "rollback", progress):
        work = Deployment(state_dir, progress, timeout=timeout)
        wished = choose(work.store, state_dir, release, force=force)
        progress.note(f"release {wished.id} of {wished.created_at}, {wished.service.model_dir}")
        candidate = candidate_of(wished, work.store, state_dir, progress.pull)
        candidate = check(candidate, wished, state_dir, force=force, note=progress.note)
        outcome, error = work.run(candidate, what="rollback", rollback=not no_rollback)
    tell(outcome, error, progress, json_=json_)


def diff(
    a: Annotated[str, typer.Argument(help="A release: id, number, or beginning.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Show what differs between two releases: settings, files, image, checkpoint, engine, verdict. Secrets are masked.

    Example: glm4-deploy diff 11 12
    """
    from glm4_deploy.engine.compare import compare
    from glm4_deploy.engine.store import Store

    store = Store(state_dir)
    one, other = store.find(a), store.find(b)
    found = compare(one, other, store.files_of(one).texts, store.files_of(other).texts)
    if json_:
        from glm4_deploy.report.wire import dumps

        typer.echo(dumps(found))
        return
    from glm4_deploy.report.clean import clean, one_line

    for change in found.changes:
        typer.echo(one_line(f"{change.group:11}{change.name}: {_shown(change.a)} → {_shown(change.b)}"))
    for file in found.files:
        typer.echo(clean(file.diff))
    if not found.changes and not found.files:
        typer.echo(f"{found.a} and {found.b} do not differ")


def _row(one: "Release | Damaged", current: str) -> str:
    from glm4_deploy.engine.release import Damaged
    from glm4_deploy.report.clean import one_line

    if isinstance(one, Damaged):
        return f"  {one.id}  damaged  {one_line(one.reason, 120)}"
    ready = f"{one.ready_seconds:.0f} s" if one.ready_seconds is not None else "-"
    image = one.image.reference.rpartition("/")[2] if one.image else one.service.runner
    what = one_line(f"{Path(one.service.model_dir).name}  {image}", 80)
    more = f"puts {one.restores} back " if one.restores else ""
    mark = "*" if one.id == current else " "
    return f"{mark} {one.id}  {one.verdict:8} {ready:>6}  {what}  {one_line(more + one.reason, 120)}".rstrip()


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
