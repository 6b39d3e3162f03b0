"""The rendered monitoring and the watch against a real vLLM: every query and every rule, by a real Prometheus."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from e2e.engine import NAME, Engine
from e2e.kit import KIT, free_port
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.render.compose import rendered

pytestmark = pytest.mark.e2e
# Metrics of an exporter that needs an NVIDIA GPU and does not support a GB10: their queries return nothing here.
WITHOUT_GPU = ("DCGM_",)
# What the watch reads of a GPU comes from a program that prints what nvidia-smi prints on a GB10 (tests/data/hosts).
NVIDIA_SMI = """#!/bin/sh
case "$1" in
*compute-apps*) echo "pid, process_name, used_gpu_memory [MiB]" ;;
*power.draw*) cat <<END
index, power.draw [W], enforced.power.limit [W], utilization.gpu [%], clocks.current.sm [MHz], clocks.max.sm [MHz], \
clocks_event_reasons.active, ecc.errors.uncorrected.volatile.total
0, 45.02, [N/A], 95, 2411, 3003, 0x0000000000000000, [N/A]
END
;;
*) cat <<END
index, name, driver_version, compute_cap, memory.total [MiB], memory.used [MiB], memory.free [MiB], mig.mode.current, \
temperature.gpu
0, NVIDIA GB10, 580.126.09, 12.1, [N/A], [N/A], [N/A], [N/A], 67
END
;;
esac
"""


@contextmanager
def running(words: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, true
        time.sleep(0.3)


def ask(healthy: Engine, count: int) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "Count from 1 to 20."}], "max_tokens": 16}
    for _ in range(count):
        url = f"{healthy.base_url}/v1/chat/completions"
        httpx.post(url, json=body, timeout=120, trust_env=False).raise_for_status()


@pytest.fixture(scope="module")
def prometheus(healthy: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[object]]]:
    """Queries a Prometheus with the rendered configuration, but this host's addresses and a scrape every second."""
    programs = [shutil.which(name) for name in ("prometheus", "prometheus-node-exporter")]
    if None in programs:
        pytest.skip("no Prometheus: apt-get install prometheus prometheus-node-exporter")
    directory = tmp_path_factory.mktemp("prometheus")
    files = rendered(resolve_spec({"profile": "cpu", "extras": ["monitoring", "watch"]}))
    config = yaml.safe_load(files["monitoring/prometheus.yml"])
    port, host_port, watch_port = free_port(), free_port(), free_port()
    targets = {"engine": urlsplit(healthy.base_url).netloc}
    targets |= {"host": f"127.0.0.1:{host_port}", "watch": f"127.0.0.1:{watch_port}"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    (directory / "rules.yml").write_text(files["monitoring/rules.yml"])
    command = yaml.safe_load(files["compose.yaml"])["services"]["node-exporter"]["command"]
    exporter = [str(programs[1]), f"--web.listen-address=127.0.0.1:{host_port}"]
    exporter += [word.replace("$$", "$") for word in command]
    server = [str(programs[0]), f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    server += [f"--web.listen-address=127.0.0.1:{port}"]
    (directory / "bin").mkdir()
    (directory / "bin/nvidia-smi").write_text(NVIDIA_SMI)
    (directory / "bin/nvidia-smi").chmod(0o755)
    watch = ["env", f"PATH={directory / 'bin'}:{os.environ['PATH']}", *KIT, "watch", "--json"]
    watch += ["--base-url", healthy.base_url, "--model", NAME, "--port", str(watch_port)]
    watch += ["--interval", "1", "--canary-every", "5", "--host-reserve-gib", "0.1"]  # it defends this host's memory

    def query(expression: str) -> list[object]:
        url = f"http://127.0.0.1:{port}/api/v1/query"
        response = httpx.get(url, params={"query": expression}, timeout=20, trust_env=False)
        answer = response.raise_for_status().json()
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])

    def up() -> bool:
        try:
            return len(query("up == 1")) == 3 and bool(query("count_over_time(up[30s]) > 3"))
        except httpx.HTTPError:  # it refuses connections at first, and then says 503 until it has read its storage
            return False

    with (
        running(exporter, directory / "exporter.log"),
        running(watch, directory / "watch.log"),
        running(server, directory / "prometheus.log"),
    ):
        ask(healthy, 1)
        until(up)
        ask(healthy, 3)
        until(lambda: bool(query('increase(vllm:request_success_total{finished_reason="length"}[30s]) > 0')))
        until(lambda: bool(query('glm4_watch_state{state=~"ok|busy"} == 1')), 120)
        until(lambda: query("increase(glm4_watch_canaries_total[15m])"))
        # The watch asks the GPU less often than the engine, by two ways.
        until(lambda: query("glm4_watch_gpu_temperature_celsius and on() glm4_watch_gpu_new_xids_total"))
        yield query


def test_every_query_of_the_dashboard_returns_data_of_this_engine(prometheus: Callable[[str], list[object]]) -> None:
    files = rendered(resolve_spec({"profile": "cpu", "extras": ["monitoring", "watch"]}))
    panels = json.loads(files["monitoring/engine.json"])["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(queries) > 20
    empty = [query for query in queries if not prometheus(query.replace("$__rate_interval", "30s"))]
    assert [query for query in empty if not query.startswith(WITHOUT_GPU)] == []
    assert empty, "the queries for DCGM return nothing on this machine"
    for panel in panels:
        asked = [target["expr"] for target in panel.get("targets", ())]
        assert not asked or set(asked) - set(empty), f"without DCGM the panel {panel['title']!r} is empty"


def test_every_metric_that_a_rule_reads_exists_and_no_alert_fires(prometheus: Callable[[str], list[object]]) -> None:
    files = rendered(resolve_spec({"profile": "cpu", "extras": ["monitoring", "watch"]}))
    rules = [rule for group in yaml.safe_load(files["monitoring/rules.yml"])["groups"] for rule in group["rules"]]
    for rule in rules:
        prometheus(rule["expr"])
        for metric in re.findall(r"\b(?:vllm:|node_|process_|DCGM_|glm4_watch_)\w+", rule["expr"]):
            if not metric.startswith(WITHOUT_GPU):
                assert prometheus(metric), (rule["alert"], metric)
    assert len([rule for rule in rules if "watch" in rule["expr"]]) == 10
    # The disk of the machine that runs this test may be full.
    assert [row for row in prometheus('ALERTS{alertstate="firing"}') if "DiskAlmostFull" not in str(row)] == []
