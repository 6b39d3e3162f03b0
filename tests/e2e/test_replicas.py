"""Two real engines behind the real router, under load: one is killed or hangs, both are replaced, a bad update is
rejected."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from e2e.kit import KIT, Kit, free_port
from e2e.load import Load, load
from e2e.watching import Lines, cores
from glm4_deploy.deploy.processes import descendants

SERVICES = ("glm4-9b-nvfp4-1", "glm4-9b-nvfp4-2")
# Two engines share two cores here.
SHARE = ("env.VLLM_CPU_OMP_THREADS_BIND=nobind", "env.OMP_NUM_THREADS=1", "start_period=420")
KEY = "sk-canary-0c1f5b7e"
STEPS = ("taken-out", "restarting", "restarted", "put-back")  # of the watch


def show(figure: str) -> None:
    print(f"\nFIGURE {figure}")  # noqa: T201


@pytest.fixture(scope="module")
def fills(override: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The override that fills the images of two engines and the router from this host."""
    engine = yaml.safe_load(override.read_text())["services"]["glm4-9b-nvfp4"]
    python = Path(sys.prefix)
    places = {"/usr", str(python), sys.base_prefix, "/etc/ld.so.cache"}
    router = {
        "image": "glm4-deploy/vllm-cpu:0.32.0",
        "environment": {"PATH": f"{python}/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        "volumes": [
            {"type": "bind", "source": place, "target": place, "read_only": True}
            for place in sorted(places)
            if place == "/usr" or not place.startswith("/usr/")
        ],
    }
    text = yaml.safe_dump({"services": {**dict.fromkeys(SERVICES, engine), "router": router}}, sort_keys=False)
    file = tmp_path_factory.mktemp("replicas") / "fills.yaml"
    file.write_text(text.replace("  router:\n", "  router:\n    build: !reset null\n"))
    return file


def cores_in(container: int) -> list[int]:
    """The engine cores below a container's first process, the script that counts its starts."""
    return [core for parent in descendants(container) for core in cores(parent)]


class Pair(Kit):
    """The kit with a deployment of two replicas."""

    fills: Path

    def roll(self, *sets: str) -> Any:
        words = [word for item in (*SHARE, "api_key_file=engine.key", *sets) for word in ("--set", item)]
        return self.up("--replicas", "2", "--override", self.fills, "--json", *words, timeout=900)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def routed(self) -> dict[str, bool]:
        """Engine → whether the router considers it healthy."""
        rows = httpx.get(f"{self.url}/workers", timeout=10, trust_env=False).json()["workers"]
        return {row["url"].removeprefix("http://").partition(":")[0]: row["is_healthy"] for row in rows}

    def running(self, service: str) -> bool:
        """Whether the engine is working on a request."""
        address = next(iter(self.inspect(service)["NetworkSettings"]["Networks"].values()))["IPAddress"]
        text = httpx.get(f"http://{address}:8080/metrics", timeout=10, trust_env=False).text
        rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith("vllm:num_requests_running{"))
        return any(float(value) > 0 for _, _, value in rows)

    def inspect(self, service: str) -> dict[str, Any]:
        name = f"{self.project}-{service.rpartition('-')[2]}"
        done = subprocess.run(["docker", "inspect", name], capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout)[0])


@pytest.fixture(scope="module")
def pair(fills: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(directory=tmp_path_factory.mktemp("pair"), project=f"glm4-pair-{os.getpid()}")
    made.fills = fills
    (made.directory / "engine.key").write_text(KEY)
    try:
        up = made.roll()
        assert up.code == 0, up.err
        yield made
    finally:
        made.run("down", "--volumes", "--yes")
        compose = str(Path(sys.executable).parent / "docker-compose")
        subprocess.run([compose, "-p", made.project, "down", "--volumes"], capture_output=True, check=False)


def rolled(pair: Pair, what: str, change: str) -> tuple[Any, Load]:
    """`up` with a change under load: how it ended, and what became of the requests."""
    with load(pair.url, KEY) as requests:
        began = time.monotonic()
        up = pair.roll(change)
        took = time.monotonic() - began
    show(f"{what}: {requests}; {took:.1f} s")
    return up, requests


def test_both_are_gated_and_only_the_router_can_be_reached(pair: Pair) -> None:
    report = json.loads((pair.directory / ".glm4/up.json").read_text())
    assert report["verdict"] == "ok"
    assert report["endpoint"]["replicas"] == list(SERVICES)
    smoke = next((pair.directory / ".glm4").rglob("smoke.json"))
    checks = {row["check"] for row in json.loads(smoke.read_text())["results"]}
    assert {f"{name}/loop-greedy" for name in SERVICES} | {"router/chat", "router/stream"} <= checks
    assert pair.routed() == dict.fromkeys(SERVICES, True)
    for service in (*SERVICES, "router"):
        container = pair.inspect(service)
        assert KEY not in json.dumps(container)
        assert container["HostConfig"]["ReadonlyRootfs"] is True
        assert container["HostConfig"]["CapDrop"] == ["ALL"]
        ports = [binding for bindings in container["NetworkSettings"]["Ports"].values() for binding in bindings or ()]
        assert len({binding["HostPort"] for binding in ports}) == (service == "router")
        networks = {name.removeprefix(f"{pair.project}_") for name in container["NetworkSettings"]["Networks"]}
        assert networks == {"engine"} | ({"default"} if service == "router" else set())
    assert httpx.post(f"{pair.url}/v1/chat/completions", json={}, trust_env=False).status_code in (400, 401, 422)
    status = pair.run("status")
    assert status.code == 0, status.err
    assert all(name[-17:] in status.out for name in SERVICES)
    assert f"{SERVICES[1]} | " in pair.run("logs", "--tail", "all").out


def test_both_are_replaced_and_no_request_is_lost(pair: Pair) -> None:
    before = [pair.inspect(service)["Id"] for service in (*SERVICES, "router")]
    up, requests = rolled(pair, "rolling update", "args.seed=7")
    assert up.code == 0, up.err
    assert requests.lost == []
    after = [pair.inspect(service)["Id"] for service in (*SERVICES, "router")]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    assert pair.routed() == dict.fromkeys(SERVICES, True)


def test_a_failed_replica_ends_the_update_and_the_old_one_is_restored(pair: Pair) -> None:
    other = pair.inspect(SERVICES[1])["Id"]
    up, requests = rolled(pair, "a bad update", "args.no-such-flag=1")
    assert up.code == 15, up.err
    assert requests.lost == []
    assert pair.inspect(SERVICES[1])["Id"] == other, "the second replica never stopped"
    assert "--seed" in pair.inspect(SERVICES[0])["Config"]["Cmd"]
    assert pair.routed() == dict.fromkeys(SERVICES, True)
    assert pair.run("status").code == 0


def test_a_killed_engine_loses_no_request_and_comes_back(pair: Pair) -> None:
    with load(pair.url, KEY) as requests:
        pid = pair.inspect(SERVICES[0])["State"]["Pid"]
        while not pair.running(SERVICES[0]):
            time.sleep(0.01)
        os.kill(pid, 9)
        killed = time.monotonic()
        while pair.routed()[SERVICES[0]]:
            assert time.monotonic() - killed < 60, "the router did not notice"
            time.sleep(0.2)
        noticed = time.monotonic() - killed
        down = pair.run("status")
        while not pair.routed()[SERVICES[0]]:
            assert time.monotonic() - killed < 400, "it did not come back"
            time.sleep(0.5)
        back = time.monotonic() - killed
    show(f"kill -9: {requests}; left out after {noticed:.1f} s, back after {back:.1f} s")
    assert requests.lost == []
    assert requests.sent > 20
    assert down.code == 1
    assert SERVICES[0] in down.err
    assert pair.run("status").code == 0


def test_a_frozen_engine_leaves_the_router_is_restarted_alone_and_comes_back_gated(pair: Pair) -> None:
    """`watch --restart` of both, under load: /health stays green, so the router alone would feed it for ever."""
    well, sick = SERVICES
    kept = pair.inspect(well)["State"]["Pid"]
    limits = ("--interval", "1", "--stall", "15", "--canary-every", "15", "--canary-tokens", "64", "--grace", "100")
    words = (*limits, "--backoff", "900", "--port", str(free_port()))
    watch = Lines([*KIT, "watch", "--restart", "--json", *words], cwd=pair.directory)
    times: dict[str, float] = {}
    try:
        with load(pair.url, KEY, clients=1) as requests, load(pair.url, KEY, stream=True) as streams:
            for name in SERVICES:
                watch.wait(lambda row, name=name: (row.get("replica"), row.get("state")) == (name, "ok"), 120)
            while not pair.running(sick):
                time.sleep(0.01)
            (core,) = cores_in(pair.inspect(sick)["State"]["Pid"])
            frozen = time.time()
            os.kill(core, signal.SIGSTOP)
            for step in STEPS:
                watch.wait(lambda row, step=step: row["event"] == step, 400)
                (row,) = (row for row in watch.rows if row["event"] == step)
                times[step] = round(datetime.fromisoformat(row["time"]).timestamp() - frozen, 1)
            assert pair.routed() == dict.fromkeys(SERVICES, True)
    finally:
        watch.end()
    show(f"frozen: {requests}; streams: {streams}; seconds after: {times}")
    told = [(row["event"], row["replica"]) for row in watch.rows if row["event"] in STEPS]
    assert told == [(step, sick) for step in STEPS]
    assert pair.inspect(well)["State"]["Pid"] == kept
    (log,) = (pair.directory / ".glm4/watch").glob("restart-*.log")
    assert "no counter moved" in log.read_text().splitlines()[0]
    assert requests.lost == []
    assert len(streams.lost) <= 2, "those that it held: one of each client"
