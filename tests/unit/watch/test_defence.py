"""How the breaker stops an engine: the note first, then the stop, and whatever Docker answers, the watch goes on."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.cli.watch import _defence
from glm4_deploy.deploy.processes import start_ticks
from glm4_deploy.deploy.state import MemoryStop, expected_record, forget_stop, load_stop, save_record, save_stop
from glm4_deploy.errors import DeployError
from glm4_deploy.host.memory import MemoryFacts
from glm4_deploy.watch import memory
from glm4_deploy.watch.breaker import GIB, Breaker, MemoryRoom, MemoryState
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.incident import Damper, Damping, Memory
from glm4_deploy.watch.judge import State, WatchVerdict
from glm4_deploy.watch.memory import Defence, Engines, MemoryMetrics, NamedContainer, RunningEngine
from glm4_deploy.watch.restart import ContainerKeeper
from servers.docker_engine import INSPECT, STATE, DockerServer, running


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerServer]:
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with running(path) as server:
        yield server


def test_a_named_container_is_found_by_what_docker_says_of_it(docker: DockerServer) -> None:
    (one,) = NamedContainer("glm4").running()
    assert (one.name, one.pid) == ("glm4", 4711)
    one.stop()
    assert any(line.startswith("POST") and "/stop?t=10" in line for line in docker.asked)
    docker.answer = {**INSPECT, "State": {**STATE, "Status": "exited", "Running": False, "Pid": 0}}
    assert NamedContainer("glm4").running() == ()


class Decided(Breaker):
    """Stands for a breaker: it says stop, or not, as the test tells it to."""

    def __init__(self, stop: bool) -> None:
        super().__init__(1.0)
        self.stop, self.looks = stop, 0

    def look(self, facts: MemoryFacts, at: float) -> bool:
        self.looks += 1
        self.room = MemoryRoom(group="", left=10**8, total=10**11, floor=10**9, pressure=None)
        self.state = MemoryState.CRITICAL if self.stop else MemoryState.LOW
        return self.stop

    def stopped(self) -> None:
        self.stop = False


class Listed:
    """Stands for the engines of a host."""

    def __init__(self, *answers: Callable[[], tuple[RunningEngine, ...]]) -> None:
        self._answers = list(answers)

    def running(self) -> tuple[RunningEngine, ...]:
        return (self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])()


def raising(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def nothing() -> None: ...


def lines() -> Iterable[str]:
    return ["Application startup complete"]


def engine(
    stop: Callable[[], None] = nothing, log: Callable[[], Iterable[str]] = lines
) -> Callable[[], tuple[RunningEngine, ...]]:
    one = RunningEngine(name="glm4", pid=0, stop=stop, log=log)
    return lambda: (one,)


class Host:
    """A defence and what it said."""

    def __init__(self, directory: Path, engines: Engines, *, stop: bool = True) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.breaker = Decided(stop)
        self.defence = Defence(
            breaker=self.breaker, metrics=MemoryMetrics(CollectorRegistry()), engines=engines, may_stop=True,
            emit=lambda event, /, **fields: self.said.append((event, fields)), directory=directory,
        )  # fmt: skip

    def events(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.said if event == name]

    def run(self, until: Callable[[], bool]) -> None:
        async def go() -> None:
            task = asyncio.create_task(self.defence.run())
            deadline = time.monotonic() + 20
            while not until():
                assert not task.done() and time.monotonic() < deadline, self.said
                await asyncio.sleep(0.02)
            task.cancel()

        asyncio.run(go())


@pytest.mark.parametrize("error", [KeyError("Running"), DeployError("no answer"), TypeError("a list")])
def test_no_answer_of_docker_ends_the_watch(tmp_path: Path, error: Exception) -> None:
    host = Host(tmp_path, Listed(raising(error)))
    host.run(lambda: host.breaker.looks >= 3)
    assert len(host.events("memory-engines-unknown")) == 1
    assert len(host.events("memory-stop-failed")) == 1, "said once, tried at each look"


def test_memory_is_read_on_time_while_docker_is_silent(tmp_path: Path) -> None:
    release = threading.Event()

    def silent() -> tuple[RunningEngine, ...]:
        release.wait(20)
        return ()

    host = Host(tmp_path, Listed(silent), stop=False)

    def looked() -> bool:
        if host.breaker.looks >= 3:
            release.set()
        return release.is_set()

    host.run(looked)
    assert host.breaker.looks >= 3
    assert host.events("memory")[0]["state"] == "low"


def test_a_slow_stop_delays_no_look_and_is_not_begun_twice(tmp_path: Path) -> None:
    release, stops = threading.Event(), []

    def slow() -> None:
        stops.append(1)
        release.wait(20)

    host = Host(tmp_path, Listed(engine(slow)))

    def ended() -> bool:
        if host.breaker.looks >= 4:
            release.set()
        return bool(host.events("memory-stopped"))

    host.run(ended)
    assert len(stops) == 1


def test_the_stop_is_noted_before_it_happens(tmp_path: Path) -> None:
    noted: list[MemoryStop | None] = []
    host = Host(tmp_path, Listed(engine(lambda: noted.append(load_stop(tmp_path, since=0.0)))))
    host.run(lambda: bool(host.events("memory-stopped")))
    (before,) = noted
    assert before is not None and "memory ran out" in before.why and before.log == ""
    after = load_stop(tmp_path, since=0.0)
    assert after is not None and "startup complete" in Path(after.log).read_text()
    assert host.events("memory-stopped")[0]["log"] == after.log


@pytest.mark.parametrize("error", [DeployError("the Docker engine does not answer"), OSError(28, "disk full")])
def test_a_stop_whose_log_cannot_be_kept_is_noted_all_the_same(tmp_path: Path, error: Exception) -> None:
    host = Host(tmp_path, Listed(engine(log=raising(error))))
    host.run(lambda: bool(host.events("memory-stopped")))
    stop = load_stop(tmp_path, since=0.0)
    assert stop is not None and stop.what == ("glm4",)
    assert len(host.events("memory-stop-unrecorded")) == 1


def test_the_note_of_a_second_stop_names_the_first_engine_too_unless_it_runs_again(tmp_path: Path) -> None:
    def stopped(name: str, *living: str) -> tuple[str, ...]:
        """What the note says after that engine was stopped while these run too."""
        ticks = start_ticks(os.getpid())
        listed = [
            RunningEngine(name=one, pid=os.getpid(), stop=nothing, log=lines, ticks=ticks) for one in (name, *living)
        ]
        host = Host(tmp_path, Listed(lambda: tuple(listed)))
        host.run(lambda: bool(host.events("memory-stopped")))
        stop = load_stop(tmp_path, since=0.0)
        assert stop is not None and load_stop(tmp_path, since=0.0, of=name) == stop
        return stop.what

    assert stopped("one", "two", "three") == ("one",)
    assert stopped("two", "three") == ("one", "two"), "one is down"
    assert stopped("three", "two") == ("one", "three"), "somebody has started two again"
    assert stopped("one") == ("three", "one")


def test_a_directory_that_takes_no_note_prevents_no_stop(tmp_path: Path) -> None:
    file, stops = tmp_path / "file", []
    file.write_text("")
    host = Host(file / "below", Listed(engine(lambda: stops.append(1))))
    host.run(lambda: bool(host.events("memory-stopped")))
    assert stops and host.events("memory-stop-unrecorded")


def test_a_stop_that_failed_is_said_once_and_tried_again(tmp_path: Path) -> None:
    tries: list[int] = []

    def stop() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise DeployError("the Docker engine does not answer")

    host = Host(tmp_path, Listed(engine(stop)))
    host.run(lambda: bool(host.events("memory-stopped")))
    assert len(tries) == 3
    assert [len(host.events(name)) for name in ("memory-stopping", "memory-stop-failed", "memory-stopped")] == [1, 1, 1]


def test_the_note_of_a_stop_that_failed_goes_once_memory_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = MemoryStop(at=1.0, what=("old",), why="memory ran out", remedy="", log="")
    save_stop(former, tmp_path)
    monkeypatch.setattr(memory, "UNDONE_S", 0.0)
    monkeypatch.setattr(memory, "LIST_S", 0.1)
    host = Host(tmp_path, Listed(engine(raising(DeployError("no answer")))))

    def withdrawn() -> bool:
        stop = load_stop(tmp_path, since=0.0)
        if host.events("memory-stop-failed") and stop != former:
            host.breaker.stop = False
        return not host.breaker.stop and stop == former

    host.run(withdrawn)


def test_memory_that_was_low_and_could_not_be_read_meanwhile_is_told_to_be_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, damper = Host(tmp_path, Listed(engine())), Damper("glm4", Memory(), Damping(settle_s=0.0))
    host.defence.breaker = Breaker(8.0)
    told = []
    for left in (9, 7, None, 10, 7):  # GiB available
        facts = MemoryFacts(total=None if left is None else 64 * GIB, available=None if left is None else left * GIB)
        monkeypatch.setattr(memory, "read_memory", lambda *_, facts=facts: facts)
        seen = len(host.said)
        host.defence._look()
        messages = [damper.event(name, fields, 0.0) for name, fields in host.said[seen:]]
        messages.append(damper.see(WatchVerdict(state=State.OK, why="well", since=0.0), 0.0))
        told += [message.title for message in messages if message]
    assert [fields["state"] for fields in host.events("memory")] == ["low", "unknown", "fine", "low"]
    assert told == ["glm4 is low on memory", "glm4 has enough memory again", "glm4 is low on memory"]


def keeper(directory: Path) -> ContainerKeeper:
    return ContainerKeeper(name="glm4", project="", service="", directory=directory)


def test_what_was_stopped_for_memory_while_its_log_was_kept_is_not_restarted(
    docker: DockerServer, tmp_path: Path
) -> None:
    stop = MemoryStop(at=time.time() + 10**8, what=("glm4",), why="memory ran out", remedy="less", log="")
    docker.on_log = lambda: save_stop(stop, tmp_path)
    with pytest.raises(DeployError, match="memory ran out"):
        keeper(tmp_path).restart("hung", nothing)
    with pytest.raises(DeployError, match="memory ran out"):
        keeper(tmp_path).roll_back("babbling")
    assert not any("/restart" in line for line in docker.asked)


def test_another_engine_that_is_older_than_the_stop_of_its_neighbour_is_restarted(
    docker: DockerServer, tmp_path: Path
) -> None:
    save_stop(MemoryStop(at=time.time(), what=("glm4-2",), why="memory ran out", remedy="", log=""), tmp_path)
    assert keeper(tmp_path).restart("hung", nothing).is_file()
    save_stop(MemoryStop(at=time.time(), what=("glm4", "glm4-2"), why="memory ran out", remedy="", log=""), tmp_path)
    with pytest.raises(DeployError, match="memory ran out"):
        keeper(tmp_path).restart("hung", nothing)


def test_else_it_is_restarted(docker: DockerServer, tmp_path: Path) -> None:
    assert keeper(tmp_path).restart("hung", nothing).is_file()
    assert any("/restart" in line for line in docker.asked)


def test_a_watch_that_may_stop_nothing_needs_no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    monkeypatch.chdir(tmp_path)
    save_record(expected_record(resolve_spec({})), tmp_path)

    def defence(*, may_stop: bool) -> Defence | None:
        return _defence(0.1, None, tmp_path, Exporter(stale_s=60), lambda *_, **__: None, may_stop=may_stop, own=True)

    found = defence(may_stop=False)
    assert found is not None and found.engines is None
    with pytest.raises(DeployError):
        defence(may_stop=True)


def test_the_note_of_a_stop_is_forgotten_with_the_log_that_it_got_later_and_no_other(tmp_path: Path) -> None:
    stop = MemoryStop(at=1000.0, what=("engine",), why="memory ran out", remedy="use less", log="")
    save_stop(replace(stop, log="stopped.log"), tmp_path)
    forget_stop(stop, tmp_path)
    assert load_stop(tmp_path, since=0.0) is None
    later = replace(stop, at=1001.0)
    save_stop(later, tmp_path)
    forget_stop(stop, tmp_path)
    assert load_stop(tmp_path, since=0.0) == later
