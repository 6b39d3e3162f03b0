"""The block of digests in a settings file: written or replaced without other changes; and its effect on an image."""

from pathlib import Path

import pytest
import yaml

from glm4_deploy.cli.params import resolve_spec
from glm4_deploy.deploy.docker import write_pins
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.services import references
from glm4_deploy.render.compose import rendered

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
IMAGE = "nvcr.io/nvidia/vllm:26.01-py3"


@pytest.mark.parametrize(
    "before",
    ["", "port: 9000 # mine", "port: 9000\n",
     f'digests:\n  "x:1": {B}\nport: 9000\n', f'port: 9000\ndigests:\n  "x:1": {B}\n',
     f'digests: # old\n  # a word\n\n  "x:1": {B}\n\nport: 9000\n'],
)  # fmt: skip
def test_the_block_is_written_and_nothing_else_changes(tmp_path: Path, before: str) -> None:
    file = tmp_path / "glm4.yaml"
    if before:
        file.write_text(before)
    write_pins(file, {IMAGE: A})
    content = yaml.safe_load(file.read_text())
    assert content.pop("digests") == {IMAGE: A}
    assert content == ({"port": 9000} if before else {})
    assert file.read_text().count("# mine") == before.count("# mine")
    assert [path.name for path in tmp_path.iterdir()] == ["glm4.yaml"]


def test_an_invalid_settings_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text("prot: 1\n")
    with pytest.raises(UsageError):
        write_pins(file, {IMAGE: A})
    assert file.read_text() == "prot: 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["glm4.yaml"]


def test_a_pin_applies_to_its_tag_only(tmp_path: Path) -> None:
    file = tmp_path / "glm4.yaml"
    file.write_text(yaml.safe_dump({"digests": {IMAGE: A, "grafana/grafana:12.3.2": B}, "extras": ["monitoring"]}))
    text = rendered(resolve_spec({}, config=file))["compose.yaml"]
    services = yaml.safe_load(text)["services"]
    assert services["glm4-9b-nvfp4"]["image"] == f"{IMAGE}@{A}"
    assert services["grafana"]["image"] == f"grafana/grafana:12.3.2@{B}"
    other = resolve_spec({"image_tag": "26.03-py3"}, config=file)
    assert other.image == "nvcr.io/nvidia/vllm:26.03-py3"
    assert other.vllm == (0, 17, 1)


def test_every_image_of_a_deployment_is_pinned() -> None:
    deployment = resolve_spec({"extras": ["gateway", "monitoring", "ui"]})
    images = {service["image"] for service in yaml.safe_load(rendered(deployment)["compose.yaml"])["services"].values()}
    assert set(references(deployment.image, deployment.extras)) == images
