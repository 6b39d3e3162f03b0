"""`glm4-deploy images`."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from glm4_deploy.catalog.images import EngineImage, known_images, versions_tested
from glm4_deploy.catalog.rows import Gpu, Version, gpus
from glm4_deploy.checkpoint.model import target_engine
from glm4_deploy.checkpoint.read import Checkpoint, read_checkpoint
from glm4_deploy.checkpoint.verify import apply_rules, failures_of
from glm4_deploy.cli.params import HostCards, Json, Requested, with_settings
from glm4_deploy.deploy.docker import connect, find_image
from glm4_deploy.errors import DeployError, ModelMissing
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.host.system import read_host
from glm4_deploy.plan.engine_rules import WeightFormat
from glm4_deploy.plan.image import engine_image
from glm4_deploy.plan.kernels import kernel_path
from glm4_deploy.report.wire import dumps
from glm4_deploy.settings import Settings
from glm4_deploy.text import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """One image, for one card and one checkpoint. None: not known.

    Attributes:
        loads: whether this vLLM loads the checkpoint as it is; False with `repair`: it does once it is repaired.
        repair: whether `checkpoint repair` is needed; None without a checkpoint.
        native_fp4: whether 4-bit arithmetic is expected on the card's tensor cores.
        driver_ok: whether the host's driver is new enough for the image's CUDA; None if either is not known.
        tested: whether a vLLM of this version went through this kit's engine tests.
        seen: compute capabilities on which others reported that it answers requests.
        here: whether it is in this host's Docker engine.
        chosen: whether the settings name it.
        recommended: why it is the one to take; '' for all others.
    """

    image: str
    vllm: str
    architectures: tuple[str, ...]
    loads: bool | None
    repair: bool | None
    native_fp4: bool | None
    driver_needed: int | None
    driver_ok: bool | None
    tested: bool
    seen: tuple[str, ...]
    trouble: str
    here: bool | None
    chosen: bool
    source: str
    recommended: str = ""

    @property
    def fits(self) -> bool:
        """Whether nothing that is known speaks against it."""
        return (
            self.tested
            and self.seen != ()
            and not self.trouble
            and self.driver_ok is not False
            and (self.loads or self.repair) is not False
        )


@with_settings()
def images(requested: Requested, as_json: Json = False) -> None:
    """List the images that contain vLLM, judged for this card and this checkpoint.

    Nothing is pulled and no registry is queried. The card is this host's, else the profile's. Without a checkpoint at
    model_dir, or without Docker, those columns are empty. `*` marks the image of the settings, `>` the one to take.

    Example: glm4-deploy images --profile gb10
    """
    settings, profile = requested.load()
    seen = HostCards(gpus=read_gpus(), host=read_host())
    card = seen.card(1)
    gpu = card.gpu if card else gpus()[profile.gpu] if profile.gpu else None
    checkpoint, notes = _checkpoint(settings)
    here = _here(notes)
    rows = judge_images(settings, gpu, seen.gpus.driver, checkpoint, here)
    label = gpu.label if gpu else "no GPU"
    if as_json:
        typer.echo(dumps({"gpu": label, "driver": seen.gpus.driver, "model_dir": settings.model_dir, "images": rows}))
        return
    typer.echo(f"for {label}, driver {seen.gpus.driver or 'not known'}, checkpoint {settings.model_dir}")
    for line in _table(rows):
        typer.echo(line)
    for note in notes:
        typer.echo(note, err=True)


def judge_images(
    settings: Settings,
    gpu: Gpu | None,
    driver: str | None,
    checkpoint: Checkpoint | None,
    here: frozenset[str] | None = None,
) -> tuple[ImageRow, ...]:
    """The catalog's images and that of the settings, for a card and a checkpoint; the one to take is marked."""
    return recommend(tuple(_row(image, settings, gpu, driver, checkpoint, here) for image in _listed(settings, gpu)))


def _listed(settings: Settings, gpu: Gpu | None) -> Iterable[EngineImage]:
    """The catalog's images for the card's processor, and that of the settings."""
    asked = engine_image(settings)
    arch = gpu.arch if gpu else ""
    listed = [image for image in known_images() if not arch or arch in image.architectures or not image.architectures]
    names = {image.reference for image in listed}
    return [*listed, *([] if asked.reference in names else [asked])]


def _checkpoint(settings: Settings) -> tuple[Checkpoint | None, list[str]]:
    try:
        return read_checkpoint(Path(settings.model_dir)), []
    except ModelMissing as error:
        return None, [f"without a checkpoint: {error.message}; give it with --model-dir"]


def _here(notes: list[str]) -> frozenset[str] | None:
    """The images in this host's Docker engine, by name; None without one."""
    try:
        client = connect(timeout=5)
    except DeployError as error:
        notes.append(f"whether an image is here is not known: {error.message}")
        return None
    found = set()
    with suppress(DeployError):
        for image in known_images():
            if find_image(client, image.reference) is not None:
                found.add(image.reference)
    return frozenset(found)


def _row(
    image: EngineImage,
    settings: Settings,
    gpu: Gpu | None,
    driver: str | None,
    checkpoint: Checkpoint | None,
    here: frozenset[str] | None,
) -> ImageRow:
    loads, repair = _loads(image, checkpoint)
    major = driver.partition(".")[0] if driver else ""
    known = image.driver is not None and major.isdigit()
    native = None
    if gpu is not None and image.vllm is not None:
        weights = WeightFormat.BF16 if settings.quantization == "none" else WeightFormat.NVFP4
        native = kernel_path(gpu.compute_capability, weights, image.vllm, image.kind).native
    return ImageRow(
        image=image.reference,
        vllm=_shown(image.vllm),
        architectures=image.architectures,
        loads=loads,
        repair=repair,
        native_fp4=native,
        driver_needed=image.driver,
        driver_ok=int(major) >= image.driver if known and image.driver is not None else None,
        tested=image.vllm in versions_tested(),
        seen=image.seen,
        trouble=image.trouble_on(gpu.compute_capability if gpu else None) or _flaw(image, gpu),
        here=None if here is None else image.reference in here,
        chosen=image.reference == engine_image(settings).reference,
        source=image.source,
    )


def _flaw(image: EngineImage, gpu: Gpu | None) -> str:
    if gpu is None or image.vllm is None:
        return ""
    return kernel_path(gpu.compute_capability, WeightFormat.NVFP4, image.vllm, image.kind).flaw


def _shown(version: Version | None) -> str:
    return ".".join(map(str, version)) if version else ""


def _loads(image: EngineImage, checkpoint: Checkpoint | None) -> tuple[bool | None, bool | None]:
    """Whether this vLLM loads the checkpoint as it is, and whether a repair is needed and makes it so."""
    if checkpoint is None or image.vllm is None:
        return None, None
    failures = failures_of(apply_rules(checkpoint, target_engine(image.vllm, image.transformers_major)))
    if not failures:
        return True, False
    return False, all("checkpoint repair" in row.remedy for row in failures)


def recommend(rows: tuple[ImageRow, ...]) -> tuple[ImageRow, ...]:
    """Mark the newest image that nothing known speaks against; the first repository of the catalog goes first."""
    best = None
    for row in rows:
        same = best is None or row.image.partition(":")[0] == best.image.partition(":")[0]
        if row.fits and same:
            best = row
    if best is None:
        return rows
    why = (
        "the newest whose vLLM went through this kit's engine tests and that others report answering "
        f"(on compute capability {', '.join(best.seen)}), without known trouble on this card"
    )
    if best.repair:
        why += "; repair the checkpoint for it first: glm4-deploy checkpoint repair"
    return tuple(replace(row, recommended=why) if row is best else row for row in rows)


HEAD = ("", "image", "vLLM", "tested", "seen on", "loads", "native FP4", "driver", "here", "known trouble")


def _table(rows: tuple[ImageRow, ...]) -> Iterable[str]:
    cells = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD) - 1)]
    for line in cells:
        padded = (f"{text:<{width}}" for text, width in zip(line[:-1], widths, strict=True))
        yield "  ".join((*padded, line[-1])).rstrip()
    best = next((row for row in rows if row.recommended), None)
    yield f"> {best.image}: {best.recommended}" if best else "none can be recommended: see the column `known trouble`"


def _cells(row: ImageRow) -> tuple[str, ...]:
    loads = "" if row.loads is None else "yes" if row.loads else "after repair" if row.repair else "no"
    driver = "" if row.driver_needed is None else f">= {row.driver_needed}"
    return (
        f"{'>' if row.recommended else ''}{'*' if row.chosen else ''}",
        row.image,
        row.vllm or "?",
        "yes" if row.tested else "no",
        " ".join(row.seen),
        loads,
        _word(row.native_fp4),
        f"{driver} (too old)" if row.driver_ok is False else driver,
        _word(row.here),
        one_line(row.trouble, 160),
    )


def _word(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"
