"""The kit's own image: a build context made of this very installation, handed to `docker build`."""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.utils import parse_repository_tag

import glm4_deploy
from glm4_deploy import __version__
from glm4_deploy.deploy.releases import ReleaseImage
from glm4_deploy.errors import DockerDenied, DockerMissing, ImageMissing, StorageError, UsageError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.render.quoting import TEMPLATES
from glm4_deploy.run import run_program
from glm4_deploy.settings import REPOSITORY, TAG, load_settings

# The Docker engine through its SDK: what a container is, its log as it comes, its events.

PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
HASH_LABEL = "com.docker.compose.config-hash"
GONE = "the Docker engine stopped answering"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerState:
    """What the engine says of a container. `started_at` is seconds since the epoch, 0 before its first start.

    health: healthy, unhealthy, starting, or None where the container has no health check.
    exit_code: of the last run, None while it runs. pid: on the host, 0 while it does not run.
    config_hash: Compose's own digest of the service that it was made from.
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


def connect(*, timeout: float = 20) -> docker.DockerClient:
    """A client whose engine has answered.

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
    """Until the Docker engine answers again: a restarted one is back within seconds.

    Raises:
        DockerMissing, DockerDenied: it is not back within BACK_SECONDS.
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
    """Whatever the SDK raises when the engine goes away in the middle becomes one error.

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
    """The container of a Compose service, running or not; None where there is none."""
    with answering():
        found = client.containers.list(
            all=True, filters={"label": [f"{PROJECT_LABEL}={project}", f"{SERVICE_LABEL}={service}"]}
        )
    return found[0] if found else None


def state_of(container: Container) -> ContainerState | None:
    """A fresh look at a container; None where it is gone."""
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
    """The container's address on its Compose network, as this host reaches it; None where it has none."""
    with answering():
        container.reload()
    networks = container.attrs["NetworkSettings"]["Networks"].values()
    return next((str(network["IPAddress"]) for network in networks if network.get("IPAddress")), None)


def _published(attributes: dict[str, Any]) -> Iterator[str]:
    for inside, bindings in (attributes["NetworkSettings"].get("Ports") or {}).items():
        for binding in bindings or ():
            yield f"{binding['HostIp']}:{binding['HostPort']}->{inside}"


def _epoch(text: str) -> float:
    """Docker's RFC 3339 with nanoseconds; its zero value (year 1) is 0."""
    if text.startswith("0001-"):
        return 0.0
    seconds, _, rest = text.rstrip("Z").partition(".")
    whole = datetime.fromisoformat(seconds + "+00:00").timestamp()
    return whole + float(f"0.{rest or 0}")


def log_lines(container: Container, *, since: float, follow: bool) -> Iterator[str]:
    """The log from a moment (epoch seconds, 0: all) on, line by line, Docker's timestamps in front; with `follow` as
    long as the container runs."""
    stream = container.logs(stream=True, follow=follow, timestamps=True, since=int(since) or None)
    rest = b""
    for chunk in stream:
        rest += chunk
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace")
    if rest:
        yield rest.decode("utf-8", errors="replace")


def container_events(client: docker.DockerClient, container_id: str) -> Iterator[str]:
    """A container's event names (die, oom, restart, health_status: healthy …) as they happen, until closed."""
    with suppress(APIError, DockerException, ValueError, OSError):
        for event in client.events(filters={"container": container_id}, decode=True):
            yield str(event.get("Action", ""))


# Images: what a reference means on this host now, and fetching it with progress by layer.

SILENT_SECONDS = 600  # unpacking one large layer says nothing for minutes
DONE = frozenset({"Pull complete", "Already exists"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer on its way. Sizes are compressed bytes, 0 while unknown."""

    id: str
    status: str
    current: int = 0
    total: int = 0

    @property
    def done(self) -> bool:
        return self.status in DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class PullState:
    """The whole of a pull, as far as it is known: totals grow as the registry tells of more layers."""

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
    """The image that a reference (name, id or digest) means here; None where it is not here.

    Raises:
        DockerMissing
    """
    with answering():
        try:
            found = client.images.get(reference)
        except ImageNotFound:
            return None
        except APIError as error:
            if error.is_client_error():
                return None  # a reference that names nothing, as the engine reads it
            raise
    return ReleaseImage(
        reference=reference, id=str(found.id), digest=next(iter(found.attrs.get("RepoDigests") or ()), None)
    )


def pull(reference: str, on_progress: Callable[[PullState], None]) -> None:
    """Fetch an image from its registry.

    Raises:
        ImageMissing: refused, not found, or the line broke; the registry's own words.
        StorageError: no room for it.
        DockerMissing, DockerDenied
    """
    client = connect(timeout=SILENT_SECONDS)
    repository, tag = parse_repository_tag(reference)
    layers: dict[str, Layer] = {}
    begin = time.monotonic()
    try:
        for event in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in event:
                raise _refused(reference, str(event["error"]))
            if _take(layers, event):
                on_progress(PullState(layers=tuple(layers.values()), seconds=time.monotonic() - begin))
    except (DockerException, requests.RequestException, OSError) as error:
        raise _refused(reference, getattr(error, "explanation", None) or str(error)) from None


def pulled(events: Iterator[Mapping[str, Any]]) -> PullState:
    """What a whole stream of events comes to."""
    layers: dict[str, Layer] = {}
    for event in events:
        _take(layers, event)
    return PullState(layers=tuple(layers.values()), seconds=0.0)


def _take(layers: dict[str, Layer], event: Mapping[str, Any]) -> bool:
    """One event of the engine's stream into the layers; False where it tells nothing of a layer."""
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


def _refused(reference: str, why: str) -> ImageMissing | StorageError:
    words = " ".join(why.split())[:300]
    if "no space left" in words:
        return StorageError(
            f"no room for the image {reference}: {words}", hint="see `docker system df`, free some disk"
        )
    return ImageMissing(
        f"the image {reference} is not here and could not be pulled: {words}",
        hint="check the tag, the network and `docker login`",
    )


# Digests of images as the local Docker engine knows them, and the place in the settings file where they are kept.

BLOCK = re.compile(r"^digests:.*\n(?:[ \t#].*\n|\n(?=[ \t]))*", re.MULTILINE)


def image_digests(references: Iterable[str]) -> dict[str, str | None]:
    """`repository:tag` → `sha256:…`; "" for an image that no registry gave (built here), None where it is not here.

    Raises:
        DockerMissing, DockerDenied
    """
    client = connect()
    return {reference: _digest(client, reference) for reference in references}


def _digest(client: docker.DockerClient, reference: str) -> str | None:
    repository = reference.rpartition(":")[0]
    try:
        found = client.images.get(reference).attrs.get("RepoDigests") or []
    except ImageNotFound:
        return None
    mine = [item.rpartition("@")[2] for item in found if item.rpartition("@")[0] == repository]
    return mine[0] if mine else ""


def keep_pins(file: Path, found: Mapping[str, str]) -> None:
    """Write the block `digests:` into the settings file; every other line stays as it is.

    Raises:
        UsageError, StorageError: nothing is written where the result would not be read back.
    """
    before = read_text(file) if file.exists() else ""
    lines = [f"  {json.dumps(reference)}: {digest}\n" for reference, digest in found.items()]
    block = "digests: # by `glm4-deploy lock`\n" + "".join(lines)
    if BLOCK.search(before):
        text = BLOCK.sub(lambda _: block, before, count=1)
    else:
        text = before + ("" if before.endswith("\n") or not before else "\n") + block
    checked = file.with_name(f".{file.name}.checked")
    try:
        write_text(checked, text)
        load_settings(file=checked)
    finally:
        checked.unlink(missing_ok=True)
    write_text(file, text)


BASE = "python:3.12-slim"
NAME = "glm4-deploy/kit"
BUILD_SECONDS = 3600  # it pulls a base image and installs packages
REFERENCE = re.compile(rf"{REPOSITORY}(:{TAG})?(@sha256:[0-9a-f]{{64}})?")


def tag() -> str:
    """The tag that rendered files ask for."""
    return f"{NAME}:{__version__}"


def requirements() -> tuple[str, ...]:
    """What the kit needs beside Python, as installed here: its own metadata, without extras."""
    return tuple(line for line in requires("glm4-deploy") or () if "extra ==" not in line)


def context(directory: Path) -> None:
    """Write the build context: the Dockerfile, the requirements, and the package with its templates.

    Raises:
        StorageError: the disk is full or not writable.
    """
    package = Path(glm4_deploy.__file__).parent
    templates = next(path for path in TEMPLATES if (path / "image/Dockerfile").is_file())
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    try:
        shutil.copy(templates / "image/Dockerfile", directory / "Dockerfile")
        (directory / "requirements.txt").write_text("\n".join(requirements()) + "\n")
        shutil.copytree(package, directory / "glm4_deploy", ignore=unwanted)
        shutil.copytree(templates, directory / "glm4_deploy/templates", ignore=unwanted, dirs_exist_ok=True)
        for path in directory.rglob("*"):  # whoever built it, uid 65532 must be able to read it
            path.chmod(0o755 if path.is_dir() else 0o644)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}", hint="check free space") from error


def build_kit_image(*, base: str, name: str, network: str | None = None) -> None:
    """Build the image; docker's own words go to stderr.

    Raises:
        UsageError: no name of an image. DockerMissing, DockerDenied: no client or engine.
        ImageMissing: the build failed.
    """
    for option, given in (("--base", base), ("--tag", name)):
        if not REFERENCE.fullmatch(given):
            raise UsageError(f"{option} {given[:80]!r} names no image", hint="for example python:3.12-slim")
    if shutil.which("docker") is None:
        raise DockerMissing("no `docker` is on PATH", hint="install Docker: docs.docker.com/engine/install")
    connect()
    with tempfile.TemporaryDirectory(prefix="glm4-image-") as made:
        context(Path(made))
        argv = ["docker", "build", "--build-arg", f"BASE={base}", "--tag", name]
        argv += ["--network", network] if network else []
        done = run_program(*argv, made, timeout=BUILD_SECONDS, show=True)
    if not done.ok:
        raise ImageMissing(
            f"docker build of {name} from {base} failed ({done.trouble or f'exit code {done.code}'})",
            hint="see docker's own words above: the base must be pullable or here, and pip must reach a package index",
        )
