"""A machine that is booted: systemd starts the Compose project by the unit that `autostart install` wrote."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kit import ROOT
from e2e.machine import BARE, Machine, machine, python_mounts, unique, wait_until

pytestmark = pytest.mark.e2e
# Stands for the engine: what is tested is who starts and stops it, so it only lives. No restart policy: whatever
# brings it back is the unit, not the Docker engine.
STAND_IN = """
services:
  engine:
    image: stand-in
    container_name: glm4-boot
    restart: "no"
    network_mode: none
    volumes: ["/usr:/usr:ro", "/etc/ld.so.cache:/etc/ld.so.cache:ro"]
    command: [sh, -c, "trap exit TERM; while :; do sleep 1; done"]
"""
RECORD = {
    "schema": 1, "runner": "compose", "project": "glm4-boot", "service": "engine", "profile": "cpu", "model": "m",
    "base_url": "http://127.0.0.1:1", "max_model_len": 1, "files": [".glm4/compose.yaml"], "id": "", "started_at": 0.0,
}  # fmt: skip
UNIT = "glm4-deploy-glm4-boot.service"


@pytest.fixture
def debian() -> Iterator[Machine]:
    with machine(unique("boot"), {ROOT: ROOT, **python_mounts(sys.executable)}) as booted:
        yield booted


def up(debian: Machine) -> bool:
    return "glm4-boot" in debian.run("docker", "ps", "--format", "{{.Names}}", check=False)


def test_it_comes_up_with_the_host_and_goes_down_when_told(debian: Machine) -> None:
    def told() -> str:
        return debian.run("systemctl", "status", "--no-pager", UNIT, "docker.service", check=False)

    def autostart(word: str) -> str:
        words = f"cd /srv/glm4 && PATH={Path(sys.executable).parent}:$PATH glm4-deploy autostart {word}"
        return debian.shell(words)

    debian.shell(BARE + "systemctl start docker && docker import /tmp/bare.tar stand-in")
    debian.write("/srv/glm4/.glm4/compose.yaml", STAND_IN)
    debian.write("/srv/glm4/.glm4/up.json", json.dumps(RECORD))
    assert "starts with this host" in autostart("install")
    assert not up(debian), "installing starts nothing"

    debian.reboot()
    wait_until(lambda: up(debian), 90, told)
    wait_until(lambda: debian.run("systemctl", "is-active", UNIT, check=False).strip() == "active", 30, told)

    debian.run("systemctl", "stop", UNIT)
    assert not up(debian)
    debian.reboot()
    wait_until(lambda: up(debian), 90, told)

    assert "disabled and removed" in autostart("remove")
    assert up(debian), "what runs goes on running"
    debian.reboot()
    debian.run("systemctl", "start", "docker")
    assert not up(debian)
