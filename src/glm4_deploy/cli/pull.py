"""`glm4-deploy pull`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy.catalog.images import EngineImage
from glm4_deploy.catalog.rows import Profile
from glm4_deploy.checkpoint.hub import PUBLISHED, UNFINISHED, Hub, HubFile, HubModel, check_room
from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.cli.output import Outputs, stdout_if
from glm4_deploy.cli.params import HostCards, Json, Requested, seed
from glm4_deploy.cli.progress import BytesProgress
from glm4_deploy.deploy.upgrade import NeededRepair, needed_repair, repair
from glm4_deploy.errors import CheckpointRefused, PlanRefused
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.host.system import read_host
from glm4_deploy.plan.image import engine_image
from glm4_deploy.report.terminal import findings_text
from glm4_deploy.report.wire import dumps
from glm4_deploy.report_model import make_report
from glm4_deploy.result import Result, fail, ok
from glm4_deploy.text import one_line


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[ID@REVISION]", help="OWNER/NAME on the hub; a revision is a branch, a tag or a commit."
        ),
    ] = PUBLISHED,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="Directory to fetch it into.", show_default="NAME beside the settings' model_dir"
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="NAME", help="Verify it for this image.", show_default="that of the settings"),
    ] = None,
    repair_: Annotated[
        bool | None,
        typer.Option(
            "--repair/--no-repair", help="Whether to repair a copy if the image needs that.", show_default="ask"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.")] = False,
    json_: Json = False,
) -> None:
    """Fetch the checkpoint from a model hub, and check every byte of it.

    The revision is pinned to its commit, the room is checked first, an interrupted run continues, and each file is
    compared with the hub's own hash. At the end the checkpoint is verified for the image that will load it.

    The hub's own variables apply: HF_ENDPOINT names a mirror, HF_TOKEN opens what is gated.

    Example: glm4-deploy pull GizzmoShifu/glm-4-9b-chat-hf-nvfp4 --output /models/glm-4-9b-chat-hf-nvfp4
    """
    settings, _ = Requested(flags={"image": image}).load(_host_profile)
    directory = output or Path(settings.model_dir).parent / model.partition("@")[0].rstrip("/").rpartition("/")[2]
    done = fetch_model(model, directory, dry_run=dry_run)
    if dry_run:
        typer.echo(dumps(done.wire()) if json_ else f"{directory}: nothing was fetched (--dry-run)")
        return
    verdict, need = judge(directory, engine_image(settings), repair_)
    files = ok(f"{len(done.model.files)} files as the hub records them", check="files")
    report = make_report("pull", [files, verdict])
    serves = need.output if need and need.made else str(directory)
    Outputs(json=stdout_if(json_)).write(
        report,
        lambda: findings_text(report.results, f"{serves}: {verdict.observed}", report.verdict),
        details={**done.wire(), "model_dir": serves},
    )
    raise typer.Exit(report.exit_code)


def _host_profile() -> Profile:
    """The profile of this host's GPU; `seed` where there is none."""
    gpus = read_gpus()
    try:
        return HostCards(gpus=gpus, host=read_host()).profile() if gpus.gpus else seed()
    except PlanRefused:
        return seed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What was to be fetched, and what had to be."""

    model: HubModel
    directory: Path
    fetched: tuple[HubFile, ...]

    def wire(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "id": self.model.id,
            "commit": self.model.commit,
            "licence": self.model.licence,
            "directory": str(self.directory),
            "size": self.model.size,
            "fetched": [file.name for file in self.fetched],
            "fetched_size": sum(file.size for file in self.fetched),
        }


def fetch_model(text: str, directory: Path, *, dry_run: bool = False) -> Fetched:
    """Make the directory as the hub has the model, and say so on stderr.

    Raises:
        UsageError, ModelMissing, Unreachable, StorageError, CheckpointRefused
    """
    hub = Hub()
    try:
        model = hub.model(text)
        _say(
            f"{model.id} at {model.commit[:12]}: {len(model.files)} files, {model.size / 1e9:.2f} GB, "
            f"licence {model.licence or 'not named'} ({hub.endpoint}/{model.id})"
        )
        missing = hub.missing(model, directory, BytesProgress("compared"))
        size = sum(file.size for file in missing)
        begun = any((directory / (file.name + UNFINISHED)).exists() for file in missing)
        _say(f"{directory}: {len(missing)} files, {size / 1e9:.2f} GB to fetch{', partly there' if begun else ''}")
        if dry_run:
            check_room(missing, directory)
            for file in missing:
                _say(f"  {file.size / 1e9:8.3f} GB  {file.name}")
        else:
            hub.fetch(model, missing, directory, BytesProgress("fetched", rate=True))
    finally:
        hub.close()
    return Fetched(model=model, directory=directory, fetched=missing)


def judge(directory: Path, image: EngineImage, wanted: bool | None) -> tuple[Result, NeededRepair | None]:
    """Verify the checkpoint for an image, and repair a copy where that is needed and wanted.

    Args:
        wanted: None asks, on a terminal.

    Raises:
        ModelMissing, StorageError
    """
    name = "checkpoint"
    if image.vllm is None:
        report = verify_checkpoint(directory)
        if report.failures:
            return fail(report.failures[0].observed, "", remedy=report.failures[0].remedy, check=name), None
        return ok(f"loads in vLLM {report.engine}; the vLLM of image {image.reference} is not known", check=name), None
    where = f"image {image.reference}"
    try:
        need = needed_repair(directory, image, image)
        if need is None:
            return ok(f"loads unmodified in {where}", check=name), None
        if not need.made and (_ask(need, where) if wanted is None else wanted):
            repair(need, image)
            need = needed_repair(directory, image, image)
    except CheckpointRefused as error:
        return fail(error.message, f"loads in {where}", remedy=error.hint, check=name), None
    if need is not None and need.made:
        return ok(f"repaired for {where}", check=name), need
    faults = "; ".join(need.faults if need else ())
    version = ".".join(map(str, image.vllm))
    remedy = f"glm4-deploy checkpoint repair {directory} --output {need.output if need else ''} --for {version}"
    return fail(one_line(faults, 600), f"loads in {where}", remedy=remedy, check=name), need


def _ask(need: NeededRepair, where: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    for fault in need.faults:
        _say(f"for {where}: {fault}")
    return typer.confirm(f"Write a repaired copy to {need.output}?", default=True, err=True)


def _say(text: str) -> None:
    typer.echo(one_line(text, 600), err=True)
