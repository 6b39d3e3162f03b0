"""This host: memory, disk, addresses, security modules, clock. Read-only; what cannot be read is None."""

import errno
import platform
import shutil
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

GIB = 2**30


class PortState(StrEnum):
    """What binding the engine's address would meet. UNKNOWN: this user may not try (a port below 1024)."""

    FREE = "free"
    TAKEN = "taken"
    NO_ADDRESS = "no such address"
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
        known = {errno.EADDRINUSE: PortState.TAKEN, errno.EADDRNOTAVAIL: PortState.NO_ADDRESS}
        return known.get(error.errno or 0, PortState.UNKNOWN)
    return PortState.FREE


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
