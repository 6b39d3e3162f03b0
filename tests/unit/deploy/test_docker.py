"""Which of a project's containers is the deployment's."""

from pathlib import Path
from typing import Any

import pytest

from glm4_deploy.deploy.docker import connect, find_container
from servers.docker_engine import INSPECT, running


def labelled(name: str, one_off: str | None) -> dict[str, Any]:
    """A container of a service as Compose labels it; None: as something else does that knows no such label."""
    labels = {} if one_off is None else {"com.docker.compose.oneoff": one_off}
    return {**INSPECT, "Id": name, "Config": {**INSPECT["Config"], "Labels": labels}}


@pytest.mark.parametrize("deployed", ["False", None])
def test_what_docker_compose_run_made_of_a_service_is_not_its_deployment(
    deployed: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with running(tmp_path / "docker.sock") as docker:
        docker.others = {"beef": labelled("beef", "True")}
        docker.answer = labelled("f00d", deployed)
        client = connect()
        found = find_container(client, "glm4", "engine")
        assert found is not None and found.id == "f00d"
        docker.answer = labelled("f00d", "True")
        assert find_container(client, "glm4", "engine") is None
        client.close()
