"""The provider's side of Compose's protocol that needs no Docker; the real Compose is in tests/e2e/test_provider.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from glm4_deploy.cli.app import app


def said(*words: str, code: int) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["compose", *words])
    assert done.exit_code == code, done.output
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(one) == {"type", "message"} for one in messages)
    return messages


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_metadata_list_no_options_so_that_compose_drops_none() -> None:
    done = CliRunner().invoke(app, ["compose", "metadata"])
    assert json.loads(done.stdout) == {"stop": {"parameters": []}}


@pytest.mark.parametrize("command", ["up", "down", "stop"])
@pytest.mark.parametrize(
    ("project", "words", "problem"),
    [
        ("p", ("--max_modl_len=9", "model"), "did you mean 'max_model_len'?"),
        ("p", ("--port=9",), "0 services are named"),
        ("p", ("--port", "model"), "'port' is not an option"),
        ("../../etc", ("model",), "not a valid project or service name"),
        ("", ("model",), "not a valid project or service name"),
        ("p", ("../model",), "not a valid project or service name"),
    ],
)
def test_a_wrong_call_is_one_last_error(command: str, project: str, words: tuple[str, ...], problem: str) -> None:
    messages = said(f"--project-name={project}", command, *words, code=2)
    assert messages[-1]["type"] == "error"
    assert problem in messages[-1]["message"]


def test_a_wrong_value_is_refused_with_the_setting(home: Path) -> None:
    *_, last = said("--project-name=p", "up", "--profile=cpu", "--port=99999", "model", code=2)
    assert last["type"] == "error"
    assert "port" in last["message"]
    assert not list(home.rglob("releases"))


def test_down_of_what_never_came_up_is_no_error() -> None:
    assert [one["type"] for one in said("--project-name=p", "down", "--profile=cpu", "model", code=0)] == ["info"]
    assert said("--project-name=p", "stop", "model", code=0) == []
