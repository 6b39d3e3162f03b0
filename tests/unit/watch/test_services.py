"""The service `watch` as Compose reads it, and the build context of its image."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import glm4_deploy
from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.kit_image import _not_ours, kit_tag, requirements, write_context
from glm4_deploy.files import write_text
from glm4_deploy.render.compose import COMPOSE, rendered

ROOT = Path(__file__).parents[3]


@pytest.fixture
def services(tmp_path: Path, compose: list[str]) -> dict[str, Any]:
    deployment = resolve_spec({"profile": "gb10", "extras": ["watch"]}, sets=["watch_port=9999"])
    write_text(tmp_path / COMPOSE, rendered(deployment)[COMPOSE])
    words = ["-f", tmp_path / COMPOSE, "--profile", "*", "config", "--format", "json"]
    done = subprocess.run([*compose, *words], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout)["services"])


def test_the_watch_can_change_nothing(services: dict[str, Any]) -> None:
    watch = services["watch"]
    assert watch["image"] == kit_tag()
    assert watch["user"] == "65532:65532"
    assert watch["read_only"] is True
    assert watch["cap_drop"] == ["ALL"]
    assert "volumes" not in watch
    assert "--restart" not in watch["command"]
    assert not any("docker.sock" in json.dumps(service) for service in services.values())
    (port,) = watch["ports"]
    assert (port["host_ip"], port["published"]) == ("127.0.0.1", "9999")
    assert "http://glm4-9b-nvfp4:8080" in watch["command"]


def test_it_does_not_start_unless_requested(services: dict[str, Any]) -> None:
    assert services["watch"]["profiles"] == ["watch"]
    assert set(rendered(resolve_spec({"profile": "gb10"}))) == {COMPOSE}
    assert "watch" not in rendered(resolve_spec({"profile": "gb10"}))[COMPOSE]


def test_the_images_context_contains_this_kit_and_nothing_else(tmp_path: Path) -> None:
    write_context(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "Dockerfile", "requirements.in", "requirements.txt", "glm4_deploy",
    }  # fmt: skip
    assert (tmp_path / "glm4_deploy/templates/compose.yaml.j2").is_file()
    assert not list(tmp_path.rglob("__pycache__"))
    package = Path(glm4_deploy.__file__).parent
    taken = {str(path.relative_to(tmp_path / "glm4_deploy")) for path in (tmp_path / "glm4_deploy").rglob("*.*")}
    assert taken >= {str(path.relative_to(package)) for path in package.rglob("*.*") if "__pycache__" not in str(path)}
    assert any(line.startswith("prometheus-client") for line in requirements())
    assert not any("vllm" in line for line in requirements())


def test_the_image_is_built_of_locked_packages_that_satisfy_the_kit() -> None:
    text = (ROOT / "templates/image/requirements.txt").read_text()
    rows = re.split(r"\n(?=[a-z])", text.partition("\n\n")[0] if "\n\n" in text else text)
    locked = {}
    for row in rows:
        if match := re.match(r"([a-z0-9-]+)==([0-9][^ ;]*)", row):
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", row), row
            locked[match[1]] = match[2]
    for line in requirements():
        wanted = Requirement(line)
        assert wanted.specifier.contains(locked[wanted.name.lower()]), f"{line}: make requirements"
    assert "://" not in text


def test_what_lies_about_in_a_working_tree_stays_out_of_the_image(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in (".env", "notes.key", "id_rsa", "good.py", "data.json.bak"):
        (tree / name).write_text("x")
    (tmp_path / "secret.py").write_text("x")
    (tree / "link.py").symlink_to(tmp_path / "secret.py")
    shutil.copytree(tree, tmp_path / "context", ignore=_not_ours)
    assert [path.name for path in (tmp_path / "context").iterdir()] == ["good.py"]
