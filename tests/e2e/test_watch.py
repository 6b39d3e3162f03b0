"""The watch on a real vLLM: under load, frozen, killed, babbling; in its container, and restarting from the host."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.engine import NAME, engine
from e2e.kit import KIT, ROOT, Kit, free_port
from e2e.watching import Lines, cores

pytestmark = pytest.mark.e2e
STALL_S, INTERVAL_S = 10, 1
FAST = ("--interval", str(INTERVAL_S), "--stall", str(STALL_S), "--canary-every", "15", "--canary-tokens", "128")
# Reaction times are measured (docs/lab/watch.md), not tested: a busy machine stretches all of them.
PATIENCE_S = 120.0


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """A failed test must not leave its readers to the next one."""
    yield
    while Lines.open:
        Lines.open.pop().end()


def is_bad(row: dict[str, Any]) -> bool:
    return row["event"] == "state" and row["state"] in ("hung", "babbling", "unreachable", "wrong-engine")


def ask(base_url: str, words: int) -> None:
    body = {
        "model": NAME, "max_tokens": 600, "ignore_eos": True, "temperature": 0.7,
        "messages": [{"role": "user", "content": "Tell of a lighthouse. " + "word " * words}],
    }  # fmt: skip
    try:
        httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
    except httpx.HTTPError:
        time.sleep(0.5)  # the engine is frozen or killed on purpose


@contextmanager
def load(base_url: str) -> Iterator[None]:
    """Six concurrent clients, one request after another: long prompts and long answers."""
    going = True

    def client(number: int) -> None:
        while going:
            ask(base_url, 50 * number)

    with ThreadPoolExecutor(6) as pool:
        for number in range(6):
            pool.submit(client, number)
        try:
            yield
        finally:
            going = False


@pytest.fixture(scope="session")
def kit_image() -> str:
    """The kit's image, on a base made from this host, without a registry."""
    base = subprocess.run([ROOT / "scripts/kit-base.sh"], check=True, capture_output=True, text=True).stdout.strip()
    build = [*KIT, "image", "build", "--base", base, "--network", "none"]
    return subprocess.run(build, check=True, capture_output=True, text=True).stdout.split()[-1]


def fast_service(file: Path) -> Path:
    """An override for the rendered watch container, with shorter times."""
    engine_url = "http://glm4-9b-nvfp4:8080"
    command = ["watch", "--json", "--base-url", engine_url, "--model", NAME, "--listen", "0.0.0.0", *FAST]
    file.write_text(json.dumps({"services": {"watch": {"command": command}}}))
    return file


def inspect(container: str) -> dict[str, Any]:
    done = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout)[0])


def test_a_frozen_and_a_killed_engine_are_detected_and_the_dead_one_is_restarted(
    kit: Kit, override: Path, kit_image: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    fast = fast_service(tmp_path / "fast.yaml")
    services = ("--with", "watch", "--set", f"watch_port={free_port()}", "--set", "restart=no")
    done = kit.up(*services, "--override", override, "--override", fast)
    assert done.code == 0, done.err
    restart = ("--restart", "--backoff", "5", "--port", str(free_port()))
    watch = Lines([*KIT, "watch", "--json", *FAST, *restart], cwd=kit.directory)
    contained = Lines(["docker", "logs", "--follow", f"{kit.project}-watch-1"])
    config = inspect(f"{kit.project}-watch-1")
    assert config["Config"]["User"] == "65532:65532"
    assert config["HostConfig"]["ReadonlyRootfs"] is True
    assert config["HostConfig"]["CapDrop"] == ["ALL"]
    assert not any("docker.sock" in mount["Source"] for mount in config["Mounts"])
    watch.state("ok", seconds=60)
    contained.state("ok", seconds=60)

    base_url = f"http://127.0.0.1:{kit.port}"
    with load(base_url):
        time.sleep(15)
        rows = [*watch.rows, *contained.rows]
        assert not any(is_bad(row) for row in rows), json.dumps(rows, indent=1)
        stopped = cores(inspect(kit.project)["State"]["Pid"])
        assert stopped
        for core in stopped:
            os.kill(core, signal.SIGSTOP)
        seen, contained_seen = len(watch.rows), len(contained.rows)
        assert httpx.get(f"{base_url}/health", trust_env=False).status_code == 200, "/health does not notice"
        record_property("core stopped, hung after", watch.state("hung", seconds=PATIENCE_S, after=seen))
        contained.state("hung", seconds=PATIENCE_S, after=contained_seen)
        # It is younger than --grace. How a frozen engine is restarted and comes back is in test_replicas.py.
        watch.wait(lambda row: row["event"] == "left-alone" and "may take" in row["why"], 60, after=seen)
        seen = len(watch.rows)
        os.kill(inspect(kit.project)["State"]["Pid"], signal.SIGKILL)
        record_property("killed, unreachable after", watch.state("unreachable", seconds=PATIENCE_S, after=seen))
    watch.wait(lambda row: row["event"] == "restarted", 240, after=seen)
    watch.end()  # before `down`, which it might take for a fault, and which would wait 30 s for an engine that loads
    subprocess.run(["docker", "kill", kit.project], capture_output=True, check=True)
    (log,) = (kit.directory / ".glm4/watch").glob("restart-*.log")
    why = json.loads(log.read_text().splitlines()[0])["why"]  # of the verdict when the container was found dead
    assert "no counter moved" in why or "GET /metrics" in why, why


def test_a_babbling_engine_and_one_with_a_frozen_api_server_are_detected(
    cpu_python: str, twin: Callable[[str], Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with engine(cpu_python, twin("loops"), tmp_path / "engine.log") as running:
        port = free_port()
        words = [*KIT, "watch", "--base-url", running.base_url, "--port", str(port), "--json", *FAST]
        watch = Lines(words)
        record_property("loops, babbling after", watch.state("babbling", seconds=PATIENCE_S))
        # On a busy machine the first canary may return too late to be judged.
        watch.wait(lambda row: "LOOP" in row.get("why", ""), PATIENCE_S)
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
        assert (answer.status_code, answer.json()["state"]) == (503, "babbling")
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        assert 'glm4_watch_state{state="babbling"} 1.0' in text
        seen = len(watch.rows)
        listing = subprocess.run(["ss", "-ltnpH", f"sport = :{running.base_url.rpartition(':')[2]}"],
                                 capture_output=True, text=True, check=True).stdout  # fmt: skip
        api = int(listing.partition("pid=")[2].partition(",")[0])
        os.kill(api, signal.SIGSTOP)
        record_property("API server stopped, hung after", watch.state("hung", seconds=PATIENCE_S, after=seen))
        os.kill(api, signal.SIGCONT)
        watch.end()
        assert watch.process.returncode == 0
