"""Checkpoints for the tests: a complete tiny GLM, plain or in NVFP4, in one or more real safetensors files."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

DATA = Path(__file__).parent / "data" / "nvfp4-tiny" / "glm-4-tiny-nvfp4"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 32, 48, 4, 2, 8, 272


def config(layers: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["GlmForCausalLM"],
        "eos_token_id": [256, 263, 265],
        "head_dim": HEAD_DIM,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rope_theta": 5e6,
        "vocab_size": VOCAB,
    } | more


def linears(layers: int) -> dict[str, tuple[int, int]]:
    """Name → [rows, columns] of each linear layer, gate and up fused."""
    sizes = {}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        sizes[f"{prefix}self_attn.q_proj"] = (HEADS * HEAD_DIM, HIDDEN)
        sizes[f"{prefix}self_attn.k_proj"] = (KV_HEADS * HEAD_DIM, HIDDEN)
        sizes[f"{prefix}self_attn.v_proj"] = (KV_HEADS * HEAD_DIM, HIDDEN)
        sizes[f"{prefix}self_attn.o_proj"] = (HIDDEN, HEADS * HEAD_DIM)
        sizes[f"{prefix}mlp.gate_up_proj"] = (2 * FFN, HIDDEN)
        sizes[f"{prefix}mlp.down_proj"] = (HIDDEN, FFN)
    return sizes


def tensors(layers: int = 2, *, nvfp4: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """All tensors of a healthy model. FP8 scales and packed weights are raw bytes; plain weights are float16."""
    rng = np.random.default_rng(seed)

    def plain(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.02, shape).astype(np.float16)

    made = {
        "model.embed_tokens.weight": plain(VOCAB, HIDDEN),
        "model.norm.weight": plain(HIDDEN),
        "lm_head.weight": plain(VOCAB, HIDDEN),
    }
    for layer in range(layers):
        for norm in ("input", "post_attention"):
            made[f"model.layers.{layer}.{norm}_layernorm.weight"] = plain(HIDDEN)
    for name, (rows, columns) in linears(layers).items():
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            made[f"{name}.bias"] = plain(rows)
        if nvfp4:
            made |= packed(name, rows, columns, rng)
        else:
            made[f"{name}.weight"] = plain(rows, columns)
    return made


def packed(name: str, rows: int, columns: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        f"{name}.weight_packed": rng.integers(1, 256, (rows, columns // 2), np.uint8),
        f"{name}.weight_scale": rng.integers(1, 0x7F, (rows, columns // 16), np.uint8).view(F8),
        f"{name}.weight_global_scale": np.array([2688 / 0.1], np.float32),
        f"{name}.input_global_scale": np.array([2688 / 3], np.float32),
    }


# NumPy has no FP8: this dtype marks its bytes, which are saved as U8 before the header is corrected.
F8 = np.dtype([("f8", np.uint8)])


def save(path: Path, stored: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the reference library, then correct the dtype of FP8 tensors."""
    save_file(
        {name: value.view(np.int8) if value.dtype == F8 else value for name, value in stored.items()}, path, metadata
    )
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    for name, value in stored.items():
        if value.dtype == F8:
            header[name]["dtype"] = "F8_E4M3"
    write_raw(path, header, blob[8 + length :])


def write_raw(path: Path, header: Any, data: bytes) -> None:
    raw = json.dumps(header, separators=(",", ":")).encode() if not isinstance(header, bytes) else header
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def read(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a directory as (dtype, shape, bytes); the reference library must accept each file."""
    content: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as opened:
            names = set(opened.keys())
        blob = path.read_bytes()
        start = 8 + int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8:start])
        header.pop("__metadata__", None)
        assert set(header) == names
        for name, entry in header.items():
            low, high = entry["data_offsets"]
            content[name] = (entry["dtype"], tuple(entry["shape"]), blob[start + low : start + high])
    assert content, f"no tensors in {directory}"
    return content


def e4m3(data: bytes) -> np.ndarray:
    """FP8 E4M3 (no infinity, 0x7F is NaN) to float32, by its definition."""
    bits = np.frombuffer(data, np.uint8).astype(np.int32)
    exponent, mantissa = (bits >> 3) & 0xF, bits & 7
    value = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6)
    value = np.where(bits & 0x7F == 0x7F, np.nan, value)
    return np.where(bits & 0x80, -value, value).astype(np.float32)


def dequantise(stored: dict[str, tuple[str, tuple[int, ...], bytes]], layer: str) -> np.ndarray:
    """e2m1 · weight_scale / weight_global_scale as float32 [rows, columns], by the format's description."""
    _, (rows, half), data = stored[f"{layer}.weight_packed"]
    raw = np.frombuffer(data, np.uint8).reshape(rows, half)
    nibbles = np.stack([raw & 0xF, raw >> 4], axis=-1).reshape(rows, 2 * half)
    values = np.where(nibbles & 8, -E2M1[nibbles & 7], E2M1[nibbles & 7])
    scale = e4m3(stored[f"{layer}.weight_scale"][2]).reshape(rows, -1)
    divisor = np.frombuffer(stored[f"{layer}.weight_global_scale"][2], np.float32)[0]
    return values * np.repeat(scale, 16, axis=1) / divisor


def every_weight(stored: dict[str, tuple[str, tuple[int, ...], bytes]]) -> dict[str, np.ndarray]:
    """All dequantised matrices, gate and up as one, however they are stored."""
    layers = [name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")]
    weights = {layer: dequantise(stored, layer) for layer in layers}
    for layer in [name for name in weights if name.endswith("mlp.gate_proj")]:
        up = weights.pop(layer.replace("gate_proj", "up_proj"))
        weights[layer.replace("gate_proj", "gate_up_proj")] = np.concatenate([weights.pop(layer), up])
    return weights


def quantization_config() -> dict[str, Any]:
    return json.loads((DATA / "config.json").read_text())["quantization_config"]


def checkpoint(directory: Path, *, nvfp4: bool = True, shards: int = 1, layers: int = 2, healthy: bool = True) -> Path:
    """A complete checkpoint directory; `healthy` for vLLM 0.13, except for the fused gate_up if it is NVFP4."""
    directory.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copy(DATA / name, directory / name)
    if healthy:
        settings = json.loads((directory / "tokenizer_config.json").read_text())
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        put(directory / "tokenizer_config.json", settings)
    (directory / "LICENSE").write_text("the glm-4-9b License")
    (directory / "README.md").write_text("Built with glm-4\n")
    document = config(layers)
    if nvfp4:
        document["quantization_config"] = quantization_config()
        if healthy:
            for part in ("weights", "input_activations"):
                for key in ("scale_dtype", "zp_dtype"):
                    del document["quantization_config"]["config_groups"]["group_0"][part][key]
    put(directory / "config.json", document)
    stored = tensors(layers, nvfp4=nvfp4)
    if shards == 1:
        save(directory / "model.safetensors", stored, {"format": "pt"})
    else:
        save_sharded(directory, stored, shards)
    return directory


def save_sharded(directory: Path, stored: dict[str, np.ndarray], shards: int) -> None:
    names = sorted(stored)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number::shards]
        save(directory / file, {name: stored[name] for name in part}, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(value.nbytes for value in stored.values())
    put(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_scale(directory: Path, name: str, value: float) -> float:
    """Replace one global scale in model.safetensors, and return what it was; everything else stays as it is."""
    with (directory / "model.safetensors").open("r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(start - 8))[name]
        file.seek(start + entry["data_offsets"][0])
        before: float = struct.unpack("<f", file.read(4))[0]
        file.seek(-4, 1)
        file.write(struct.pack("<f", value))
    return before


def put(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")


def change(path: Path, **keys: Any) -> None:
    put(path, json.loads(path.read_text()) | keys)
