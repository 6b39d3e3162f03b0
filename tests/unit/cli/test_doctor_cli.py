"""`doctor` and `up` agree: on where Compose is, and on who holds the port."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import preloaded
from glm4_deploy.deploy.compose_cli import find_compose
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.state import Record, save_record
from glm4_deploy.errors import ComposeMissing, DockerMissing
from glm4_deploy.host.system import read_compose


def doctor_rows(*words: str, cwd: Path) -> dict[str, dict[str, Any]]:
    done = preloaded.run("doctor", "--profile", "cpu", "--json", *words, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return {row["check"]: row for row in json.loads(done.stdout)["results"]}


@pytest.fixture
def listener() -> Iterator[tuple[int, int]]:
    """Port and pid of a real process that listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    words = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            while not accepts(port):
                time.sleep(0.05)
            yield port, child.pid
        finally:
            child.kill()


def accepts(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def keep_record(directory: Path, port: int, pid: int) -> None:
    """What `up --runner process` leaves behind."""
    endpoint = Endpoint(
        runner=EngineKind.PROCESS, project="glm4", service="engine", profile="cpu", bind="127.0.0.1", port=port,
        base_url=f"http://127.0.0.1:{port}", model="m", model_dir="/m", max_model_len=512, start_period=1,
    )  # fmt: skip
    save_record(Record(endpoint=endpoint), directory)
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    (directory / "engine.pid").write_text(f"{pid}:{ticks} 1.0\n")


def test_the_port_of_this_deployments_own_engine_blocks_nothing(tmp_path: Path, listener: tuple[int, int]) -> None:
    port, pid = listener
    keep_record(tmp_path / "state", port, pid)
    words = ("--port", str(port))
    assert doctor_rows(*words, cwd=tmp_path)["port"]["status"] == "fail"  # nothing is on record in .glm4
    own = doctor_rows(*words, "--state-dir", "state", cwd=tmp_path)["port"]
    assert (own["status"], "held by this deployment" in own["observed"]) == ("ok", True)


def test_a_port_that_is_not_on_record_belongs_to_somebody_else(tmp_path: Path, listener: tuple[int, int]) -> None:
    port, pid = listener
    keep_record(tmp_path / ".glm4", port + 1, pid)
    assert doctor_rows("--port", str(port), cwd=tmp_path)["port"]["status"] == "fail"


PROGRAMS = {
    "plugin": {"docker": "2.40.3"},
    "standalone": {"docker": "", "docker-compose": "v5.1.0"},
    "no client but standalone": {"docker-compose": "2.20.0"},
    "old plugin, recent standalone": {"docker": "2.3.3", "docker-compose": "2.40.3"},
    "old": {"docker": "2.19.9"},
    "none": {"docker": ""},
    "no client": {},
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_doctor_and_up_find_the_same_compose(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in PROGRAMS[case].items():
        (tmp_path / name).write_text(f"#!/bin/sh\n[ -n '{version}' ] && echo '{version}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = read_compose(timeout=20)  # doctor's
    if case in ("old", "none"):
        with pytest.raises(ComposeMissing):
            find_compose()  # up's
    elif case == "no client":
        with pytest.raises(DockerMissing):
            find_compose()
    else:
        assert facts.recent
        assert find_compose() == facts.command
    assert facts.recent == (case not in ("old", "none", "no client"))
    assert bool(facts.trouble) == (case in ("none", "no client"))
