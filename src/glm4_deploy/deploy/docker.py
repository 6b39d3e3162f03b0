"""The Docker engine through its SDK: containers, their logs and events, and images."""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.utils import parse_repository_tag

from glm4_deploy.deploy.releases import ReleaseImage
from glm4_deploy.errors import DockerDenied, DockerMissing, ImageMissing, PlanRefused, StorageError
from glm4_deploy.files import read_text
from glm4_deploy.settings import save_settings_file

PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
ONE_OFF_LABEL = "com.docker.compose.oneoff"
HASH_LABEL = "com.docker.compose.config-hash"
GONE = "the Docker engine stopped answering"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerState:
    """A container as reported by the engine.

    Attributes:
        started_at: epoch seconds; 0 before its first start.
        exit_code: of the last run; None while it runs.
        health: healthy, unhealthy, starting, or None without a health check.
        pid: on the host; 0 while it does not run.
        config_hash: Compose's digest of the service that it was created from.
    """

    id: str
    name: str
    image: str
    image_id: str
    status: str
    started_at: float
    restarts: int
    exit_code: int | None
    oom_killed: bool
    health: str | None
    ports: tuple[str, ...]
    pid: int = 0
    config_hash: str = ""
    restart_policy: str = ""

    @property
    def running(self) -> bool:
        return self.status == "running"

    @property
    def gave_up(self) -> bool:
        """Whether templates/restart.sh.j2 has ended a series of restarts: only then does an engine end with 0."""
        return (self.status, self.exit_code, self.restart_policy) == ("exited", 0, "on-failure") and self.restarts > 0


def connect(*, timeout: float = 20) -> docker.DockerClient:
    """A client for an engine that answers.

    Raises:
        DockerMissing, DockerDenied
    """
    try:
        client = docker.from_env(timeout=int(timeout))
        client.ping()
    except (DockerException, OSError) as error:
        if _caused_by(error, PermissionError):
            raise DockerDenied(
                "no permission on the Docker socket", hint="add yourself to the group docker, or use sudo"
            ) from error
        raise DockerMissing(
            "no Docker engine answers", hint="install Docker Engine and start it: sudo systemctl start docker"
        ) from error
    return client


BACK_SECONDS = 60.0


def wait_for_docker() -> None:
    """Wait until the Docker engine answers again; after a restart that takes seconds.

    Raises:
        DockerMissing: it does not answer within BACK_SECONDS.
        DockerDenied
    """
    deadline = time.monotonic() + BACK_SECONDS
    while True:
        try:
            connect(timeout=5)
            return
        except DockerMissing:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


@contextmanager
def answering() -> Iterator[None]:
    """Turn whatever the SDK raises when the engine disappears into one error.

    Raises:
        DockerMissing
    """
    try:
        yield
    except (DockerException, requests.RequestException, OSError) as error:
        raise DockerMissing(f"{GONE}: {type(error).__name__}", hint="start it: sudo systemctl start docker") from error


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind) or any(isinstance(part, kind) for part in error.args):
            return True
        if "Permission denied" in str(error) and kind is PermissionError:
            return True
        error = error.__cause__ or error.__context__
    return False


def find_container(client: docker.DockerClient, project: str, service: str) -> Container | None:
    """The container of a Compose service, running or not; None if there is none.

    Not one that `docker compose run` made of the same service: that is not deployed.
    """
    with answering():
        containers = client.containers.list(
            all=True,
            ignore_removed=True,
            filters={"label": [f"{PROJECT_LABEL}={project}", f"{SERVICE_LABEL}={service}"]},
        )
    return next((one for one in containers if one.labels.get(ONE_OFF_LABEL) != "True"), None)


def state_of(container: Container) -> ContainerState | None:
    """The present state of a container; None if it is gone."""
    with answering():
        try:
            container.reload()
        except NotFound:
            return None
    attributes: dict[str, Any] = container.attrs
    state = attributes["State"]
    running = state["Status"] in ("running", "paused")
    return ContainerState(
        id=attributes["Id"],
        name=attributes["Name"].lstrip("/"),
        image=attributes["Config"]["Image"],
        image_id=attributes["Image"],
        status=state["Status"],
        started_at=_epoch(state["StartedAt"]),
        restarts=attributes.get("RestartCount", 0),
        exit_code=None if running else state["ExitCode"],
        oom_killed=bool(state.get("OOMKilled")),
        health=state.get("Health", {}).get("Status"),
        ports=tuple(_published(attributes)),
        pid=int(state.get("Pid") or 0),
        config_hash=str((attributes["Config"].get("Labels") or {}).get(HASH_LABEL, "")),
        restart_policy=attributes.get("HostConfig", {}).get("RestartPolicy", {}).get("Name") or "no",
    )


def address_in(container: Container) -> str | None:
    """The container's address on its Compose network, reachable from this host; None if it has none."""
    with answering():
        container.reload()
    networks = container.attrs["NetworkSettings"]["Networks"].values()
    return next((str(network["IPAddress"]) for network in networks if network.get("IPAddress")), None)


def _published(attributes: dict[str, Any]) -> Iterator[str]:
    for inside, bindings in (attributes["NetworkSettings"].get("Ports") or {}).items():
        for binding in bindings or ():
            yield f"{binding['HostIp']}:{binding['HostPort']}->{inside}"


def _epoch(text: str) -> float:
    """Epoch seconds of Docker's RFC 3339 time with nanoseconds; 0 for its zero value (year 1)."""
    if text.startswith("0001-"):
        return 0.0
    seconds, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(seconds + "+00:00").timestamp() + float(f"0.{fraction or 0}")


def log_lines(container: Container, *, since: float, follow: bool) -> Iterator[str]:
    """The lines of the log since a moment (epoch seconds; 0: all), each with Docker's timestamp in front.

    With `follow`, new lines too, as long as the container runs.
    """
    stream = container.logs(stream=True, follow=follow, timestamps=True, since=int(since) or None)
    pending = b""
    for chunk in stream:
        pending += chunk
        *lines, pending = pending.split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace")
    if pending:
        yield pending.decode("utf-8", errors="replace")


def container_events(client: docker.DockerClient, container_id: str) -> Iterator[str]:
    """A container's events by name (die, oom, restart, health_status: healthy …) as they happen, until closed."""
    with suppress(APIError, DockerException, ValueError, OSError):
        for event in client.events(filters={"container": container_id}, decode=True):
            yield str(event.get("Action", ""))


# Images: finding one on this host, and pulling one with progress by layer.

SILENT_SECONDS = 600  # unpacking a large layer produces no output for minutes
DONE = frozenset({"Pull complete", "Already exists"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of a pull. Sizes are compressed bytes, 0 while unknown."""

    id: str
    status: str
    current: int = 0
    total: int = 0

    @property
    def done(self) -> bool:
        return self.status in DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class PullState:
    """The progress of a pull; totals grow as the registry reports more layers."""

    layers: tuple[Layer, ...]
    seconds: float

    @property
    def fetched(self) -> int:
        return sum(layer.current for layer in self.layers)

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers)

    @property
    def done(self) -> int:
        return sum(layer.done for layer in self.layers)


def find_image(client: docker.DockerClient, reference: str) -> ReleaseImage | None:
    """The local image for a reference (name, id or digest); None if there is none.

    Raises:
        DockerMissing
    """
    with answering():
        try:
            image = client.images.get(reference)
        except ImageNotFound:
            return None
        except APIError as error:
            if error.is_client_error():
                return None  # not a valid reference for the engine
            raise
    digests = image.attrs.get("RepoDigests") or ()
    return ReleaseImage(reference=reference, id=str(image.id), digest=next(iter(digests), None))


def fetch_image(
    reference: str, note: Callable[[str], None], on_progress: Callable[[PullState], None]
) -> ReleaseImage | None:
    """The image for a reference, pulled if this host does not have it.

    Raises:
        PlanRefused: it is built for another processor.
        As `pull`.
    """
    client = connect()
    image = find_image(client, reference)
    if image is None:
        note(f"pulling {reference}")
        pull(reference, on_progress)
        image = find_image(client, reference)
    if image is not None:
        check_processor(client, reference)
    return image


PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64"}  # as Docker's host says it → as an image says it


def check_processor(client: docker.DockerClient, reference: str) -> None:
    """Refuse a local image that is built for another processor: its programs cannot run here.

    Raises:
        PlanRefused, DockerMissing
    """
    with answering():
        built_for = str(client.images.get(reference).attrs.get("Architecture") or "")
        host = str(client.info().get("Architecture", ""))
    here = PROCESSORS.get(host, host)
    if built_for and here and built_for != here:
        raise PlanRefused(
            f"the image {reference} is built for {built_for}, and this host is {here}",
            hint="choose an image for this processor: glm4-deploy images",
        )


def pull(reference: str, on_progress: Callable[[PullState], None]) -> None:
    """Fetch an image from its registry.

    Raises:
        ImageMissing: refused, not found, or the connection broke; with the registry's message.
        StorageError: the disk is full.
        DockerMissing, DockerDenied
    """
    client = connect(timeout=SILENT_SECONDS)
    repository, tag = parse_repository_tag(reference)
    try:
        events = client.api.pull(repository, tag=tag or "latest", stream=True, decode=True)
        for state in pull_states(reference, events):
            on_progress(state)
    except (DockerException, requests.RequestException, OSError) as error:
        raise _pull_error(reference, getattr(error, "explanation", None) or str(error)) from None


def pull_states(reference: str, events: Iterable[Mapping[str, Any]]) -> Iterator[PullState]:
    """The progress after each event about a layer. Raises as `pull` for an error event."""
    layers: dict[str, Layer] = {}
    begin = time.monotonic()
    for event in events:
        if "error" in event:
            raise _pull_error(reference, str(event["error"]))
        if _update(layers, event):
            yield PullState(layers=tuple(layers.values()), seconds=time.monotonic() - begin)


def _update(layers: dict[str, Layer], event: Mapping[str, Any]) -> bool:
    """Apply one event of the engine's stream; False if it is not about a layer."""
    name, status = str(event.get("id", "")), str(event.get("status", ""))
    if not name or status.startswith("Pulling from"):
        return False
    before = layers.get(name, Layer(id=name, status=status))
    current, total = before.current, before.total
    detail = event.get("progressDetail") or {}
    if status == "Downloading":
        current, total = int(detail.get("current") or current), int(detail.get("total") or total)
    elif status in ("Download complete", "Extracting", "Pull complete"):
        current = total
    layers[name] = Layer(id=name, status=status, current=current, total=total)
    return True


def _pull_error(reference: str, why: str) -> ImageMissing | StorageError:
    message = " ".join(why.split())[:300]
    if "no space left" in message:
        return StorageError(
            f"the disk is full: image {reference}: {message}", hint="free space: see `docker system df`"
        )
    return ImageMissing(
        f"the image {reference} is not here and could not be pulled: {message}",
        hint="check the tag, the network and `docker login`",
    )


# Pins: digests of images from the local Docker engine, stored in the settings file.

BLOCK = re.compile(r"^digests:.*\n(?:[ \t#].*\n|\n(?=[ \t]))*", re.MULTILINE)


def image_digests(references: Iterable[str]) -> dict[str, str | None]:
    """`repository:tag` → `sha256:…`; "" for an image without a registry (built here), None if it is not here.

    Raises:
        DockerMissing, DockerDenied
    """
    client = connect()
    return {reference: _digest(client, reference) for reference in references}


def _digest(client: docker.DockerClient, reference: str) -> str | None:
    repository = reference.rpartition(":")[0]
    try:
        digests = client.images.get(reference).attrs.get("RepoDigests") or []
    except ImageNotFound:
        return None
    return next((digest for name, _, digest in (item.rpartition("@") for item in digests) if name == repository), "")


def write_pins(file: Path, digests: Mapping[str, str]) -> None:
    """Write the block `digests:` into the settings file; all other lines stay as they are.

    Raises:
        UsageError: the resulting file would not be valid; nothing is written.
        StorageError
    """
    before = read_text(file) if file.exists() else ""
    lines = [f"  {json.dumps(reference)}: {digest}\n" for reference, digest in digests.items()]
    block = "digests: # by `glm4-deploy lock`\n" + "".join(lines)
    if BLOCK.search(before):
        text = BLOCK.sub(lambda _: block, before, count=1)
    else:
        text = before + ("" if before.endswith("\n") or not before else "\n") + block
    save_settings_file(file, text)
