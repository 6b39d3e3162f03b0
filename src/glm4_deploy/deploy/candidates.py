"""What is to be started next: built from a plan or a release, and refused if its failure can be known beforehand."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glm4_deploy.catalog.rows import Version, parse_version, profiles
from glm4_deploy.checkpoint.read import no_checkpoint
from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.deploy.caches import CacheMaker, host_file, missing_volumes, own_names
from glm4_deploy.deploy.compose_cli import Compose, find_compose
from glm4_deploy.deploy.docker import PullState, connect, find_image, pull
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind, absolute
from glm4_deploy.deploy.engines import ComposeEngine, Engine, ProcessEngine, installed_vllm
from glm4_deploy.deploy.keys import ensure_key, secret_key
from glm4_deploy.deploy.releases import HOST_FILE, PIN, CacheUse, Files, Release, ReleaseImage, Store, content_of
from glm4_deploy.deploy.replicas import ReplicaSet
from glm4_deploy.deploy.state import Record, load_record
from glm4_deploy.errors import CheckpointRefused, ImageMissing, ModelMissing, PortTaken, StorageError, UsageError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.host.memory import check_level
from glm4_deploy.host.system import PortState, read_port
from glm4_deploy.plan.spec import DeploymentSpec, choose_fraction, plan_deployment
from glm4_deploy.probe.endpoints import read_models
from glm4_deploy.probe.questions import read_questions
from glm4_deploy.render.compose import COMPOSE, extras, rendered
from glm4_deploy.result import WHY, Result
from glm4_deploy.settings import Settings
from glm4_deploy.text import MASK, without_secrets

# Checks before anything is started. Each raises an error of its kind.


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointIdentity:
    """Which checkpoint a directory holds."""

    fingerprint: str | None
    """Of its configuration, headers and sizes."""
    stamp: str | None
    """Of its file sizes and modification times: it shows weights replaced by others of the same shape."""
    faults: tuple[str, ...] = ()
    """What `--force` passes over: why this engine should not load it."""
    remedy: str = ""
    """How to repair the first of them."""


def check_model_directory(directory: Path) -> None:
    """Raises ModelMissing if it is missing, not a directory, not readable, empty, or without a config.json."""
    hint = "give the checkpoint's own directory with --model-dir"
    try:
        names = {entry.name for entry in directory.iterdir()}
    except FileNotFoundError:
        raise no_checkpoint(directory, "model directory").advise(hint) from None
    except OSError as error:
        raise ModelMissing(f"cannot read the model directory {directory}: {error.strerror}", hint=hint) from None
    if not names:
        raise ModelMissing(f"the model directory {directory} is empty", hint=("download the checkpoint", hint))
    if "config.json" not in names:
        raise ModelMissing(f"{directory} holds no config.json, so it is not a checkpoint", hint=hint)


def check_checkpoint(endpoint: Endpoint, *, force: bool, note: Callable[[str], None]) -> CheckpointIdentity:
    """Verify the checkpoint for the engine that is to load it.

    Raises:
        ModelMissing, CheckpointRefused
    """
    directory = Path(endpoint.model_dir)
    check_model_directory(directory)
    report = verify_checkpoint(directory, vllm=endpoint.vllm)
    details = [f"{result.check}: {result.observed}{_consequence(result)}" for result in report.failures]
    remedy = next((result.remedy for result in report.failures if result.remedy), "glm4-deploy checkpoint repair")
    if details and not force:
        raise CheckpointRefused(
            f"the checkpoint at {directory} has {len(details)} fault(s) that this engine would not survive",
            details=details,
            hint=(remedy, "start it anyway: --force"),
        )
    for line in details:
        note(f"forced past: {line}")
    return CheckpointIdentity(
        fingerprint=report.fingerprint, stamp=stamp(directory), faults=tuple(details), remedy=remedy if details else ""
    )


def _consequence(result: Result) -> str:
    """What the finding means for this engine, as its rule says."""
    return "".join(f" ({evidence.text})" for evidence in result.evidence if evidence.name == WHY)


def stamp(directory: Path) -> str | None:
    """A digest of the names, sizes and modification times in a directory; None if it cannot be read."""
    with suppress(OSError):
        rows = [(path.name, path.stat()) for path in sorted(directory.iterdir()) if not path.name.startswith(".")]
        text = "\n".join(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in rows)
        return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()[:12]
    return None


def check_version(planned: Version | None, installed: str | None) -> None:
    """Raises UsageError if both are known and differ: the checkpoint would be judged for another engine."""
    if planned is None or installed is None or parse_version(installed) == planned:
        return
    version = ".".join(map(str, planned))
    raise UsageError(
        f"GLM4_CPU_PYTHON has vLLM {installed}, and the settings are for {version}",
        hint=(
            f"judge for what it has: --image-tag {installed.partition('+')[0]}",
            "or name a Python that has the other",
        ),
    )


def check_port(endpoint: Endpoint) -> None:
    """Raises PortTaken if something holds the address. Do not call it while this deployment's own engine does."""
    state = read_port(endpoint.bind, endpoint.port)
    if state is PortState.NO_ADDRESS:
        raise UsageError(
            f"this host has no address {endpoint.bind}", hint="choose one of `ip -brief address` with --bind"
        )
    if state is PortState.UNKNOWN:
        raise UsageError(f"cannot use {endpoint.bind}:{endpoint.port}", hint="check --bind and --port")
    if state is PortState.TAKEN:
        raise PortTaken(
            f"port {endpoint.port} on {endpoint.bind} is taken{_holder(endpoint.base_url)}",
            hint=f"find its owner with `ss -ltnp 'sport = :{endpoint.port}'`, or choose another with --port",
        )
    # FREE, or DENIED: the Docker engine may bind a low port where this user may not.


def _holder(base_url: str) -> str:
    """Which server holds the address, as far as it says, for the message."""
    models = read_models(base_url, timeout=2)
    return f" by a server of the model {models[0][:60]!r}" if models else ""


# Making a candidate: its files are written, its engine is chosen.


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is to run next."""

    endpoint: Endpoint
    engine: Engine
    files: Files
    settings: Mapping[str, Any]
    """The settings it was made from, without secrets."""
    weights: CheckpointIdentity | None = None
    restores: str = ""
    """The release that it puts back; '' for none."""
    cache: CacheUse | None = None
    """Known once the image is here; None for a process, and for a cache that the user named."""
    passwords: tuple[Path, ...] = ()
    """Files with a secret of a service beside the engine; made if missing."""

    def content(self, image: ReleaseImage | None) -> str:
        """Equal to the content of a release that would start the same thing."""
        fingerprint = self.weights.fingerprint if self.weights else None
        return content_of(self.files.kept(), image, fingerprint, self.settings)

    @property
    def secrets(self) -> frozenset[str]:
        """Values that must not be stored with the log."""
        key = secret_key(self.endpoint.api_key_file)
        return self.engine.secrets() | (frozenset({key.get_secret_value()}) if key else frozenset())


def compose_candidate(
    spec: DeploymentSpec, overrides: tuple[Path, ...], directory: Path, settings: Mapping[str, Any]
) -> Candidate:
    """Write the rendered file and copies of the overrides, so that what is started is what is recorded.

    Raises:
        ComposeMissing, ComposeFailed, DockerMissing, DockerDenied, UsageError, StorageError
    """
    for override in overrides:
        if not override.is_file():
            raise UsageError(f"no override file at {override}", hint="check the path given with --override")
    copies = {f"override-{number}.yaml": read_text(path) for number, path in enumerate(overrides, 1)}
    files = Files(texts={**rendered(absolute(spec)), **copies}, compose=(COMPOSE, *copies))
    endpoint = Endpoint.of(spec, EngineKind.COMPOSE)
    return Candidate(
        endpoint=endpoint,
        engine=compose_engine(endpoint, files, directory),
        files=files,
        settings=without_secrets(settings),
        passwords=tuple(
            directory / file for extra in extras(spec) for _, file in extra.secrets if not Path(file).is_absolute()
        ),
    )


def process_candidate(
    spec: DeploymentSpec, directory: Path, python: str | None, settings: Mapping[str, Any]
) -> Candidate:
    """python: the Python that has vLLM; if None, starting it raises ExtraMissing, which says how to get one.

    Raises:
        UsageError: that vLLM is not the version that the settings were judged for.
    """
    check_version(spec.vllm, installed_vllm(python) if python else None)
    return Candidate(
        endpoint=Endpoint.of(spec, EngineKind.PROCESS),
        engine=ProcessEngine(spec=spec, directory=directory, python=python),
        files=Files(texts={}, compose=()),
        settings=without_secrets(settings),
    )


def compose_engine(endpoint: Endpoint, files: Files, directory: Path, *, kept: Path | None = None) -> Engine:
    """Write the files into the state directory and make the engine that runs them.

    Args:
        kept: a directory with copies of the files, used if the state directory is full.

    Raises:
        ComposeMissing, DockerMissing, DockerDenied, StorageError
    """
    engine = make_engine(endpoint, directory, tuple(directory / name for name in files.compose))
    try:
        for name, text in files.texts.items():
            write_text(directory / name, text)
    except StorageError:
        if kept is None:
            raise
        return make_engine(endpoint, directory, tuple(kept / name for name in files.compose))
    return engine


def with_own_cache(candidate: Candidate, image: ReleaseImage | None, directory: Path) -> Candidate:
    """The candidate with the cache of this image, GPU and driver, and no other's.

    Args:
        image: what it will run on; None for a process, whose cache is a directory.

    Raises:
        ComposeFailed, DockerMissing, StorageError
    """
    if image is None or not candidate.files.compose:
        return candidate
    endpoint = candidate.endpoint
    profile = profiles().get(endpoint.profile)
    maker = CacheMaker.of(image, None if profile and profile.engine == "cpu" else read_gpus())
    names = own_names(endpoint.project, candidate.engine.caches(), maker)
    text = host_file(names, maker, image, candidate.weights.fingerprint if candidate.weights else None)
    order = tuple(name for name in candidate.files.compose if name != HOST_FILE)
    files = Files(texts={**candidate.files.texts, HOST_FILE: text}, compose=(*order, HOST_FILE))
    volumes = tuple(names.values())
    use = CacheUse(
        volumes=volumes, image=maker.image, gpu=maker.gpu, driver=maker.driver, cold=bool(missing_volumes(volumes))
    )
    engine = compose_engine(endpoint, files, directory)
    return replace(candidate, files=files, engine=engine, cache=use if names else None)


def recorded_engine(record: Record, directory: Path) -> Engine:
    """The engine on record, to watch or stop it."""
    return make_engine(record.endpoint, directory, tuple(path for path in map(Path, record.files) if path.is_file()))


def make_engine(endpoint: Endpoint, directory: Path, files: tuple[Path, ...]) -> Engine:
    """The one place that knows which engine goes with which kind.

    Raises:
        ComposeMissing, DockerMissing, DockerDenied
    """
    if endpoint.runner is EngineKind.PROCESS:
        return ProcessEngine(directory=directory)
    compose = Compose(project=endpoint.project, files=files, command=find_compose(), directory=directory.resolve())
    if endpoint.replicas:
        return ReplicaSet(compose=compose, services=endpoint.replicas, base_url=endpoint.base_url)
    return ComposeEngine(compose=compose, service=endpoint.service)


def preflight(candidate: Candidate, directory: Path, *, force: bool, note: Callable[[str], None]) -> Candidate:
    """Refuse what can be refused before anything is started; returns the candidate with its checkpoint's identity.

    Raises:
        ModelMissing, CheckpointRefused, PortTaken, UsageError, StorageError
    """
    if file := candidate.settings.get("questions"):
        read_questions(Path(str(file)))
    if file := candidate.settings.get("notify_file"):
        read_text(Path(str(file)))  # refuses one that Docker could not mount
    if "guard" in candidate.settings.get("extras", ()):
        check_level("guard_refuse_below_gib", candidate.settings.get("guard_refuse_below_gib"))
    key = candidate.endpoint.api_key_file
    if key and ensure_key(Path(key)):
        note(f"made a new API key in {key}")
    for file in candidate.passwords:
        if ensure_key(file):
            note(f"made a new password in {file}")
    weights = check_checkpoint(candidate.endpoint, force=force, note=note)
    if not holds_own_port(candidate.endpoint.base_url, directory, lambda: candidate.engine):
        check_port(candidate.endpoint)
    return replace(candidate, weights=weights)


def holds_own_port(base_url: str, directory: Path, unrecorded: Callable[[], Engine]) -> bool:
    """Whether what this directory runs now holds the address, which will then be free once that is stopped.

    unrecorded: the engine to ask if nothing is on record (plain Compose, or an `up` that was killed early).
    """
    record = load_record(directory)
    if record is None:
        return unrecorded().state().running
    return record.endpoint.base_url == base_url and recorded_engine(record, directory).state().running


def choose_release(store: Store, directory: Path, name: str | None, *, force: bool) -> Release:
    """The release to roll back to. name: None for the last good one that differs from what runs.

    Raises:
        UsageError: there is none, or the named one never passed its gate.
    """
    if name is not None:
        release = store.find(name)
        if not release.good and not force:
            raise UsageError(
                f"release {release.id} never passed its gate: {release.reason}"[:300],
                hint=("choose a good one of `glm4-deploy releases`", "start and gate it anyway: --force"),
            )
        return release
    record = load_record(directory)
    running = next((one for one in store.releases() if record is not None and one.id == record.release), None)
    chosen = store.last_good(but=running.content if running else "")
    if chosen is None:
        raise UsageError("there is no good release to go back to", hint="see `glm4-deploy releases`")
    return chosen


def release_candidate(
    release: Release, store: Store, directory: Path, on_pull: Callable[[PullState], None]
) -> Candidate:
    """A candidate from the release's own files, with the very image that it ran on.

    Raises:
        StorageError: a copy is damaged.
        ImageMissing: its image is gone, and no registry has it.
        UsageError: it cannot be rebuilt.
        DockerMissing, DockerDenied, ComposeMissing, ComposeFailed
    """
    if not release.files:
        return _from_settings(release, directory)
    files = _pinned(release, store.files_of(release), on_pull)
    kept = None if PIN in files.texts else store.root / release.id
    engine = compose_engine(release.endpoint, files, directory, kept=kept)
    return Candidate(
        endpoint=release.endpoint, engine=engine, files=files, settings=release.settings, restores=release.id
    )


def check_release(
    candidate: Candidate, release: Release, directory: Path, *, force: bool, note: Callable[[str], None]
) -> Candidate:
    """Refuse a candidate that would not be that release.

    Raises:
        CheckpointRefused: the model directory holds another checkpoint now.
        ModelMissing, PortTaken
    """
    checked = preflight(candidate, directory, force=True, note=note)  # any faults were there when it was recorded
    now = checked.weights
    where = release.endpoint.model_dir
    fingerprint, stamp = (now.fingerprint, now.stamp) if now else (None, None)
    if fingerprint != release.fingerprint:
        mismatch = f"{where} holds another checkpoint now: fingerprint {fingerprint}, not {release.fingerprint}"
        if not force:
            raise CheckpointRefused(
                f"release {release.id} cannot be put back: {mismatch}",
                hint=(
                    "restore that checkpoint",
                    f"or start the present one, gated as usual: glm4-deploy rollback {release.id} --force",
                ),
            )
        note(f"forced past: {mismatch}")
    elif stamp != release.stamp:
        note(f"warning: files in {where} were written since release {release.id}; shapes and sizes are the same")
    return checked


def _pinned(release: Release, files: Files, on_pull: Callable[[PullState], None]) -> Files:
    """The files, with one more that names the image by its id if its tag now means another image."""
    image = release.image
    if image is None:
        return files
    client = connect()
    if find_image(client, image.id) is None:
        _fetch(release.id, image.id, image.digest, on_pull)
    now = find_image(client, image.reference)
    if now is not None and now.id == image.id:
        return files
    images = ", ".join(f'"{name}": {{image: "{image.id}"}}' for name in release.endpoint.engines)
    text = f"services: {{{images}}}\n"
    return Files(texts={**files.texts, PIN: text}, compose=(*files.compose, PIN))


def _fetch(release: str, image: str, digest: str | None, on_pull: Callable[[PullState], None]) -> None:
    gone = f"release {release} cannot be put back: its image {image[:19]} is no longer on this host"
    if digest is None:
        raise ImageMissing(gone, hint="load it again (docker load), or choose another release")
    try:
        pull(digest, on_pull)
    except ImageMissing as error:
        raise ImageMissing(f"{gone}, and {error.message}", hint=error.hints) from None
    if find_image(connect(), image) is None:
        raise ImageMissing(f"{gone}; {digest} is another image", hint="choose another release")


def _from_settings(release: Release, directory: Path) -> Candidate:
    """A process has no files, so it is planned again from the settings on record."""
    profile = profiles().get(release.endpoint.profile)
    if MASK in repr(release.settings) or profile is None:
        raise UsageError(
            f"release {release.id} cannot be rebuilt: its secrets or its profile are not on record",
            hint="use `glm4-deploy up` with its settings",
        )
    settings = Settings.model_validate(release.settings)
    spec = plan_deployment(settings, profile, choose_fraction(settings, profile))
    candidate = process_candidate(spec, directory, os.environ.get("GLM4_CPU_PYTHON"), release.settings)
    return replace(candidate, endpoint=release.endpoint, restores=release.id)
