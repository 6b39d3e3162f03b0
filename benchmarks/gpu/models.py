"""Make the models that need not be copied to the GPU machine: GLM-4-9B's shape without weights, the demo model and its
sick twins."""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from glm4_deploy.checkpoint.repair import repair_checkpoint

ROOT = Path(__file__).parents[2]
NVFP4 = ROOT / "demo/glm-4-tiny-chat-nvfp4"
GLM4_9B = {
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 151552,
    "max_position_embeddings": 131072,
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}
SPECIAL = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)
FIRST_SPECIAL = 151329


def shape_only(directory: Path, like: Path) -> None:
    """What vLLM needs of a model under --load-format dummy: config.json and a tokenizer with as many entries.

    Args:
        like: a small checkpoint of the same architecture, whose quantization_config is used.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {**json.loads((like / "config.json").read_text()), **GLM4_9B}
    _write(directory / "config.json", config)
    vocabulary = {f"w{number}": number for number in range(GLM4_9B["vocab_size"])}  # type: ignore[arg-type]
    special = {text: FIRST_SPECIAL + number for number, text in enumerate(SPECIAL)}
    taken = set(special.values())
    vocabulary = {word: number for word, number in vocabulary.items() if number not in taken} | special
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in special.items()],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }
    _write(directory / "tokenizer.json", tokenizer)
    _write(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0]})
    shutil.copy(like / "chat_template.jinja", directory)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def make_models(models: Path) -> None:
    """The demo model in both forms, its sick twins, checkpoints damaged on purpose, and the 9B shape."""
    models.mkdir(exist_ok=True)
    for kind in ("nan", "loops"):
        words = [sys.executable, str(ROOT / "demo/twins.py"), kind, "--out", str(models / f"twin-{kind}")]
        subprocess.run(words, check=True)
    if not (models / "nvfp4-raw").exists():
        shutil.copytree(NVFP4, models / "nvfp4-raw")
        for vllm in ((0, 13, 0), (0, 24, 0)):
            repair_checkpoint(NVFP4, models / f"nvfp4-for-{vllm[0]}.{vllm[1]}", vllm=vllm)
    shutil.copytree(ROOT / "demo/glm-4-tiny-chat", models / "bf16", dirs_exist_ok=True)
    damage(models / "nvfp4-for-0.13", models / "nvfp4-damaged", layers=(1,))
    damage(models / "nvfp4-for-0.13", models / "nvfp4-damaged-all", layers=None)
    shape_only(models / "9b-nvfp4", models / "nvfp4-raw")
    shape_only(models / "9b-bf16", models / "bf16")


def damage(good: Path, bad: Path, layers: tuple[int, ...] | None) -> None:
    """Copy a split checkpoint with up_proj's global scale 64 times as large, in some layers or in all (None).

    vLLM uses the larger of the two scales of gate_up: a smaller one would have no effect.
    """
    shutil.copytree(good, bad, dirs_exist_ok=True)
    path = bad / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for name, tensor in json.loads(data[8:start]).items():
        if not name.endswith("mlp.up_proj.weight_global_scale"):
            continue
        if layers is None or int(name.split(".")[2]) in layers:
            at = start + tensor["data_offsets"][0]
            struct.pack_into("<f", data, at, struct.unpack_from("<f", data, at)[0] * 64)
    path.write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="the directory to make them in")
    make_models(parser.parse_args().models)


if __name__ == "__main__":
    main()
