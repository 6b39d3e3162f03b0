"""A user's own questions: what counts as right, files with mistakes, and patterns that would never end."""

import asyncio
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from scripts.reference import schemas

from glm4_deploy.errors import UsageError
from glm4_deploy.probe import questions
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.questions import QuestionFile, UserQuestion, read_questions
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report.html import to_html
from glm4_deploy.report_model import Suite, SuiteReport
from glm4_deploy.result import Result, Status
from servers.reference import Reference
from servers.serve import mounted

DOCS = Path(__file__).parents[3] / "docs/how-to/questions.md"
ASKED = "Is it so?"
SCHEMA = {"type": "object", "required": ["a"]}


class Says(Reference):
    """A sound engine with its own answer to ASKED."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer

    def reply(self, body: dict[str, Any]) -> str:
        return self.answer if body["messages"][-1]["content"] == ASKED else super().reply(body)


def asked(app: Any, *rows: Mapping[str, Any], suite: Suite = Suite.QUICK, only: tuple[str, ...] = ()) -> SuiteReport:
    own = QuestionFile.model_validate({"questions": list(rows)}).questions
    with mounted(app) as url:
        target = ProbeTarget(base_url=url, model="glm-4-9b-chat", timeout_s=20.0)
        return asyncio.run(run_suite(target, suite=suite, only=only or ["question-*"], options=Options(questions=own)))


def row(report: SuiteReport, name: str) -> Result:
    return next(one for one in report.results if one.check == f"question-{name}")


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Paris, of course.", {"must": {"contains": "PARIS"}}, True),
        ("Paris, of course.", {"must": {"contains": ["paris", "Seine"]}}, False),
        ("Paris, of course.", {"must_not": {"contains": ["Berlin", "of Course"]}}, False),
        ("Paris, of course.", {"must_not": {"contains": "Berlin"}}, True),
        ("It has 12 moons", {"must": {"match": r"\b\d+ moons$"}}, True),
        ("It has 12 moons", {"must": {"match": [r"\d", r"^\d"]}}, False),
        ("It has 12 moons", {"must_not": {"match": [r"suns", r"\d{2}"]}}, False),
        (" Yes. ", {"must": {"choice": ["yes", "no"]}}, True),
        ("Yes, it is", {"must": {"choice": ["yes", "no"]}}, False),
        ('{"a": 1}', {"must": {"json_schema": SCHEMA}}, True),
        ('{"b": 1}', {"must": {"json_schema": SCHEMA}}, False),
        ("not JSON", {"must": {"json_schema": SCHEMA}}, False),
        ("anything", {"max_seconds": 3600}, True),
        ("anything", {"max_seconds": 0.000001}, False),
        ("It is so. " * 60, {"must": {"contains": "so"}}, False),
    ],
)
def test_an_answer_is_right_or_wrong(answer: str, expected: dict[str, Any], right: bool) -> None:
    found = row(asked(Says(answer), {"name": "mine", "prompt": ASKED, **expected}), "mine")
    assert found.status is (Status.OK if right else Status.FAIL), found
    assert found.expected == UserQuestion.model_validate({"name": "mine", "prompt": ASKED, **expected}).expected


def test_a_wrong_answer_is_reported_like_any_failed_check() -> None:
    mine = {"name": "mine", "prompt": ASKED, "must": {"contains": "42"}, "times": 3}
    report = asked(Says("43"), mine, suite=Suite.GATE)
    found = row(report, "mine")
    assert (report.verdict, report.exit_code) == (Status.FAIL, 1)
    assert found.observed == "3 of 3 wrong: no '42' in '43'"
    assert {piece.name for piece in found.evidence} == {"prompt", "answer 1", "answer 2", "answer 3"}
    assert sum(sample.check == "question-mine" for sample in report.samples) == 3
    assert "your question mine: &#39;42&#39;" in to_html(report)


def test_questions_count_in_what_was_covered_and_wait_for_a_sound_chat() -> None:
    mine = {"name": "mine", "prompt": ASKED, "must": {"contains": "42"}}
    report = asked(Says("42"), mine)
    assert {one.check for one in report.results} == {"alive", "identity", "chat", "question-mine"}
    assert report.covered.startswith("4 of ")
    assert "question-mine" in {fact.name for fact in report.proves}


def test_a_pattern_that_never_ends_is_not_judged_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MATCH_SECONDS", 1.0)
    bomb = {"name": "bomb", "prompt": ASKED, "must_not": {"match": r"(a+)+$"}}
    found = row(asked(Says("a" * 60 + "!b"), bomb), "bomb")
    assert found.status is Status.UNKNOWN
    assert "a pattern took over 1 s" in found.reason


MISTAKES = {
    "questions:\n- name: a\n  prompt: b\n  must:\n    match: '('\n": ("line 5", "not a valid regular expression"),
    "questions:\n- name: a\n  prompt: b\n  must:\n    contain: c\n": ("line 5", "did you mean 'contains'?"),
    "questions:\n- name: a\n  prompt: b\n": ("line 2", "nothing is expected"),
    "questions:\n- name: a\n  max_seconds: 1\n": ("line 2", "give either prompt or messages"),
    "questions:\n- {name: a, prompt: b, max_seconds: 1}\n- {name: a, prompt: c, max_seconds: 1}\n": ("line 1", "'a'"),
    "questions:\n- name: A b\n  prompt: b\n  max_seconds: 1\n": ("line 2", "pattern"),
    "questions:\n- name: a\n  prompt: b\n  must: {json_schema: {type: nonsense}}\n": (
        "line 4",
        "not a valid JSON Schema",
    ),
    "questions:\n- name: a\n  prompt: b\n  times: 0\n  max_seconds: 1\n": ("line 4", "greater than or equal to 1"),
    "questions: []\n": ("line 1", "at least 1"),
    "question: []\n": ("line 1", "questions"),
    "- name: a\n": ("line 1", "questions:"),
    "": ("line 1", "questions:"),
    "questions: [\n": ("line", "not valid YAML"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_error_with_its_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "q.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_questions(file)
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(words in said for words in MISTAKES[text]), said
    assert "\n" not in said


def test_the_example_in_the_documentation_is_valid_also_by_the_published_schema(tmp_path: Path) -> None:
    example = DOCS.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    file = tmp_path / "q.yaml"
    file.write_text(example, encoding="utf-8")
    assert [one.name for one in read_questions(file)] == ["capital", "ticket-as-json", "yes-or-no"]
    schema = json.loads((files("glm4_deploy.probe") / "questions.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    plain = yaml.safe_load(example.replace("[yes, no]", "['yes', 'no']"))
    assert not list(Draft202012Validator(schema).iter_errors(plain))
    assert list(Draft202012Validator(schema).iter_errors({"questions": [{"name": "A b", "prompt": "x"}]}))


def test_the_published_schemas_are_up_to_date() -> None:
    for path, text in schemas():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `make docs`"
