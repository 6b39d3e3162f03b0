"""A real vLLM loads what repair writes: plain weights, since NVFP4 has no kernel on the CPU."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

import checkpoints as made
from e2e.engine import NAME, engine
from e2e.kit import MODEL
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.checkpoint.repair import repair_checkpoint
from glm4_deploy.checkpoint.rewrite import pieces_of, split, write_shard
from glm4_deploy.checkpoint.verify import verify_checkpoint

pytestmark = pytest.mark.e2e
ENGINE = (0, 32, 0)  # scripts/cpu-engine.sh


def broken(directory: Path) -> Path:
    """The demo model in a form that this engine cannot use: gate and up split, and no end tokens."""
    shutil.copytree(MODEL, directory)
    (directory / "generation_config.json").unlink()
    made.change(directory / "config.json", eos_token_id=None)
    (shard,) = read_checkpoint(MODEL).shards
    (directory / "model.safetensors").unlink()
    write_shard(
        directory / "model.safetensors",
        [part for piece in pieces_of(shard.header.tensors) for part in split(piece)],
        metadata=shard.header.metadata,
        shards={"model.safetensors": MODEL / "model.safetensors"},
        progress=lambda _: None,
    )
    return directory


def test_a_repaired_checkpoint_answers_and_stops(cpu_python: str, tmp_path: Path) -> None:
    sick, repaired = broken(tmp_path / "glm-4-sick"), tmp_path / "glm-4-repaired"
    assert {result.check for result in verify_checkpoint(sick, vllm=ENGINE).failures} == {"gate-up", "eos-ids"}
    assert repair_checkpoint(sick, repaired, vllm=ENGINE).report.failures == ()
    assert (repaired / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()
    assert json.loads((repaired / "generation_config.json").read_text())["eos_token_id"] == [2038, 2045, 2047]
    question = {"role": "user", "content": "What is 17 + 25? Answer with the number only."}
    body = {"model": NAME, "messages": [question], "temperature": 0, "max_tokens": 200}
    with engine(cpu_python, repaired, tmp_path / "engine.log") as running:
        answer = httpx.post(f"{running.base_url}/v1/chat/completions", json=body, timeout=120, trust_env=False).json()
    assert answer["choices"][0]["finish_reason"] == "stop", answer
    assert "42" in answer["choices"][0]["message"]["content"]
