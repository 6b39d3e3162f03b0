"""What the Docker engine and Compose say of themselves: read-only, with a short limit, and never raising."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glm4_deploy.facts.command import run


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerFacts:
    """The engine's own words. `trouble` is empty where it answered; `denied` tells a missing permission from the rest.

    runtimes: names (runc, nvidia). arch: x86_64, aarch64.
    digest: of the image wanted, None where it is not here.
    """

    trouble: str = ""
    denied: bool = False
    version: str | None = None
    arch: str | None = None
    cgroup: str | None = None
    root: str | None = None
    rootless: bool = False
    runtimes: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    image_here: bool | None = None
    image_digest: str | None = None

    @property
    def nvidia(self) -> bool:
        """Whether it can hand a GPU to a container, as far as it says."""
        return "nvidia" in self.runtimes or any(device.startswith("nvidia.com/gpu") for device in self.cdi_devices)


def read_docker(image: str, *, timeout: float = 1.8) -> DockerFacts:
    """Ask the engine, and for the image. Does not raise."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env(timeout=timeout)  # type: ignore[arg-type]  # the stubs say int; requests takes a float
        info: Mapping[str, Any] = client.info()
    except (DockerException, OSError) as error:
        denied = "Permission denied" in repr(error) or "PermissionError" in repr(error)
        return DockerFacts(
            trouble="no permission on the Docker socket" if denied else "no engine answers", denied=denied
        )
    try:
        found = client.images.get(image)
        digests = found.attrs.get("RepoDigests") or [found.id or ""]
        return parse_info(info, image_here=True, image_digest=str(digests[0]).rpartition("@")[2])
    except ImageNotFound:
        return parse_info(info, image_here=False)
    except (DockerException, OSError):
        return parse_info(info)
    finally:
        client.close()


def parse_info(
    info: Mapping[str, Any], *, image_here: bool | None = None, image_digest: str | None = None
) -> DockerFacts:
    """`docker info` as JSON, of any age: what an older engine does not say is empty. Pure."""
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    devices = [str(row.get("ID", "")) for row in info.get("DiscoveredDevices") or () if isinstance(row, dict)]
    return DockerFacts(
        version=info.get("ServerVersion"),
        arch=info.get("Architecture"),
        cgroup=info.get("CgroupVersion"),
        root=info.get("DockerRootDir"),
        rootless=any("rootless" in option for option in options),
        runtimes=tuple(info.get("Runtimes") or ()),
        cdi_devices=tuple(devices),
        image_here=image_here,
        image_digest=image_digest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeFacts:
    """`version` is None where Compose is not there; `trouble` says why."""

    version: tuple[int, ...] | None = None
    trouble: str = ""


def read_compose(*, timeout: float = 1.8) -> ComposeFacts:
    """Ask `docker compose version`."""
    output = run("docker", "compose", "version", "--format", "json", timeout=timeout)
    if not output.ok:
        return ComposeFacts(trouble=output.trouble or "`docker compose` is not installed")
    return parse_compose(output.stdout)


def parse_compose(text: str) -> ComposeFacts:
    """`{"version":"v2.40.3"}` or words with a version in them. Pure."""
    try:
        content = json.loads(text)
        said = str(content.get("version", "")) if isinstance(content, dict) else text
    except ValueError:
        said = text
    match = re.search(r"v?(\d+)\.(\d+)(?:\.(\d+))?", said)
    if match is None:
        return ComposeFacts(trouble=f"not a version: {said.strip()[:40]!r}")
    return ComposeFacts(version=tuple(int(part) for part in match.groups(default="0")))
