"""`status` trusts neither a running process nor a model list: /health must agree."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from docker.errors import APIError
from prometheus_client import generate_latest

from glm4_deploy.deploy.candidates import recorded_engine
from glm4_deploy.deploy.core_check import CoreAnswer, ask_core
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind, Started
from glm4_deploy.deploy.engines import RunState
from glm4_deploy.deploy.guarded import GuardStatus, ask_guard, read_guard
from glm4_deploy.deploy.state import Journal, JournalStage, LastCanary, MemoryStop, Record, save_canary, save_stop
from glm4_deploy.deploy.status import ReplicaStatus, StatusReport, _replicas, read_status
from glm4_deploy.errors import DockerMissing
from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.guard.proxy import GuardOptions
from glm4_deploy.guard.proxy import serving as serving_guard
from glm4_deploy.guard.question import Api, Question
from glm4_deploy.host.gpu_health import GpuHealth
from glm4_deploy.report.wire import to_wire
from glm4_deploy.result import Status, fail
from servers import broken, dying
from servers.reference import Reference
from servers.serve import serving


def status_of(base_url: str, directory: Path, *, model: str = "glm-4-9b-chat") -> StatusReport:
    """The status of an engine on record, as which this process poses."""
    port = urlsplit(base_url).port or 0
    endpoint = Endpoint(
        runner=EngineKind.PROCESS, project="p", service="s", profile="cpu", base_url=base_url, bind="127.0.0.1",
        port=port, model=model, model_dir="/m", max_model_len=512, start_period=1,
    )  # fmt: skip
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    (directory / "engine.pid").write_text(f"{os.getpid()}:{ticks} 1.0\n")
    record = Record(endpoint=endpoint, verdict=Status.OK, release="0001-x")
    return read_status(record, recorded_engine(record, directory), directory)


def test_an_engine_that_answers_everything_is_up(tmp_path: Path) -> None:
    with serving(Reference()) as base_url:
        report = status_of(base_url, tmp_path)
    assert (report.up, report.why, report.health) == (True, "", 200)
    assert report.report().verdict is Status.OK


@pytest.mark.parametrize(
    ("app", "model", "why"),
    [
        (broken.Sick(), "glm-4-9b-chat", "/health answers 500"),
        (dying.Dies(dead=True), "glm-4-9b-chat", "/health answers 503, as vLLM does once its engine has died"),
        (broken.NoList(), "glm-4-9b-chat", '/v1/models answers: {"error": {"message": "EngineCore encountered'),
        (Reference(model="another"), "glm-4-9b-chat", "serves another, not glm-4-9b-chat"),
    ],
)
def test_an_engine_that_runs_but_is_not_well_is_not_up(app: Reference, model: str, why: str, tmp_path: Path) -> None:
    with serving(app) as base_url:
        report = status_of(base_url, tmp_path, model=model)
    assert not report.up
    assert why in report.why
    assert report.report().exit_code == 1


def test_an_engine_whose_core_cannot_answer_is_not_up(tmp_path: Path) -> None:
    with serving(Reference()) as base_url:
        report = status_of(base_url, tmp_path)
        assert report.core is not None and report.core.good and "core: one token in" in dict(report.rows())["health"]
    silent = replace(report, core=CoreAnswer(good=False, detail="no token within 15 s", seconds=15.0))
    assert (silent.up, silent.why) == (False, "the engine's core: no token within 15 s")
    assert dict(silent.rows())["up"].startswith("no: ")


@pytest.mark.parametrize(
    ("app", "good", "words"),
    [
        (Reference(), True, "one token in"),
        (broken.Hangs(), False, "and no counter of the core moved"),
        (broken.Busy(), True, "its counters move: busy"),
        (broken.HtmlAnswer(), False, ""),
        (dying.Dies(dead=True), False, "a request for one token gives HTTP 500"),
    ],
)
def test_one_token_says_whether_the_core_answers(app: Reference, good: bool, words: str) -> None:
    with serving(app) as base_url:
        answer = ask_core(base_url, "glm-4-9b-chat", None, patience_s=2.0)
    assert answer.good is good and words in answer.detail, answer


def test_a_replica_that_hangs_is_named_although_the_router_feeds_it() -> None:
    well = ReplicaStatus(service="glm4-1", running=True, detail="up", health="healthy", restarts=0, routed=True)
    hung = replace(well, core=CoreAnswer(good=False, detail="no token within 15 s", seconds=15.0))
    assert (well.why, hung.why) == ("", "glm4-1: no token within 15 s")


def test_what_the_watch_asked_last_and_the_memory_are_shown(tmp_path: Path) -> None:
    save_canary(
        LastCanary(at="2026-11-28T03:00:00+00:00", name="long-en (greedy)", outcome="sick", why="LOOP"), tmp_path
    )
    rows = dict(status_of("http://127.0.0.1:9", tmp_path).rows())
    assert rows["last canary"] == "sick (LOOP): long-en (greedy), at 2026-11-28T03:00:00+00:00"
    assert "GiB available on this host" in rows["memory"]


def test_an_engine_that_does_not_answer_is_not_up(tmp_path: Path) -> None:
    report = status_of("http://127.0.0.1:9", tmp_path)
    assert report.why.startswith("no answer at http://127.0.0.1:9/health")


def test_an_engine_that_was_never_judged_is_not_up(tmp_path: Path) -> None:
    Journal(tmp_path, "up", "").stage(JournalStage.GATE)
    with serving(Reference()) as base_url:
        report = status_of(base_url, tmp_path)
    assert "up was cut off in the stage `gate`" in report.why


def test_json_begins_with_what_scripts_need_and_has_everything_else(tmp_path: Path) -> None:
    with serving(Reference()) as base_url:
        wire = to_wire(status_of(base_url, tmp_path))
    assert (wire["up"], wire["runner"], wire["release"], wire["last_verdict"]) == (True, "process", "0001-x", "ok")
    assert wire["record"]["endpoint"]["base_url"] == base_url
    assert wire["state"]["running"] is True


def test_the_replica_that_is_down_is_named_rather_than_the_router_that_misses_it(tmp_path: Path) -> None:
    with serving(broken.Sick()) as base_url:
        report = status_of(base_url, tmp_path)
    one = ReplicaStatus(service="s-1", running=False, detail="s-1 exited", health=None, restarts=0, routed=False)
    assert replace(report, replicas=(one,)).why == "s-1: s-1 exited"


class Down:
    """A replica that ran and ended."""

    def __init__(self, name: str) -> None:
        self.name = name

    def state(self) -> RunState:
        started = Started(id=self.name, started_at=90.0)
        return RunState(running=False, started=started, container=self.name, detail=f"{self.name} exited")


def test_a_replica_that_was_stopped_for_memory_says_so_and_its_neighbour_does_not(tmp_path: Path) -> None:
    stop = MemoryStop(at=100.0, what=("s-1",), why="memory ran out: 2 GiB left", remedy="stop the browser", log="x.log")
    save_stop(stop, tmp_path)
    report = status_of("http://127.0.0.1:9", tmp_path)
    engines: Any = SimpleNamespace(replicas={name: Down(name) for name in ("s-1", "s-2")})
    one, two = _replicas(report.record, engines, tmp_path)
    assert one.why == "s-1: s-1 exited; stopped by the watch: memory ran out: 2 GiB left"
    assert (two.stopped, two.why) == (None, "s-2: s-2 exited")
    assert dict(replace(report, replicas=(one, two)).rows())["stopped"] == "stop the browser; its log: x.log"


def test_an_engine_that_was_given_up_is_down_with_the_number_of_restarts_and_its_last_end(tmp_path: Path) -> None:
    report = status_of("http://127.0.0.1:9", tmp_path)
    why = fail("CUDA error: out of memory", check="oom", remedy="lower gpu_memory_utilization")
    state = replace(report.state, running=False, restarts=3, gave_up=True, detail="glm4 exited")
    down = replace(report, state=state, ended=why)
    assert down.why == "glm4 exited, restarted 3 times, given up; its last end: CUDA error: out of memory"
    assert dict(down.rows())["last end"] == "CUDA error: out of memory; lower gpu_memory_utilization"


def test_why_an_engine_ended_is_read_from_its_log(tmp_path: Path) -> None:
    line = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."
    (tmp_path / "engine.log").write_text(f"(EngineCore pid=7) ERROR 11-28 03:00:00 [core.py:790] {line}\n")
    endpoint = status_of("http://127.0.0.1:9", tmp_path).record.endpoint
    (tmp_path / "engine.pid").write_text("999999999:1 1.0\n")
    record = Record(endpoint=endpoint, verdict=Status.OK, release="0001-x")
    report = read_status(record, recorded_engine(record, tmp_path), tmp_path)
    assert not report.up
    assert report.ended is not None and "out of memory" in report.why


# In at most ten lines.

STARTED = "2026-11-28T03:00:00+00:00"
CANARY = LastCanary(at=STARTED, name="long-en (greedy)", outcome="sound", why="sound")
MADE = {"settings": "a1b2c3d4", "kit": "0.1.0"}


def test_a_healthy_deployment_is_told_in_ten_lines(tmp_path: Path) -> None:
    with serving(Reference()) as base_url:
        report = status_of(base_url, tmp_path)
    guard = ask(Ledger(lambda _: None))
    assert guard is not None
    gpus = (GpuHealth(index=0, power_w=45.2, utilization=96.0, sm_clock_mhz=2400.0),)
    full = replace(report, guard=guard, canary=CANARY, made_from=MADE, gpus=gpus)
    rows = list(full.rows())
    names = ["up", "engine", "health", "serves", "guard", "memory", "GPU", "last canary", "release", "vLLM"]
    assert [name for name, _ in rows] == names
    said = dict(rows)
    assert (said["up"], said["GPU"]) == ("yes", "0: 96 % busy, 45 W, 2400 MHz")
    assert "restarted 0 times" in said["engine"] and f"glm-4-9b-chat at {base_url}/v1" == said["serves"]
    assert said["release"] == "0001-x, last gate: ok, made from settings a1b2c3d4 by glm4-deploy 0.1.0"
    well = ReplicaStatus(service="glm4-1", running=True, detail="up", health="healthy", restarts=0, routed=True)
    assert len(list(replace(full, replicas=(well, replace(well, service="glm4-2"))).rows())) == len(names) + 2


def test_each_fault_has_a_line_of_its_own_with_what_to_do(tmp_path: Path) -> None:
    with serving(broken.Sick()) as base_url:
        report = status_of(base_url, tmp_path, model="another")
    hot = GpuHealth(index=1, slowdowns=("power brake",))
    sick = replace(
        report, guard=GuardStatus(answers=False, detail="it has no container"), gpus=(hot,),
        state=replace(report.state, health="unhealthy", cache_doubt="a cache of another image"),
    )  # fmt: skip
    rows = list(sick.rows())
    assert dict(rows)["up"].startswith("no: ") and dict(rows)["cache"] == "a cache of another image"
    faults = [value for name, value in rows if name == "fault"]
    words = (": glm4-deploy diagnose", "logs guard", "GPU 1: power brake: glm4-deploy doctor")
    assert all(any(word in fault for fault in faults) for word in words), faults
    failed = [row for row in sick.results if row.status is Status.FAIL]
    assert len(faults) == len(failed), "one failure is in the line `up`, and the GPU's is a warning"


# The guard, asked inside its container: here a process of this host, at a port of its own.

COMMAND = ["guard", "--engine", "http://glm4:8000", "--mode", "cut"]


class Inside:
    """What the Docker SDK says of the guard's container."""

    def __init__(self, *, status: str = "running", command: list[str] | None = None) -> None:
        state = {"Status": status, "StartedAt": "2026-11-28T03:00:00Z", "ExitCode": 137}
        config = {"Image": "glm4-deploy/kit:0.1.0", "Cmd": command or COMMAND}
        self.attrs: dict[str, Any] = {
            "Id": "x", "Name": "/p-guard-1", "Image": "sha256:x", "Config": config, "State": state, "RestartCount": 2,
            "NetworkSettings": {"Ports": {}},
        }  # fmt: skip

    def reload(self) -> None: ...

    def exec_run(self, command: list[str]) -> tuple[int, bytes]:
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False)
        return done.returncode, done.stdout + done.stderr


@contextmanager
def answering(body: bytes) -> Iterator[int]:
    """A port whose /metrics has this body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def at(port: int) -> Inside:
    """A guard whose clients ask at this port."""
    return Inside(command=[*COMMAND, "--port", str(port)])


def ask(ledger: Ledger) -> GuardStatus | None:
    with answering(generate_latest(ledger.registry)) as port:
        return ask_guard(at(port), port=port)  # type: ignore[arg-type]


def test_what_the_guard_has_counted_is_shown() -> None:
    ledger = Ledger(lambda _: None)
    question = Question(
        api=Api.CHAT, model="glm-4-9b-chat", key="", prompts=("Hi",), prompt_known=True, choices=1, max_tokens=None,
        engine_checks=False,
    )  # fmt: skip
    for outcome in ("sound", "sound", "sound", "sick", "cut", "cut"):
        ledger.answer(question, outcome)
    ledger.unjudged("off")
    seen = ask(ledger)
    assert seen is not None and seen.answers and seen.counts is not None
    assert (seen.counts.judged, seen.counts.sick, seen.counts.cut, seen.counts.unjudged) == (6, 3, 2, 1)
    assert seen.summary.startswith("mode cut; 6 answers judged since 20")
    assert seen.summary.endswith(", 3 looped or were garbage, 2 cut, 1 more passed unjudged; restarted 2 times")
    assert seen.result("p").status is Status.OK


@pytest.mark.parametrize(
    ("status", "words"),
    [("exited", "p-guard-1: exited, exit code 137"), ("running", "its /metrics: ConnectionRefusedError")],
)
def test_a_guard_that_does_not_answer_is_a_fault(status: str, words: str, tmp_path: Path) -> None:
    with answering(b"") as port:
        pass  # nobody listens there now
    seen = ask_guard(Inside(status=status), port=port)  # type: ignore[arg-type]
    assert seen is not None and (seen.answers, seen.mode) == (False, "cut") and words in seen.detail
    row = seen.result("p")
    assert (row.status, row.remedy) == (Status.FAIL, "docker compose -p p logs guard")
    with serving(Reference()) as base_url:
        report = replace(status_of(base_url, tmp_path), guard=seen)
    assert not report.up and "the guard, through which clients reach the engine" in report.why
    assert (report.report().exit_code, report.hints[0]) == (1, "the guard: docker compose -p p logs guard")


def test_a_guard_that_counts_and_lets_no_client_in_is_a_fault() -> None:
    ledger = Ledger(lambda _: None)

    async def looks() -> tuple[GuardStatus | None, GuardStatus | None]:
        options = GuardOptions(engine="http://127.0.0.1:1")  # which is not asked
        async with serving_guard(options, ledger, "127.0.0.1", 0, 0) as (clients, metrics):
            well = await asyncio.to_thread(ask_guard, at(clients), port=metrics)  # type: ignore[arg-type]
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                gone = free.getsockname()[1]  # nobody listens there
                return well, await asyncio.to_thread(ask_guard, at(gone), port=metrics)  # type: ignore[arg-type]

    well, deaf = asyncio.run(looks())
    assert well is not None and well.answers and well.counts is not None and well.counts.judged == 0
    assert deaf is not None and deaf.answers is False and deaf.counts is None
    assert "where clients ask: ConnectionRefusedError" in deaf.result("p").observed


def test_a_guard_whose_counters_are_not_known_is_unknown_and_not_fine(tmp_path: Path) -> None:
    with answering(b"up 1\n") as port:
        seen = ask_guard(at(port), port=port)  # type: ignore[arg-type]
    assert seen is not None and seen.answers is None
    assert seen.result("p").status is Status.UNKNOWN
    with serving(Reference()) as base_url:
        report = replace(status_of(base_url, tmp_path), guard=seen)
    assert (report.up, report.report().exit_code) == (False, 1)
    assert to_wire(report)["guard"]["answers"] is None


def test_another_service_of_that_name_is_no_guard() -> None:
    assert ask_guard(Inside(command=["sleep", "9"])) is None  # type: ignore[arg-type]


def test_the_files_on_record_say_whether_there_must_be_a_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = status_of("http://127.0.0.1:9", tmp_path).record
    file = tmp_path / "compose.yaml"
    file.write_text("services: {guard: {command: [guard, --engine, x]}}\n")
    own = tmp_path / "own.yaml"
    own.write_text("services: {guard: {image: other}, glm4: null}\n")
    monkeypatch.setattr("glm4_deploy.deploy.guarded.connect", lambda **_: None)
    monkeypatch.setattr("glm4_deploy.deploy.guarded.find_container", lambda *_: None)
    absent = read_guard(replace(record, files=(str(tmp_path / "none.yaml"), str(own), str(file))))
    assert absent is not None and (absent.answers, absent.detail) == (False, "it has no container")
    assert read_guard(replace(record, files=(str(own),))) is None

    def hangs(*_: object) -> None:
        raise DockerMissing("the Docker engine does not answer")

    monkeypatch.setattr("glm4_deploy.deploy.guarded.find_container", hangs)
    unknown = read_guard(record)
    assert unknown is not None and unknown.answers is None and "does not answer" in unknown.detail

    monkeypatch.setattr("glm4_deploy.deploy.guarded.find_container", lambda *_: Paused())
    paused = read_guard(record)
    assert paused is not None and paused.answers is None and "is paused" in paused.detail


class Paused(Inside):
    def exec_run(self, command: list[str]) -> tuple[int, bytes]:
        raise APIError("409 Conflict: the container is paused")


class Says(Inside):
    """A container whose exec gives this."""

    def __init__(self, code: int | None, output: bytes, **options: Any) -> None:
        super().__init__(**options)
        self.given = code, output

    def exec_run(self, command: list[str]) -> tuple[int, bytes]:
        return self.given  # type: ignore[return-value]  # None where Docker has not recorded the end yet


COUNTED = b'glm4_guard_streams 1\nglm4_guard_answers_total{outcome="sound"} 3\n'


def test_what_docker_has_not_recorded_or_could_not_run_says_nothing_of_the_guard() -> None:
    seen = ask_guard(Says(None, COUNTED))  # type: ignore[arg-type]
    assert seen is not None and seen.answers and seen.counts is not None and seen.counts.judged == 3
    for code, output in (
        (127, b"exec: python3: not found"),
        (126, b"denied"),
        (None, b""),
        (0, COUNTED[:-2] + b"NaN\n"),
    ):
        seen = ask_guard(Says(code, output))  # type: ignore[arg-type]
        assert seen is not None and seen.answers is None, (code, output)


def test_a_guard_that_refuses_for_lack_of_memory_is_not_fine(tmp_path: Path) -> None:
    seen = ask_guard(Says(0, COUNTED + b"glm4_guard_refuses 1\n"))  # type: ignore[arg-type]
    assert seen is not None and seen.answers and "it refuses new questions" in seen.summary
    with serving(Reference()) as base_url:
        report = replace(status_of(base_url, tmp_path), guard=seen)
    assert report.why == "the guard refuses new questions, because the host is short of memory"
    assert any("guard_refuse_below_gib" in hint for hint in report.hints)


def test_its_mode_is_read_in_both_forms() -> None:
    seen = ask_guard(Says(0, COUNTED, command=["guard", "--engine", "x", "--mode=retry"]))  # type: ignore[arg-type]
    assert seen is not None and seen.mode == "retry"


class Silent(Inside):
    def exec_run(self, command: list[str]) -> tuple[int, bytes]:
        threading.Event().wait()
        raise AssertionError


def test_a_docker_that_never_answers_or_answers_nonsense_ends_no_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = status_of("http://127.0.0.1:9", tmp_path).record
    monkeypatch.setattr("glm4_deploy.deploy.guarded.connect", lambda **_: None)
    monkeypatch.setattr("glm4_deploy.deploy.guarded.LIMIT_S", 0.2)
    monkeypatch.setattr("glm4_deploy.deploy.guarded.find_container", lambda *_: Silent())
    silent = read_guard(record)
    assert silent is not None and silent.answers is None and "within 0.2 s" in silent.detail
    half = Inside()
    half.attrs["State"] = None
    monkeypatch.setattr("glm4_deploy.deploy.guarded.LIMIT_S", 30.0)
    monkeypatch.setattr("glm4_deploy.deploy.guarded.find_container", lambda *_: half)
    unknown = read_guard(record)
    assert unknown is not None and unknown.answers is None


def test_a_driver_that_never_answers_is_a_warning_and_ends_no_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm4_deploy.deploy.status.GPU_S", 0.2)
    monkeypatch.setattr("glm4_deploy.deploy.status.read_gpu_health", threading.Event().wait)
    with serving(Reference()) as base_url:
        report = status_of(base_url, tmp_path)
    assert report.up and report.gpus is None
    (row,) = (row for row in report.results if row.check == "gpu")
    assert row.status is Status.WARN and "no answer within 0.2 s" in row.observed
    assert to_wire(report)["gpus"] is None
