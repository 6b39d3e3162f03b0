"""Every check, twice: it passes on an endpoint that behaves, and fails for the right reason on a twin that does not."""

import asyncio
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.limits import Slo
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.suite import checks, run_suite
from glm4_deploy.report_model import Suite, SuiteReport
from glm4_deploy.result import Status
from servers import brain, broken
from servers.reference import Reference
from servers.serve import mounted

MODEL = "glm-4-9b-chat"
KEY = "sk-test-0123456789"


def ask(app: Any, *, only: Sequence[str] = (), suite: Suite = Suite.FULL, **settings: Any) -> SuiteReport:
    options = settings.pop("options", None)
    with mounted(app) as url:
        target = ProbeTarget(**{"base_url": url, "model": MODEL, "timeout_s": 10.0, **settings})
        return asyncio.run(run_suite(target, suite=suite, only=only, options=options))


def row(report: SuiteReport, check: str) -> Any:
    return next(result for result in report.results if result.check == check)


@pytest.fixture(scope="module")
def healthy() -> SuiteReport:
    """The full suite against an endpoint with every feature on, and a context that lets every check run."""
    app = Reference(token_s=0.0005, max_model_len=40_000, tools=True, key=KEY)
    baseline = {"passage-en": 1.6, "passage-zh": 1.5}
    return ask(
        app,
        api_key=SecretStr(KEY),
        started_at=time.time() - 1,
        vllm_version="0.32.0",
        options=Options(baseline=baseline, slo=Slo(ttft_p95_ms=60_000), fingerprint=brain.fingerprint()),
    )


@pytest.mark.parametrize("check", checks())
def test_passes_on_the_reference(healthy: SuiteReport, check: str) -> None:
    found = row(healthy, check)
    assert found.status is Status.OK, found


def test_a_healthy_run_says_what_it_covered(healthy: SuiteReport) -> None:
    assert (healthy.verdict, healthy.exit_code) == (Status.OK, 0)
    assert "no failure was seen" in healthy.covered
    assert f"{len(checks())} of {len(checks())} checks judged" in healthy.covered


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """On `app`, `check` must give `status` with all of `words`. settings: of the target."""

    check: str
    app: type[Reference]
    words: tuple[str, ...]
    status: Status = Status.FAIL
    code: int = 1
    settings: tuple[tuple[str, Any], ...] = ()
    context: int = 2048

    @property
    def name(self) -> str:
        return f"{self.check}-{self.app.__name__}"


LONG = 40_000
HASTY = (("timeout_s", 0.6),)
CASES = (
    Case(check="alive", app=broken.Sick, words=("HTTP 500",)),
    Case(check="alive", app=broken.ProxyPage, words=("proxy", "502"), code=4),
    Case(check="alive", app=broken.Redirects, words=("307", "127.0.0.1:9"), code=4),
    Case(check="identity", app=broken.OtherProgram, words=("text/html", "no list of models"), code=4),
    Case(
        check="identity", app=broken.Stale, words=("stale", "3600 s before"), code=4, settings=(("started_at", "now"),)
    ),
    Case(
        check="identity", app=broken.StaleCreated, words=("stale", "created"), code=4, settings=(("started_at", "now"),)
    ),
    Case(check="identity", app=Reference, words=("glm-4-9b-chat", "not other"), code=4, settings=(("model", "other"),)),
    Case(check="identity", app=Reference, words=("0.32.0", "0.13.0"), code=4, settings=(("vllm_version", "0.13.0"),)),
    Case(check="unknown-model", app=broken.AnyModel, words=("HTTP 200", "no-such-model")),
    Case(check="key", app=broken.OpenDoor, words=("without a key HTTP 200",), settings=(("api_key", SecretStr(KEY)),)),
    Case(check="chat", app=broken.WrongUsage, words=("does not add up",)),
    Case(check="chat", app=broken.Mute, words=("empty answer",)),
    Case(check="chat", app=broken.HtmlAnswer, words=("not-openai", "502 Bad Gateway")),
    Case(check="chat", app=broken.ProxyGaveUp, words=("server-error", "HTTP 504, text/html")),
    Case(check="alive", app=broken.SaysGzip, words=("content-encoding",), code=4),
    Case(check="alive", app=broken.Bomb, words=("content-encoding gzip, gzip",), code=4),
    Case(check="stream", app=broken.TextDelta, words=("not-openai", "delta is text")),
    Case(check="chat", app=broken.Hangs, words=("hang", "stood still"), settings=HASTY),
    Case(check="chat", app=broken.Busy, words=("busy, not hung",), status=Status.UNKNOWN, settings=HASTY),
    Case(check="stream", app=broken.TruncatedStream, words=("truncated", "without [DONE]")),
    Case(check="stream", app=broken.CutStream, words=("truncated",)),
    Case(check="stream", app=broken.ErrorAmidStream, words=("server-error", "Internal server error")),
    Case(check="stream", app=broken.NoUsage, words=("no usage",)),
    Case(check="stream", app=broken.AfterTheEnd, words=("after finish_reason",)),
    Case(check="stream", app=broken.OtherWords, words=("differ from character 44", "indeed", "against '.'")),
    Case(check="stream", app=broken.HangsAmidStream, words=("hang", "stood still"), settings=HASTY),
    Case(check="stream", app=broken.Drips, words=("slow", "still streaming"), settings=HASTY),
    Case(check="stream", app=broken.Buffered, words=("at once",), status=Status.WARN, code=0),
    Case(check="max-tokens", app=broken.Endless, words=("28 tokens",)),
    Case(check="overflow", app=broken.CutsInSilence, words=("was accepted",)),
    Case(check="max-tokens-limit", app=broken.CutsInSilence, words=("was accepted",)),
    Case(check="numbers", app=broken.NullLogprobs, words=("streamed", "null at token 1")),
    Case(check="numbers", app=broken.Nan400, words=("HTTP 400", "Out of range")),
    Case(check="numbers", app=broken.Corrupts, words=("corrupted_requests_total moved by 2",)),
    Case(check="stops", app=broken.Leaks, words=("<|user|>",)),
    Case(check="stops", app=broken.RunsOn, words=("length",)),
    Case(check="stops", app=broken.RunsPastHidden, words=("ran past <|user|>",)),
    Case(check="stop-strings", app=broken.NoStopStrings, words=("finish_reason length",)),
    Case(check="structured", app=broken.BlankJson, words=("white space", "length")),
    Case(check="structured", app=broken.ProseJson, words=("not JSON", "Li Na")),
    Case(check="tools-call", app=broken.LeakyTools, words=("leaked into the text",)),
    Case(check="tools-call", app=broken.BadArguments, words=("not JSON",)),
    Case(check="tools-call", app=broken.TalksOnly, words=("called no tool",), status=Status.WARN, code=0),
    Case(check="tools-stream", app=broken.LeakyTools, words=("leaked into the text",)),
    Case(check="tools-stream", app=broken.LosesPieces, words=("not JSON",)),
    Case(check="tools-stream", app=broken.RepeatsNames, words=("unknown tool",)),
    Case(check="tools-parallel", app=broken.MergesCalls, words=("not JSON",)),
    Case(check="tools-parallel", app=broken.OneId, words=("two calls have the id",)),
    Case(check="tools-parallel", app=broken.OneCity, words=("one call for two",), status=Status.WARN, code=0),
    Case(check="tools-roundtrip", app=broken.IgnoresResults, words=("cannot know", "without 23")),
    Case(check="tools-none", app=broken.AlwaysCalls, words=("tool_choice auto", "Say hello")),
    Case(check="tools-none", app=broken.ForcesCalls, words=("tool_choice none",)),
    Case(check="metrics", app=broken.FrozenCounters, words=("0 more",)),
    Case(check="arithmetic", app=broken.WrongDigits, words=("wrong", "'37' instead of 42")),
    Case(check="counting", app=broken.Slips, words=("98 after 96",)),
    Case(check="recall", app=broken.Forgets, words=("Grace Hopper", "instead of Ada Lovelace")),
    Case(check="language", app=broken.EnglishOnly, words=("instead of 北京",)),
    Case(check="perplexity", app=broken.Perplexed, words=("times its baseline",)),
    Case(check="perplexity", app=broken.PerplexedNan, words=("not a number",)),
    Case(check="fingerprint", app=broken.Sharpened, words=("off: ", "english")),
    Case(check="fingerprint", app=broken.LosesTheStart, words=("off: context 1k",)),
    Case(check="fingerprint", app=broken.OtherTemplate, words=("chat: ", "from position 1 on")),
    Case(check="loop-greedy", app=broken.LoopsGreedy, words=("2 of 2 texts", "EXACT_LOOP")),
    Case(check="loop-sampled", app=broken.LoopsSampled, words=("EXACT_LOOP",)),
    Case(check="loop-long", app=broken.LoopsLate, words=("EXACT_LOOP",)),
    *(Case(check=f"needle-{k}k", app=broken.ShortSighted, words=("instead of",), context=LONG) for k in (4, 8, 16, 32)),
    Case(check="loop-context", app=broken.LoopsBehindLongPrompt, words=("EXACT_LOOP",), context=LONG),
    Case(check="prefix-cache", app=broken.SpoiltCache, words=("warm answer is degenerate", "a new prompt gives")),
    Case(check="prefix-cache", app=broken.NoHits, words=("no hit counted",)),
    Case(check="concurrency-1", app=broken.Tires, words=("add: '41' instead of 42",)),
    *(Case(check=f"concurrency-{n}", app=broken.CracksUnderLoad, words=("instead of",)) for n in (4, 16, 64)),
    Case(check="speed", app=broken.Slow, words=("tpot p95", "limit 4 ms")),
)


def test_a_context_that_no_model_has_is_not_believed() -> None:
    """Prompts are made of the reported length: 10¹² tokens of them would take all memory."""
    report = ask(broken.Boundless(tools=True), only=["identity", "needle-4k"])
    assert "context unknown" in row(report, "identity").observed
    assert row(report, "needle-4k").status is Status.SKIPPED


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fails_on_a_twin_for_the_right_reason(case: Case) -> None:
    settings = {name: time.time() if value == "now" else value for name, value in case.settings}
    key = KEY if "api_key" in settings else None
    app = case.app(max_model_len=case.context, tools=True, key=key)
    options = Options(
        slo=Slo(tpot_p95_ms=4), baseline={"passage-en": 1.6, "passage-zh": 1.5}, fingerprint=brain.fingerprint()
    )
    report = ask(app, only=[case.check], options=options, **settings)
    result = row(report, case.check)
    assert result.status is case.status, result
    text = result.observed + result.reason
    assert [word for word in case.words if word not in text] == [], text
    assert report.exit_code == case.code
    if case.status in {Status.FAIL, Status.UNKNOWN}:
        assert result.remedy, "a failure says what to do"


class Miscopies(Reference):
    """Gives a wrong code word in the answers whose places are in `wrong`."""

    wrong: Container[int] = ()
    asked = 0

    def reply(self, body: dict[str, Any]) -> str:
        if "code word" not in body["messages"][-1]["content"]:
            return super().reply(body)
        self.asked += 1
        return "1234567" if self.asked in self.wrong else super().reply(body)


@pytest.mark.parametrize(
    ("wrong", "status", "words"),
    [
        ((2,), Status.OK, "'1234567' instead of"),
        ((2, 3), Status.FAIL, "at 50%; '1234567' instead of"),
        ((3, 6), Status.FAIL, "at 90%; '1234567' instead of"),
    ],
)
def test_one_miscopied_code_word_is_told_and_two_at_one_depth_fail(wrong: Any, status: Status, words: str) -> None:
    app = Miscopies(max_model_len=LONG)
    app.wrong = wrong
    result = row(ask(app, only=["needle-4k"]), "needle-4k")
    assert (result.status, words in result.observed) == (status, True), result


def test_every_check_has_a_twin_that_fails_it() -> None:
    assert {case.check for case in CASES if case.status is Status.FAIL} == set(checks())
