"""Terminal, JUnit and JSON: untrusted text arrives as text, and one reason is reported once."""

import json
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from glm4_deploy.report import terminal
from glm4_deploy.report.terminal import findings_text, results_text, suite_text
from glm4_deploy.report.wire import dumps, to_junit
from glm4_deploy.report_model import Suite, SuiteReport, make_report
from glm4_deploy.result import Evidence, Result, Status
from glm4_deploy.text import cap, clean_text, one_line

EVIL = "\x1b[2J\x1b]0;owned\x07[bold red]no[/] a\u202eb \x9b31m \ud800 \ufffe & <x>"


def report(*results: Result) -> SuiteReport:
    return SuiteReport(
        suite=Suite.QUICK,
        base_url="http://localhost:8080",
        model="m",
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        results=results,
        verdict=Status.FAIL,
        exit_code=1,
        covered="1 of 1",
    )


def failed(text: str) -> Result:
    return Result(check="chat", status=Status.FAIL, observed=text, evidence=(Evidence(name="answer", text=text),))


def skipped(check: str, reason: str) -> Result:
    return Result(check=check, status=Status.SKIPPED, reason=reason)


@pytest.mark.parametrize("how", ["suite", "findings"])
def test_no_control_character_reaches_the_terminal(how: str) -> None:
    evil = replace(failed(EVIL), source=EVIL, remedy=EVIL)
    out = suite_text(report(evil)) if how == "suite" else findings_text([evil], EVIL, Status.FAIL)
    assert [char for char in out if ord(char) < 32 and char != "\n"] == []
    assert not set("\x9b\u202e\ud800\x7f") & set(out)
    assert "[bold red]no[/]" in "".join(line.strip() for line in out.splitlines()), (
        "Rich markup in it is not interpreted"
    )


def test_checks_skipped_for_one_reason_share_a_row() -> None:
    rows = [skipped(f"c{n}", "needs alive, which did not pass") for n in range(5)]
    out = results_text((failed("gone"), *rows, skipped("key", "no key")))
    assert "5 checks" in out
    assert out.count("needs alive") == 1
    assert "key" in out


def test_junit_counts_and_parses() -> None:
    unknown = Result(check="speed", status=Status.UNKNOWN, reason="busy")
    rows = (failed(EVIL), skipped("key", EVIL), unknown, replace(failed(EVIL), source=EVIL, line=3))
    root = ElementTree.fromstring(to_junit(make_report("audit", rows), note=EVIL).encode())  # noqa: S314
    suite = root.find("testsuite")
    assert suite is not None
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "2",
        "errors": "1",
        "skipped": "1",
    }


def test_json_is_json() -> None:
    text = dumps(report(failed(EVIL + "北京")))
    assert json.loads(text)["results"][0]["observed"] == EVIL + "北京"
    assert not set("\x1b\x9b\u202e\ud800\x7f") & set(text), "it is safe to show in a terminal"
    assert "北京" in text


def test_cleaning_keeps_what_people_write() -> None:
    assert clean_text("Ünïcode 北京\tand\nlines 👩‍🚀") == "Ünïcode 北京\tand\nlines 👩‍🚀"
    assert clean_text("\x1b[0m") == "␛[0m"
    assert one_line("a\n\n b", 3) == "a b"
    assert cap("x" * 12, 10).endswith("2 more characters")


def test_a_narrow_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Console(file=sys.stdout, width=79, highlight=False, markup=False)
    monkeypatch.setattr(terminal, "console", lambda: narrow)
    row = Result(check="chat", status=Status.FAIL, observed="no " * 40, expected="yes", remedy="ask again")
    first, *rest = results_text((row,)).splitlines()
    assert first == "chat: fail"
    assert all(line.startswith("  no ") for line in rest[:-2])
    assert [line.rstrip() for line in rest[-2:]] == ["  expected: yes", "  → ask again"]
    assert max(map(len, rest)) <= 79
