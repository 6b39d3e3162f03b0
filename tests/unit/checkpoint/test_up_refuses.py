"""`up` judges the checkpoint for its own engine before it starts anything."""

from pathlib import Path

import pytest

import checkpoints as made
from glm4_deploy.deploy.candidates import check_checkpoint
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.errors import CheckpointRefused


def endpoint(directory: Path, vllm: tuple[int, ...]) -> Endpoint:
    return Endpoint(
        runner=EngineKind.COMPOSE,
        project="p",
        service="s",
        profile="seed",
        base_url="http://127.0.0.1:1",
        bind="127.0.0.1",
        port=1,
        model="glm-4-9b-chat",
        model_dir=str(directory),
        max_model_len=512,
        start_period=1,
        vllm=vllm,
    )


def test_it_refuses_with_the_reason_and_the_command(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(CheckpointRefused) as caught:
        check_checkpoint(endpoint(made.DATA, (0, 13, 0)), force=False, note=said.append)
    assert caught.value.exit_code == 10 and said == []
    assert any("gate-up" in line and "undefined memory" in line for line in caught.value.details)
    assert "checkpoint repair" in caught.value.hints[0] and "--force" in caught.value.hints[1]


def test_with_force_it_says_what_will_happen(tmp_path: Path) -> None:
    said: list[str] = []
    identity = check_checkpoint(endpoint(made.DATA, (0, 13, 0)), force=True, note=said.append)
    assert len(said) == 4
    assert [f"forced past: {fault}" for fault in identity.faults] == said, "kept, to be named if the start fails"
    assert "checkpoint repair" in identity.remedy
    assert any("gate-up" in line and "loops and garbage" in line for line in said)


def test_the_engine_that_loads_it_is_not_refused() -> None:
    identity = check_checkpoint(endpoint(made.DATA, (0, 24, 0)), force=False, note=pytest.fail)
    assert (identity.faults, identity.remedy) == ((), "")
