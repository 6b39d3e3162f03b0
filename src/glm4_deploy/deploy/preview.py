"""What `up`, `down` and `rollback` would do, in order, for --dry-run. Reads, and changes nothing.

What those commands refuse before they touch anything is refused here too, with the same errors.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.deploy.caches import Volume, project_volumes
from glm4_deploy.deploy.candidates import check_checkpoint, check_port, holds_own_port, recorded_engine
from glm4_deploy.deploy.docker import connect, find_image
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind, absolute
from glm4_deploy.deploy.releases import Release, Store
from glm4_deploy.deploy.state import Record, load_record
from glm4_deploy.errors import CheckpointRefused, ImageMissing
from glm4_deploy.files import read_text
from glm4_deploy.plan.spec import DeploymentSpec
from glm4_deploy.render.compose import extras, rendered


def preview_up(
    spec: DeploymentSpec, kind: EngineKind, directory: Path, *, force: bool, rollback: bool
) -> Iterator[str]:
    """The steps of `up`.

    Raises:
        ModelMissing, CheckpointRefused, PortTaken, UsageError, DockerMissing, DockerDenied, StorageError
    """
    endpoint, notes = Endpoint.of(spec, kind), list[str]()
    check_checkpoint(endpoint, force=force, note=notes.append)
    if not holds_own_port(endpoint.base_url, directory, lambda: recorded_engine(Record(endpoint=endpoint), directory)):
        check_port(endpoint)
    yield from notes
    if not notes:
        yield f"checkpoint {endpoint.model_dir}: verified, no fault found"
    if kind is EngineKind.COMPOSE:
        yield _image_step(spec.image)
        files = rendered(absolute(spec))
        yield from (_file_step(directory / name, text) for name, text in files.items())
        yield from _secret_steps(spec, endpoint, directory)
    yield from _start_steps(directory, endpoint, rollback=rollback)


def preview_rollback(release: Release, store: Store, directory: Path, *, force: bool, rollback: bool) -> Iterator[str]:
    """The steps of `rollback`.

    Raises:
        StorageError: a copy is damaged.
        ImageMissing: its image is gone, and no registry has it.
        CheckpointRefused, ModelMissing, PortTaken, DockerMissing, DockerDenied
    """
    files = store.files_of(release)
    endpoint = release.endpoint
    now = verify_checkpoint(Path(endpoint.model_dir)).fingerprint
    if now != release.fingerprint and not force:
        raise CheckpointRefused(
            f"release {release.id} cannot be put back: {endpoint.model_dir} holds another checkpoint now",
            hint=("restore that checkpoint", f"or: glm4-deploy rollback {release.id} --force"),
        )
    if not holds_own_port(endpoint.base_url, directory, lambda: recorded_engine(Record(endpoint=endpoint), directory)):
        check_port(endpoint)
    yield f"release {release.id} of {release.created_at}: its files are intact, its checkpoint is the same"
    if release.image is not None and find_image(connect(), release.image.id) is None:
        if release.image.digest is None:
            raise ImageMissing(f"image {release.image.id[:19]} of release {release.id} is gone", hint="choose another")
        yield f"pull {release.image.digest}: its image is not on this host"
    yield from (_file_step(directory / name, text) for name, text in files.texts.items())
    yield from _start_steps(directory, endpoint, rollback=rollback)


def preview_down(record: Record, directory: Path, *, volumes: bool, describe: Callable[[Volume], str]) -> Iterator[str]:
    """The steps of `down`. describe: a volume, for people."""
    state = recorded_engine(record, directory).state()
    project = record.endpoint.project
    yield f"stop and remove: {state.detail}" if state.started else f"{project}: nothing runs"
    if record.endpoint.in_container:
        yield f"remove the network of project {project}"
        doomed = project_volumes(project) if volumes else ()
        yield from (f"remove {describe(volume)}" for volume in doomed)
    kept = "the model, the releases and their records" if volumes else "the model, the releases and all volumes"
    yield f"kept: {kept}"


def _image_step(reference: str) -> str:
    here = find_image(connect(), reference)
    return f"image {reference}: on this host" if here else f"pull {reference}: it is not on this host"


def _file_step(path: Path, text: str) -> str:
    if not path.is_file():
        return f"write {path}"
    return f"keep {path}: the same text" if read_text(path) == text else f"rewrite {path}"


def _secret_steps(spec: DeploymentSpec, endpoint: Endpoint, directory: Path) -> Iterator[str]:
    key = endpoint.api_key_file
    if key and not Path(key).exists():
        yield f"make a new API key in {key}"
    for extra in extras(spec):
        for _, file in extra.secrets:
            if not (directory / file).exists():
                yield f"make a new password in {directory / file}"


def _start_steps(directory: Path, endpoint: Endpoint, *, rollback: bool) -> Iterator[str]:
    record, store = load_record(directory), Store(directory)
    if record is not None and (state := recorded_engine(record, directory).state()).running:
        yield f"stop the running engine, unless it has the same settings: {state.detail}"
    yield f"start {endpoint.project}, serving {endpoint.model!r} at {endpoint.base_url}/v1"
    yield "gate: prove that this engine answers, then run the suite `gate`"
    yield f"record it as release {store.next_id().partition('-')[0]}"
    good = store.last_good()
    if good is not None and rollback:
        yield f"if it fails: put release {good.id} back, and gate it"
    else:
        yield "if it fails: stop it; there is no release to put back" if good is None else "if it fails: stop it"
