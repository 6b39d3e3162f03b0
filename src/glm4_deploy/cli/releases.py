"""`glm4-deploy releases | rollback | diff | lock | key | image`."""

from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.cli.completion import release_ids
from glm4_deploy.cli.deploy import announce_removal, exclusive, report_result, volume_line
from glm4_deploy.cli.output import show_steps
from glm4_deploy.cli.params import NO_GPU, STATE, DryRun, Json, Requested, StateDir, host_profile, with_settings
from glm4_deploy.cli.progress import Progress
from glm4_deploy.deploy.caches import Volume, needed_volumes, project_volumes, remove_volumes
from glm4_deploy.deploy.candidates import check_release, choose_release, release_candidate
from glm4_deploy.deploy.docker import image_digests, write_pins
from glm4_deploy.deploy.keys import PATHS, add_key, load_keys, revoke_key
from glm4_deploy.deploy.kit_image import build_kit_image, kit_tag
from glm4_deploy.deploy.preview import preview_rollback
from glm4_deploy.deploy.releases import KEPT, Damaged, Release, Store, compare_releases
from glm4_deploy.deploy.state import hold_lock, load_record
from glm4_deploy.deploy.transaction import Transaction
from glm4_deploy.errors import ImageMissing, Judged
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.plan.services import references
from glm4_deploy.report.wire import dumps, to_wire
from glm4_deploy.settings import FILE
from glm4_deploy.text import clean_text, one_line


def list_releases(context: typer.Context, state_dir: StateDir = STATE, json_: Json = False) -> None:
    """List the recorded releases, oldest first.

    `*` marks the release that was last in service.

    Example: glm4-deploy releases
    """
    if context.invoked_subcommand is not None:
        return
    store, record = Store(state_dir), load_record(state_dir)
    current = record.release if record else ""
    recorded = store.all()
    if json_:
        rows = [
            {**to_wire(one), "good": False, "in_service": False}
            if isinstance(one, Damaged)
            else {**to_wire(one), "good": one.good, "in_service": one.id == current, "content": one.content}
            for one in recorded
        ]
        typer.echo(dumps({"directory": str(store.root), "releases": rows}))
        return
    for one in recorded:
        typer.echo(_row(one, current))
    typer.echo(f"{len(recorded)} release(s); files, boot log and report of each: {store.root}/ID", err=True)


def prune(
    keep: Annotated[
        int, typer.Option(min=1, max=1000, help="Releases to keep, the newest; the last two good ones always stay.")
    ] = KEPT,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Remove old releases and their caches.

    A cache of compiled kernels is removed if no kept release needs it. The command first
    says what will be removed, and how big it is.

    Example: glm4-deploy releases prune --keep 5
    """
    with hold_lock(state_dir, "releases prune"):
        store, record = Store(state_dir), load_record(state_dir)
        surplus = store.surplus(keep)
        kept = [one for one in store.releases() if one.id not in surplus]
        volumes: tuple[Volume, ...] = ()
        if record is not None and record.endpoint.in_container:
            needed = needed_volumes(kept, read_gpus())
            volumes = tuple(
                one for one in project_volumes(record.endpoint.project) if one.cache and one.name not in needed
            )
        announce_removal((*(f"release {name}" for name in surplus), *map(volume_line, volumes)), yes=yes)
        store.prune(keep)
        gone, left = remove_volumes(one.name for one in volumes)
    if json_:
        typer.echo(dumps({"releases": surplus, "volumes": gone, "not_removed": left}))
        return
    typer.echo(f"removed {len(surplus)} release(s) and {len(gone)} cache volume(s)")
    for sentence in left:
        typer.echo(f"not removed: {sentence}", err=True)


def rollback(
    release: Annotated[
        str | None,
        typer.Argument(
            help="Id, number, or beginning of an id.",
            show_default="the last good one that differs",
            autocompletion=release_ids,
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, max=86_400, help="Seconds a start may take.", show_default="start_period")
    ] = None,
    no_rollback: Annotated[
        bool, typer.Option("--no-rollback", help="If it fails, do not restore the last good release.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Proceed even if its checkpoint changed or it never passed its gate.")
    ] = False,
    dry_run: DryRun = False,
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Restore a recorded release and gate it.

    It becomes a new release.

    Example: glm4-deploy rollback 12
    """
    progress = Progress()
    if dry_run:
        store = Store(state_dir)
        chosen = choose_release(store, state_dir, release, force=force)
        steps = preview_rollback(chosen, store, state_dir, force=force, rollback=not no_rollback)
        show_steps(steps, json_=json_)
        return
    with exclusive(state_dir, "rollback", progress):
        store = Store(state_dir)
        chosen = choose_release(store, state_dir, release, force=force)
        progress.note(f"release {chosen.id} of {chosen.created_at}, {chosen.endpoint.model_dir}")
        candidate = release_candidate(chosen, store, state_dir, progress.pull)
        candidate = check_release(candidate, chosen, state_dir, force=force, note=progress.note)
        result = Transaction(state_dir, candidate, progress, timeout=timeout).run("rollback", rollback=not no_rollback)
    report_result(result, "rollback", progress, json_=json_)


def diff(
    a: Annotated[str, typer.Argument(help="A release: id, number, or beginning of an id.", autocompletion=release_ids)],
    b: Annotated[str, typer.Argument(help="The release to compare with.", autocompletion=release_ids)],
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Show what differs between two releases.

    Compares settings, files, image, checkpoint, engine and verdict. Secrets are masked.

    Example: glm4-deploy diff 11 12
    """
    store = Store(state_dir)
    one, other = store.find(a), store.find(b)
    difference = compare_releases(one, other, store.files_of(one).texts, store.files_of(other).texts)
    if json_:
        typer.echo(dumps(difference))
        return
    for change in difference.changes:
        typer.echo(one_line(f"{change.group:11}{change.name}: {_shown(change.a)} → {_shown(change.b)}"))
    for file in difference.files:
        typer.echo(clean_text(file.diff))
    if not difference.changes and not difference.files:
        typer.echo(f"{difference.a} and {difference.b} do not differ")


def _row(one: Release | Damaged, current: str) -> str:
    if isinstance(one, Damaged):
        return f"  {one.id}  damaged  {one_line(one.reason, 120)}"
    ready = f"{one.ready_seconds:.0f} s" if one.ready_seconds is not None else "-"
    image = one.image.reference.rpartition("/")[2] if one.image else one.endpoint.runner
    what = one_line(f"{Path(one.endpoint.model_dir).name}  {image}", 80)
    restores = f"puts {one.restores} back " if one.restores else ""
    mark = "*" if one.id == current else " "
    return f"{mark} {one.id}  {one.verdict:8} {ready:>6}  {what}  {one_line(restores + one.reason, 120)}".rstrip()


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


@with_settings(profile=f"that of this host's GPU, else {NO_GPU}")
def lock(requested: Requested) -> None:
    """Pin the images to the digests that were pulled.

    The digests are written to glm4.yaml, from which files are rendered. Each tag has its own entry, so a pin never
    overrides another tag that you request. Exit 1 if an image has no digest.

    Example: docker compose -f compose.yaml pull && glm4-deploy lock
    """
    deployment = requested.plan(host_profile).deployment
    digests = image_digests(references(deployment.image, deployment.extras))
    missing = [reference for reference, digest in digests.items() if digest is None]
    if missing:
        raise ImageMissing(f"not on this host: {', '.join(missing)}", hint="pull first: docker compose -f FILE pull")
    pins = {reference: digest for reference, digest in digests.items() if digest}
    file = requested.config or FILE
    if pins:
        write_pins(file, pins)
        for reference, digest in pins.items():
            typer.echo(f"{reference}@{digest}")
        typer.echo(f"wrote {file}", err=True)
    unpublished = [reference for reference, digest in digests.items() if not digest]
    if unpublished:
        raise Judged(
            f"no digest for {', '.join(unpublished)}: built on this host, not pulled", hint="push it, then pull it"
        )


Directory = Annotated[Path, typer.Option("--dir", help="The `keys` directory beside the rendered file.")]
KEYS = STATE / "keys"


def key_add(
    name: Annotated[str, typer.Argument(help="Name of the key's owner.")],
    rate: Annotated[int, typer.Option(min=1, max=1_000_000, help="Requests per minute.")] = 120,
    path: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="PATH", help=f"Allow this below /v1 only: {', '.join(PATHS)}; repeatable."),
    ] = None,
    directory: Directory = KEYS,
) -> None:
    """Create a key and print it, once: only its hash is stored. A running gateway accepts it immediately.

    Example: glm4-deploy key add ada --rate 60 >ada.key
    """
    token = add_key(directory, name, rate=rate, paths=tuple(path or ()))
    typer.echo(f"key {name}: shown only once, {rate} requests per minute", err=True)
    typer.echo(token)


def key_list(
    directory: Directory = KEYS,
    json_: Json = False,
) -> None:
    """List names, rates, dates and paths."""
    rows = load_keys(directory)
    if json_:
        shown = ("name", "rate", "created", "paths")
        typer.echo(dumps([{name: getattr(row, name) for name in shown} for row in rows]))
        return
    for row in rows:
        typer.echo(f"{row.name:24} {row.rate:>7}/min  {row.created}  {' '.join(row.paths)}".rstrip())


def key_revoke(
    name: Annotated[str, typer.Argument(help="Name of the key's owner.")], directory: Directory = KEYS
) -> None:
    """Revoke a key. A running gateway refuses it immediately."""
    revoke_key(directory, name)
    typer.echo(f"key {name}: revoked", err=True)


def image_group() -> None:
    """Keep `build` a subcommand: Typer omits the name of a group's only command."""


def image_build(
    base: Annotated[str, typer.Option(help="Image to build on: Python 3.11 or newer with pip.")] = "python:3.12-slim",
    tag: Annotated[
        str | None, typer.Option("--tag", help="Name of the image.", show_default="glm4-deploy/kit:VERSION")
    ] = None,
    network: Annotated[str | None, typer.Option(help="Network for the build, as in docker build --network.")] = None,
) -> None:
    """Build the image that `--with watch` runs.

    It contains this installation and a non-root user, and no shell scripts.

    Example: glm4-deploy image build
    """
    name = kit_tag() if tag is None else tag
    build_kit_image(base=base, name=name, network=network)
    typer.echo(name)


releases = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="List the recorded releases, or remove old ones.\n\nExample: glm4-deploy releases",
)
releases.callback()(list_releases)
releases.command("prune")(prune)

key = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Manage the gateway's named keys. Only their hashes are stored."
)
key.command("add")(key_add)
key.command("list")(key_list)
key.command("revoke")(key_revoke)


image = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Build the kit's own image, for the services that `--with` adds."
)
image.command("build")(image_build)
image.callback()(image_group)
