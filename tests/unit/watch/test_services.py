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


def test_who_is_told_comes_from_a_file_that_no_inspection_shows(tmp_path: Path, compose: list[str]) -> None:
    file = tmp_path / "notify"
    file.write_text("json://127.0.0.1/T0kenOfTheWebhook4711\n")
    sets = [f"notify_file={file}", f"api_key_file={tmp_path / 'key'}"]
    deployment = resolve_spec({"profile": "gb10", "extras": ["watch"]}, sets=sets)
    write_text(tmp_path / COMPOSE, rendered(deployment)[COMPOSE])
    words = ["-f", tmp_path / COMPOSE, "--profile", "*", "config", "--format", "json"]
    done = subprocess.run([*compose, *words], capture_output=True, text=True, check=True)
    assert "T0ken" not in done.stdout
    config = json.loads(done.stdout)
    watch = config["services"]["watch"]
    words = watch["command"][watch["command"].index("--notify-file") :]
    assert words[1] == "/run/secrets/notify_addresses"
    assert {secret["source"] for secret in watch["secrets"]} == {"engine_api_key", "notify_addresses"}
    assert config["secrets"]["notify_addresses"]["file"] == str(file)
    [volume] = watch["volumes"]
    assert volume["target"] == words[words.index("--state-dir") + 1]
    dockerfile = (ROOT / "templates/image/Dockerfile").read_text()
    assert f"chown('{volume['target']}', 65532, 65532)" in dockerfile, "a new volume takes the owner of what it covers"


def test_with_replicas_it_asks_each_engine_and_the_router(tmp_path: Path, compose: list[str]) -> None:
    deployment = resolve_spec({"profile": "b200", "extras": ["watch", "guard", "gateway"], "replicas": 2})
    write_text(tmp_path / COMPOSE, rendered(deployment)[COMPOSE])
    words = ["-f", tmp_path / COMPOSE, "--profile", "*", "config", "--format", "json"]
    done = subprocess.run([*compose, *words], capture_output=True, text=True, check=True)
    watch = json.loads(done.stdout)["services"]["watch"]
    command = watch["command"]
    given = [command[place + 1] for place, word in enumerate(command) if word == "--replica"]
    services = [one.service for one in deployment.replicas]
    assert given == [f"{name}=http://{name}:8080" for name in services]
    assert command[command.index("--router") + 1] == "http://router:8080"
    assert {"--base-url", "--guard"}.isdisjoint(command)
    assert [volume["target"] for volume in watch["volumes"]] == [command[command.index("--state-dir") + 1]]
    assert set(watch["networks"]) == {"default", "engine"}


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
