"""render → up → smoke → down: the file that `render` writes, a real Docker engine, a real vLLM."""

import http.server
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from e2e.kit import KIT, MODEL, Kit, free_port

pytestmark = pytest.mark.e2e


def inspect(name: str) -> dict[str, Any]:
    done = subprocess.run(["docker", "inspect", name], capture_output=True, text=True, check=True)
    (only,) = json.loads(done.stdout)
    return dict(only)


def containers(project: str) -> list[str]:
    label = f"label=com.docker.compose.project={project}"
    done = subprocess.run(["docker", "ps", "-aq", "--filter", label], capture_output=True, text=True, check=True)
    return done.stdout.split()


def networks(project: str) -> list[str]:
    label = f"label=com.docker.compose.project={project}"
    done = subprocess.run(
        ["docker", "network", "ls", "-q", "--filter", label], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def wait_for(true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait up to a minute until the condition holds; it is a failure if the process ends first."""
    deadline = time.monotonic() + 60
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Stale(http.server.BaseHTTPRequestHandler):
    """A server of another model that was left on the port: healthy, but not the engine that was started."""

    def do_GET(self) -> None:
        body = json.dumps({"object": "list", "data": [{"id": "old-model", "object": "model"}]}).encode()
        self.send_response(200 if self.path.startswith(("/health", "/v1/models")) else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def stale_server(port: int) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Stale)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


CANARY = "canary-5up3r-53cr3t-k3y"


def places_with_the_key(kit: Kit) -> set[str]:
    """The places that others can look into and that contain the key: there should be none."""
    logs = subprocess.run(["docker", "logs", kit.project], capture_output=True, check=True)
    image = subprocess.run(["docker", "save", inspect(kit.project)["Image"]], capture_output=True, check=True)
    places = {
        "docker inspect": json.dumps(inspect(kit.project)).encode(),
        "docker logs": logs.stdout + logs.stderr,
        "image": image.stdout,
    }
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            places["process list"] = places.get("process list", b"") + path.read_bytes()
    files = (path for path in kit.directory.rglob("*") if path.is_file() and path.parent.name != "secrets")
    places |= {str(path): path.read_bytes() for path in files}
    return {place for place, content in places.items() if CANARY.encode() in content}


def test_a_healthy_model_is_started_kept_and_stopped(kit: Kit, override: Path) -> None:
    (kit.directory / "secrets").mkdir(mode=0o700)
    (kit.directory / "secrets/key").write_text(CANARY + "\n")
    (kit.directory / "glm4.yaml").write_text(f"api_key_file: {kit.directory}/secrets/key\n")
    rendered = kit.run("render", *kit.settings(MODEL))
    first = kit.up("--override", override, "--json")
    assert first.code == 0, first.err
    report = first.json
    assert report["verdict"] in ("ok", "warn")
    assert {"this-container", "alive", "identity", "chat", "stream"} <= {row["check"] for row in report["results"]}
    assert report["facts"]["version"].startswith("0.32")
    for phase in ("weights", "kv_cache", "ready"):
        assert phase in first.err

    written = yaml.safe_load((kit.directory / ".glm4/compose.yaml").read_text())
    assert written == yaml.safe_load(rendered.out)
    container = inspect(kit.project)
    assert container["HostConfig"]["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(kit.port)}]}
    assert container["HostConfig"]["ReadonlyRootfs"] is True
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in container["HostConfig"]["SecurityOpt"]
    assert (container["HostConfig"]["PidsLimit"], container["HostConfig"]["Memory"]) == (8192, 8 << 30)
    assert httpx.get(f"http://127.0.0.1:{kit.port}/v1/models", trust_env=False).status_code == 401

    status = kit.run("status", "--json")
    assert status.code == 0, status.err
    assert status.json["models"] == ["glm-4-9b-chat"]
    assert "Application startup complete" in kit.run("logs", "--tail", "all").out

    again = kit.up("--override", override, "--json")
    assert again.code == 0, again.err
    assert inspect(kit.project)["Id"] == container["Id"], "the same settings keep the running engine"

    reports = ("--json", "smoke.json", "--junit", "smoke.xml", "--html", "smoke.html")
    smoke = kit.run("smoke", "--only", "key", "--only", "chat", "--only", "stream", *reports)
    assert smoke.code == 0, smoke.out + smoke.err
    checks = {row["check"]: row for row in json.loads((kit.directory / "smoke.json").read_text())["results"]}
    assert (checks["key"]["status"], "401" in checks["key"]["observed"]) == ("ok", True)
    assert all(CANARY not in done.out + done.err for done in (first, again, status, smoke))
    assert places_with_the_key(kit) == set()

    assert kit.run("down").code == 0
    assert containers(kit.project) == []
    assert networks(kit.project) == []
    assert kit.run("status").code == 1


def test_a_model_that_loops_never_passes(kit: Kit, override: Path, twin: Callable[[str], Path]) -> None:
    done = kit.up("--override", override, "--json", model=twin("loops"))
    assert done.code == 1, done.err
    assert "did not pass" in done.err
    failed = {row["check"]: row for row in done.json["results"] if row["status"] == "fail"}
    assert any("loop" in name for name in failed), failed
    assert inspect(kit.project)["State"]["Running"] is False
    assert (kit.directory / ".glm4/failed.log").stat().st_size > 1000


def test_an_engine_that_cannot_start_is_reported_early_with_the_reason(
    kit: Kit, override: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "glm-4-broken"
    shutil.copytree(MODEL, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(
        json.dumps({**config, "architectures": ["NoSuchModel"], "model_type": "nosuch"})
    )
    refused = kit.up("--override", override, model=broken)
    assert refused.code == 10, refused.err
    assert containers(kit.project) == []

    begin = time.monotonic()
    done = kit.up("--override", override, "--force", model=broken)
    assert done.code == 11, done.err
    assert time.monotonic() - begin < 120
    assert any(words in done.err for words in ("exit code 1", "restarted by itself", "can no longer come up"))
    assert "nosuch" in done.err.lower(), done.err
    assert inspect(kit.project)["State"]["Running"] is False


def test_an_engine_killed_while_it_starts_is_noticed_at_once(kit: Kit, override: Path) -> None:
    words = [*KIT, "up", *kit.settings(MODEL), "--override", str(override), "--set", "restart=no"]
    with subprocess.Popen(
        words, cwd=kit.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: bool(containers(kit.project)) and inspect(kit.project)["State"]["Running"], process)
        time.sleep(3)
        subprocess.run(["docker", "kill", kit.project], check=True, capture_output=True)
        killed = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 11, err
        assert "137" in err
        assert time.monotonic() - killed < 10


def test_a_taken_port_is_refused_before_anything_starts(kit: Kit, override: Path) -> None:
    with stale_server(kit.port):
        done = kit.up("--override", override)
    assert done.code == 8
    assert "old-model" in done.err
    assert containers(kit.project) == []


def test_without_docker_the_same_plan_runs_as_a_process(kit: Kit, cpu_python: str) -> None:
    done = kit.up("--runner", "process", "--json")
    assert done.code == 0, done.err
    assert done.json["record"]["endpoint"]["runner"] == "process"
    assert kit.run("status").code == 0
    assert kit.run("down").code == 0
    assert kit.run("status").code == 1


def test_a_stale_server_that_takes_the_port_later_is_not_mistaken_for_the_engine(kit: Kit, cpu_python: str) -> None:
    words = [*KIT, "up", *kit.settings(MODEL), "--runner", "process"]
    with subprocess.Popen(
        words, cwd=kit.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for((kit.directory / ".glm4/engine.log").exists, process)
        with stale_server(kit.port):
            _, err = process.communicate(timeout=200)
    assert process.returncode == 4, err
    assert "never reached the engine" in err


def test_an_interrupted_up_reports_what_it_leaves(kit: Kit, cpu_python: str) -> None:
    words = [*KIT, "up", *kit.settings(MODEL), "--runner", "process"]
    with subprocess.Popen(
        words, cwd=kit.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for((kit.directory / ".glm4/engine.pid").exists, process)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "left as it is" in err
    assert kit.run("down").code == 0


def test_a_dry_run_leaves_docker_and_the_directory_as_they_are(tmp_path: Path) -> None:
    project = f"glm4-dry-{free_port()}"
    for name in ("up", "down"):
        argv = [*KIT, name, "--dry-run", "--json"]
        if name == "up":
            argv += [
                "--profile",
                "cpu",
                "--model-dir",
                str(MODEL),
                "--port",
                str(free_port()),
                "--set",
                f"project={project}",
            ]
            argv += ["--with", "gateway", "--set", f"api_key_file={tmp_path}/key"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["steps"]
    assert list(tmp_path.iterdir()) == []
    assert (containers(project), networks(project)) == ([], [])
