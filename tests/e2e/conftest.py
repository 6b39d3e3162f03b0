"""A real Docker engine, a real vLLM on the CPU, the demo model and its sick twins."""

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from e2e.engine import Engine, engine
from e2e.kit import MODEL, ROOT, Kit
from e2e.matrix import Matrix


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Matrix(config), "matrix")


@pytest.fixture(scope="session")
def cpu_python() -> str:
    """The CPU engine's Python."""
    python = os.environ.get("GLM4_CPU_PYTHON")
    if not python:
        pytest.skip("no CPU engine: run through `make e2e`")
    return python


@pytest.fixture(scope="session")
def override(cpu_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Compose override that fills the cpu profile's image from this host; the image is made first."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker engine answers")
    file = tmp_path_factory.mktemp("image") / "override.yaml"
    subprocess.run([ROOT / "scripts/cpu-image.sh", file], check=True, capture_output=True)
    return file


@pytest.fixture(scope="session")
def healthy(cpu_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One real engine with the demo model, shared by all tests that only send it requests."""
    with engine(cpu_python, MODEL, tmp_path_factory.mktemp("healthy") / "engine.log") as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test that used an engine shows that engine's own last errors: CI keeps no file."""
    report = yield
    for used in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(used, Engine):
            report.sections.append((f"log of the engine at {used.base_url}", used.last_words()))
    return report


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a sick twin of the demo model: twin("loops")."""

    def make(kind: str) -> Path:
        directory = tmp_path_factory.mktemp("twin") / f"glm-4-tiny-{kind}"
        if not directory.exists():
            subprocess.run([sys.executable, ROOT / "demo/twins.py", kind, "--out", directory], check=True)
        return directory

    return make


@pytest.fixture
def kit(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Kit]:
    kit = Kit(directory=tmp_path, project=f"glm4-test-{os.getpid()}-{abs(hash(request.node.name)) % 10_000}")
    yield kit
    kit.run("down", "--volumes", "--yes")
    compose = str(Path(sys.executable).parent / "docker-compose")
    subprocess.run([compose, "-p", kit.project, "down", "--volumes"], capture_output=True, check=False)
