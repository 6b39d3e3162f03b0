"""A recorded release made ready to run again, or a clear word on why it cannot."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from glm4_deploy.engine import state
from glm4_deploy.engine.docker import connect
from glm4_deploy.engine.images import PullState, find_image, pull
from glm4_deploy.engine.release import PIN, Release
from glm4_deploy.engine.store import Files, Store
from glm4_deploy.engine.up import Candidate, compose_runner, preflight, process_candidate
from glm4_deploy.errors import CheckpointRefused, ImageMissing, UsageError
from glm4_deploy.facts.redact import MASK


def choose(store: Store, directory: Path, wished: str | None, *, force: bool) -> Release:
    """The release that a rollback means.

    Raises:
        UsageError: there is none, or the one named never passed its gate.
    """
    if wished is not None:
        release = store.find(wished)
        if not release.good and not force:
            raise UsageError(
                f"release {release.id} never passed its gate: {release.reason}"[:300],
                hint="choose a good one of `glm4-deploy releases`; --force starts it all the same, and gates it",
            )
        return release
    record = state.load(directory)
    runs = next((one for one in store.releases() if record is not None and one.id == record.release), None)
    chosen = store.last_good(but=runs.content if runs else "")
    if chosen is None:
        raise UsageError("there is no good release to go back to", hint="see `glm4-deploy releases`")
    return chosen


def candidate_of(release: Release, store: Store, directory: Path, on_pull: Callable[[PullState], None]) -> Candidate:
    """The release's own files, with the very image that it ran on.

    Raises:
        StorageError: a copy is damaged. ImageMissing: its image is gone and no registry gives it back.
        UsageError: it cannot be rebuilt. DockerMissing, DockerDenied, ComposeMissing, ComposeFailed
    """
    if release.service.runner == "process":
        return _process(release, directory)
    files = _pinned(release, store.files_of(release), on_pull)
    service = release.service
    runner = compose_runner(
        service.project,
        service.service,
        files,
        directory,
        kept=None if PIN in files.texts else store.root / release.id,
        replicas=service.replicas,
    )
    return Candidate(service=service, runner=runner, files=files, settings=release.settings, restores=release.id)


def check(
    candidate: Candidate, release: Release, directory: Path, *, force: bool, note: Callable[[str], None]
) -> Candidate:
    """Refuse what would not be that release.

    Raises:
        CheckpointRefused: the model directory holds another checkpoint now. ModelMissing, PortTaken
    """
    checked = preflight(candidate, directory, force=True, note=note)  # it was started with these faults, if any
    now = checked.weights
    where = release.service.model_dir
    fingerprint, stamp = (now.fingerprint, now.stamp) if now else (None, None)
    if fingerprint != release.fingerprint:
        words = f"{where} holds another checkpoint now: fingerprint {fingerprint}, not {release.fingerprint}"
        if not force:
            raise CheckpointRefused(
                f"release {release.id} cannot be put back: {words}",
                hint="bring that checkpoint back, or try what is there: "
                f"glm4-deploy rollback {release.id} --force (it is gated all the same)",
            )
        note(f"forced past: {words}")
    elif stamp != release.stamp:
        note(f"warning: files in {where} were written since release {release.id}; shapes and sizes are the same")
    return checked


def _pinned(release: Release, files: Files, on_pull: Callable[[PullState], None]) -> Files:
    """The files, with one more that names the image by its id where its tag means another image by now."""
    image = release.image
    if image is None:
        return files
    client = connect()
    if find_image(client, image.id) is None:
        _fetch(release.id, image.id, image.digest, on_pull)
    now = find_image(client, image.reference)
    if now is not None and now.id == image.id:
        return files
    images = ", ".join(f'"{name}": {{image: "{image.id}"}}' for name in release.service.engines)
    text = f"services: {{{images}}}\n"
    return Files(texts={**files.texts, PIN: text}, compose=(*files.compose, PIN))


def _fetch(release: str, image: str, digest: str | None, on_pull: Callable[[PullState], None]) -> None:
    gone = f"release {release} cannot be put back: its image {image[:19]} is no longer on this host"
    if digest is None:
        raise ImageMissing(gone, hint="load it again (docker load), or choose another release")
    try:
        pull(digest, on_pull)
    except ImageMissing as error:
        raise ImageMissing(f"{gone}, and {error.message}", hint=error.hint) from None
    if find_image(connect(), image) is None:
        raise ImageMissing(f"{gone}; {digest} is another image", hint="choose another release")


def _process(release: Release, directory: Path) -> Candidate:
    from glm4_deploy.catalog.profiles import profiles
    from glm4_deploy.plan.deployment import deploy
    from glm4_deploy.plan.fraction import choose_fraction
    from glm4_deploy.settings import Settings

    profile = profiles().get(release.service.profile)
    if MASK in repr(release.settings) or profile is None:
        raise UsageError(
            f"release {release.id} cannot be rebuilt: its secrets or its profile are not on record",
            hint="use `glm4-deploy up` with its settings",
        )
    settings = Settings.model_validate(release.settings)
    deployment = deploy(settings, profile, choose_fraction(settings, profile))
    made = process_candidate(deployment, directory, os.environ.get("GLM4_CPU_PYTHON"), release.settings)
    return replace(made, service=release.service, restores=release.id)
