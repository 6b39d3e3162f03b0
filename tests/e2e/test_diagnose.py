"""`diagnose` on containers of a real Docker engine: their logs, and Docker's record of how they ended."""

import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.kit import Kit

pytestmark = pytest.mark.e2e
LOGS = Path(__file__).parents[1] / "data/logs"
IMAGE = f"glm4-diagnose-test:{os.getpid()}"
Start = Callable[..., str]


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of directories and links only: this host's /usr is mounted into its containers."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker engine answers")
    archive = tmp_path_factory.mktemp("image") / "root.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("usr", "logs", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name in ("bin", "lib", "lib64"):
            if Path(f"/{name}").is_symlink():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
                tar.addfile(entry)
    docker("import", str(archive), IMAGE)
    yield IMAGE
    docker("rmi", "-f", IMAGE)


@pytest.fixture
def start(image: str) -> Iterator[Start]:
    names: list[str] = []

    def run(script: str, *options: str) -> str:
        name = f"glm4-diagnose-{os.getpid()}-{len(names)}-{time.monotonic_ns()}"
        names.append(name)
        mounts = ("-v", "/usr:/usr:ro", "-v", f"{LOGS}:/logs:ro")
        docker("run", "-d", "--network", "none", "--name", name, *mounts, *options, image, "/bin/sh", "-c", script)
        return name

    yield run
    for name in names:
        docker("rm", "-f", name)


def diagnose(kit: Kit, name: str) -> tuple[int, Any]:
    done = kit.run("diagnose", "--container", name, "--json")
    return done.code, done.json


def ids(report: Any) -> list[str]:
    return [row["id"] for row in report["findings"]]


def test_for_a_failed_container_the_cause_comes_first_then_its_end_then_warnings(kit: Kit, start: Start) -> None:
    name = start("cat /logs/h100-0.24-no-room.log; exit 1")
    docker("wait", name)
    code, report = diagnose(kit, name)
    assert code == 1
    assert (report["version"], report["phase"], report["kv_cache_gib"]) == ("0.24.0", "kv_cache", -0.75)
    assert ids(report)[0] == "no-kv-room"
    assert set(ids(report)[1:3]) == {"container-ended", "engine-core-failed"}


def test_a_healthy_container_can_be_diagnosed_while_it_runs(kit: Kit, start: Start) -> None:
    name = start("cat /logs/v1-0.13-native-tp2.log; sleep 600")
    limit = time.monotonic() + 20
    while "startup complete" not in docker("logs", name) and time.monotonic() < limit:
        time.sleep(0.1)
    code, report = diagnose(kit, name)
    assert code == 0, report
    assert (report["phase"], report["native_fp4"], report["ready_s"]) == ("ready", True, 132.0)
    docker("kill", name)
    code, report = diagnose(kit, name)
    assert code == 1
    assert ids(report)[0] == "container-killed"


def test_a_restart_loop_is_reported(kit: Kit, start: Start) -> None:
    name = start("cat /logs/h100-0.24-bad-path.log; exit 1", "--restart", "on-failure:2")
    limit = time.monotonic() + 30
    while docker("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", name) != "exited 2":
        assert time.monotonic() < limit
        time.sleep(0.2)
    code, report = diagnose(kit, name)
    assert code == 1
    counts = {row["id"]: row["count"] for row in report["findings"]}
    assert counts["model-path"] == 3
    assert "container-restarts" in counts


def test_an_unknown_container_is_reported_in_one_sentence(kit: Kit, image: str) -> None:
    done = kit.run("diagnose", "--container", "no-such-container")
    assert (done.code, done.out) == (2, "")
    assert "no container is named no-such-container" in done.err
