"""The root cause in the message: from the end of a real log, only if it is of this incident, and never awaited."""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from prometheus_client import CollectorRegistry

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.state import Record, save_record
from glm4_deploy.watch import cause
from glm4_deploy.watch.cause import Cause, CauseFinder, EngineLog, LogEnd, find_cause
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.incident import Damping, Memory, Notification
from glm4_deploy.watch.judge import Judge, Limits, State, WatchVerdict
from glm4_deploy.watch.notify import FILE, Notifier
from servers.docker_engine import running

LOGS = Path(__file__).parents[2] / "data/logs"
NO_ROOM = (LOGS / "h100-0.24-no-room.log").read_bytes()
WELL = (LOGS / "h100-0.24-bf16.log").read_bytes()
HUNG, OK, GONE = State.HUNG, State.OK, State.UNREACHABLE


def verdict(state: State) -> WatchVerdict:
    return WatchVerdict(state=state, why="3 requests and no counter moved", since=0.0)


def stamped(log: bytes, at: float) -> bytes:
    """As Docker gives it back with timestamps."""
    stamp = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.123456789Z ").encode()
    return b"".join(stamp + line for line in log.splitlines(keepends=True))


def found(log: LogEnd) -> str:
    return (find_cause(log) or Cause(finding="", why="", fix="")).finding


def test_the_cause_is_what_was_logged_in_this_incident() -> None:
    assert found(LogEnd(new=NO_ROOM)) == "no-kv-room"
    assert found(LogEnd(old=WELL, new=NO_ROOM)) == "no-kv-room"
    assert found(LogEnd(old=NO_ROOM, new=WELL)) == "", "the trouble of a start before this one"
    assert found(LogEnd(new=WELL)) == found(LogEnd()) == ""
    assert found(LogEnd(new=b"\0\xff" * 1000 + b"\n" + NO_ROOM)) == "no-kv-room"


def test_an_error_that_nobody_knows_is_no_cause() -> None:
    assert found(LogEnd(new=WELL + b"\nERROR 11-28 03:00:00 [api_server.py:1] a client went away\n")) == ""


# Where the log comes from.


def test_the_end_of_a_containers_log_is_divided_by_its_timestamps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with running(tmp_path / "docker.sock") as docker:
        docker.log = stamped(WELL, 1000.0) + stamped(NO_ROOM, 5000.0)
        log = EngineLog(tmp_path, "glm4")
        assert found(log.tail(None)) == found(log.tail(4000.0)) == "no-kv-room"
        assert log.tail(4000.0).old.count(b"\n") == WELL.count(b"\n") - 1
        assert found(log.tail(6000.0)) == ""
        assert all("tail=5000" in line for line in docker.asked if "/logs" in line)
        docker.cut = True
        assert found(log.tail(4000.0)) == "no-kv-room", "it broke off in mid-read"


def test_of_several_engines_the_log_of_the_one_that_is_meant_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    spec = resolve_spec({"profile": "b200"}, sets=("replicas=2",))
    save_record(Record(endpoint=Endpoint.of(spec, EngineKind.COMPOSE)), tmp_path)
    with running(tmp_path / "docker.sock") as docker:
        docker.log = stamped(NO_ROOM, 5000.0)
        assert found(EngineLog(tmp_path, service=spec.replicas[1].service).tail(4000.0)) == "no-kv-room"
        (asked,) = (unquote(line) for line in docker.asked if "/containers/json" in line)
    assert f'"com.docker.compose.service={spec.replicas[1].service}"' in asked


def test_a_docker_that_stalls_within_a_log_holds_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setattr(cause, "READ_S", 1.0)
    with running(tmp_path / "docker.sock") as docker:
        docker.log, docker.cut, docker.stall = stamped(NO_ROOM, 5000.0), True, threading.Event()
        reader = threading.Thread(target=EngineLog(tmp_path, "glm4").tail, args=(4000.0,), daemon=True)
        reader.start()
        reader.join(30)
        ended = not reader.is_alive()
        docker.stall.set()
        reader.join(30)
    assert ended, "before Docker goes on, which it may never do"


def of_a_process(directory: Path) -> EngineLog:
    save_record(Record(endpoint=Endpoint.of(resolve_spec({}), EngineKind.PROCESS)), directory)
    return EngineLog(directory)


def test_of_a_processs_log_its_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, file = of_a_process(tmp_path), tmp_path / "engine.log"
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    assert log.tail(None) == LogEnd()
    file.write_bytes(NO_ROOM)
    assert found(log.tail(4000.0)) == "no-kv-room"
    with file.open("r+b") as whole:  # 4 GiB of it, mostly a hole
        whole.seek(4 << 30)
        whole.write(b"\n" + NO_ROOM)
    assert len(log.tail(None).new) <= cause.TAIL_BYTES
    assert found(log.tail(None)) == "no-kv-room"
    file.write_bytes(b"")
    assert log.tail(None) == LogEnd()
    file.unlink()
    os.mkfifo(file)
    assert log.tail(None) == LogEnd(), "it must not wait for a writer"


def test_a_log_that_is_rotated_or_cut_while_it_is_read_gives_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, file = of_a_process(tmp_path), tmp_path / "engine.log"
    size_of = os.fstat

    def change(how: Callable[[], object]) -> None:
        """Between the look at its size and the reading."""

        def fstat(descriptor: int) -> os.stat_result:
            size = size_of(descriptor)
            how()
            return size

        monkeypatch.setattr(cause.os, "fstat", fstat)

    file.write_bytes(NO_ROOM)
    change(lambda: file.replace(tmp_path / "engine.log.1"))
    assert found(log.tail(None)) == "no-kv-room"
    file.write_bytes(NO_ROOM)
    change(lambda: os.truncate(file, 10))
    assert log.tail(None) == LogEnd(new=NO_ROOM[:10])
    change(lambda: file.write_bytes(b""))
    assert found(log.tail(None)) == ""


def test_without_a_deployment_there_is_no_log(tmp_path: Path) -> None:
    assert EngineLog(tmp_path).tail(None) == LogEnd()


# From the verdict to the message.


class Watch:
    """What the command makes of it: a finder, a notifier and an address that takes everything."""

    key, label = "key", "address"

    def __init__(self, directory: Path, tail: Callable[[float | None], LogEnd]) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.got: list[Notification] = []
        self.exporter, self.judge = Exporter(stale_s=60), Judge(Limits(), at=0.0)
        self.finder = CauseFinder(tail, self.exporter, self.emit)
        self.notifier = Notifier(
            (self,), name="glm4", directory=directory, registry=CollectorRegistry(), emit=self.emit,
            damping=Damping(settle_s=0.0), cause=self.finder.wait,
        )  # fmt: skip

    def emit(self, event: str, /, **fields: Any) -> None:
        self.events.append((event, fields))

    def send(self, message: Notification) -> str:
        self.got.append(message)
        return ""

    def see(self, state: State, at: float) -> None:
        self.finder.see(verdict(state), at)
        self.exporter.publish(verdict(state), self.judge, at)
        self.notifier.see(verdict(state), at)

    def until(self, count: int) -> None:
        for _ in range(6000):
            if len(self.got) >= count:
                return
            time.sleep(0.01)
        raise AssertionError(f"{len(self.got)} messages, not {count}")

    def rows(self, number: int) -> dict[str, str]:
        return dict(line.split(": ", 1) for line in self.got[number].text.splitlines())

    @property
    def causes(self) -> list[str]:
        return [fields["finding"] for event, fields in self.events if event == "cause"]

    def health(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.exporter.health()[1])
        return body


def test_message_event_and_healthz_carry_the_cause_until_it_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cause, "WAIT_S", 60.0)
    asked: list[float | None] = []

    def tail(since: float | None) -> LogEnd:
        asked.append(since)
        return LogEnd(new=NO_ROOM)

    watch = Watch(tmp_path, tail)
    watch.see(OK, 0.0)
    for at in (10.0, 20.0):
        watch.see(HUNG, at)
    watch.until(1)
    rows = watch.rows(0)
    assert rows["cause"].startswith("no-kv-room: weights and workspace use up")
    assert rows["do this"].startswith("raise --gpu-memory-utilization")
    assert list(rows)[-5:] == ["cause", "do this", "next", "time", "message"]
    assert watch.health()["cause"]["finding"] == "no-kv-room"
    watch.see(GONE, 30.0)
    watch.finder.wait()
    assert len(asked) == 2, "once for each fault"
    assert all(since is not None and 0 <= time.time() - since - cause.MARGIN_S < 120 for since in asked)
    assert watch.causes == ["no-kv-room"], "and said once"
    watch.see(OK, 40.0)
    watch.see(OK, 50.0)
    watch.until(2)
    assert "cause" not in watch.health() and "cause" not in watch.rows(1)
    watch.notifier.end()
    assert json.loads((tmp_path / FILE).read_bytes())["outbox"] == []


def test_no_secret_of_the_log_gets_into_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cause, "WAIT_S", 60.0)
    trace = (LOGS / "unknown-exception-interleaved.log").read_bytes()
    secret = b"hf_" + b"AbCdEfGhIjKlMnOpQrStUvWxYz012345"
    log = trace.replace(b"the frobnicator is out of phase", b"HF_TOKEN=" + secret + b"\x1b[2J was refused")
    watch = Watch(tmp_path, lambda _: LogEnd(new=log))
    watch.see(HUNG, 0.0)
    watch.until(1)
    assert "was refused" in watch.rows(0)["cause"]
    shown = watch.got[0].text + json.dumps(watch.health()) + repr(watch.events)
    assert secret.decode() not in shown and "\x1b" not in shown
    watch.notifier.end()


def failing(_: float | None) -> LogEnd:
    raise RuntimeError("no log today")


@pytest.mark.parametrize("tail", [failing, lambda _: LogEnd(), lambda _: LogEnd(new=WELL)])
def test_without_a_log_or_a_finding_the_message_has_its_advice(
    tmp_path: Path, tail: Callable[[float | None], LogEnd]
) -> None:
    watch = Watch(tmp_path, tail)
    watch.see(HUNG, 0.0)
    watch.until(1)
    assert "cause" not in watch.rows(0) and watch.rows(0)["next"] == "glm4-deploy diagnose"
    assert watch.causes == [] and "cause" not in watch.health()
    watch.notifier.end()


def test_a_log_that_cannot_be_read_in_time_delays_no_verdict_and_its_cause_is_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cause, "WAIT_S", 0.05)
    arrives, asked = threading.Event(), []

    def slow(since: float | None) -> LogEnd:
        asked.append(since)
        arrives.wait(60)
        return LogEnd(new=NO_ROOM)

    watch = Watch(tmp_path, slow)
    for at in range(0, 400, 10):  # each of them is taken while the log is not there
        watch.see(HUNG if at % 20 else GONE, float(at))
    watch.until(1)
    assert "cause" not in watch.rows(0)
    arrives.set()
    watch.finder.wait()
    monkeypatch.setattr(cause, "WAIT_S", 60.0)
    watch.finder.wait()
    assert len(asked) == 1, "one at a time"
    assert watch.causes == ["no-kv-room"]
    watch.notifier.end()


def test_a_log_that_could_not_be_read_is_read_at_the_next_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cause, "WAIT_S", 60.0)
    answers: list[Callable[[float | None], LogEnd]] = [lambda _: LogEnd(new=NO_ROOM), failing]
    asked = []

    def tail(since: float | None) -> LogEnd:
        asked.append(since)
        return answers.pop()(since)

    watch = Watch(tmp_path, tail)
    for at in (0.0, 10.0, 20.0):
        watch.see(HUNG, at)
        watch.finder.wait()
    assert watch.causes == ["no-kv-room"] and len(asked) == 2
    answers.append(failing)
    watch.see(GONE, 30.0)
    watch.finder.wait()
    watch.see(OK, 40.0)
    assert watch.finder.found is None
    watch.notifier.end()


SEEN = Cause(finding="no-kv-room", why="no room", fix="raise it")


class Line:
    """An address whose answers can be held; it takes nothing until it is `up`."""

    key, label = "key", "address"

    def __init__(self) -> None:
        self.got: list[str] = []
        self.tried, self.held, self.up = threading.Event(), threading.Event(), False
        self.held.set()

    def send(self, message: Notification) -> str:
        self.tried.set()
        assert self.held.wait(60)
        self.got += [message.text] if self.up else []
        return "" if self.up else "down"


def told_by(line: Line, directory: Path, found: Callable[..., Cause | None]) -> Notifier:
    return Notifier(
        (line,), name="glm4", directory=directory, registry=CollectorRegistry(), emit=lambda *_, **__: None,
        damping=Damping(settle_s=0.0), cause=found, retry_s=1000.0,
    )  # fmt: skip


def test_a_message_that_waits_for_its_address_has_the_cause_of_its_own_incident(tmp_path: Path) -> None:
    line, asked = Line(), threading.Event()

    def found(_: float | None = None) -> Cause:
        asked.set()
        return SEEN

    one = told_by(line, tmp_path, found)
    one.event("restart-failed", {"why": "disk"})
    assert line.tried.wait(60)
    one.see(verdict(HUNG), 0.0)
    assert asked.wait(60), "while its address is not due for a quarter of an hour"
    one.end()
    line.up = True
    told_by(line, tmp_path, lambda _=None: Cause(finding="other", why="another incident", fix="")).end()
    assert len(line.got) == 2
    assert "cause: no-kv-room" in line.got[1] and "another incident" not in "".join(line.got)


def test_a_message_of_the_last_watch_gets_no_cause_of_this_one(tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir()
    asks = Notification(id="1", title="glm4 is hung", text="why: x\nnext: y", kind="failure", to=("key",), asks=True)
    (tmp_path / FILE).write_text(json.dumps(asdict(Memory(outbox=[asks]))))
    line = Line()
    line.up = True
    told_by(line, tmp_path, lambda _=None: SEEN).end()
    assert line.got == ["why: x\nnext: y"]


def test_at_its_end_the_watch_tells_what_it_knows_without_waiting(tmp_path: Path) -> None:
    line, waits = Line(), []
    line.up = True
    line.held.clear()

    def found(wait_s: float | None = None) -> Cause:
        waits.append(wait_s)
        return SEEN

    one = told_by(line, tmp_path, found)
    one.event("restart-failed", {"why": "disk"})
    assert line.tried.wait(60)
    one.see(verdict(HUNG), 0.0)
    ending = threading.Thread(target=one.end, args=(60.0,))
    ending.start()
    while not one._ending:
        time.sleep(0.001)
    line.held.set()
    ending.join()
    assert "cause: no-kv-room" in line.got[1] and waits == [0.0]


def test_what_is_found_after_the_incident_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cause, "WAIT_S", 0.05)
    arrives = threading.Event()

    def slow(_: float | None) -> LogEnd:
        arrives.wait(60)
        return LogEnd(new=NO_ROOM)

    watch = Watch(tmp_path, slow)
    watch.see(HUNG, 0.0)
    watch.until(1)
    watch.see(OK, 10.0)
    arrives.set()
    monkeypatch.setattr(cause, "WAIT_S", 60.0)
    assert watch.finder.wait() is None
    assert watch.causes == [] and watch.exporter.cause is None
    watch.notifier.end()
