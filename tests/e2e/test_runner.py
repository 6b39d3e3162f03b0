"""Whether a start keeps the running container: on a real Docker engine, with a container that only sleeps."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.candidates import compose_engine
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.engines import Engine
from glm4_deploy.deploy.releases import Files

pytestmark = pytest.mark.e2e
SERVICE = "glm4-9b-nvfp4"


@pytest.fixture
def files(override: Path) -> Files:
    body = {"image": "glm4-deploy/vllm-cpu:0.32.0", "command": ["sleep", "600"], "stop_signal": "SIGKILL"}
    texts = {"compose.yaml": yaml.safe_dump({"services": {SERVICE: body}}), "override-1.yaml": override.read_text()}
    return Files(texts=texts, compose=tuple(texts))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[str]:
    name = f"glm4-runner-{os.getpid()}"
    yield name
    listed = ["docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={name}"]
    ids = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["docker", "rm", "-f", *ids], capture_output=True, check=False)
    subprocess.run(["docker", "network", "rm", f"{name}_default"], capture_output=True, check=False)


def test_the_same_files_keep_the_running_container_and_others_do_not(
    files: Files, project: str, tmp_path: Path
) -> None:
    endpoint = Endpoint.of(resolve_spec({"profile": "cpu"}, sets=[f"project={project}"]), EngineKind.COMPOSE)

    def engine(**texts: str) -> Engine:
        return compose_engine(endpoint, replace(files, texts={**files.texts, **texts}), tmp_path)

    assert not engine().keeps(), "nothing runs yet"
    first = engine().start()
    assert engine().keeps()
    assert engine().start() == first, "it is kept"
    assert not engine(**{"compose.yaml": files.texts["compose.yaml"].replace("600", "601")}).keeps()

    fresh = engine()
    second = fresh.start(fresh=True)
    assert second.id != first.id, "it should have been created again"
    fresh.stop()
    assert not fresh.keeps(), "a stopped container is not kept"
    assert fresh.start().id != second.id, "a new container, so that its log holds only one start"
