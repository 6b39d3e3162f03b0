"""A full disk, a Docker engine that is away, a log that ends in mid-read: nothing lost, nothing doubled, said once."""

import asyncio
import errno
import gc
import json
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from glm4_deploy.errors import DeployError, StorageError
from glm4_deploy.watch import loop, restart
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.incident import Damping, Notification
from glm4_deploy.watch.judge import State, WatchVerdict
from glm4_deploy.watch.kept import KeptPolicy
from glm4_deploy.watch.loop import run_watch
from glm4_deploy.watch.notify import FILE, Notifier
from glm4_deploy.watch.restart import KEPT_LOGS, ContainerKeeper, Keeper, Rules
from servers.docker_engine import RunningKeeper, running

Events = list[tuple[str, dict[str, Any]]]
HUNG, OK = State.HUNG, State.OK


def verdict(state: State) -> WatchVerdict:
    return WatchVerdict(state=state, why="3 requests in the engine and no counter moved", since=0.0)


def restarts(file: Path, backoff_s: float = 0.0) -> KeptPolicy:
    return KeptPolicy(Rules(backoff_s=backoff_s, ceiling=3, grace_s=0), file)


def watched(keeper: Keeper, policy: KeptPolicy, *steps: State | Callable[[], object]) -> Events:
    """The events of a watch that sees these states, with what happens between them; without the changes of state."""
    events: Events = []

    async def verdicts() -> AsyncIterator[WatchVerdict]:
        for step in steps:
            if isinstance(step, State):
                yield verdict(step)
            else:
                step()

    def emit(event: str, /, **fields: Any) -> None:
        if event != "state":
            events.append((event, fields))

    asyncio.run(run_watch(verdicts(), exporter=Exporter(stale_s=60), emit=emit, policy=policy, keeper=keeper))
    return events


def names(events: Events) -> list[str]:
    return [name for name, _ in events]


# A full disk.


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def fill(directory: Path) -> None:
    with (directory / "filler").open("ab", buffering=0) as filler:
        room = os.statvfs(directory)
        filler.write(bytes(room.f_bavail * room.f_frsize))


def free(directory: Path) -> None:
    (directory / "filler").unlink()


class Service:
    """Takes each message, or none while it is down."""

    key, label = "key", "service"

    def __init__(self) -> None:
        self.got: list[str] = []
        self.changed = threading.Condition()
        self.up, self.tried = False, threading.Event()

    def send(self, message: Notification) -> str:
        self.tried.set()
        with self.changed:
            if self.up:
                self.got.append(message.title)
                self.changed.notify()
            return "" if self.up else "down"

    def takes(self, count: int) -> list[str]:
        with self.changed:
            self.up = True
            assert self.changed.wait_for(lambda: len(self.got) >= count, 60)
            return list(self.got)


def test_messages_of_a_full_disk_are_told_once_and_kept_once_there_is_room(small: Path) -> None:
    service, events, saved = Service(), [], threading.Event()

    def notifier() -> Notifier:
        return Notifier(
            (service,), name="glm4", directory=small, registry=CollectorRegistry(), damping=Damping(settle_s=0.0),
            emit=lambda event, /, **fields: events.append(event), retry_s=0.01, save_s=0.01,
        )  # fmt: skip

    one = notifier()
    one.see(verdict(HUNG), 0.0)
    assert service.tried.wait(60), "until then it may be written again, with its cause"
    before = (small / FILE).read_bytes()
    fill(small)
    for why in ("disk", "disk again"):
        one.event("restart-failed", {"why": why})
    one.see(verdict(HUNG), 10.0)
    assert (small / FILE).read_bytes() == before, "what was on disk is there"
    assert service.takes(2) == ["glm4 is hung", "glm4 could not be restarted"]
    assert (small / FILE).read_bytes() == before
    assert events.count("notify-unsaved") == 1

    free(small)
    for _ in range(6000):
        if json.loads((small / FILE).read_bytes())["outbox"] == []:
            break
        saved.wait(0.01)
    kept = json.loads((small / FILE).read_bytes())
    assert (kept["told"], kept["outbox"]) == ("hung", []), "written as soon as there is room, not at the next change"
    one.end()
    again = notifier()
    again.see(verdict(HUNG), 20.0)
    again.event("restart-failed", {"why": "disk"})
    again.end()
    assert service.got == ["glm4 is hung", "glm4 could not be restarted"], "nothing twice"


def test_a_restart_that_cannot_be_counted_waits_for_room_and_the_count_on_disk_stays(small: Path) -> None:
    file, keeper, seen = small / "watch/restarts.json", RunningKeeper(), []
    restarts(file).done(time.monotonic(), HUNG)
    before = file.read_bytes()
    events = watched(
        keeper, restarts(file), lambda: fill(small), HUNG, HUNG, HUNG,
        lambda: seen.append((list(keeper.restarts), file.read_bytes())), lambda: free(small), HUNG,
    )  # fmt: skip
    assert seen == [([], before)]
    assert names(events) == ["restarting", "restart-failed", "restarted"]
    assert "No space left" in events[1][1]["why"]
    assert (len(keeper.restarts), len(json.loads(file.read_bytes())["done"])) == (1, 2)


# A Docker engine that is away, and one that goes away in mid-read.


# Docker's client leaves the socket to the garbage collector if it cannot connect.
leaky = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    yield tmp_path / "docker.sock"
    gc.collect()


def keeper_at(socket: Path, directory: Path) -> ContainerKeeper:
    with running(socket):
        return ContainerKeeper(name="glm4", project="", service="", directory=directory)


@leaky
def test_while_docker_is_away_nothing_counts_as_a_restart_and_then_it_is_restarted(
    socket: Path, tmp_path: Path
) -> None:
    file = tmp_path / "watch/restarts.json"
    keeper, policy = keeper_at(socket, tmp_path), restarts(file)
    events = watched(keeper, policy, *[HUNG] * 5)
    assert names(events) == ["restart-failed"]
    assert "Docker engine does not answer" in events[0][1]["why"]
    assert not file.exists() and not list(tmp_path.glob("watch/*.log"))
    with running(socket) as docker:
        events = watched(keeper, policy, HUNG)
        assert [line for line in docker.asked if "/restart" in line]
    assert names(events) == ["restarting", "restarted"]
    assert len(json.loads(file.read_bytes())["done"]) == 1


@leaky
def test_while_the_engine_is_well_a_docker_that_is_away_is_no_failed_restart(socket: Path, tmp_path: Path) -> None:
    keeper = keeper_at(socket, tmp_path)
    away = watched(keeper, restarts(tmp_path / "restarts.json"), OK, OK, OK, HUNG, HUNG)
    assert names(away) == ["container-unknown", "restart-failed"]


def test_on_a_full_disk_the_watch_says_so_once_goes_on_and_restarts_once_there_is_room(
    socket: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = (datetime(2026, 11, 28, tzinfo=UTC) + timedelta(seconds=number) for number in count())
    monkeypatch.setattr(restart, "datetime", SimpleNamespace(now=lambda _: next(seconds)))  # a log is named by it
    keeper, policy = keeper_at(socket, small), restarts(small / "watch/restarts.json")
    with running(socket) as docker:
        docker.log = b"ready\n"
        events = watched(keeper, policy, lambda: fill(small), HUNG, HUNG, HUNG)
        assert names(events) == ["restarting", "restart-failed"]
        assert "No space left" in events[1][1]["why"]
        assert not [line for line in docker.asked if "/restart" in line]
        free(small)
        assert names(watched(keeper, policy, HUNG)) == ["restarting", "restarted"]


def test_a_disk_that_takes_nothing_more_in_mid_restart_ends_no_watch_and_displaces_no_log(
    socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, gone = tmp_path / "watch", OSError(errno.EROFS, os.strerror(errno.EROFS))
    folder.mkdir()
    for number in range(KEPT_LOGS):
        (folder / f"restart-2026010{number}T000000Z.log").write_text("")
    keeper, policy = keeper_at(socket, tmp_path), restarts(folder / "restarts.json", backoff_s=1000)

    def save() -> None:
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(gone))
        raise StorageError("cannot write restarts.json: Read-only file system")

    monkeypatch.setattr(policy, "_save", save)
    with running(socket) as docker:
        docker.log = b"ready\n"
        events = watched(keeper, policy, HUNG, HUNG)
        monkeypatch.undo()
    assert names(events) == ["restarting", "restart-failed", "left-alone"]
    assert events[1][1]["why"] == "cannot write restarts.json: Read-only file system", "not what came after it"
    assert len(list(folder.glob("restart-202601*.log"))) == KEPT_LOGS, "no log gave way to it"


def test_a_log_that_ends_in_mid_read_stops_the_restart_which_is_tried_again(socket: Path, tmp_path: Path) -> None:
    file = tmp_path / "watch/restarts.json"
    keeper, policy = keeper_at(socket, tmp_path), restarts(file)
    with running(socket) as docker:
        docker.log, docker.cut = b"2026-11-28T20:00:01Z INFO ready\n", True

        def whole() -> None:
            assert not [line for line in docker.asked if "/restart" in line]
            assert not file.exists(), "nothing was restarted, and nothing counts"
            docker.cut = False

        events = watched(keeper, policy, HUNG, HUNG, HUNG, whole, HUNG)
    assert names(events) == ["restarting", "restart-failed", "restarted"]
    assert "its log cannot be read" in events[1][1]["why"]
    (log,) = tmp_path.glob("watch/restart-*.log")
    assert log.read_text().endswith("INFO ready\n")


def test_an_attempt_that_failed_is_followed_by_a_pause(socket: Path, tmp_path: Path) -> None:
    keeper, policy = keeper_at(socket, tmp_path), restarts(tmp_path / "watch/restarts.json", backoff_s=1000)
    with running(socket) as docker:
        docker.log, docker.cut = b"x\n", True
        events = watched(keeper, policy, *[HUNG] * 5)
        assert sum("/logs" in line for line in docker.asked) == 1
    assert names(events) == ["restarting", "restart-failed", "left-alone"]


class Slow(RunningKeeper):
    """Stands for a keeper whose restarts fail after 90 s of a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 10_000.0

    def restart(self, why: str, begin: Callable[[], None]) -> Path:
        self.restarts.append(why)
        self.clock += 90
        raise DeployError("its log cannot be read: timed out")


def test_the_pause_begins_where_an_attempt_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Slow()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: keeper.clock, time=time.time))
    events = watched(keeper, restarts(tmp_path / "restarts.json", backoff_s=60), HUNG, HUNG, HUNG)
    assert (len(keeper.restarts), names(events)) == (1, ["restarting", "restart-failed", "left-alone"])
