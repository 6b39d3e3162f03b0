"""Processes of this host, and the wait until those of a stopped engine, and their memory, are gone."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.host.system import GIB, read_host


def stat_fields(pid: int | str) -> list[str] | None:
    """The fields of /proc/PID/stat from `state` on (proc(5), field 3); None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def start_ticks(pid: int) -> str:
    """The kernel's start time of a process. Pids are reused; a pid and its start time name one process for good."""
    stat = stat_fields(pid)
    return stat[19] if stat else "0"


def alive(identity: str) -> bool:
    pid, _, ticks = identity.partition(":")
    stat = stat_fields(pid)
    return stat is not None and stat[0] not in "ZX" and stat[19] == ticks


def children_of(proc: Path = Path("/proc")) -> dict[int, list[int]]:
    """Parent → children, of all processes."""
    children: dict[int, list[int]] = {}
    for path in proc.glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    return children


def descendants(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """A process and all below it."""
    children, found, waiting = children_of(proc), [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def members(session: int) -> list[int]:
    """Living processes of a session: the engine's workers outlive an API server that was killed."""
    members = []
    for path in Path("/proc").glob("[0-9]*"):
        stat = stat_fields(path.name)
        if stat and stat[0] not in "ZX" and stat[3] == str(session):
            members.append(int(path.name))
    return members


def session_is_ours(identity: str) -> bool:
    """Whether the session is still the one that was started.

    The kernel does not reuse its number while a member lives, so only a living leader with another start time means
    that it was reused.
    """
    pid, _, ticks = identity.partition(":")
    leader = stat_fields(pid)
    return bool(members(int(pid))) and (leader is None or leader[19] == ticks)


# A new engine that starts while the old one still holds memory fails, or takes the host with it where GPU and host
# share theirs. A process that was killed may live on in the driver; a worker that left its session is not stopped.

WAIT_S = 30.0
SETTLED = GIB // 4  # memory that grows by less within a second is back


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process: `PID:start ticks` names it for good; its name is the kernel's."""

    identity: str
    name: str

    @property
    def pid(self) -> int:
        return int(self.identity.partition(":")[0])

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def family(pids: Iterable[int]) -> tuple[Process, ...]:
    """The processes with these pids (0: none), and all below them, as they are now."""
    found = []
    for pid in dict.fromkeys(member for one in pids if one for member in descendants(one)):
        with suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found.append(Process(identity=f"{pid}:{start_ticks(pid)}", name=name))
    return tuple(found)


def wait_gone(old: tuple[Process, ...], note: Callable[[str], None], *, seconds: float = WAIT_S) -> tuple[Process, ...]:
    """Wait until a stopped engine's processes are gone and free memory no longer grows. Returns those that live on.

    One that is alive after half of the time is killed.

    Args:
        old: from `family`, before the stop.
        note: receives what was waited for and what was done.
        seconds: the longest wait.
    """
    begin = time.monotonic()
    killed = False
    while left := tuple(one for one in old if alive(one.identity)):
        waited = time.monotonic() - begin
        if waited > seconds:
            return left
        if waited > seconds / 2 and not killed:
            killed = True
            note(f"{', '.join(map(str, left))} outlived the stop by {waited:.0f} s and may still hold memory: killed")
            for one in left:
                with suppress(OSError):
                    os.kill(one.pid, signal.SIGKILL)
        time.sleep(0.1)
    _wait_for_memory(begin + seconds)
    return ()


def _wait_for_memory(deadline: float) -> None:
    free = _free_bytes()
    while time.monotonic() < deadline:
        time.sleep(1)
        before, free = free, _free_bytes()
        if free - before < SETTLED:
            return


def _free_bytes() -> int:
    """What the host and its GPUs have free, as far as they say."""
    return int(sum((gpu.free_mib or 0) * 2**20 for gpu in read_gpus().gpus)) + (read_host().memory_available or 0)
