"""The audit: the publisher's example, each rule with and without its risk, and hostile files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from sarif_pydantic import Sarif
from typer.testing import CliRunner, Result

from glm4_deploy.audit import RULES, audit_compose, lint, remedy
from glm4_deploy.catalog.rows import profiles
from glm4_deploy.cli.app import app
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.errors import DeployError, UsageError
from glm4_deploy.render.compose import compose_file
from glm4_deploy.result import Result as Row
from glm4_deploy.result import Status

ROOT = Path(__file__).parents[2]
CARD = ROOT / "tests/data/model-card/compose.yaml"
SAFE: dict[str, Any] = {
    "image": "vllm/vllm-openai:v0.13.0",
    "command": ["--model", "/m/x", "--allowed-origins", '["http://localhost"]'],
    "environment": {"VLLM_NO_USAGE_STATS": "1"},
    "ports": ["127.0.0.1:8000:8000"],
    "volumes": ["/models:/m:ro"],
    "healthcheck": {"test": ["CMD", "true"]},
    "logging": {"options": {"max-size": "10m"}},
}


def found(**changes: object) -> tuple[Row, ...]:
    return audit_compose({"services": {"engine": SAFE | changes}})


def rules(**changes: object) -> set[str]:
    return {row.check for row in found(**changes)}


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, words)])


def test_the_publishers_example_is_open_to_everyone() -> None:
    done = run(CARD, "--json")
    assert isinstance(done.exception, DeployError)
    assert done.exception.exit_code == 1
    report = json.loads(done.stdout)["results"]
    by_rule = {row["check"]: row for row in report}
    assert by_rule["open-without-key"]["severity"] == "critical"
    assert {"CL-0003", "CL-0005", "CL-0006", "CL-0010", "telemetry", "health", "every-origin"} <= set(by_rule)
    assert all(row["remedy"] for row in report)
    order = ["critical", "high", "medium", "low"]
    assert [row["severity"] for row in report] == sorted((row["severity"] for row in report), key=order.index)


def test_remedies_are_one_short_line_and_would_not_stop_the_engine() -> None:
    rows = [row for file in (CARD, *ROOT.glob("compose/*.yaml")) for row in lint(file)]
    assert {"CL-0003", "CL-0006", "CL-0007", "CL-0019", "CL-0026"} <= {row.check for row in rows}
    for row in rows:
        assert 0 < len(row.remedy) <= 160 or row.check == "CL-0019", row
        assert not any(
            word in row.remedy for word in ("512M", "512m", "Full guide", "Details:", "--explain", "\n", "  ")
        )
    assert remedy("Do this:\n  a:\n    - b\nThen that.\nFull guide: x") == "Do this"
    assert remedy("Do this\nand that. Details: x --explain\n\nMore.") == "Do this and that."


OPEN = {"ports": ["8000:8000"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ["--model", "/m/x", "--api-key="]},
        {"command": ["--model", "/m/x", "--api-key", ""]},
        {"environment": {"VLLM_API_KEY": ""}},
        {"command": ["sh", "-c", "# VLLM_API_KEY=abc\nvllm serve /m/x"]},
        {"command": ["sh", "-c", "echo VLLM_API_KEY=abc; vllm serve /m/x"]},
        {"command": ["sh", "-c", "vllm serve /m/x --served-model-name VLLM_API_KEY"]},
        {"command": "sh -c 'VLLM_API_KEY= vllm serve /m/x'"},
    ],
)
def test_a_key_that_is_none_is_no_key(changes: dict[str, Any]) -> None:
    assert "open-without-key" in rules(**OPEN, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ["--model", "/m/x", "--api-key", "abc"]},
        {"environment": {"VLLM_API_KEY": "abc"}},
        {"command": ["sh", "-c", "export VLLM_API_KEY=$(cat /k) && exec vllm serve /m/x"]},
        {"command": ["sh", "-c", "cd / && VLLM_API_KEY=$(cat /k) \\\n  vllm serve /m/x"]},
        {"command": "env VLLM_API_KEY=abc vllm serve /m/x"},
    ],
)
def test_a_key_is_found_wherever_it_is_given(changes: dict[str, Any]) -> None:
    assert not {"open-without-key"} & rules(**OPEN, **changes)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("risky-variable", {"command": ["sh", "-c", "export VLLM_SERVER_DEV_MODE=1; vllm serve /m/x"]}),
        ("risky-variable", {"command": ["env", "VLLM_SERVER_DEV_MODE=1", "vllm", "serve", "/m/x"]}),
        ("remote-code", {"command": ["--model", "/m/x", "--trust-remote"]}),
        ("remote-code", {"command": ["--model", "/m/x", "--trust_remote_code"]}),
        ("secret-in-sight", {"build": {"args": {"HF_TOKEN": "hf_abcdefgh"}}}),
        ("secret-in-sight", {"build": {"args": ["HF_TOKEN=hf_abcdefgh"]}}),
        ("secret-in-sight", {"labels": {"api_key": "abcdefgh"}}),
        ("writable-model", {"command": ["vllm", "serve", "/m/x"], "volumes": ["/models:/m"]}),
        ("telemetry", {"image": "ours/llm:1", "command": ["./start"], "environment": {"VLLM_USE_V1": "1"}}),
    ],
)
def test_a_risk_is_seen_however_it_is_written(rule: str, changes: dict[str, Any]) -> None:
    assert rule in rules(**changes)


@pytest.mark.parametrize("name", [name for name in profiles() if name != "seed"])
def test_our_own_files_have_no_high_finding(name: str) -> None:
    done = run(ROOT / f"compose/{name}.yaml")
    assert done.exit_code == 0, done.output


def test_our_other_services_have_no_high_finding(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    deployment = resolve_spec({"profile": "gb10", "extras": ["gateway", "monitoring", "ui"]}, sets=["api_key_file=k"])
    file.write_text(compose_file(deployment))
    done = run(file)
    assert done.exit_code == 0, done.output
    assert "gateway-auth: no key" not in done.output


def test_a_safe_service_has_no_finding() -> None:
    assert found() == ()


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("open-without-key", {"ports": ["8000:8000"]}),
        ("open-without-key", {"ports": [8000]}),
        ("open-without-key", {"ports": ["0.0.0.0:8000:8000/tcp"]}),
        ("open-without-key", {"ports": ["[::]:8000:8000"]}),
        ("open-without-key", {"ports": [{"target": 8000, "published": 8000}]}),
        ("open-without-key", {"network_mode": "host", "ports": []}),
        ("open-without-key", {"ports": ["${BIND:-0.0.0.0}:8000:8000"]}),
        ("open-paths", {"ports": ["8000:8000"], "environment": ["VLLM_API_KEY=$K", "DO_NOT_TRACK=1"]}),
        ("secret-in-sight", {"command": "vllm serve --model=/m/x --api-key abc"}),
        ("secret-in-sight", {"environment": {"VLLM_API_KEY": "abc", "DO_NOT_TRACK": 1}}),
        ("secret-in-sight", {"environment": ["HF_TOKEN=abc", "DO_NOT_TRACK=1"]}),
        ("every-origin", {"command": "--model /m/x"}),
        ("remote-code", {"command": ["--model", "/m/x", "--trust-remote-code"]}),
        ("remote-code", {"entrypoint": ["sh", "-c", "vllm serve /m/x --trust_remote_code --port 1"]}),
        ("risky-variable", {"environment": {"VLLM_SERVER_DEV_MODE": 1, "DO_NOT_TRACK": 1}}),
        ("local-media", {"command": ["--allowed-local-media-path", "/"]}),
        ("writable-model", {"volumes": ["/models:/m"]}),
        ("writable-code", {"command": ["vllm", "serve", "/x", "--tool-parser-plugin=/p/a.py"], "volumes": ["./p:/p"]}),
        ("writable-model", {"volumes": [{"type": "bind", "source": "/models", "target": "/m/x"}]}),
        (
            "entrypoint",
            {"image": "nvcr.io/nvidia/vllm:26.01-py3", "entrypoint": "python3 -m vllm.entrypoints.openai.api_server"},
        ),
        ("telemetry", {"environment": {}}),
        ("health", {"healthcheck": None}),
        ("log-rotation", {"logging": None}),
        (
            "not-in-this-version",
            {"image": "vllm/vllm-openai:v0.31.0", "environment": {"VLLM_ATTENTION_BACKEND": "x", "DO_NOT_TRACK": "1"}},
        ),
        (
            "not-in-this-version",
            {"image": "vllm/vllm-openai:v0.11.0@sha256:1", "command": "--model /m/x --linear_backend=marlin"},
        ),
        ("mistaken-variable", {"environment": {"TRITON_TXAS_PATH": "/x", "DO_NOT_TRACK": "1"}}),
    ],
)
def test_each_risk_is_found(rule: str, changes: dict[str, object]) -> None:
    assert rule in rules(**changes)


def test_every_rule_has_a_case() -> None:
    (mark,) = [mark for mark in test_each_risk_is_found.pytestmark if mark.name == "parametrize"]
    assert {case[0] for case in mark.args[1]} == set(RULES)


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ["--model", "/m/x", "--allowed-origins", "[]", "--trust-remote-code=false"]},
        {"environment": {"VLLM_API_KEY_FILE": "/run/secrets/k", "DO_NOT_TRACK": "true"}},
        {"environment": {"HF_TOKEN": "${HF_TOKEN}", "DO_NOT_TRACK": "1"}},
        {"ports": ["[::1]:8000:8000", {"target": 1, "published": "2", "host_ip": "127.0.0.1"}]},
    ],
)
def test_what_is_not_a_risk_is_not_reported(changes: dict[str, object]) -> None:
    assert rules(**changes) == set()


def test_what_a_variable_decides_is_unknown_and_fails(tmp_path: Path) -> None:
    (row,) = found(ports=["${BIND}:8000:8000"])
    assert row.status is Status.UNKNOWN
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"services": {"engine": SAFE | {"ports": ["${BIND}:8000:8000"]}}}))
    assert isinstance(run(file, "--fail-on", "critical").exception, DeployError)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
MERGE = "a0: &a0 {k: v, l: v}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
HOSTILE = {
    "deep": b"[" * 100_000,
    "tag": b"!!python/object/apply:os.system [touch pwned]\n",
    "self": b"services: &s\n  x: *s\n",
    "nul": b"services:\x00",
    "not-utf8": b"\xff\xfe\x00",
    "list": b"- a\n",
    "empty": b"",
    "big": b"a" * (2 << 20),
    "types": b"services: {x: 3, y: [1]}\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_error(tmp_path: Path, name: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(HOSTILE[name])
    done = run(file)
    assert isinstance(done.exception, UsageError), done.output
    assert "\n" not in done.exception.message
    assert len(done.exception.message) < 600
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("bomb", [f"{BOMB}services: {{x: {{image: vllm, command: *j}}}}\n",
                                  f"{MERGE}services: {{x: {{image: vllm, environment: *a11}}}}\n"])  # fmt: skip
def test_a_yaml_bomb_does_no_harm(tmp_path: Path, bomb: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(bomb)
    done = run(file)
    assert done.exception is None or isinstance(done.exception, DeployError | SystemExit)
    assert len(done.output) < 20_000


def test_the_audited_projects_own_configuration_silences_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(CARD.read_text())
    (tmp_path / ".compose-lint.yml").write_text("rules:\n  CL-0010:\n    enabled: false\n")
    monkeypatch.chdir(tmp_path)
    assert "CL-0010" in run("compose.yaml").output


def test_a_file_without_vllm_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("services: {web: {image: 'nginx:1.29.0'}}\n")
    assert "no service looks like vLLM" in run(file).output


def unknown_keys(part: object) -> list[str]:
    """Keys that the standard does not have: its model keeps what it does not know."""
    if isinstance(part, BaseModel):
        found = [] if type(part).__name__ == "PropertyBag" else list(part.model_extra or {})
        return found + [name for field in type(part).model_fields for name in unknown_keys(getattr(part, field))]
    return [name for item in part for name in unknown_keys(item)] if isinstance(part, list) else []


def test_the_findings_in_sarif_name_the_file_and_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deploy").mkdir()
    Path("deploy/my compose.yaml").write_text(CARD.read_text(), encoding="utf-8")
    run("deploy/my compose.yaml", "--sarif", "audit.sarif")

    log = Sarif.model_validate_json(Path("audit.sarif").read_text(encoding="utf-8"))
    found = log.runs[0].results or []
    assert unknown_keys(log) == []
    assert {row.rule_id for row in found} == {rule.id for rule in log.runs[0].tool.driver.rules or ()}
    assert "CL-0010" in {row.rule_id for row in found}
    places = [row.locations[0].physical_location for row in found if row.locations]
    assert {place.artifact_location.uri for place in places if place} == {"deploy/my%20compose.yaml"}
    assert all(place.region.start_line >= 1 for place in places if place and place.region)
    assert any(place.region for place in places if place)


def test_nothing_found_is_an_empty_run_not_an_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"services": {"engine": SAFE}}), encoding="utf-8")
    done = run(file, "--sarif", "-", "--fail-on", "critical")
    assert json.loads(done.stdout)["version"] == "2.1.0"
