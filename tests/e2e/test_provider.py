"""`provider: {type: glm4-deploy}` in a project of somebody else, run by the real Docker Compose.

The engine is the journeys' stand-in for vLLM in a container; Compose, Docker, the networks and the gate are real.
"""

import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from e2e.kit import MODEL, free_port
from e2e.stand_in_images import NAME, ROOT, build, environment, override

COMPOSE = Path(sys.executable).with_name("docker-compose")
VLLM = "0.32.0"
ASKS = "import os, urllib.request as u; print('MODELS', u.urlopen(os.environ['MODEL_URL'] + '/models').read().decode())"


@dataclass(kw_only=True)
class Project:
    """A user's project: `app` depends on `model`, which this kit provides."""

    name: str
    directory: Path
    port: int
    tags: dict[str, str]

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        source = {"PYTHONPATH": str(ROOT / "src"), "XDG_STATE_HOME": str(self.directory / "state")}
        path = f"{self.directory / 'bin'}{os.pathsep}{COMPOSE.parent}{os.pathsep}{os.environ['PATH']}"
        # With --project-name alone, `down` reads no file: it removes what its labels say, and knows no provider.
        command = [COMPOSE, "--file", "compose.yaml", "--project-name", self.name, "--progress", "plain", *words]
        return subprocess.run(
            command,
            cwd=self.directory,
            env=os.environ | source | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def write(self, behaviour: str = "", **more: str) -> None:
        options = {
            "profile": "cpu",
            "image": f"{NAME}:{self.tags[behaviour]}",
            "model_dir": str(MODEL),
            "port": str(self.port),
            "override": "mounts.yaml",
            **more,
        }
        mounts = yaml.safe_load(override(self.directory / "lease"))["services"]["glm4-9b-nvfp4"]["volumes"]
        app = {
            "image": f"{NAME}:{self.tags['']}",
            "entrypoint": ["python3", "-c", ASKS],
            "volumes": mounts,
            "depends_on": ["model"],
        }
        services = {"app": app, "model": {"provider": {"type": "glm4-deploy", "options": options}}}
        (self.directory / "compose.yaml").write_text(yaml.safe_dump({"services": services}), encoding="utf-8")

    @property
    def containers(self) -> set[str]:
        done = subprocess.run(
            ["docker", "ps", "--format", "{{.Names}}"], capture_output=True, text=True, timeout=60, check=True
        )
        return {name for name in done.stdout.split() if name.startswith(self.name)}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker engine answers")
    directory = tmp_path_factory.mktemp("provider")
    name = f"glm4-provider-{os.getpid()}"
    tags = {"": f"{VLLM}-{name}", "LoopsGreedy": f"{VLLM}-{name}-sick"}
    for behaviour, tag in tags.items():
        build(f"{NAME}:{tag}", environment(VLLM, behaviour))
    kit = directory / "bin/glm4-deploy"
    kit.parent.mkdir()
    kit.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m glm4_deploy "$@"\n')
    kit.chmod(0o755)
    (directory / "mounts.yaml").write_text(override(directory / "lease"))
    made = Project(name=name, directory=directory, port=free_port(), tags=tags)
    lease = (directory / "lease").open("w")
    fcntl.flock(lease, fcntl.LOCK_EX)
    try:
        yield made
    finally:
        made.write()
        made.run("down", "--volumes")
        lease.close()
        images = [f"{NAME}:{tag}" for tag in tags.values()]
        subprocess.run(["docker", "image", "rm", "--force", *images], capture_output=True, check=False)


def test_any_project_depends_on_a_gated_model_and_reaches_it_by_its_name(project: Project) -> None:
    project.write()
    up = project.run("up", "--detach")
    assert up.returncode == 0, up.stdout + up.stderr
    engine = f"{project.name}-model"
    assert engine in project.containers
    project.run("wait", "app")
    assert '"glm-4-9b-chat"' in project.run("logs", "app").stdout

    assert project.run("stop").returncode == 0
    assert project.containers == set()
    assert project.run("up", "--detach").returncode == 0
    assert engine in project.containers

    down = project.run("down")
    assert down.returncode == 0, down.stderr
    assert project.containers == set()
    networks = subprocess.run(["docker", "network", "ls"], capture_output=True, text=True, timeout=60, check=True)
    assert project.name not in networks.stdout, "nothing of the project is left"


def test_a_model_that_fails_its_gate_stops_the_project_with_the_reason(project: Project) -> None:
    project.write("LoopsGreedy", state_dir="sick")  # where no earlier release is good
    up = project.run("up", "--exit-code-from", "app")
    assert up.returncode != 0
    assert "did not pass: loop-greedy" in up.stdout + up.stderr
    assert "MODELS" not in up.stdout, "the app was started"
    assert project.containers == set()


def test_a_misspelt_option_is_refused_by_name(project: Project) -> None:
    project.write(max_modl_len="2048")
    up = project.run("up", "--detach")
    assert up.returncode != 0
    assert "max_modl_len" in up.stdout + up.stderr
    assert "did you mean 'max_model_len'?" in up.stdout + up.stderr
