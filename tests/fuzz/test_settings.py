"""Settings and files of users: any YAML, any text."""

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from fuzz.harness import attempt, fuzzed
from glm4_deploy.audit import audit_compose
from glm4_deploy.cli.params import resolve_plan
from glm4_deploy.deploy.state import load_record
from glm4_deploy.files import parse_yaml
from glm4_deploy.probe.fleet import read_inventory
from glm4_deploy.probe.limits import read_slo
from glm4_deploy.render.targets import TARGETS, render_target
from glm4_deploy.settings import Settings, load_settings

SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(10**400), st.just("x" * 5000),
    st.sampled_from(["$", "$$", "$(X)", "${X}", "{{ x }}", "%", "~", "/", "..", "a: b", "- a", "#", "\x7f", "0x10"]),
)  # fmt: skip
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | SCALAR, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(list(Settings.model_fields)) | st.text(max_size=8)


@fuzzed
@given(st.dictionaries(KEYS, VALUE, max_size=4), st.sampled_from(list(TARGETS)))
def test_any_settings_are_refused_or_rendered(values: dict[str, Any], target: str) -> None:
    def act() -> None:
        plan = resolve_plan(values)
        render_target(target, plan.deployment, plan.settings, plan.profile)

    attempt(act)


@fuzzed
@given(st.dictionaries(KEYS, VALUE, max_size=4))
def test_any_settings_file_is_refused_or_read(tmp_path: Path, values: dict[str, Any]) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text(yaml.dump(values), encoding="utf-8", errors="replace")
    attempt(load_settings, file=file, environ={})


@fuzzed
@given(st.text(st.sampled_from("ab:-?[]{}&*!|>%@'\"#,. \n\t~<0123=\\x"), max_size=200))
def test_any_text_is_refused_or_is_yaml(text: str) -> None:
    attempt(parse_yaml, text, "file")


@fuzzed
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_are_settings(tmp_path: Path, data: bytes) -> None:
    for name, read in (("glm4.yaml", lambda path: load_settings(file=path, environ={})), ("fleet.yaml", read_inventory),
                       ("slo.yaml", read_slo)):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        attempt(read, tmp_path / name)


@fuzzed
@given(st.lists(st.tuples(KEYS, st.text(max_size=30)), max_size=3), st.lists(st.text(max_size=30), max_size=2))
def test_any_words_on_the_command_line_and_in_the_environment(pairs: list[tuple[str, str]], sets: list[str]) -> None:
    attempt(load_settings, environ={f"GLM4_{key.upper()}": value for key, value in pairs}, sets=sets)


SERVICE = st.dictionaries(
    st.sampled_from([
        "image", "command", "entrypoint", "environment", "ports", "volumes", "healthcheck", "logging", "build",
        "labels", "network_mode",
    ]),
    VALUE | st.just("python3 -m vllm.entrypoints.openai.api_server --model /m/x") | st.lists(st.text(max_size=30)),
)  # fmt: skip


@fuzzed
@given(st.one_of(VALUE, st.fixed_dictionaries({"services": st.dictionaries(st.text(max_size=5), SERVICE | VALUE)})))
def test_any_compose_file_can_be_audited(content: Any) -> None:
    attempt(audit_compose, content)


@fuzzed
@given(VALUE)
def test_any_record_is_refused_or_read(tmp_path: Path, content: Any) -> None:
    for text in (json.dumps(content, default=str, skipkeys=True), repr(content)):
        (tmp_path / "up.json").write_text(text, encoding="utf-8", errors="replace")
        attempt(load_record, tmp_path)
