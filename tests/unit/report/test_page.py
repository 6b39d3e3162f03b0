"""The HTML report in a real browser: nothing in a model's answer runs, and nothing leaves the page."""

import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from glm4_deploy.detect import scan
from glm4_deploy.report.html import to_html
from glm4_deploy.report_model import (
    AnswerSample,
    DeploymentNotes,
    Fact,
    Measure,
    ReleaseNote,
    Suite,
    SuiteReport,
    Timing,
)
from glm4_deploy.result import Evidence, Result, Status, ok

LOOP = "It was late. " + "The lamp went out. " * 30


def hostile(url: str) -> str:
    """What an answer could try, each part aimed at a server that records its requests."""
    return (
        f"</pre></details><script>document.title='owned';fetch('{url}/script')</script>"
        f"<img src='{url}/image' onerror=\"fetch('{url}/error')\"><svg onload=\"fetch('{url}/svg')\"></svg>"
        f"<style>@import url('{url}/style');body{{background:url('{url}/background')}}</style>"
        f"<link rel=stylesheet href='{url}/link'><iframe src='{url}/frame'></iframe>"
        f"<meta http-equiv=refresh content='0;url={url}/refresh'>{{{{ 7*7 }}}}"
    )


def report(answer: str) -> SuiteReport:
    arrivals = tuple(0.1 + 0.01 * n for n in range(60))
    chars = tuple(len(LOOP) * n // 60 for n in range(1, 61))
    timing = Timing(total=1.5, arrivals=arrivals, chars=chars, tokens=60)
    row = Result(
        check="loop-greedy",
        status=Status.FAIL,
        observed=answer,
        expected=answer,
        remedy=answer,
        evidence=(Evidence(name=answer, text=answer),),
        seconds=1.5,
    )
    bad = AnswerSample(
        check="speed", prompt=answer, answer=LOOP, finish_reason=answer, finding=scan(LOOP), timing=timing
    )
    return SuiteReport(
        suite=Suite.QUICK,
        base_url=answer,
        model=answer,
        started="2026-01-01T00:00:00+00:00",
        seconds=1.5,
        results=(row,),
        verdict=Status.FAIL,
        exit_code=1,
        covered=answer,
        samples=(bad, AnswerSample(check=answer, prompt="p", answer=answer, timing=timing)),
        engine=(Fact(name=answer, value=answer), Fact(name="vLLM", value=answer)),
        proves=(Fact(name="loop-greedy", value=f"no loop {answer}"), Fact(name="chat", value=answer)),
        deployment=notes(answer),
    )


def notes(text: str) -> DeploymentNotes:
    release = ReleaseNote(
        id=text,
        created_at=text,
        verdict=Status.FAIL,
        reason=text,
        vllm=text,
        kernel=text,
        ready_seconds=9.0,
        gate_seconds=2.0,
        this=True,
    )
    return DeploymentNotes(
        kernel=text,
        native_fp4=False,
        phases=(Measure(name=text, value=1.0), Measure(name="weights", value=4.0)),
        planned=(ok(text, text, check="plan-kv-cache"),),
        releases=(release,),
        certificate=(text, f"signed {text}"),
    )


@pytest.fixture
def visited() -> Iterator[tuple[str, list[str]]]:
    """(address, requested paths) of a server that records every request."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()
    thread.join()


def browse(page: Path, profile: Path) -> str:
    """The page's DOM after a real Chromium has loaded it and run its scripts."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: `make test-needs` installs it")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
    ]
    command = [
        chromium,
        *flags,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=2000",
        "--dump-dom",
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_hostile_answer_runs_no_code_and_sends_no_request(tmp_path: Path, visited: tuple[str, list[str]]) -> None:
    url, paths = visited
    page = tmp_path / "report.html"
    page.write_text(to_html(report(hostile(url))), encoding="utf-8")
    dom = browse(page, tmp_path / "profile")
    assert paths == []
    assert "<title>owned" not in dom
    assert "7*7" in dom, "a template in an answer stays text"
    assert "The lamp went out." in dom


def test_without_escaping_the_hostile_answer_sends_requests(tmp_path: Path, visited: tuple[str, list[str]]) -> None:
    """So the test above can fail."""
    url, paths = visited
    page = tmp_path / "bare.html"
    page.write_text(f"<pre>{hostile(url)}", encoding="utf-8")
    browse(page, tmp_path / "profile")
    assert {"/image", "/script"} <= set(paths)


def test_the_page_needs_nothing_from_outside() -> None:
    page = to_html(report("fine"))
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert " src=" not in page
    assert "url(" not in page
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page


def test_the_loop_is_marked_where_it_starts() -> None:
    page = to_html(report("fine"))
    before, unit = page.split('<mark class="unit">')[0], page.split('<mark class="unit">')[1].split("</mark>")[0]
    assert before.endswith("<pre>It was late")
    assert unit.strip(" .") == "The lamp went out"
    assert '<mark class="loop">' in page


def test_the_plots_are_there() -> None:
    page = to_html(report("fine"))
    assert page.count("<svg viewBox") >= 3
    assert 'class="curve s0"' in page
    assert 'class="tick"' in page


def test_long_answers_are_capped() -> None:
    page = to_html(report("x" * 1_000_000))
    assert len(page) < 100_000
    assert "more characters" in page


def test_what_is_not_proved_stands_beside_what_is() -> None:
    page = to_html(report("fine"))
    proved, missing = page.split("<h3>Not proved")[0], page.split("<h3>Not proved")[1]
    assert "Proved (0)" in proved
    assert missing.startswith(" (2)"), "the failed check, and the one that was not asked"
    assert "no loop fine" in missing
    assert "1 checks were not part of this run" in missing


def test_the_verdict_is_said_first_with_what_to_do() -> None:
    page = to_html(report("fine"))
    top = page.split("<h2>What this proves")[0]
    assert "Do not use this engine" in top
    assert 'class="do">fine' in top
    assert '<mark class="unit">' in top, "the loop itself is at the top"


def test_the_timeline_marks_the_tokens_after_a_loop_began() -> None:
    page = to_html(report("fine"))
    assert page.count('<rect class="looping"') == 1
    assert page.count('class="tick bad"') == 1
    assert "loops after 0.11 s" in page


def test_the_start_and_the_history_are_shown() -> None:
    page = to_html(report("fine"))
    assert page.count('<rect class="span"') == 2
    assert "plan-kv-cache" in page
    assert '<tr class="this">' in page


def test_a_page_without_a_deployment_has_no_empty_sections() -> None:
    page = to_html(replace(report("fine"), deployment=None))
    assert "The start" not in page
    assert "Releases" not in page


def test_a_command_in_advice_is_set_as_code() -> None:
    row = replace(report("fine").results[0], remedy="run `up --force <x>`, or see `docs")
    page = to_html(replace(report("fine"), results=(row,)))
    assert page.count("run <code>up --force &lt;x&gt;</code>, or see `docs<") == 2
