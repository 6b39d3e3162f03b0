"""A pull by a real Docker engine from the test registry: progress by layer, and the registry's own error messages."""

import subprocess
from collections.abc import Iterator

import pytest

from glm4_deploy.deploy.docker import PullState, connect, find_image, pull
from glm4_deploy.errors import ImageMissing
from servers.registry import Registry, registry

pytestmark = pytest.mark.e2e


@pytest.fixture
def served() -> Iterator[Registry]:
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker engine answers")
    with registry() as running:
        yield running
        for reference in (f"{running.image}:1", f"{running.image}@{running.digest}"):
            subprocess.run(["docker", "image", "rm", "-f", reference], capture_output=True, check=False)


def test_a_pull_shows_each_layer_and_completes(served: Registry) -> None:
    served.slow = 1.0
    states: list[PullState] = []
    pull(f"{served.image}:1", states.append)
    last = states[-1]
    assert len(last.layers) == last.done == 3
    assert last.fetched == last.total
    assert any(0 < state.fetched < last.total for state in states), "there is progress before the end"
    assert all(0 <= layer.current <= layer.total or not layer.total for state in states for layer in state.layers)
    image = find_image(connect(), f"{served.image}:1")
    assert image is not None
    assert image.digest == f"{served.image}@{served.digest}"


def test_a_removed_image_can_be_pulled_by_its_digest(served: Registry) -> None:
    pull(f"{served.image}:1", lambda _: None)
    first = find_image(connect(), f"{served.image}:1")
    assert first is not None
    assert first.digest is not None
    subprocess.run(["docker", "image", "rm", "-f", first.id], capture_output=True, check=True)
    assert find_image(connect(), first.id) is None
    pull(first.digest, lambda _: None)
    assert find_image(connect(), first.id) is not None


def test_an_unknown_tag_is_refused_with_the_registrys_message(served: Registry) -> None:
    with pytest.raises(ImageMissing, match="manifest unknown"):
        pull(f"{served.image}:nosuch", lambda _: None)


def test_an_unreachable_registry_is_an_error(served: Registry) -> None:
    with pytest.raises(ImageMissing, match="could not be pulled"):
        pull("127.0.0.1:1/nobody:1", lambda _: None)
