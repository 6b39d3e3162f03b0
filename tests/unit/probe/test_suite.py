"""Running a suite: dependencies, choice of checks, other servers, soak, and a verdict that always comes."""

import asyncio
import threading
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glm4_deploy.errors import UsageError, WrongEngine
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.suite import DIED, checks, choose_checks, run_suite, soak
from glm4_deploy.report.wire import dumps
from glm4_deploy.report_model import Suite, SuiteReport
from glm4_deploy.result import Result, Status, fail
from servers import broken, dying
from servers.reference import Generated, HttpError, Reference, Send
from servers.serve import mounted, serving

TARGET: dict[str, Any] = {"model": "glm-4-9b-chat", "timeout_s": 10.0}


def run(app: Any, **settings: Any) -> SuiteReport:
    with mounted(app) as url:
        return asyncio.run(run_suite(ProbeTarget(base_url=url, **TARGET), **settings))


def statuses(report: SuiteReport) -> dict[str, Status]:
    return {result.check: result.status for result in report.results}


def row_of(report: SuiteReport, check: str) -> Result:
    return next(row for row in report.results if row.check == check)


def test_what_needs_a_failed_check_is_skipped_and_names_the_root() -> None:
    report = run(broken.WrongUsage(), suite=Suite.QUICK)
    found = {result.check: result for result in report.results}
    assert found["chat"].status is Status.FAIL
    assert found["arithmetic"].reason == "needs chat, which did not pass"
    assert found["concurrency-16"].reason == "needs chat, which did not pass"
    assert found["numbers"].status is Status.OK, "it does not rest on chat"


def test_only_includes_what_it_needs() -> None:
    names = [check.id for check in choose_checks(Suite.QUICK, ["concurrency-*"], [])]
    assert names[:3] == ["alive", "identity", "chat"]
    assert names[-1] == "concurrency-64"
    assert "arithmetic" in names


def test_skip_leaves_out() -> None:
    names = {check.id for check in choose_checks(Suite.QUICK, [], ["loop-*", "speed"])}
    assert not names & {"loop-greedy", "loop-sampled", "speed"}
    assert "chat" in names


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        choose_checks(Suite.QUICK, ["aritmetic"], [])
    assert "arithmetic" in caught.value.hint


def test_the_table_is_sound() -> None:
    for check in checks().values():
        assert set(check.needs) <= set(checks())
        order = list(checks())
        assert all(order.index(need) < order.index(check.id) for need in check.needs), check.id
        assert check.proves and check.seconds > 0
        for suite in check.suites:
            assert all(suite in checks()[need].suites for need in check.needs), f"{check.id} in {suite}"


def test_the_quick_suite_is_planned_to_take_less_than_a_minute() -> None:
    assert sum(check.seconds for check in checks().values() if Suite.QUICK in check.suites) < 60


class Plain(Reference):
    """Another OpenAI-compatible server: no /version, no /metrics, no logprobs, and it says so with a 400."""

    def __post_init__(self) -> None:
        self.version = None

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "library"}]}

    def validate(self, body: dict[str, Any]) -> None:
        for name in ("logprobs", "response_format", "tools"):
            if body.get(name):
                raise HttpError(400, f"{name} is not supported")
        super().validate({**body, "model": self.model})

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        raise HttpError(404, "no such address")


def test_another_server_passes_and_what_it_lacks_is_skipped_with_its_reason() -> None:
    report = run(Plain(token_s=0.0005), suite=Suite.FULL, skip=["concurrency-*", "loop-long", "speed"])
    assert report.exit_code == 0, report.results
    reasons = {result.check: result.reason for result in report.results if result.status is Status.SKIPPED}
    assert {"numbers", "structured", "tools-call", "perplexity", "metrics", "overflow", "needle-4k"} <= set(reasons)
    assert all(reasons.values())
    assert statuses(report)["loop-greedy"] is Status.OK


class NoHealth(Reference):
    async def health(self, send: Send) -> None:
        await self.send_json(send, {"detail": "Not Found"}, 404)


def test_a_server_without_health_is_alive() -> None:
    assert statuses(run(NoHealth(), only=["identity"]))["alive"] is Status.OK


def test_an_unknown_verdict_is_not_a_pass() -> None:
    with mounted(broken.Busy()) as url:
        target = ProbeTarget(base_url=url, model="glm-4-9b-chat", timeout_s=0.3)
        report = asyncio.run(run_suite(target, only=["chat"]))
    assert (report.verdict, report.exit_code) == (Status.UNKNOWN, 1)


def test_after_a_hang_no_further_check_runs() -> None:
    app = broken.HangsAmidStream()
    with mounted(app) as url:
        target = ProbeTarget(base_url=url, model="glm-4-9b-chat", timeout_s=0.3)
        report = asyncio.run(run_suite(target, suite=Suite.QUICK))
    assert statuses(report)["stream"] is Status.FAIL
    assert statuses(report)["counting"] is Status.SKIPPED


def test_an_engine_that_goes_away_is_reported_once() -> None:
    with ExitStack() as house:
        url = house.enter_context(serving(Reference()))
        stop = {"chat": house.close}
        report = asyncio.run(
            run_suite(ProbeTarget(base_url=url, **TARGET), on_result=lambda row: stop.get(row.check, lambda: None)())
        )
    found = statuses(report)
    assert [check for check, status in found.items() if status is Status.FAIL] == ["stream"]
    reasons = {row.reason for row in report.results if row.status is Status.SKIPPED and row.check != "key"}
    assert reasons == {"the engine died in stream"}
    assert "nothing answers at its address any more" in row_of(report, "stream").observed
    assert report.exit_code == 11


@pytest.mark.parametrize(
    ("app", "check", "words"),
    [
        (dying.Dies, "structured", "HTTP 500: EngineCore encountered an issue"),
        (dying.DiesWithoutAWord, "structured", "/health answers HTTP 503"),
        (dying.DiesAmidStream, "structured", "an error within the stream: EngineCore encountered an issue"),
        (dying.DiesBehindARouter, "structured", "HTTP 500: EngineCore encountered an issue"),
        (dying.DiesAndComesBack, "structured", "it was started again meanwhile"),
        (dying.DiesUnderLoad, "concurrency-16", "HTTP 500: EngineCore encountered an issue"),
    ],
)
def test_a_death_is_one_finding_and_the_last_question(app: type[dying.Dies], check: str, words: str) -> None:
    engine = app()
    report = run(engine, suite=Suite.QUICK, autopsy=lambda: fail("cuda is gone", remedy="look at dmesg", check="xid"))
    failed = [row for row in report.results if row.status is Status.FAIL]
    assert [row.check for row in failed] == [check]
    assert failed[0].observed.startswith(f"the engine died in {check}: {words}"), failed[0]
    assert failed[0].observed.endswith("; its log: cuda is gone")
    assert (failed[0].code, failed[0].remedy) == (DIED, "look at dmesg")
    after = report.results[report.results.index(failed[0]) + 1 :]
    assert after
    assert {(row.status, row.reason) for row in after} == {(Status.SKIPPED, f"the engine died in {check}")}
    assert report.exit_code == 11
    # Requests that were under way belong to the check; only the check for a dead engine was asked after it.
    assert len(engine.asked) < 16


def test_without_a_log_a_death_says_where_to_look() -> None:
    report = run(dying.Dies(), suite=Suite.QUICK)
    assert "glm4-deploy diagnose" in row_of(report, "structured").remedy


def test_a_server_error_of_an_engine_that_lives_is_a_failure_of_its_check_alone() -> None:
    report = run(dying.Fails(), suite=Suite.QUICK)
    assert [check for check, status in statuses(report).items() if status is Status.FAIL] == ["structured"]
    assert "the engine died" not in dumps(report)
    assert report.exit_code == 1


def test_a_dead_engine_ends_a_soak() -> None:
    class DiesInItsSecondRound(dying.Dies):
        def fatal(self, body: dict[str, Any]) -> bool:
            return len(self.requests) > 30

    engine = DiesInItsSecondRound()
    with mounted(engine) as url:
        report = asyncio.run(soak(ProbeTarget(base_url=url, **TARGET), seconds=60, only=["arithmetic"]))
    assert len([row for row in report.results if row.status is Status.FAIL]) == 1
    assert "the engine died in" in next(row.observed for row in report.results if row.status is Status.FAIL)
    assert (report.verdict, report.exit_code) == (Status.FAIL, 11)
    assert report.seconds < 60
    assert len(engine.asked) < 2


class Floods(Reference):
    """Ignores max_tokens: two million characters."""

    def generate(self, body: dict[str, Any]) -> Generated:
        made = super().generate(body)
        made.pieces = ["flood " * 1000] * 333
        return made


def test_a_report_keeps_a_bounded_part_of_any_answer() -> None:
    report = run(Floods(), only=["stops", "language"])
    assert report.exit_code == 1
    assert len(dumps(report)) < 400_000
    assert "more characters" in dumps(report)


def end_after_two(number: int, *_: object) -> None:
    if number == 2:
        interrupt()


def interrupt() -> None:
    """End a soak as Ctrl-C does; how many rounds fit into a time depends on the machine."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


def test_a_soak_notices_a_restart() -> None:
    app = Reference()

    def restart(number: int, *_: object) -> None:
        app.started += 60
        end_after_two(number)

    with mounted(app) as url:
        report = asyncio.run(
            soak(ProbeTarget(base_url=url, **TARGET), seconds=600, only=["identity"], on_round=restart),
        )
    found = next(row for row in report.results if row.check == "restarts")
    assert found.status is Status.FAIL
    assert "started 2 times" in found.observed
    assert (report.verdict, report.exit_code) == (Status.FAIL, 1)


def test_a_soak_stops_at_a_server_that_is_not_the_engine(tmp_path: Path) -> None:
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=files.serve_forever, daemon=True).start()
    rounds: list[int] = []
    try:
        url = f"http://127.0.0.1:{files.server_port}"
        target = ProbeTarget(base_url=url, **TARGET)
        report = asyncio.run(soak(target, seconds=30, on_round=lambda number, *_: rounds.append(number)))
    finally:
        files.shutdown()
        files.server_close()
    assert report.exit_code == WrongEngine.exit_code
    assert rounds == [1]


def test_a_soak_counts_only_the_rounds_that_were_judged() -> None:
    with mounted(broken.Tires()) as url:
        target = ProbeTarget(base_url=url, **TARGET)
        report = asyncio.run(soak(target, seconds=600, only=["concurrency-4"], on_round=end_after_two))
    found = next(row for row in report.results if row.check == "arithmetic")
    assert found.status is Status.FAIL
    assert "concurrency-4" not in report.covered, "it was judged in a round, and no more is said"


class GoesBad(Reference):
    """Sound for a while, then in a loop forever."""

    asked = 0

    def reply(self, body: dict[str, Any]) -> str:
        self.asked += 1
        text = super().reply(body)
        return text[:40] + " and the lamp went out" * 120 if self.asked > 25 and len(text) > 200 else text


def test_a_soak_finds_what_one_round_does_not() -> None:
    verdicts: list[Status] = []

    def on_round(_number: int, _seconds: float, found: Status) -> None:
        verdicts.append(found)
        if found is Status.FAIL:
            interrupt()

    with mounted(GoesBad(token_s=0.0)) as url:
        target = ProbeTarget(base_url=url, **TARGET)
        skip = ["speed", "counting", "concurrency-4", "stops"]
        report = asyncio.run(soak(target, seconds=600, skip=skip, on_round=on_round))
    assert verdicts[0] is Status.OK
    assert (verdicts[-1], report.verdict, report.exit_code) == (Status.FAIL, Status.FAIL, 1)
    found = next(result for result in report.results if result.check == "loop-greedy")
    assert "first in round" in found.observed
    assert any(sample.finding and sample.finding.degenerate for sample in report.samples)
    assert "rounds" in report.covered
