"""What others take from this repository: the GitHub Action, the pre-commit hooks, llms.txt. Their commands run here."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
HOOKS = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))}
RISKY = {"services": {"vllm": {"image": "vllm/vllm-openai:v0.13.0", "privileged": True, "ports": ["8000:8000"]}}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository of a user, with a risky file whose name could be code, and a rendered one."""
    kit = tmp_path / "bin/glm4-deploy"
    kit.parent.mkdir()
    kit.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m glm4_deploy "$@"\n')
    kit.chmod(0o755)
    monkeypatch.setenv("PATH", f"{kit.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "compose $(touch owned).yaml").write_text(yaml.safe_dump(RISKY))
    subprocess.run([kit, "render", "--profile", "gb10", "-o", "compose.yaml"], check=True, capture_output=True)
    yield work
    assert not (work / "owned").exists(), "a file's name was run"


def bash(script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def act(**inputs: str) -> "list[subprocess.CompletedProcess[str]]":
    """The steps of the action after its installation, as the runner runs them with these inputs."""
    given: dict[str, Any] = {name: row["default"] for name, row in ACTION["inputs"].items()} | inputs
    steps = [step for step in ACTION["runs"]["steps"] if "if" in step]
    wanted = [step for step in steps if given[re.findall(r"inputs\.([\w-]+)", step["if"])[0]]]
    return [
        bash(
            step["run"], **{name: given[value.split("inputs.")[1].rstrip(" }")] for name, value in step["env"].items()}
        )
        for step in wanted
    ]


def test_the_action_is_valid() -> None:
    check = Path(sys.executable).with_name("check-jsonschema")
    command = [check, "--builtin-schema", "vendor.github-actions", ROOT / "action.yml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_input_of_the_action_becomes_code() -> None:
    assert not [step["run"] for step in ACTION["runs"]["steps"] if "${{" in step["run"]]


def test_the_action_audits(here: Path) -> None:
    [audit] = act(audit="compose $(touch owned).yaml", sarif="audit.sarif")
    assert audit.returncode == 1, audit.stderr
    assert "CL-0002" in (here / "audit.sarif").read_text(encoding="utf-8")


def test_the_action_compares_the_rendered_file(here: Path) -> None:
    assert [step.returncode for step in act(rendered="compose.yaml", profile="gb10")] == [0]
    assert [step.returncode for step in act(rendered="compose.yaml", profile="hopper")] == [1]


def test_the_action_verifies_a_checkpoint(here: Path) -> None:
    [verify] = act(checkpoint=str(ROOT / "demo/glm-4-tiny-chat-nvfp4"), vllm="0.13.0")
    assert verify.returncode == 1
    assert "quantization-keys" in verify.stdout


@pytest.mark.parametrize(
    ("hook", "arguments", "code"),
    [
        ("glm4-audit", ["compose $(touch owned).yaml", "compose.yaml"], 1),
        ("glm4-audit", ["compose.yaml"], 0),
        ("glm4-render-check", ["compose.yaml", "--profile", "gb10"], 0),
        ("glm4-render-check", ["compose.yaml", "--profile", "hopper"], 1),
        ("glm4-checkpoint-verify", [str(ROOT / "demo/glm-4-tiny-chat-nvfp4"), "--vllm", "0.13.0"], 1),
    ],
)
def test_a_hook_runs_as_pre_commit_calls_it(here: Path, hook: str, arguments: list[str], code: int) -> None:
    command = [*shlex.split(HOOKS[hook]["entry"]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr


def test_the_hooks_see_the_files_that_they_are_for() -> None:
    pattern = re.compile(HOOKS["glm4-audit"]["files"])
    assert all(pattern.search(name) for name in ("compose.yaml", "a/docker-compose.yml", "compose.override.yaml"))
    assert not any(pattern.search(name) for name in ("recompose.yaml", "compose.yaml.j2", "compose/notes.md"))


def test_llms_txt_has_the_form_of_its_proposal_and_links_to_what_exists() -> None:
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# .+\n\n> ", text), "a title, then a summary"
    links = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", text, re.MULTILINE)
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).is_file()]
