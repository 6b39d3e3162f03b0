"""Memory, disk, ports, Docker and Compose of this host. Read-only; what cannot be read is None."""

import errno
import json
import platform
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Any

from glm4_deploy.run import RunFailure, run_program

GIB = 2**30


class PortState(StrEnum):
    """The result of binding an address. DENIED: this user may not bind it (a port below 1024)."""

    FREE = "free"
    TAKEN = "taken"
    NO_ADDRESS = "no such address"
    DENIED = "denied"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system of a path that may not exist yet. Sizes in bytes."""

    path: str
    free: int
    total: int
    exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The machine and its kernel. Sizes in bytes; None: unknown.

    Attributes:
        machine: x86_64, aarch64.
        cgroup: version 1 or 2.
        selinux: enforcing, permissive, or None without SELinux.
        clock: epoch seconds.
    """

    machine: str
    kernel: str
    memory_total: int | None
    memory_available: int | None
    shm_total: int | None
    cgroup: int | None
    selinux: str | None
    apparmor: bool
    clock: float

    @property
    def wsl(self) -> bool:
        """Whether this is WSL2: its kernel names Microsoft (`5.15.167.4-microsoft-standard-WSL2`)."""
        return "microsoft" in self.kernel.lower()


def read_host(*, proc: Path = Path("/proc"), sys: Path = Path("/sys"), shm: Path = Path("/dev/shm")) -> HostFacts:  # noqa: S108
    """Read the host. The arguments serve only to read a recorded tree instead."""
    memory = parse_meminfo(_text(proc / "meminfo") or "")
    return HostFacts(
        machine=platform.machine(),
        kernel=platform.release(),
        memory_total=memory.get("MemTotal"),
        memory_available=memory.get("MemAvailable"),
        shm_total=_total(shm),
        cgroup=_cgroup(sys),
        selinux={"1": "enforcing", "0": "permissive"}.get((_text(sys / "fs/selinux/enforce") or "").strip()),
        apparmor=(_text(sys / "module/apparmor/parameters/enabled") or "").strip() == "Y",
        clock=time.time(),
    )


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes: `MemTotal:  127600748 kB` → {"MemTotal": 130663165952}."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        size, *unit = value.split() or [""]
        if size.isdigit():
            sizes[name.strip()] = int(size) * (1024 if unit == ["kB"] else 1)
    return sizes


def read_disk(path: Path) -> Disk | None:
    """The file system of the path or its nearest existing parent; None if it cannot be read."""
    existing = next((parent for parent in (path, *path.parents) if _exists(parent)), None)
    if existing is None:
        return None
    try:
        usage = shutil.disk_usage(existing)
    except OSError:
        return None
    return Disk(path=str(path), free=usage.free, total=usage.total, exists=existing == path)


def read_port(address: str, port: int) -> PortState:
    """Try to bind, and release the port at once."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        return port_state(error)
    return PortState.FREE


def port_state(error: OSError) -> PortState:
    """Why an address could not be bound."""
    known = {
        errno.EADDRINUSE: PortState.TAKEN,
        errno.EADDRNOTAVAIL: PortState.NO_ADDRESS,
        errno.EACCES: PortState.DENIED,
        errno.EPERM: PortState.DENIED,
    }
    return known.get(error.errno or 0, PortState.UNKNOWN)


def _cgroup(sys: Path) -> int | None:
    base = sys / "fs/cgroup"
    if _exists(base / "cgroup.controllers"):
        return 2
    return 1 if _exists(base / "memory") else None


def _total(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


# Docker and Compose: read-only, with a short time limit, never raising.


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerFacts:
    """The Docker engine as reported by itself.

    Attributes:
        trouble: why it did not answer; '' if it did.
        denied: whether the trouble is a missing permission.
        arch: x86_64, aarch64.
        root: its data directory.
        runtimes: names (runc, nvidia).
        image_here: whether it has the image in question; None: unknown.
        image_digest: of that image; None if it is not here.
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
        """Whether it reports a way to give a container a GPU."""
        return "nvidia" in self.runtimes or any(device.startswith("nvidia.com/gpu") for device in self.cdi_devices)


def read_docker(image: str, *, timeout: float = 1.8) -> DockerFacts:
    """Ask the engine about itself and about one image. Does not raise."""
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
        local = client.images.get(image)
        digests = local.attrs.get("RepoDigests") or [local.id or ""]
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
    """The facts in `docker info` as JSON; what an older engine does not report is empty."""
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


COMPOSE_MINIMUM = (2, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeFacts:
    """The Compose that `up` would run.

    Attributes:
        command: the program and its first argument.
        version: None if there is none; `trouble` is the reason.
        client: whether there is a Docker client on PATH at all.
        hangs: whether it did not answer in time.
    """

    command: tuple[str, ...] = ()
    version: tuple[int, ...] | None = None
    client: bool = True
    hangs: bool = False
    trouble: str = ""

    @property
    def recent(self) -> bool:
        return self.version is not None and self.version[:2] >= COMPOSE_MINIMUM


def read_compose(*, timeout: float = 1.8) -> ComposeFacts:
    """Docker's Compose plugin, or a `docker-compose` on PATH: the first that is recent, or else the first that answers.

    Used by both `doctor` and `up`. Does not raise.
    """
    commands = [command for command in (("docker", "compose"), ("docker-compose",)) if shutil.which(command[0])]
    if not commands:
        return ComposeFacts(client=False, trouble="no Docker client is on PATH")
    answers = []
    for command in commands:
        output = run_program(*command, "version", "--short", timeout=timeout)
        facts = parse_compose(output.stdout) if output.ok else ComposeFacts(trouble=output.trouble)
        answers.append(replace(facts, command=command, hangs=output.failure is RunFailure.TIMEOUT))
        if facts.recent:
            return answers[-1]
    missing = ComposeFacts(trouble="docker compose is not installed")
    return next((facts for facts in answers if facts.version or facts.hangs), missing)


def parse_compose(text: str) -> ComposeFacts:
    """The version in `{"version":"v2.40.3"}` or in plain text."""
    try:
        content = json.loads(text)
        version = str(content.get("version", "")) if isinstance(content, dict) else text
    except ValueError:
        version = text
    match = re.search(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    if match is None:
        return ComposeFacts(trouble=f"not a version: {version.strip()[:40]!r}")
    return ComposeFacts(version=tuple(int(part) for part in match.groups(default="0")))


# Many facts at once.


def gather(probes: Mapping[str, Callable[[], Any]], *, timeout: float) -> dict[str, Any]:
    """Run every probe in its own thread, so that a hanging driver cannot hang the report; the results by name.

    A probe that raises or takes more than `timeout` seconds is left out. The threads are daemons: a hanging one does
    not keep the program alive.
    """
    results: dict[str, Any] = {}

    def ask(name: str, probe: Callable[[], Any]) -> None:
        try:
            results[name] = probe()
        except Exception:  # noqa: BLE001 (however a probe fails, its fact is unknown and the others count)
            return

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in probes.items()]
    for thread in threads:
        thread.start()
    end = monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - monotonic()))
    return dict(results)
