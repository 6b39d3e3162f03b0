"""The Docker engine through its SDK: what a container is, its log as it comes, its events."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container

from glm4_deploy.errors import DockerDenied, DockerMissing

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


def events(client: docker.DockerClient, container_id: str) -> Iterator[str]:
    """A container's event names (die, oom, restart, health_status: healthy …) as they happen, until closed."""
    with suppress(APIError, DockerException, ValueError, OSError):
        for event in client.events(filters={"container": container_id}, decode=True):
            yield str(event.get("Action", ""))
