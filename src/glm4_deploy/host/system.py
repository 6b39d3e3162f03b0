"""Ask many things at once, none of them for long: one hanging driver must not hang the report."""

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

# This host: memory, disk, addresses, security modules, clock. Read-only; what cannot be read is None.

GIB = 2**30


class PortState(StrEnum):
    """What binding an address would meet. DENIED: this user may not try (a port below 1024)."""

    FREE = "free"
    TAKEN = "taken"
    NO_ADDRESS = "no such address"
    DENIED = "denied"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system that a path lies on, or will lie on. Sizes in bytes."""

    path: str
    free: int
    total: int
    exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Sizes in bytes, times in seconds since 1970; None: not known.

    machine: x86_64, aarch64. selinux: enforcing, permissive, or None where there is none. apparmor: on or off.
    cgroup: 1 or 2.
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


def read_host(*, proc: Path = Path("/proc"), sys: Path = Path("/sys"), shm: Path = Path("/dev/shm")) -> HostFacts:  # noqa: S108
    """Read the host. The directories are given only to read a recorded tree."""
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
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            sizes[name.strip()] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return sizes


def read_disk(path: Path) -> Disk | None:
    """The nearest existing parent's file system; None where it cannot be asked."""
    there = next((parent for parent in (path, *path.parents) if _exists(parent)), None)
    if there is None:
        return None
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return None
    return Disk(path=str(path), free=usage.free, total=usage.total, exists=there == path)


def read_port(address: str, port: int) -> PortState:
    """Try to bind, and let go at once."""
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


# What the Docker engine and Compose say of themselves: read-only, with a short limit, and never raising.


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


COMPOSE_MINIMUM = (2, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeFacts:
    """Which Compose `up` would run.

    command: the words that call it. version: None where there is none; `trouble` says why.
    client: whether a Docker client is on PATH at all. hangs: whether it did not answer in time.
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
    """Docker's Compose plugin, else a `docker-compose` on PATH: the first that is recent, else the first that answers.

    `doctor` and `up` both look here. Does not raise.
    """
    commands = [words for words in (("docker", "compose"), ("docker-compose",)) if shutil.which(words[0])]
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
    return next((row for row in answers if row.version or row.hangs), missing)


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


def gather(probes: Mapping[str, Callable[[], Any]], *, timeout: float) -> dict[str, Any]:
    """Run every probe in a thread of its own; what did not answer within `timeout` seconds is left out.

    A probe that raises is left out too. Threads are daemons: a hanging one does not keep the program alive.
    """
    found: dict[str, Any] = {}

    def ask(name: str, probe: Callable[[], Any]) -> None:
        try:
            found[name] = probe()
        except Exception:  # noqa: BLE001 (whatever a probe dies of, its fact is unknown and the others count)
            return

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in probes.items()]
    for thread in threads:
        thread.start()
    end = monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - monotonic()))
    return dict(found)
