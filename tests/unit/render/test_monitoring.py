"""What `--with monitoring` renders: alert rules tested by promtool, the dashboard checked with Grafana's own model."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.guard.ledger import Ledger
from glm4_deploy.render.compose import COMPOSE, rendered
from glm4_deploy.watch.breaker import MemoryState
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.gpus import GpuMetrics
from glm4_deploy.watch.judge import State
from glm4_deploy.watch.memory import MemoryMetrics

CASES = Path(__file__).parents[2] / "data/monitoring/rules_test.yml"


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    settings = {"profile": "gb10", "extras": ["monitoring", "watch", "gateway", "guard"]}
    return dict(rendered(resolve_spec(settings, sets=["gpu_exporter=dcgm:9400"])))


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool: apt-get install prometheus")
    return found


def test_each_alert_fires_when_it_must_and_only_then(files: dict[str, str], promtool: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(files["monitoring/rules.yml"])
    (tmp_path / "test.yml").write_text(CASES.read_text())
    done = subprocess.run(
        [promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_and_says_what_to_do(files: dict[str, str]) -> None:
    rules = [rule for group in yaml.safe_load(files["monitoring/rules.yml"])["groups"] for rule in group["rules"]]
    for rule in rules:
        assert rule["alert"] in CASES.read_text(), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_promtool_accepts_the_configuration(files: dict[str, str], promtool: str, tmp_path: Path) -> None:
    for name in ("prometheus.yml", "rules.yml"):
        (tmp_path / name).write_text(files[f"monitoring/{name}"])
    done = subprocess.run(
        [promtool, "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    jobs = {job["job_name"]: job for job in yaml.safe_load(files["monitoring/prometheus.yml"])["scrape_configs"]}
    assert jobs["engine"]["static_configs"] == [{"targets": ["glm4-9b-nvfp4:8080"]}]
    assert jobs["watch"]["static_configs"] == [{"targets": ["watch:9109"]}]
    assert jobs["guard"]["static_configs"] == [{"targets": ["guard:9110"]}]
    assert jobs["gpu"]["static_configs"] == [{"targets": ["dcgm:9400"]}]


def test_every_watch_metric_in_rules_and_dashboard_is_exported(files: dict[str, str]) -> None:
    registry = Exporter(stale_s=1).registry
    MemoryMetrics(registry)
    GpuMetrics(registry).count_xids(0)
    exported = {metric.name + end for metric in registry.collect() for end in ("", "_total")}
    exported |= {sample.name for metric in registry.collect() for sample in metric.samples}
    asked = files["monitoring/rules.yml"] + files["monitoring/engine.json"]
    assert len(set(re.findall(r"glm4_watch_\w+", asked))) >= 5
    assert set(re.findall(r"glm4_watch_\w+", asked)) <= exported
    judged = "|".join(re.findall(r'glm4_watch_state\{state=~?"([^"]+)"', files["monitoring/rules.yml"])).split("|")
    assert set(judged) == {state.value for state in State if not state.good}
    memory = re.findall(r'glm4_watch_memory_state\{state="([^"]+)"', files["monitoring/rules.yml"])
    assert memory == [MemoryState.CRITICAL.value]


def test_every_guard_metric_in_rules_and_dashboard_is_exported(files: dict[str, str]) -> None:
    families = list(Ledger(lambda _: None).registry.collect())
    exported = {family.name + end for family in families for end in ("", "_total", "_bucket")}
    asked = files["monitoring/rules.yml"] + files["monitoring/engine.json"]
    assert len(set(re.findall(r"glm4_guard_\w+", asked))) >= 4
    assert set(re.findall(r"glm4_guard_\w+", asked)) <= exported


def test_without_the_watch_none_of_its_metrics_is_used() -> None:
    files = rendered(resolve_spec({"profile": "gb10", "extras": ["monitoring"]}))
    assert json.loads(files["monitoring/engine.json"])["panels"]
    assert not [name for name in files if name != COMPOSE and "watch" in files[name]]
    assert not [name for name in files if name != COMPOSE and "guard" in files[name]]


def missing(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """The keys that the model dropped, because Grafana does not know them."""
    if isinstance(ours, dict):
        return [
            found
            for key, value in ours.items()
            for found in (missing(value, theirs[key], f"{path}.{key}") if key in theirs else [f"{path}.{key}"])
        ]
    if isinstance(ours, list):
        pairs = zip(ours, theirs, strict=True)
        return [found for index, (one, other) in enumerate(pairs) for found in missing(one, other, f"{path}[{index}]")]
    return [] if ours == theirs else [f"{path}: {ours!r} became {theirs!r}"]


def test_grafana_reads_every_key_of_the_dashboard(files: dict[str, str]) -> None:
    ours = json.loads(files["monitoring/engine.json"])
    theirs = json.loads(json.dumps(Dashboard.from_json(json.loads(files["monitoring/engine.json"])), cls=JSONEncoder))
    assert missing(ours, theirs) == []
    ids = [panel["id"] for panel in ours["panels"]]
    assert len(ids) == len(set(ids))
    boxes = [panel["gridPos"] for panel in ours["panels"]]
    for index, one in enumerate(boxes):
        assert one["x"] + one["w"] <= 24
        for other in boxes[index + 1 :]:
            apart = (
                one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            )  # fmt: skip
            assert apart, (one, other)


def test_the_dashboards_sources_and_paths_match(files: dict[str, str]) -> None:
    (source,) = yaml.safe_load(files["monitoring/datasources.yml"])["datasources"]
    panels = json.loads(files["monitoring/engine.json"])["panels"]
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {source["uid"]}
    services = yaml.safe_load(files[COMPOSE])["services"]
    (provider,) = yaml.safe_load(files["monitoring/dashboards.yml"])["providers"]
    mounts = [item for item in services["grafana"]["volumes"] if isinstance(item, str)]
    assert f"./monitoring/engine.json:{provider['options']['path']}/engine.json:ro" in mounts
    for service in services.values():
        for item in service.get("volumes", ()):
            if isinstance(item, str) and item.startswith("./"):
                assert item.split(":")[0].removeprefix("./") in files


def test_the_services_are_pinned_limited_and_on_loopback(files: dict[str, str]) -> None:
    services = yaml.safe_load(files[COMPOSE])["services"]
    for name in ("prometheus", "node-exporter", "grafana"):
        service = services[name]
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", service["image"]), service["image"]
        assert service["profiles"] == ["monitoring"]
        assert (service["cap_drop"], service["read_only"]) == (["ALL"], True)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
