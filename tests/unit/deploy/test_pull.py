"""Progress from the stream of a pull, as Docker 20.10 sent it for two layers from a local registry."""

import pytest

from glm4_deploy.deploy.docker import pull_states
from glm4_deploy.errors import ImageMissing, StorageError

EVENTS = [
    {"status": "Pulling from demo", "id": "1"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": "aa"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": "bb"},
    {"status": "Already exists", "progressDetail": {}, "id": "cc"},
    {"status": "Downloading", "progressDetail": {"current": 40, "total": 100}, "progress": "[=>]", "id": "aa"},
    {"status": "Downloading", "progressDetail": {"current": 10, "total": 50}, "id": "bb"},
    {"status": "Verifying Checksum", "progressDetail": {}, "id": "aa"},
    {"status": "Download complete", "progressDetail": {}, "id": "aa"},
    {"status": "Extracting", "progressDetail": {"current": 100, "total": 100}, "id": "aa"},
    {"status": "Pull complete", "progressDetail": {}, "id": "aa"},
]


def test_layers_add_up() -> None:
    *_, state = pull_states("demo", EVENTS)
    assert {layer.id for layer in state.layers} == {"aa", "bb", "cc"}
    assert (state.fetched, state.total, state.done) == (110, 150, 2)


def test_the_last_events_are_not_about_a_layer() -> None:
    ends = [{"status": "Digest: sha256:00"}, {"status": "Status: Downloaded newer image for demo:1"}, {}]
    states = list(pull_states("demo", [*EVENTS, *ends]))
    assert len(states) == len(list(pull_states("demo", EVENTS)))
    assert states[-1].done == 2


def test_an_error_event_ends_the_pull() -> None:
    with pytest.raises(StorageError, match="the disk is full"):
        list(pull_states("demo", [*EVENTS, {"error": "write /x: no space left on device"}]))
    with pytest.raises(ImageMissing, match="manifest unknown"):
        list(pull_states("demo", [{"error": "manifest unknown"}]))
