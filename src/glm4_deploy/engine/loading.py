"""How much an engine has read from disk so far, from the kernel: what the log does not tell while weights load."""

import time
from dataclasses import dataclass
from pathlib import Path

GB = 1e9
SHOWN_FROM = 0.05  # GB: less is the interpreter's own files


@dataclass(slots=True)
class Meter:
    """Bytes read by a process and its children since the meter was made, and the rate since the last look."""

    _first: int | None = None
    _last: int = 0
    _at: float = 0.0

    def look(self, pid: int) -> str:
        """`3.1 GB read, 0.9 GB/s`, or '' where the kernel does not tell (another user's process, a full page cache)."""
        now, total = time.monotonic(), read_bytes(pid)
        if total is None:
            return ""
        if self._first is None:
            self._first, self._last, self._at = total, total, now
            return ""
        rate = (total - self._last) / GB / max(now - self._at, 0.001)
        self._last, self._at = total, now
        read = (total - self._first) / GB
        if read < SHOWN_FROM:
            return ""
        return f"{read:.1f} GB read, {rate:.2f} GB/s" if rate >= 0.01 else f"{read:.1f} GB read, nothing now"


def read_bytes(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Bytes that a process and its descendants made the disks deliver (proc(5), io: read_bytes); None: not told."""
    children: dict[int, list[int]] = {}
    for path in proc.glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    total, waiting, told = 0, [pid], False
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        try:
            fields = dict(line.split(": ") for line in (proc / str(one) / "io").read_text().splitlines())
            total, told = total + int(fields["read_bytes"]), True
        except (OSError, ValueError, KeyError):
            continue
    return total if told and pid else None
