"""A real memory hog beside the engine, in a real cgroup with a limit: the watch acts before the kernel does."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from e2e.kit import free_port
from glm4_deploy.deploy.state import MemoryStop, load_stop, save_stop
from glm4_deploy.guard import reader
from glm4_deploy.host.memory import MemoryFacts, read_memory
from journeys.kit import Kit, Running, alive, wait_for
from servers.guarded import ANSWER, DONE, PATIENCE_S, Turns, guarded, post, streamed, token, whole

MIB = 2**20
LIMIT = 512  # MiB; of this a tenth is the floor, and half of that is critical
HOG = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * (int(line) << 20)) if int(line) else held.clear()
    print(len(held), flush=True)
"""


@dataclass
class Group:
    """A memory cgroup of version 1 or 2."""

    path: Path

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        """How often the kernel killed in it."""
        for name in ("memory.events", "memory.oom_control"):
            if (self.path / name).is_file():
                rows = dict(line.split() for line in (self.path / name).read_text().splitlines())
                return int(rows["oom_kill"])
        raise AssertionError(f"{self.path} counts no kills")


@pytest.fixture
def group() -> Iterator[Group]:
    """Below this process's own; skipped where this user may not make one."""
    rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    version_1 = [path for _, names, path in rows if "memory" in names.split(",")]
    parent = Path("/sys/fs/cgroup") / (f"memory{version_1[0]}" if version_1 else rows[-1][2].lstrip("/"))
    path = parent / f"glm4-test-{os.getpid()}"
    limit = path / ("memory.limit_in_bytes" if version_1 else "memory.max")
    try:
        path.mkdir()
        limit.write_text(str(LIMIT * MIB))
    except OSError as error:
        with suppress(OSError):
            path.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield Group(path=path)
    wait_for(lambda: not (path / "cgroup.procs").read_text().strip())
    path.rmdir()


class Hog:
    """Allocates as much memory as its argument says, and keeps it until it is told 0."""

    def __init__(self, group: Group) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", HOG], stdin=-1, stdout=-1, text=True)
        group.add(self.process.pid)

    def take(self, mib: int) -> None:
        assert self.process.stdin and self.process.stdout
        print(mib, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline(), "the kernel killed the hog"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


def events(watch: Running, name: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in watch.out.read_text().splitlines() if line.endswith("}")]
    return [row for row in rows if row["event"] == name]


def test_the_engine_is_stopped_in_order_before_the_kernel_kills(
    kit: Kit, group: Group, record_property: Callable[[str, object], None]
) -> None:
    kit.good_release()
    pids = kit.pids().values()
    for pid in pids:
        group.add(pid)
    hog = Hog(group)
    try:
        options = ("--host-reserve-gib", "1", "--stop-for-memory", "--port", str(free_port()), "--canary-every", "0")
        watch = kit.start("watch", "--json", "--interval", "1", *options)
        hog.take(LIMIT - 40)  # above half of the floor: a warning
        wait_for(lambda: bool(events(watch, "memory")), watch.out.read_text)
        (warning,) = events(watch, "memory")
        assert warning["state"] == "low" and f"in the cgroup {group.path}" in warning["why"]
        assert all(alive(pid) for pid in pids)

        while read_memory(hog.process.pid).groups[0].left >= 24 * MIB:
            hog.take(1)
        time.sleep(8)  # below half of it, it may rest
        assert not events(watch, "memory-stopping") and all(alive(pid) for pid in pids)

        begin = datetime.now(UTC)

        def stopping_once_it_takes_more() -> bool:
            if not events(watch, "memory-stopping"):
                hog.take(1)
                time.sleep(0.8)
            return bool(events(watch, "memory-stopped"))

        wait_for(stopping_once_it_takes_more, watch.out.read_text)
        (stopping,), (stopped,) = events(watch, "memory-stopping"), events(watch, "memory-stopped")
        noticed, ended = (datetime.fromisoformat(row["time"]) - begin for row in (stopping, stopped))
        record_property("falling, noticed after", noticed.total_seconds())
        record_property("falling, stopped after", ended.total_seconds())
        assert not any(alive(pid) for pid in pids)
        assert (group.kills, hog.process.poll()) == (0, None), "the kernel had to kill nothing"
        assert "mem_limit" in stopped["hint"]
        log = Path(kit.directory, stopped["log"]).read_text()
        assert "Application startup complete" in log and "memory ran out" in log.splitlines()[0]
    finally:
        hog.end()
    watch.end(signal.SIGTERM)
    status = kit.run("status")
    assert status.code == 1
    assert "stopped by the watch: memory ran out" in status.out and "mem_limit" in status.out
    assert kit.up().code == 0
    assert "memory ran out" not in kit.run("status").out, "it was started again"


def test_an_up_that_succeeds_ends_the_note_of_a_stop_whatever_the_clock_said_then(kit: Kit) -> None:
    state = kit.directory / ".glm4"
    stop = MemoryStop(at=time.time() + 3600, what=("engine",), why="memory ran out", remedy="use less", log="")
    save_stop(stop, state)
    assert kit.up(model=Path("/nowhere")).code != 0
    assert load_stop(state, since=0.0) == stop, "nothing was started"
    kit.good_release()
    pids = kit.pids().values()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)))
    assert "memory ran out" not in kit.run("status").out
    assert load_stop(state, since=0.0) is None


def test_a_guard_refuses_while_a_process_holds_the_memory_and_what_runs_goes_on(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hog's cgroup stands for a host: the guard itself reads the host's MemAvailable, and no cgroup's limit."""
    hog, engine = Hog(group), Turns(streamed(token("a"), token("b"), DONE), whole(ANSWER))
    monkeypatch.setattr(reader, "LOOK_S", 0.0)
    left = lambda: read_memory(hog.process.pid).groups[0].left  # noqa: E731
    monkeypatch.setattr(reader, "read_memory", lambda: MemoryFacts(available=left()))
    engine.go, begun, ended = threading.Event(), threading.Event(), []
    try:
        with guarded(engine, refuse_below_gib=LIMIT / 4 / 1024) as guard:
            running = threading.Thread(target=lambda: ended.append(post(guard, begun=begun)))
            running.start()
            assert begun.wait(PATIENCE_S)
            hog.take(LIMIT * 7 // 8)
            refused = post(guard)
            assert (refused.status_code, refused.headers["Retry-After"], len(engine.requests)) == (503, "10", 1)
            engine.go.set()
            running.join(PATIENCE_S)
            assert ended[0].content == b"".join([token("a"), token("b"), DONE])
            assert post(guard).status_code == 503
            hog.take(0)
            wait_for(lambda: left() > LIMIT * MIB / 2)
            assert post(guard).status_code == 200
    finally:
        engine.go.set()
        hog.end()
    assert group.kills == 0
