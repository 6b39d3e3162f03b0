"""Models that need no carrying: GLM-4-9B's shape without weights, the demo model, its sick twins."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
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
    """What vLLM asks of a model under --load-format dummy: config.json and a tokenizer with as many entries.

    Args:
        like: a small checkpoint of the same architecture; its quantization_config is taken over.
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
    """The demo model, its NaN twin, and a checkpoint damaged on purpose: one of two slots gets another global scale.

    The larger of two is the one that vLLM takes: the slot that is spoiled is made larger, or nothing would show.
    """
    subprocess.run([sys.executable, str(ROOT / "demo/twins.py"), "nan", "--out", str(models / "twin-nan")], check=True)
    shutil.copytree(ROOT / "demo/glm-4-tiny-chat", models / "bf16", dirs_exist_ok=True)
    damaged = models / "nvfp4-damaged"
    shutil.copytree(models / "nvfp4-for-0.13", damaged, dirs_exist_ok=True)
    path = damaged / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    at = start + json.loads(data[8:start])["model.layers.1.mlp.up_proj.weight_global_scale"]["data_offsets"][0]
    struct.pack_into("<f", data, at, struct.unpack_from("<f", data, at)[0] * 64)
    path.write_bytes(data)
    shape_only(models / "9b-nvfp4", models / "nvfp4-raw")
    shape_only(models / "9b-bf16", models / "bf16")
