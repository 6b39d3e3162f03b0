"""The systemd unit: systemd itself reads it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glm4_deploy.render.autostart import unit_file

COMPOSE = str(Path(sys.executable).parent / "docker-compose")


def verify(path: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("folder", ["plain", "with space", "50% $HOME"])
def test_systemd_accepts_it_and_reads_the_words_that_were_meant(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()
    file = place / "compose.yaml"
    file.write_text("services: {}\n")
    unit = tmp_path / "glm4-test.service"
    unit.write_text(unit_file(project="glm4", compose=[COMPOSE], files=[str(file)]))
    done = verify(unit)
    said = [line for line in done.stderr.splitlines() if unit.name in line and "docker.service" not in line]
    assert said == []
    broken = tmp_path / "glm4-broken.service"
    broken.write_text(unit.read_text().replace(f"ExecStart={COMPOSE}", "ExecStart=/nowhere/compose"))
    assert "/nowhere/compose" in verify(broken).stderr, "a unit that cannot run is told"


def run(*words: str, cwd: Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glm4_deploy", "autostart", *words]
    env = os.environ | {"PATH": path or f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)


def test_install_and_remove_as_a_user_runs_them(tmp_path: Path) -> None:
    assert run("install", cwd=tmp_path).returncode == 2, "nothing was brought up here"
    (tmp_path / ".glm4").mkdir()
    (tmp_path / ".glm4/compose.yaml").write_text("services: {}\n")
    record = {
        "schema": 1, "runner": "compose", "project": "glm4-t", "service": "s", "profile": "cpu", "base_url": "http://x",
        "model": "m", "max_model_len": 1, "files": [".glm4/compose.yaml"], "id": "", "started_at": 0.0,
    }  # fmt: skip
    (tmp_path / ".glm4/up.json").write_text(json.dumps(record))
    shown = run("install", "--print", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"--file {tmp_path}/.glm4/compose.yaml" in shown.stdout

    # Stands for systemctl, which a machine without a running systemd refuses: it writes down what it is asked.
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
    (tools / "systemctl").chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    units = tmp_path / "units"
    assert run("install", "--units", str(units), cwd=tmp_path, path=path).returncode == 0
    unit = units / "glm4-deploy-glm4-t.service"
    assert unit.read_text() == shown.stdout
    assert run("remove", "--units", str(units), cwd=tmp_path, path=path).returncode == 0
    assert not unit.exists()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["daemon-reload", f"enable {unit.name}", f"disable {unit.name}", "daemon-reload"]


def test_without_systemd_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / ".glm4").mkdir()
    (tmp_path / ".glm4/compose.yaml").write_text("services: {}\n")
    record = {
        "schema": 1, "runner": "compose", "project": "glm4-t", "service": "s", "profile": "cpu", "base_url": "http://x",
        "model": "m", "max_model_len": 1, "files": [".glm4/compose.yaml"], "id": "", "started_at": 0.0,
    }  # fmt: skip
    (tmp_path / ".glm4/up.json").write_text(json.dumps(record))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "docker-compose").symlink_to(COMPOSE)
    done = run("install", "--units", str(tmp_path / "units"), cwd=tmp_path, path=str(tools))
    assert (done.returncode, "no systemctl" in done.stderr) == (20, True)
    assert list((tmp_path / "units").iterdir()) == []
