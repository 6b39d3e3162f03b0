"""`glm4-deploy upgrade`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.catalog.rows import profiles
from glm4_deploy.cli.deploy import exclusive, image_answers, report_result
from glm4_deploy.cli.params import STATE, HostCards, Json, StateDir
from glm4_deploy.cli.progress import Progress
from glm4_deploy.deploy.candidates import Candidate, compose_candidate, preflight, recorded_engine
from glm4_deploy.deploy.docker import connect, fetch_image, find_image
from glm4_deploy.deploy.plan_check import free_memory
from glm4_deploy.deploy.releases import Release, Store
from glm4_deploy.deploy.state import load_record
from glm4_deploy.deploy.transaction import Transaction
from glm4_deploy.deploy.upgrade import (
    UpgradePlan,
    plan_upgrade,
    repair,
    running_release,
    settings_with,
    speed_row,
)
from glm4_deploy.errors import UsageError
from glm4_deploy.host.gpu import GpuReport, read_gpus
from glm4_deploy.host.system import read_host
from glm4_deploy.plan.image import engine_image
from glm4_deploy.plan.spec import Card
from glm4_deploy.report.wire import dumps
from glm4_deploy.result import Result
from glm4_deploy.settings import FILE, Settings
from glm4_deploy.text import one_line


def upgrade(
    tag: Annotated[
        str | None,
        typer.Argument(
            metavar="[TAG]",
            help="A tag of the same repository, or an image's whole name.",
            show_default="the image of the profile",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and do nothing.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, max=86_400, help="Seconds a start may take.", show_default="start_period")
    ] = None,
    state_dir: StateDir = STATE,
    json_: Json = False,
) -> None:
    """Move the running deployment to another image, and roll back automatically if it fails.

    Everything else stays as recorded. It shows what changes, pulls while the old engine serves, repairs a copy of the
    checkpoint if the new vLLM needs that, and then stops, starts and gates as `up` does. If the old release was
    measured with `bench`, less than half its speed fails too.

    Example: glm4-deploy upgrade 26.10-py3 --dry-run
    """
    progress = Progress()
    store = Store(state_dir)
    release = running_release(state_dir, store)
    settings = _asked(settings_with(release, tag or _image_of(release)), progress, pulls=not dry_run)
    gpus = read_gpus()
    plan = plan_upgrade(release, store, settings, _card(release, settings, gpus, state_dir), gpus)
    text = "\n".join(one_line(line, 1000) for line in plan.lines())
    if dry_run:
        typer.echo(dumps(plan.wire()) if json_ else text)
        return
    typer.echo(text, err=True)
    record = load_record(state_dir)
    if record is None or not recorded_engine(record, state_dir).state().running:
        raise UsageError("the engine does not run, so nothing would serve meanwhile", hint="glm4-deploy up first")
    with exclusive(state_dir, "upgrade", progress):
        fetch_image(settings.pinned_image, progress.note, progress.pull)
        if plan.need is not None:
            progress.note(f"checkpoint {plan.need.output}: {'is there' if plan.need.made else 'writing it'}")
            repair(plan.need, plan.new.image)
        candidate = _candidate(plan, store, state_dir)
        candidate = preflight(candidate, state_dir, force=False, note=progress.note)
        check = _speed_check(plan, candidate)
        result = Transaction(state_dir, candidate, progress, timeout=timeout, after_gate=check).run("upgrade")
    report_result(result, "upgrade", progress, json_=json_)
    for line in _to_keep(plan):
        typer.echo(line, err=True)


def _asked(settings: Settings, progress: Progress, *, pulls: bool) -> Settings:
    """With what an unknown image reports about itself, as for `up`.

    pulls: whether an image that is not here is pulled for that.
    """
    image = engine_image(settings)
    if image.vllm is not None or (not pulls and find_image(connect(), settings.pinned_image) is None):
        return settings
    return Settings.model_validate({**settings.model_dump(), **image_answers(progress, settings)})


def _image_of(release: Release) -> str:
    """The image that this kit deploys with the release's profile."""
    profile = profiles()[release.endpoint.profile]
    return Settings.model_validate({**profile.settings, "profile": profile.name}).pinned_image


def _card(release: Release, settings: Settings, gpus: GpuReport, state_dir: Path) -> Card | None:
    """This host's card with what was free before the running engine started; None for a profile without a GPU."""
    if profiles()[release.endpoint.profile].gpu is None:
        return None
    card = HostCards(gpus=gpus, host=read_host()).card(settings.tensor_parallel_size)
    return replace(card, free_bytes=free_memory(state_dir, card.free_bytes)) if card else None


def _candidate(plan: UpgradePlan, store: Store, state_dir: Path) -> Candidate:
    """With the overrides that the release was started with, from its own copies."""
    store.files_of(plan.release)  # raises StorageError where a copy was changed
    names = sorted(file.name for file in plan.release.files if file.name.startswith("override-"))
    paths = tuple(store.root / plan.release.id / name for name in names)
    return compose_candidate(plan.new.spec, paths, state_dir, plan.new.settings.model_dump(mode="json"))


def _speed_check(plan: UpgradePlan, candidate: Candidate) -> Callable[[str], Result] | None:
    speed = plan.speed
    return (lambda container: speed_row(speed, container, candidate.endpoint)) if speed else None


def _to_keep(plan: UpgradePlan) -> Iterator[str]:
    """What the next `up` needs, which reads settings and not releases."""
    yield f"for the next `up`, put this into {FILE}:"
    yield f"  image: {plan.new.settings.pinned_image}"
    if plan.need is not None:
        yield f"  model_dir: {plan.need.output}"
