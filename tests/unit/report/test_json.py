"""The JSON that every command with results prints, validated against the schema in the package."""

import json
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import checkpoints as made
import preloaded
from glm4_deploy import __version__
from glm4_deploy.detect import scan
from glm4_deploy.report.wire import json_schema, report_json
from glm4_deploy.report_model import SCHEMA, make_report
from glm4_deploy.result import Result, Severity, Status
from glm4_deploy.watch.judge import State, WatchVerdict
from servers import broken
from servers.reference import Reference
from servers.serve import mounted

ROOT = Path(__file__).parents[3]
SCHEMA_FILE = files("glm4_deploy.report") / "report.schema.json"
CHECKER = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
PASSED = ("ok", "warn")


def kit(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = preloaded.run(*words, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[str, str]]:
    """A healthy engine, and one whose answers loop."""
    with mounted(Reference(token_s=0.001)) as good, mounted(broken.ProxyPage()) as sick:
        yield good, sick


LOGS = ROOT / "tests/data/logs"
CARD = ROOT / "tests/data/model-card/compose.yaml"
# name → (words; {good} and {bad} are addresses, the keys of this kind alone)
COMMANDS: dict[str, tuple[list[str | Path], set[str]]] = {
    "smoke": (["smoke", "--base-url", "{good}", "--suite", "gate", "--json", "-"], {"suite", "samples", "covered"}),
    "smoke bad": (["smoke", "--base-url", "{bad}", "--suite", "gate", "--json", "-"], {"suite"}),
    "smoke nobody": (["smoke", "--base-url", "http://127.0.0.1:1", "--json", "-"], {"suite"}),
    "doctor": (["doctor", "--profile", "cpu", "--json"], {"readiness"}),
    "audit": (["audit", CARD, "--json"], {"file", "fail_on"}),
    "audit low": (["audit", ROOT / "compose/gb10.yaml", "--json"], {"file"}),
    "plan": (["plan", "--gpu", "gb10", "--json"], {"fits", "kv_cache_gib", "advice"}),
    "plan refused": (["plan", "--gpu", "h100", "--gpu-memory-utilization", "0.05", "--json"], {"fits"}),
    "diagnose": (["diagnose", LOGS / "cpu-0.32-no-kernel.log", "--json"], {"findings", "phase"}),
    "diagnose well": (["diagnose", LOGS / "v1-0.13-native-tp2.log", "--json"], {"findings"}),
    "checkpoint verify": (["checkpoint", "verify", made.DATA, "--json"], {"engine", "fingerprint"}),
    "checkpoint repair": (["checkpoint", "repair", made.DATA, "--output", "glm-4-out", "--json"], {"report"}),
    "fleet status": (["fleet", "status", "--json"], {"hosts"}),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_report_has_the_schema_and_agrees_with_the_exit_code(
    name: str, tmp_path: Path, engines: tuple[str, str]
) -> None:
    good, bad = engines
    (tmp_path / "fleet.yaml").write_text(f"hosts: {{a: {{base_url: {good}}}, b: {{base_url: {bad}}}}}")
    words, own = COMMANDS[name]
    done = kit(*(str(word).format(good=good, bad=bad) for word in words), cwd=tmp_path)
    report = json.loads(done.stdout)
    CHECKER.validate(report)
    assert [*report][:6] == ["schema", "kind", "kit", "verdict", "exit_code", "results"]
    assert name.startswith(report["kind"])
    assert (report["schema"], report["kit"]) == (SCHEMA, __version__)
    assert own <= set(report)
    assert done.returncode == report["exit_code"], done.stderr
    assert (done.returncode == 0) == (report["verdict"] in PASSED)
    assert all(row["check"] for row in report["results"])


def test_the_last_event_of_a_watch_is_a_report(tmp_path: Path, engines: tuple[str, str]) -> None:
    words = ("--base-url", engines[1], "--interval", "0.5", "--canary-every", "0", "--port", "0", "--json")
    done = kit("watch", *words[:-3], "--port", "19187", "--json", "--for", "3s", cwd=tmp_path)
    last = json.loads(done.stdout.splitlines()[-1])
    CHECKER.validate(last)
    assert (last["event"], last["kind"], last["exit_code"]) == ("ended", "watch", done.returncode)
    assert (done.returncode == 0) == (last["verdict"] in PASSED)
    assert last["results"][0]["code"] == last["state"]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("smoke nobody", "checkpoint repair")])
def test_junit_has_a_case_for_each_result(name: str, tmp_path: Path, engines: tuple[str, str]) -> None:
    good, bad = engines
    (tmp_path / "fleet.yaml").write_text(f"hosts: {{a: {{base_url: {good}}}, b: {{base_url: {bad}}}}}")
    words = [str(word).format(good=good, bad=bad) for word in COMMANDS[name][0]]
    done = kit(*words, "--junit", "r.xml", cwd=tmp_path)
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]  # noqa: S314
    results = json.loads(done.stdout)["results"]
    assert [suite.get("tests"), suite.get("failures"), suite.get("errors")] == [
        str(len(results)),
        str(sum(row["status"] == "fail" for row in results)),
        str(sum(row["status"] == "unknown" for row in results)),
    ]


def test_the_schema_file_is_that_of_the_dataclasses() -> None:
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == json_schema(), "run `make docs`"


def test_the_schema_refuses_what_is_not_a_report() -> None:
    report = json.loads(report_json(make_report("x", [Result(check="a", status=Status.OK)])))
    CHECKER.validate(report)
    for wrong in ({"verdict": "fine"}, {"exit_code": "0"}, {"results": [{"check": "a"}]}, {"schema": None}):
        with pytest.raises(jsonschema.ValidationError):
            CHECKER.validate(report | wrong)
    for key in report:
        with pytest.raises(jsonschema.ValidationError):
            CHECKER.validate({name: value for name, value in report.items() if name != key})


def test_the_page_names_every_key() -> None:
    page = (ROOT / "docs/reference/json.md").read_text(encoding="utf-8")
    schema = json_schema()
    for name in (*schema["properties"], *schema["$defs"]["Result"]["properties"]):
        assert any(name in line.split("|")[1].replace(",", " ").split() for line in page.splitlines() if "|" in line), (
            name
        )


@given(st.lists(st.sampled_from(Status)))
def test_only_a_pass_ends_with_0(statuses: list[Status]) -> None:
    report = make_report("x", [Result(check="a", status=status) for status in statuses])
    good = bool({Status.OK, Status.WARN} & set(statuses)) and not {Status.FAIL, Status.UNKNOWN} & set(statuses)
    assert (report.exit_code == 0) == good == report.verdict.passed


def test_details_do_not_replace_shared_keys() -> None:
    report = make_report("x", [Result(check="a", status=Status.FAIL)])
    assert json.loads(report_json(report, {"verdict": "ok", "more": 1})) == json.loads(report_json(report)) | {
        "more": 1
    }


def test_findings_of_a_detector_and_of_a_watch_are_results() -> None:
    assert scan("It is late. " * 40).result().status is Status.FAIL
    assert scan("It is late, and the lamp is out.").result().code == "CLEAN"
    verdicts = {state: WatchVerdict(state=state, why="w", since=0.0).result().status for state in State}
    assert {state for state, status in verdicts.items() if status is Status.OK} == {State.OK, State.BUSY}
    assert verdicts[State.UNKNOWN] is Status.UNKNOWN
    assert set(verdicts.values()) == {Status.OK, Status.FAIL, Status.UNKNOWN}


def test_severities_are_ranked_worst_first() -> None:
    assert sorted(Severity, key=lambda severity: severity.rank) == [*Severity]
