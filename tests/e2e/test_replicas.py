"""Two real engines behind the real router, under load: one is killed, both are replaced, a bad one is not taken."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from e2e.kit import Kit
from e2e.load import Load, load

SERVICES = ("glm4-9b-nvfp4-1", "glm4-9b-nvfp4-2")
# Two engines share two cores here.
SHARE = ("env.VLLM_CPU_OMP_THREADS_BIND=nobind", "env.OMP_NUM_THREADS=1", "start_period=420")
KEY = "sk-canary-0c1f5b7e"


def tell(figure: str) -> None:
    print(f"\nFIGURE {figure}")  # noqa: T201


@pytest.fixture(scope="module")
def fills(override: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The override that fills three empty images from this host: the engine's files twice, the router's wheel."""
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


class Pair(Kit):
    """The kit, with two replicas wished for."""

    fills: Path

    def roll(self, *sets: str) -> Any:
        words = [word for item in (*SHARE, "api_key_file=engine.key", *sets) for word in ("--set", item)]
        return self.up("--replicas", "2", "--override", self.fills, "--json", *words, timeout=900)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def routed(self) -> dict[str, bool]:
        """Engine → whether the router holds it for healthy."""
        rows = httpx.get(f"{self.url}/workers", timeout=10, trust_env=False).json()["workers"]
        return {row["url"].removeprefix("http://").partition(":")[0]: row["is_healthy"] for row in rows}

    def running(self, service: str) -> bool:
        """Whether the engine has a request in hand."""
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
    """`up` with a change while requests come: how it ended, and what became of them."""
    with load(pair.url, KEY) as found:
        began = time.monotonic()
        up = pair.roll(change)
        took = time.monotonic() - began
    tell(f"{what}: {found}; {took:.1f} s")
    return up, found


def test_both_are_gated_and_the_router_alone_is_reached(pair: Pair) -> None:
    report = json.loads((pair.directory / ".glm4/up.json").read_text())
    assert report["verdict"] == "ok"
    assert report["endpoint"]["replicas"] == list(SERVICES)
    smoke = next((pair.directory / ".glm4").rglob("smoke.json"))
    checks = {row["check"] for row in json.loads(smoke.read_text())["results"]}
    assert {f"{name}/loop-greedy" for name in SERVICES} | {"router/chat", "router/stream"} <= checks
    assert pair.routed() == dict.fromkeys(SERVICES, True)
    for service in (*SERVICES, "router"):
        seen = pair.inspect(service)
        assert KEY not in json.dumps(seen)
        assert seen["HostConfig"]["ReadonlyRootfs"] is True
        assert seen["HostConfig"]["CapDrop"] == ["ALL"]
        ports = [binding for bindings in seen["NetworkSettings"]["Ports"].values() for binding in bindings or ()]
        assert len({binding["HostPort"] for binding in ports}) == (service == "router")
    assert httpx.post(f"{pair.url}/v1/chat/completions", json={}, trust_env=False).status_code in (400, 401, 422)
    status = pair.run("status")
    assert status.code == 0, status.err
    assert all(name[-17:] in status.out for name in SERVICES)
    assert f"{SERVICES[1]} | " in pair.run("logs", "--tail", "all").out


def test_both_are_replaced_and_no_request_is_lost(pair: Pair) -> None:
    before = [pair.inspect(service)["Id"] for service in (*SERVICES, "router")]
    up, found = rolled(pair, "rolling update", "args.seed=7")
    assert up.code == 0, up.err
    assert found.lost == []
    after = [pair.inspect(service)["Id"] for service in (*SERVICES, "router")]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    assert pair.routed() == dict.fromkeys(SERVICES, True)


def test_the_first_that_fails_ends_the_roll_and_the_old_one_is_put_back(pair: Pair) -> None:
    other = pair.inspect(SERVICES[1])["Id"]
    up, found = rolled(pair, "a bad update", "args.no-such-flag=1")
    assert up.code == 15, up.err
    assert found.lost == []
    assert pair.inspect(SERVICES[1])["Id"] == other, "it never stopped"
    assert "--seed" in pair.inspect(SERVICES[0])["Config"]["Cmd"]
    assert pair.routed() == dict.fromkeys(SERVICES, True)
    assert pair.run("status").code == 0


def test_a_killed_engine_costs_no_request_and_comes_back(pair: Pair) -> None:
    with load(pair.url, KEY) as found:
        pid = pair.inspect(SERVICES[0])["State"]["Pid"]
        while not pair.running(SERVICES[0]):
            time.sleep(0.01)
        os.kill(pid, 9)
        killed = time.monotonic()
        while pair.routed()[SERVICES[0]]:
            assert time.monotonic() - killed < 60, "the router never noticed"
            time.sleep(0.2)
        noticed = time.monotonic() - killed
        down = pair.run("status")
        while not pair.routed()[SERVICES[0]]:
            assert time.monotonic() - killed < 400, "it did not come back"
            time.sleep(0.5)
        back = time.monotonic() - killed
    tell(f"kill -9: {found}; left out after {noticed:.1f} s, back after {back:.1f} s")
    assert found.lost == []
    assert found.sent > 20
    assert down.code == 1
    assert SERVICES[0] in down.err
    assert pair.run("status").code == 0
