"""A stopped engine's processes: real ones, which leave their session, hold memory and ignore SIGTERM."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from glm4_deploy.deploy.processes import alive, family, wait_gone

# As a core that outlives its API server: another session, SIGTERM ignored, memory held.
CORE = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(f"/proc/{os.getpid()}/comm", "w").write("VLLM::EngineCor")
    held = bytearray(os.urandom(1)) * (64 << 20)
    print(os.getpid(), flush=True)
time.sleep(300)
"""


@pytest.fixture
def orphan() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """An API server, and the pid of its core."""
    with subprocess.Popen([sys.executable, "-c", CORE], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        core = int(server.stdout.readline())
        try:
            yield server, core
        finally:
            for pid in (core, server.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_core_that_outlives_its_server_is_named_killed_and_waited_for(
    orphan: tuple[subprocess.Popen[str], int],
) -> None:
    server, core = orphan
    old = family([server.pid])
    assert {one.pid for one in old} == {server.pid, core}
    server.terminate()
    server.wait()
    notes: list[str] = []
    assert alive(next(one.identity for one in old if one.pid == core)), "it holds its memory"
    assert wait_gone(old, notes.append, seconds=1) == ()
    (note,) = notes
    assert note.startswith(f"VLLM::EngineCor (pid {core}) outlived the stop") and note.endswith("killed")
    assert not any(alive(one.identity) for one in old)


def test_one_that_cannot_be_killed_is_returned(orphan: tuple[subprocess.Popen[str], int]) -> None:
    server, core = orphan
    old = tuple(one for one in family([server.pid]) if one.pid == core)
    notes: list[str] = []
    assert wait_gone(old, notes.append, seconds=0) == old, "there was no time to kill it"
    assert notes == []


def test_no_process_is_nothing_to_wait_for_and_a_reused_pid_is_another_process() -> None:
    assert family([0]) == ()
    (mine,) = (one for one in family([os.getpid()]) if one.pid == os.getpid())
    assert alive(mine.identity)
    assert not alive(f"{os.getpid()}:1")
