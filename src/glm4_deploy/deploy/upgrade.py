"""An upgrade: the deployment that runs, with another image. What would change, and whether it answers as fast.

The start itself is `Transaction`'s, as for `up`; nothing here touches what runs.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glm4_deploy.catalog.images import EngineImage
from glm4_deploy.catalog.rows import Gpu, Profile, Version, profiles
from glm4_deploy.checkpoint.model import target_engine
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.checkpoint.repair import check_output, plan_repair, repair_checkpoint
from glm4_deploy.checkpoint.verify import faults_line, verify_checkpoint
from glm4_deploy.deploy.endpoint import Endpoint
from glm4_deploy.deploy.releases import Release, Store, ValueChange
from glm4_deploy.deploy.speed import measure_started
from glm4_deploy.deploy.state import load_record
from glm4_deploy.errors import CheckpointRefused, DeployError, PlanRefused, UsageError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.host.gpu import GpuReport
from glm4_deploy.plan.image import engine_image
from glm4_deploy.plan.kernels import kernel_path
from glm4_deploy.plan.spec import Card, DeploymentSpec, choose_fraction, memory_request, plan_deployment
from glm4_deploy.report.wire import dumps
from glm4_deploy.report_model import BenchLevel, BenchReport
from glm4_deploy.result import Result, Status, skipped
from glm4_deploy.settings import Settings, settings_for_image
from glm4_deploy.text import MASK

# What runs, and what is to run.


def running_release(directory: Path, store: Store) -> Release:
    """The good release that this directory serves with.

    Raises:
        UsageError: there is none, or it cannot be upgraded.
    """
    record = load_record(directory)
    release = next((one for one in store.releases() if record is not None and one.id == record.release), None)
    if release is None or not release.good:
        raise UsageError("no good release is in service here", hint="start one first: glm4-deploy up")
    if not release.files:
        raise UsageError(
            f"release {release.id} runs as a process, which has no image",
            hint="name another Python in GLM4_CPU_PYTHON, then glm4-deploy up --runner process",
        )
    if MASK in repr(release.settings) or release.endpoint.profile not in profiles():
        raise UsageError(
            f"release {release.id} cannot be planned again: its secrets or its profile are not on record",
            hint="use `glm4-deploy up --image IMAGE` with its settings: it is gated and rolled back in the same way",
        )
    return release


def settings_with(release: Release, image: str) -> Settings:
    """The release's settings with another image. image: a tag of the same repository, or an image's whole name.

    Raises:
        UsageError: not an image, the image that already runs, or one whose vLLM is unknown.
    """
    old = Settings.model_validate(release.settings)
    whole = image if any(mark in image for mark in "/:@") else f"{old.image_repository}:{image}"
    new = Settings.model_validate({**release.settings, **settings_for_image(whole)})
    if new.pinned_image == old.pinned_image:
        raise UsageError(
            f"the deployment already runs {old.pinned_image} (release {release.id})",
            hint="name another tag; if the tag has moved, `docker pull` it, then `glm4-deploy up`",
        )
    return new


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of an upgrade: what runs, or what would."""

    settings: Settings
    spec: DeploymentSpec
    image: EngineImage

    @classmethod
    def of(cls, settings: Settings, profile: Profile, card: Card | None) -> "Side":
        """
        Raises:
            PlanRefused: it does not fit the card.
        """
        spec = plan_deployment(settings, profile, choose_fraction(settings, profile, card))
        return cls(settings=settings, spec=spec, image=engine_image(settings))

    def facts(self, profile: Profile, gpu: Gpu | None) -> dict[str, Any]:
        """Name → value, to compare with the other side's."""
        spec = self.spec
        facts: dict[str, Any] = {"image": spec.image, "vLLM": _shown(spec.vllm), "CUDA": self.image.cuda or None}
        facts["command"] = " ".join(spec.program)
        facts |= {f"--{flag.name}": "set" if flag.value is None else flag.value for flag in spec.flags}
        facts |= {f"env {variable.name}": variable.value for variable in spec.environment}
        if spec.memory is not None:
            facts["KV cache"] = f"{spec.memory.kv_cache_gib:.1f} GiB, {spec.memory.kv_cache_tokens} tokens"
        if gpu is not None and spec.vllm is not None:
            weights = memory_request(self.settings, profile, gpu).model.weights
            path = kernel_path(gpu.compute_capability, weights, spec.vllm, self.image.kind)
            facts["NVFP4 kernel"] = path.name + (f" ({path.flaw})" if path.flaw else "")
        return facts


def _shown(version: Version | None) -> str | None:
    return ".".join(map(str, version)) if version else None


def plan_upgrade(
    release: Release, store: Store, settings: Settings, card: Card | None, gpus: GpuReport
) -> "UpgradePlan":
    """What would change. Reads the checkpoint, and writes nothing.

    Args:
        settings: those of the new image.
        card: the host's; None without a GPU.

    Raises:
        UsageError, PlanRefused, ModelMissing, CheckpointRefused
    """
    profile = profiles()[release.endpoint.profile]
    old = Side.of(Settings.model_validate(release.settings), profile, card)
    image = engine_image(settings)
    check_image(image, gpus)
    need = needed_repair(Path(release.endpoint.model_dir), old.image, image)
    new = Side.of(settings.model_copy(update={"model_dir": need.output}) if need else settings, profile, card)
    gpu = card.gpu if card else None
    trouble = image.trouble_on(gpu.compute_capability if gpu else None)
    return UpgradePlan(
        release=release,
        new=new,
        changes=changes(old, new, profile, gpu),
        need=need,
        speed=None if release.endpoint.replicas else old_speed(store, release),
        warnings=(*new.spec.warnings, *((f"image {image.reference}: {trouble}",) if trouble else ())),
    )


def changes(old: Side, new: Side, profile: Profile, gpu: Gpu | None) -> tuple[ValueChange, ...]:
    """Everything that differs, flags and variables by version included."""
    before, after = old.facts(profile, gpu), new.facts(profile, gpu)
    names = (*before, *(name for name in after if name not in before))
    return tuple(
        ValueChange(group="plan", name=name, a=before.get(name), b=after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    )


def check_image(image: EngineImage, gpus: GpuReport) -> None:
    """Refuse an image that this host cannot run, or that is unknown.

    Raises:
        UsageError: its vLLM is not known, so neither flags nor checkpoint can be judged.
        PlanRefused: the driver is too old for its CUDA.
    """
    if image.vllm is None:
        raise UsageError(
            f"image {image.reference} is not in the catalog: its vLLM is not known",
            hint="check the tag; without --dry-run it is pulled and queried, or `docker pull` it first",
        )
    check_driver(image, gpus)


def check_driver(image: EngineImage, gpus: GpuReport) -> None:
    """Refuse an image whose CUDA this host's driver cannot run.

    Raises:
        PlanRefused
    """
    floor, driver = image.driver, (gpus.driver or "").partition(".")[0]
    if floor is not None and driver.isdigit() and int(driver) < floor and _needs_driver(gpus):
        raise PlanRefused(
            f"image {image.reference} has CUDA {image.cuda}, and driver {gpus.driver} is too old for it",
            hint=f"update the NVIDIA driver to {floor} or newer, or choose an older image",
        )


def _needs_driver(gpus: GpuReport) -> bool:
    """GeForce cards have no forward compatibility: an old driver cannot run a newer CUDA at all."""
    return any("geforce" in facts.name.lower() for facts in gpus.gpus)


# The checkpoint: as it is, or repaired into a directory beside it.


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededRepair:
    """faults: why the new engine should not load the checkpoint. edits: what a repair changes.

    made: whether a sound copy is at `output` already.
    """

    source: str
    output: str
    faults: tuple[str, ...]
    edits: tuple[str, ...] = ()
    made: bool = False


def needed_repair(directory: Path, old: EngineImage, image: EngineImage) -> NeededRepair | None:
    """What the new engine needs; None if it loads the checkpoint as it is. Writes nothing.

    Raises:
        ModelMissing, UsageError
        CheckpointRefused: it cannot be repaired.
    """
    about: dict[str, Any] = {"vllm": image.vllm, "transformers": image.transformers_major}
    report = verify_checkpoint(directory, **about)
    if not report.failures:
        return None
    original = str(directory.resolve()).removesuffix(f"-{_shown(old.vllm)}")  # it may be a repaired copy itself
    output = Path(f"{original}-{_shown(image.vllm)}")
    need = NeededRepair(
        source=str(directory),
        output=str(output),
        faults=tuple(f"{result.check}: {result.observed}" for result in report.failures),
    )
    if output.is_dir() and any(output.iterdir()):
        copy = verify_checkpoint(output, **about)
        if copy.failures:
            raise CheckpointRefused(
                f"{output} exists and is not a sound copy: {faults_line(copy.failures)}", hint="remove it, or move it"
            )
        return replace(need, made=True)
    check_output(directory, output)
    engine = target_engine(image.vllm or (), image.transformers_major)
    _, edits = plan_repair(read_checkpoint(directory), engine)
    left = {result.check for result in report.failures} - {edit.check for edit in edits}
    if left:
        raise CheckpointRefused(
            f"{directory} cannot be repaired for vLLM {_shown(image.vllm)}: {', '.join(sorted(left))}",
            details=need.faults,
            hint=report.failures[0].remedy,
        )
    return replace(need, edits=tuple(f"{edit.check}: {edit.detail}" for edit in edits))


def repair(need: NeededRepair, image: EngineImage) -> None:
    """Write the copy; nothing is left behind if that fails.

    Raises:
        CheckpointRefused, StorageError
    """
    if not need.made:
        repair_checkpoint(Path(need.source), Path(need.output), vllm=image.vllm, transformers=image.transformers_major)


# Speed: compared only where the old release was measured, with the same load at its lowest concurrency.

BENCH, SPEED = "bench.json", "speed"
SLOWEST, SLOWER = 0.5, 0.8  # of the old output tokens per second: below, the upgrade fails; below, it warns


def keep_bench(report: BenchReport, directory: Path) -> str:
    """Keep a measurement with the release that serves; returns its id, '' if the measured server is not it."""
    record = load_record(directory)
    if record is None or not record.release or record.endpoint.base_url != report.base_url:
        return ""
    target = directory / "releases" / record.release
    if not target.is_dir() or any(level.failed for level in report.levels):
        return ""
    write_text(target / BENCH, dumps(report) + "\n", mode=0o600)
    return record.release


@dataclass(frozen=True, slots=True, kw_only=True)
class OldSpeed:
    """What was measured of the old release."""

    release: str
    input_len: int
    output_len: int
    concurrency: int
    output_tokens_per_s: float


def old_speed(store: Store, release: Release) -> OldSpeed | None:
    """The old release's figures at its lowest concurrency; None if it was never measured, or they cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, UsageError):
        content = json.loads(read_text(store.root / release.id / BENCH))
        lowest = min(content["levels"], key=lambda level: int(level["concurrency"]))
        return OldSpeed(
            release=release.id,
            input_len=int(content["input_len"]),
            output_len=int(content["output_len"]),
            concurrency=int(lowest["concurrency"]),
            output_tokens_per_s=float(lowest["output_tokens_per_s"]),
        )
    return None


def speed_row(old: OldSpeed, container: str, endpoint: Endpoint) -> Result:
    """Send the old release's load to the new engine, from inside its container, and compare."""
    try:
        level = measure_started(
            endpoint, container, concurrency=old.concurrency, input_len=old.input_len, output_len=old.output_len
        )
    except DeployError as error:  # the generator, not the engine: that has passed its gate
        return replace(skipped(f"not measured: {error.message}"), check=SPEED)
    return compare_speed(old, level)


def compare_speed(old: OldSpeed, new: BenchLevel) -> Result:
    """The new engine's speed as one row of the gate."""
    share = new.output_tokens_per_s / old.output_tokens_per_s if old.output_tokens_per_s > 0 else 1.0
    observed = f"{new.output_tokens_per_s:.1f} output tokens/s, {share:.0%} of release {old.release}"
    if new.failed:
        observed += f"; {new.failed} of {new.requests} requests failed"
    bad, slow = new.failed > 0 or share < SLOWEST, share < SLOWER
    return Result(
        check=SPEED,
        status=Status.FAIL if bad else Status.WARN if slow else Status.OK,
        observed=observed,
        expected=f"at least {SLOWEST:.0%} of {old.output_tokens_per_s:.1f}, at concurrency {old.concurrency}",
        remedy="measure both by hand: glm4-deploy bench" if bad or slow else "",
    )


# The whole.


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradePlan:
    """What an upgrade comes to. need: None if the checkpoint loads as it is. speed: None if none is on record."""

    release: Release
    new: Side
    changes: tuple[ValueChange, ...]
    need: NeededRepair | None
    speed: OldSpeed | None
    warnings: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"from release {self.release.id}:"
        for row in self.changes:
            yield f"{row.name}: {_text(row.a)} → {_text(row.b)}"
        yield from self._checkpoint()
        speed = (
            f"then its speed is compared with release {self.speed.release}" if self.speed else "no speed is on record"
        )
        yield f"gate: the same as for `up`; {speed}; if it fails, release {self.release.id} comes back"
        yield from (f"warning: {warning}" for warning in self.warnings)

    def _checkpoint(self) -> Iterator[str]:
        if self.need is None:
            yield "checkpoint: loads unmodified"
            return
        yield f"checkpoint: {'; '.join(self.need.faults)}"
        edits = f" ({'; '.join(self.need.edits)})" if self.need.edits else ""
        yield f"repaired copy: {self.need.output} {'is there' if self.need.made else 'will be written'}{edits}"

    def wire(self) -> dict[str, Any]:
        return {
            "from": self.release.id,
            "image": self.new.spec.image,
            "changes": self.changes,
            "repair": self.need,
            "compares_speed_with": self.speed.release if self.speed else None,
            "warnings": self.warnings,
        }


def _text(value: object) -> str:
    return "-" if value is None else str(value)
