"""The engine's pull stream, as a real engine 20.10 sent it for two layers from a local registry, read into progress."""

from glm4_deploy.deploy.docker import pulled

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
    state = pulled(iter(EVENTS))
    assert {layer.id for layer in state.layers} == {"aa", "bb", "cc"}
    assert (state.fetched, state.total, state.done) == (110, 150, 2)


def test_the_last_words_tell_of_no_layer() -> None:
    ends = [{"status": "Digest: sha256:00"}, {"status": "Status: Downloaded newer image for demo:1"}, {}]
    assert pulled(iter([*EVENTS, *ends])) == pulled(iter(EVENTS))
