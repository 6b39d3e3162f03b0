"""A wish made ready to be deployed: its files written, its runner chosen, refused where it can be refused now."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glm4_deploy.engine import keyfile, state
from glm4_deploy.engine.compose import Compose, find_compose
from glm4_deploy.engine.docker import connect
from glm4_deploy.engine.preflight import Weights, check_checkpoint, check_port
from glm4_deploy.engine.process import ProcessRunner
from glm4_deploy.engine.release import Service
from glm4_deploy.engine.replicas import ReplicaSet
from glm4_deploy.engine.runner import ComposeRunner, Runner
from glm4_deploy.engine.store import Files
from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.facts.redact import secrets_in, without_secrets
from glm4_deploy.files import read_text, write_text
from glm4_deploy.plan.deployment import Deployment
from glm4_deploy.render.compose import COMPOSE, rendered


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is to run next. settings: what made it, no secrets; restores: the release that it puts back."""

    service: Service
    runner: Runner
    files: Files
    settings: Mapping[str, Any]
    weights: Weights | None = None
    restores: str = ""

    @property
    def secrets(self) -> frozenset[str]:
        """Values that must not be kept with the log."""
        key = self.service.api_key_file
        own = frozenset({keyfile.read(Path(key))}) if key else frozenset()
        if not isinstance(self.runner, ComposeRunner | ReplicaSet):
            return own
        services = self.runner.model.get("services", {}).values()
        return own.union(*(secrets_in(service.get("environment") or {}) for service in services))


def compose_candidate(
    deployment: Deployment, overrides: tuple[Path, ...], directory: Path, settings: Mapping[str, Any]
) -> Candidate:
    """Write the rendered file and copies of the overrides; what is started is what is recorded.

    Raises:
        ComposeMissing, ComposeFailed, DockerMissing, DockerDenied, UsageError, StorageError
    """
    for override in overrides:
        if not override.is_file():
            raise UsageError(f"no override file at {override}", hint="check the path given with --override")
    copies = {f"override-{number}.yaml": read_text(path) for number, path in enumerate(overrides, 1)}
    texts = {**rendered(absolute(deployment)), **copies}
    files = Files(texts=texts, compose=(COMPOSE, *copies))
    runner = compose_runner(
        deployment.project, deployment.service, files, directory, replicas=state.replica_names(deployment)
    )
    return Candidate(
        service=service_of(deployment, "compose", runner.image),
        runner=runner,
        files=files,
        settings=without_secrets(settings),
    )


def process_candidate(
    deployment: Deployment, directory: Path, python: str | None, settings: Mapping[str, Any]
) -> Candidate:
    return Candidate(
        service=service_of(deployment, "process", ""),
        runner=ProcessRunner(deployment=deployment, directory=directory, python=python),
        files=Files(texts={}, compose=()),
        settings=without_secrets(settings),
    )


def compose_runner(
    project: str,
    service: str,
    files: Files,
    directory: Path,
    *,
    kept: Path | None = None,
    replicas: tuple[str, ...] = (),
) -> ComposeRunner | ReplicaSet:
    """A runner over files written into the state directory; `kept` holds copies to use where that is full.

    Raises:
        ComposeMissing, DockerMissing, DockerDenied, StorageError
    """
    command = find_compose()
    connect()
    place = directory
    try:
        for name, text in files.texts.items():
            write_text(directory / name, text)
    except StorageError:
        if kept is None:
            raise
        place = kept
    compose = Compose(
        project=project,
        files=tuple(place / name for name in files.compose),
        command=command,
        directory=directory.resolve(),
    )
    return _composed(compose, service, replicas)


def _composed(compose: Compose, service: str, replicas: tuple[str, ...]) -> ComposeRunner | ReplicaSet:
    if replicas:
        return ReplicaSet(compose=compose, services=replicas)
    return ComposeRunner(compose=compose, service=service)


def absolute(deployment: Deployment) -> Deployment:
    """Relative paths (model, key) seen from here, since the rendered file lies elsewhere."""
    key = deployment.hardening.api_key_file
    hardening = replace(deployment.hardening, api_key_file=key and str(Path.cwd() / key))
    return replace(deployment, model_source=str(Path.cwd() / deployment.model_source), hardening=hardening)


def service_of(deployment: Deployment, runner: str, image: str) -> Service:
    quiet = {"disable-uvicorn-access-log", "disable-access-log-for-endpoints", "uvicorn-log-level"}
    return Service(
        runner=runner,
        project=deployment.project,
        service=deployment.service,
        profile=deployment.profile,
        base_url=deployment.base_url,
        bind=deployment.bind,
        port=deployment.port,
        model=deployment.served_model_name,
        model_dir=str(Path.cwd() / deployment.model_dir),
        max_model_len=deployment.max_model_len,
        start_period=deployment.start_period,
        logs_requests=quiet.isdisjoint(flag.name for flag in deployment.flags),
        image=image,
        vllm=deployment.vllm,
        api_key_file=absolute(deployment).hardening.api_key_file,
        replicas=state.replica_names(deployment),
    )


def preflight(candidate: Candidate, directory: Path, *, force: bool, note: Callable[[str], None]) -> Candidate:
    """Everything that can be refused before something is started; the candidate with what its checkpoint is.

    Raises:
        ModelMissing, CheckpointRefused, PortTaken, UsageError, StorageError
    """
    key = candidate.service.api_key_file
    if key and keyfile.ensure(Path(key)):
        note(f"made a new API key in {key}")
    weights = check_checkpoint(candidate.service, force=force, note=note)
    if not _own_port(candidate, directory):
        check_port(candidate.service)
    return replace(candidate, weights=weights)


def _own_port(candidate: Candidate, directory: Path) -> bool:
    """Whether the port is held by what this directory runs now, and so will be free once that is stopped."""
    record = state.load(directory)
    if record is None:
        return candidate.runner.state().running  # started by plain Compose, or by an `up` that was killed early
    return record.base_url == candidate.service.base_url and runner_of(record, directory).state().running


def runner_of(record: state.Record, directory: Path) -> Runner:
    """The runner of what is on record."""
    if record.runner == "process":
        return ProcessRunner(deployment=None, directory=directory, python=None)
    files = tuple(path for name in record.files if (path := Path(name)).is_file())
    compose = Compose(project=record.project, files=files, command=find_compose(), directory=directory.resolve())
    return _composed(compose, record.service, record.replicas)
