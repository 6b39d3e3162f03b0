"""How much memory is left now: the host's, that of a process's cgroups, and how much the host waits for it.

Read-only; what cannot be read is None. Formats: proc(5), the kernel's documentation of cgroup v2, cgroup v1 (memory)
and PSI.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glm4_deploy.errors import UsageError
from glm4_deploy.host.system import GIB, parse_meminfo

NO_LIMIT = 2**60  # bytes: cgroup v1 writes "no limit" as a number just below 2^63


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """Percent of the last 10 s in which some, or all, of the tasks that could run waited for memory."""

    some: float
    full: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGroup:
    """A cgroup with a memory limit. Sizes in bytes.

    Attributes:
        used: what the kernel charges to it, without the page cache that it would drop first (inactive_file).
        oom_kills: how often the kernel has killed a process in it.
    """

    path: str
    used: int
    limit: int
    oom_kills: int | None = None
    pressure: Pressure | None = None

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """One look. Sizes in bytes. groups: the limited cgroups above the process that was asked about."""

    total: int | None = None
    available: int | None = None
    pressure: Pressure | None = None
    groups: tuple[MemoryGroup, ...] = ()


def read_memory(pid: int = 0, *, proc: Path = Path("/proc"), sys: Path = Path("/sys/fs/cgroup")) -> MemoryFacts:
    """Look once. pid: a process whose cgroups count too; 0: none. `proc` and `sys` serve to read a recorded tree."""
    sizes = parse_meminfo(_text(proc / "meminfo"))
    return MemoryFacts(
        total=sizes.get("MemTotal"),
        available=sizes.get("MemAvailable"),
        pressure=parse_pressure(_text(proc / "pressure/memory")),
        groups=tuple(_groups(_text(proc / f"{pid}/cgroup"), sys)) if pid else (),
    )


def check_level(name: str, gib: float | None) -> None:
    """A level of available memory that an engine could ever leave. name: of the option or the setting.

    Raises:
        UsageError: it is more than half of this host's memory.
    """
    total = read_memory().total
    if gib is not None and total is not None and gib * GIB > total / 2:
        raise UsageError(
            f"{name} {gib:g}: this host has {total / GIB:.1f} GiB, and no engine leaves it that much",
            hint="it is in GiB, and at most half of the host's memory",
        )


def parse_pressure(text: str) -> Pressure | None:
    """`some avg10=0.00 avg60=…` and `full avg10=…` of a pressure file; None for a kernel without PSI."""
    seen = {}
    for line in text.splitlines():
        kind, *rest = line.split()
        fields = dict(word.split("=", 1) for word in rest if "=" in word)
        try:
            seen[kind] = float(fields["avg10"])
        except (KeyError, ValueError):
            return None
    return Pressure(some=seen["some"], full=seen["full"]) if seen.keys() >= {"some", "full"} else None


def _groups(listing: str, sys: Path) -> Iterator[MemoryGroup]:
    """The limited groups of /proc/PID/cgroup, innermost first: `0::/PATH` is version 2, `N:memory:/PATH` version 1."""
    for line in listing.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, read = (sys / "unified" if (sys / "unified").is_dir() else sys), _version_2
        elif "memory" in controllers.split(","):
            root, read = sys / "memory", _version_1
        else:
            continue
        inner = root / path.lstrip("/")
        while inner != root and root in inner.parents:
            group = read(inner)
            if group is not None:
                yield group
            inner = inner.parent


def _version_2(group: Path) -> MemoryGroup | None:
    used, limit = _number(group / "memory.current"), _number(group / "memory.max")
    if used is None or limit is None:
        return None
    return MemoryGroup(
        path=str(group),
        used=max(0, used - _field(group / "memory.stat", "inactive_file")),
        limit=limit,
        oom_kills=_field(group / "memory.events", "oom_kill"),
        pressure=parse_pressure(_text(group / "memory.pressure")),
    )


def _version_1(group: Path) -> MemoryGroup | None:
    used, limit = _number(group / "memory.usage_in_bytes"), _number(group / "memory.limit_in_bytes")
    if used is None or limit is None or limit >= NO_LIMIT:
        return None
    used = max(0, used - _field(group / "memory.stat", "total_inactive_file"))
    return MemoryGroup(
        path=str(group), used=used, limit=limit, oom_kills=_field(group / "memory.oom_control", "oom_kill")
    )


def _field(file: Path, name: str) -> int:
    """A row `NAME VALUE` of a file; 0 if it is not there."""
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    """`max` is not a number and means no limit."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUser:
    """A process and the main memory that is its own (bytes): anonymous and shared-memory pages, not mapped files."""

    pid: int
    name: str
    used: int

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}) {self.used / 2**30:.1f} GiB"


def largest_users(count: int, *, without: frozenset[int] = frozenset(), proc: Path = Path("/proc")) -> list[MemoryUser]:
    """The processes with the most main memory, largest first. What a driver allocates for them is not in here."""
    users = []
    for folder in proc.glob("[0-9]*"):
        rows = parse_meminfo(_text(folder / "status"))
        used = rows.get("RssAnon", 0) + rows.get("RssShmem", 0)
        if used and int(folder.name) not in without:
            users.append(MemoryUser(pid=int(folder.name), name=_text(folder / "comm").strip(), used=used))
    return sorted(users, key=lambda one: -one.used)[:count]
