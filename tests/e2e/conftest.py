"""A real Docker engine, a real vLLM on the CPU, the demo model and its sick twins; the kit as its users call it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo/glm-4-tiny-chat"
KIT = [str(Path(sys.executable).parent / "glm4-deploy")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def cpu_python() -> str:
    """The Python of the CPU engine."""
    python = os.environ.get("GLM4_CPU_PYTHON")
    if not python:
        pytest.skip("no CPU engine: run through `make e2e`")
    return python


@pytest.fixture(scope="session")
def override(cpu_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of the cpu profile, made from this host, and the Compose file that fills it."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker engine answers")
    file = tmp_path_factory.mktemp("image") / "override.yaml"
    subprocess.run([ROOT / "scripts/cpu-image.sh", file], check=True, capture_output=True)
    return file


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a sick twin of the demo model: twin("loops")."""

    def make(kind: str) -> Path:
        directory = tmp_path_factory.mktemp("twin") / f"glm-4-tiny-{kind}"
        if not directory.exists():
            subprocess.run([sys.executable, ROOT / "demo/twins.py", kind, "--out", directory], check=True)
        return directory

    return make


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(kw_only=True)
class Kit:
    """The command line in a directory of its own, with a project name and a port of its own."""

    directory: Path
    project: str
    port: int = field(default_factory=free_port)

    def run(self, *words: str | Path, timeout: float = 400) -> Done:
        done = subprocess.run(
            [*KIT, *map(str, words)],
            cwd=self.directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    def up(self, *words: str | Path, model: Path = MODEL) -> Done:
        return self.run("up", *self.wish(model), *words)

    def wish(self, model: Path) -> tuple[str, ...]:
        sets = (f"project={self.project}", f"container_name={self.project}")
        options = ("--profile", "cpu", "--model-dir", str(model), "--port", str(self.port))
        return (*options, *(word for item in sets for word in ("--set", item)))


@pytest.fixture
def kit(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Kit]:
    one = Kit(directory=tmp_path, project=f"glm4-test-{os.getpid()}-{abs(hash(request.node.name)) % 10_000}")
    yield one
    one.run("down", "--volumes", "--yes")
    compose = str(Path(sys.executable).parent / "docker-compose")
    subprocess.run([compose, "-p", one.project, "down", "--volumes"], capture_output=True, check=False)
