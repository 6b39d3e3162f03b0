"""`status` trusts neither a running process nor a model list: /health must agree."""

import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from glm4_deploy.deploy.candidates import recorded_engine
from glm4_deploy.deploy.core_check import CoreAnswer, ask_core
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.state import Journal, JournalStage, LastCanary, Record, save_canary
from glm4_deploy.deploy.status import ReplicaStatus, StatusReport, read_status
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
        assert report.core is not None and report.core.good and "one token in" in dict(report.rows())["core"]
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
