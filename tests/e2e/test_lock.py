"""`lock` on a real Docker engine: an image that was pulled from a registry, and one that was built here."""

import subprocess

import pytest
import yaml

from e2e.kit import Kit
from glm4_deploy.catalog.images import default_tag
from servers.registry import registry

pytestmark = pytest.mark.e2e
TAG = default_tag()


def test_a_pulled_image_is_pinned_by_its_digest(kit: Kit, override: object) -> None:
    with registry(TAG) as served:
        reference = f"{served.image}:{TAG}"
        pinned = f"{reference}@{served.digest}"
        assert kit.run("lock", "--set", f"image_repository={served.image}").code == 19, "it has not been pulled yet"
        subprocess.run(["docker", "pull", reference], check=True, capture_output=True)
        try:
            (kit.directory / "glm4.yaml").write_text(f"# mine\nimage_repository: {served.image}\n")
            done = kit.run("lock")
            assert done.code == 0, done.err
            assert done.out.strip() == pinned
            assert (kit.directory / "glm4.yaml").read_text().startswith("# mine\n")
            rendered = yaml.safe_load(kit.run("render").out)
            assert rendered["services"]["glm4-9b-nvfp4"]["image"] == pinned
            subprocess.run(["docker", "image", "inspect", pinned], check=True, capture_output=True)
        finally:
            subprocess.run(["docker", "rmi", reference], check=True, capture_output=True)


def test_an_image_built_on_this_host_has_no_digest(kit: Kit, override: object) -> None:
    done = kit.run("lock", "--profile", "cpu")
    assert done.code == 1
    assert "built on this host" in done.err
    assert not (kit.directory / "glm4.yaml").exists()
