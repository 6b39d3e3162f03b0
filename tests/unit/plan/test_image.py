"""Which image a name means, and how the server is started in it, in every target."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from glm4_deploy.catalog.images import CommandShape, EngineImage, find_image, known_images, resolve_version
from glm4_deploy.cli.params import resolve_plan
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.image import FIND_PYTHON, engine_image
from glm4_deploy.render.targets import render_target
from glm4_deploy.settings import load_settings

DIGEST = "sha256:" + "5" * 64
MODEL = "/mnt/models/glm-4-9b-chat-hf-nvfp4"
MODULE = ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL]


def seen(name: str, **settings: str) -> EngineImage:
    found, _ = load_settings({"profile": "gb10", "image": name, **settings}, environ={})
    return engine_image(found)


def service(name: str, *sets: str) -> dict[str, Any]:
    plan = resolve_plan({"profile": "gb10", "image": name}, sets=sets)
    files = render_target("compose", plan.deployment, plan.settings, plan.profile)
    return dict(yaml.safe_load(files["compose.yaml"])["services"]["glm4-9b-nvfp4"])


@pytest.mark.parametrize(
    ("name", "vllm", "command"),
    [
        ("nvcr.io/nvidia/vllm:26.01-py3", (0, 13, 0), CommandShape.PROGRAM),
        ("nvcr.io/nvidia/vllm:26.05.post1-py3", (0, 21, 0), CommandShape.PROGRAM),
        ("mirror.example/nvidia/vllm:26.01-py3", (0, 13, 0), CommandShape.PROGRAM),
        ("mirror.example:5000/proxy/nvcr/nvidia/vllm:26.10-py3", (0, 31, 0), CommandShape.PROGRAM),
        (f"nvcr.io/nvidia/vllm:26.07-py3@{DIGEST}", (0, 24, 0), CommandShape.PROGRAM),
        ("nvcr.io/nvidia/vllm:33.01-py3", None, CommandShape.PROGRAM),
        ("vllm/vllm-openai:v0.31.0", (0, 31, 0), CommandShape.SERVE),
        ("docker.io/vllm/vllm-openai:v0.27.1-aarch64-cu130", (0, 27, 1), CommandShape.SERVE),
        ("vllm/vllm-openai:v0.25.0.post1", (0, 25, 0), CommandShape.SERVE),
        ("vllm/vllm-openai:latest", None, CommandShape.SERVE),
        ("vllm/vllm-openai:v0.31.0rc1", None, CommandShape.SERVE),
        ("scitrera/dgx-spark-vllm:0.17.0-t5", (0, 17, 0), CommandShape.PROGRAM),
        ("somebody/vllm:0.31.0", None, None),
        ("nvidia-vllm:26.01-py3", None, None),
    ],
)
def test_a_name_is_recognised(name: str, vllm: tuple[int, ...] | None, command: CommandShape | None) -> None:
    image = seen(name)
    version = None if image.vllm is None else image.vllm[:3]
    assert (version, image.command) == (vllm, command)


def test_a_digest_alone_is_recognised_and_rendered() -> None:
    known = next(image for image in known_images() if image.digests)
    name = f"mirror.example/some/where@{known.digests[0]}"
    assert seen(name).vllm == known.vllm
    assert service(name)["image"] == name
    assert seen(f"nvcr.io/nvidia/vllm@{DIGEST}").vllm is None


def test_every_row_says_where_it_is_from() -> None:
    for image in known_images():
        assert image.vllm, image
        assert image.source, image
        assert find_image(image.repository, image.tag) == image


def test_cuda_and_its_driver() -> None:
    assert (seen("vllm/vllm-openai:v0.31.0").cuda, seen("vllm/vllm-openai:v0.31.0").driver) == ("13.0", 580)
    assert (seen("vllm/vllm-openai:v0.31.0-cu129").cuda, seen("vllm/vllm-openai:v0.31.0-cu129").driver) == ("12.9", 570)
    assert (seen("vllm/vllm-openai:v0.12.0").cuda, seen("vllm/vllm-openai:v0.12.0").driver) == ("", None)


def test_the_settings_answer_for_an_image_that_nobody_knows() -> None:
    image = seen("somebody/vllm:latest", image_vllm="0.24.0+abc", image_command="python-module")
    assert (image.vllm, image.command) == ((0, 24, 0), CommandShape.MODULE)


def test_an_image_named_by_a_higher_layer_brings_nothing_of_the_lower_one(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text(f"image: somebody/vllm:a@{DIGEST}\nimage_vllm: 0.17.0\nimage_command: vllm-serve\n")
    settings, _ = load_settings({}, file=file, environ={"GLM4_IMAGE": "other/vllm:b"})
    assert (settings.pinned_image, settings.image_digest) == ("other/vllm:b", None)
    assert engine_image(settings).vllm is None
    settings, _ = load_settings({"image_tag": "c"}, file=file, environ={})
    assert settings.pinned_image == "somebody/vllm:c"
    settings, _ = load_settings({"port": "9000"}, file=file, environ={})
    assert (settings.pinned_image, engine_image(settings).vllm) == (f"somebody/vllm:a@{DIGEST}", (0, 17, 0))


@pytest.mark.parametrize("name", ["", "A/B:c", "x:y:z", "vllm@sha256:12", "a b", "-x", "x:", "https://x/y:z"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not an image's name"):
        load_settings({"image": name}, environ={})


def test_an_image_is_not_named_twice() -> None:
    with pytest.raises(UsageError, match="image and image_tag both name the image"):
        load_settings({"image": "a/b:c", "image_tag": "d"}, environ={})


@pytest.mark.parametrize(
    ("name", "entrypoint", "begins"),
    [
        ("nvcr.io/nvidia/vllm:26.01-py3", None, MODULE),
        ("nvcr.io/nvidia/vllm:26.10-py3", None, ["vllm", "serve", MODEL]),
        ("vllm/vllm-openai:v0.31.0", ["vllm", "serve"], [MODEL]),
        ("vllm/vllm-openai:v0.11.0", ["vllm", "serve"], [MODEL]),
        ("somebody/vllm:1", ["vllm", "serve"], [MODEL]),
        ("glm4-deploy/vllm-cpu:0.32.0", MODULE[:3], MODULE[3:]),
    ],
)
def test_the_server_is_started_as_the_image_needs(name: str, entrypoint: list[str] | None, begins: list[str]) -> None:
    rendered = service(name, "restart=no")
    assert rendered.get("entrypoint") == entrypoint
    assert rendered["command"][: len(begins)] == begins
    assert "--served-model-name" in rendered["command"]
    counted = service(name)
    first = counted["entrypoint"] if entrypoint else counted["command"]
    assert [first[0], first[3], *first[4:5]] == ["/bin/sh", "engine", (entrypoint or begins)[0]]
    keyed = service(name, "api_key_file=/k/key", "restart=no")
    first = keyed["entrypoint"] if entrypoint else keyed["command"]
    assert first[:2] == ["/bin/sh", "-c"]
    assert first[4:] == (entrypoint or first[4:])


@pytest.mark.parametrize("name", ["vllm/vllm-openai:v0.31.0", "nvcr.io/nvidia/vllm:26.10-py3", "somebody/vllm:1"])
def test_kubernetes_and_quadlet_start_it_the_same_way(name: str) -> None:
    kept = "nvidia" in name
    plan = resolve_plan({"profile": "gb10", "image": name})
    render = {
        target: render_target(target, plan.deployment, plan.settings, plan.profile)
        for target in ("kubernetes", "quadlet")
    }
    objects = list(yaml.safe_load_all(render["kubernetes"]["kubernetes.yaml"]))
    pod = next(one for one in objects if one["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert (pod.get("command"), pod["args"][0]) == ((None, "vllm") if kept else (["vllm", "serve"], MODEL))
    python = ["/bin/sh", "-c", FIND_PYTHON, "python"] if name.startswith("somebody") else ["python3"]
    liveness = [word.replace("$$", "$") for word in pod["livenessProbe"]["exec"]["command"]]
    assert liveness[: len(python) + 1] == [*python, "/probe/liveness.py"]
    unit = render["quadlet"]["glm4.container"].splitlines()
    entrypoints = [line for line in unit if line.startswith("Entrypoint=")]
    assert entrypoints == ([] if kept else ['Entrypoint=["vllm", "serve"]'])
    execs = next(line for line in unit if line.startswith("Exec="))
    assert execs.startswith(f"Exec=vllm serve {MODEL} " if kept else f"Exec={MODEL} ")


@pytest.mark.parametrize(
    ("programs", "ran"),
    [
        ({"python3": "echo three", "python": "echo plain"}, "three"),
        ({"python": "echo plain"}, "plain"),
        ({"vllm": ""}, "shebang"),
        ({}, ""),
    ],
)
def test_python_is_found_in_an_image_that_nobody_knows(tmp_path: Path, programs: dict[str, str], ran: str) -> None:
    """By a real shell, on a PATH with only these programs."""
    places = tmp_path / "bin"
    places.mkdir()
    (tmp_path / "interpreter").write_text("#!/bin/sh\necho shebang $1\n")
    (tmp_path / "interpreter").chmod(0o755)
    for name, text in programs.items():
        (places / name).write_text(f"#!{tmp_path}/interpreter\n" if name == "vllm" else f"#!/bin/sh\n{text} $1\n")
        (places / name).chmod(0o755)
    words = ["/bin/sh", "-c", FIND_PYTHON, "python", "-c"]
    done = subprocess.run(words, env={"PATH": str(places)}, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode == 0) == (f"{ran} -c\n" if ran else "", bool(ran))


def test_a_full_name_stands_for_its_version_where_a_tag_does() -> None:
    assert resolve_version("vllm/vllm-openai:v0.31.0") == resolve_version("26.10") == resolve_version("0.31.0")
    assert resolve_version("26.05.post1") == (0, 21, 0)
    with pytest.raises(UsageError, match="not in the catalog"):
        resolve_version("somebody/vllm:1.0")
    with pytest.raises(UsageError, match=r"image tag '27\.01'"):
        resolve_version("27.01")


def test_the_health_check_survives_both_quotings() -> None:
    test = service("somebody/vllm:1")["healthcheck"]["test"]
    assert [word.replace("$$", "$") for word in test[:5]] == ["CMD", "/bin/sh", "-c", FIND_PYTHON, "python"]
    plan = resolve_plan({"profile": "gb10", "image": "somebody/vllm:1"})
    unit = render_target("quadlet", plan.deployment, plan.settings, plan.profile)["glm4.container"]
    health = next(line for line in unit.splitlines() if line.startswith("HealthCmd="))
    assert json.loads(health.removeprefix("HealthCmd=").replace("$$", "$").replace("%%", "%"))[2] == FIND_PYTHON
