"""Shell completion by the shells' own protocol, and `explain`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glm4_deploy.catalog.rows import profiles, signatures
from glm4_deploy.cli.app import app
from glm4_deploy.cli.completion import SHELLS, release_ids
from glm4_deploy.cli.explain import everything
from glm4_deploy.errors import DeployError, UsageError
from glm4_deploy.probe.suite import checks
from glm4_deploy.settings import Settings

SRC = Path(__file__).parents[3] / "src"
COMPLETE = "_GLM4_DEPLOY_COMPLETE"
PROGRAM = f"""#!/bin/sh
export PYTHONPATH='{SRC}'
exec '{sys.executable}' -c 'import sys; sys.argv[0] = "glm4-deploy"; from glm4_deploy.cli import main; main()' "$@"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with glm4-deploy on it, as an installation has."""
    tools = tmp_path_factory.mktemp("bin")
    (tools / "glm4-deploy").write_text(PROGRAM)
    (tools / "glm4-deploy").chmod(0o755)
    return f"{tools}:{os.environ['PATH']}"


def offered(path: str, shell: str, line: str) -> str:
    """What the program prints when the shell asks with this command line, as the shell's script does."""
    words = line.split(" ")
    env = {**os.environ, "PATH": path, COMPLETE: f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    env |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
    return subprocess.run(["glm4-deploy"], env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_is_offered_what_it_asks_for(path: str, shell: str) -> None:
    assert "gb10" in offered(path, shell, "glm4-deploy render --profile g")
    script = CliRunner().invoke(app, ["completion", shell]).stdout
    assert f"{COMPLETE}=complete_{shell}" in script


def test_bash_itself_completes(path: str) -> None:
    """The script is sourced by a real bash, and its function asked."""
    lines = {
        "rend": ["render"],
        "render --kv-cache-dtype fp8_": ["fp8_e4m3", "fp8_e5m2"],
        "smoke --only loop-": [name for name in checks() if name.startswith("loop-")],
        "completion ": [*SHELLS],
    }
    ask = (
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _glm4_deploy_completion glm4-deploy; "
        'printf "%s " "${COMPREPLY[@]}"; echo'
    )
    words = {line: f"{line}''" if line.endswith(" ") else line for line in lines}
    asked = "".join(f"COMP_WORDS=(glm4-deploy {words[line]}); {ask}\n" for line in lines)
    code = f'set -e; eval "$(glm4-deploy completion bash)"; complete -p glm4-deploy >/dev/null\n{asked}'
    done = subprocess.run(
        ["bash", "-c", code], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert [line.split() for line in done.stdout.splitlines()] == list(lines.values())


def test_a_shell_without_releases_is_offered_none_and_no_error(tmp_path: Path) -> None:
    class Context:
        params = {"state_dir": tmp_path / "nowhere"}  # noqa: RUF012

    assert release_ids(Context(), "") == []  # type: ignore[arg-type]


def test_help_does_not_name_the_options_of_completion() -> None:
    assert "completion for" not in CliRunner().invoke(app, ["--help"]).stdout
    assert isinstance(CliRunner().invoke(app, ["completion", "tcsh"]).exception, UsageError)


def explained(*words: str) -> str:
    done = CliRunner().invoke(app, ["explain", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_everything_that_has_a_name_is_explained() -> None:
    known = list(everything())
    names = {one.name for one in known}
    assert names >= {*Settings.model_fields, *checks(), *profiles(), *(row.id for row in signatures()), "13", "70"}
    assert not [one.name for one in known if not one.summary]
    for one in known[::37]:
        assert one.summary[:40] in explained(one.name)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("13", "exit code 13: the settings do not fit"),
        ("max_num_seqs", "1 to 4096"),
        ("--max-num-seqs", "GLM4_MAX_NUM_SEQS"),
        ("GLM4_MAX_NUM_SEQS", "setting max_num_seqs"),
        ("kubernetes.namespace", "namespace of every object"),
        ("loop-greedy", "check loop-greedy"),
        ("gb10", "profile gb10"),
        ("VLLM_FP4_ENABLED", "variable VLLM_FP4_ENABLED"),
    ],
)
def test_a_name_is_found_as_people_write_it(word: str, says: str) -> None:
    assert says in explained("--", word)


def test_a_wrong_name_gets_a_suggestion() -> None:
    with pytest.raises(DeployError, match="nothing here is called") as wrong:
        explained("max_num_sqs")
    assert "max_num_seqs" in wrong.value.hint


def test_json_has_the_same() -> None:
    (one,) = json.loads(explained("13", "--json"))
    assert one["kind"] == "exit code"
    assert re.search("fit", one["summary"])
