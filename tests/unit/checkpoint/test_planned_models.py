"""Which checkpoints the planner can plan, in which format, and which it refuses by name."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from glm4_deploy.checkpoint.model import BadConfigError, stored_model
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.plan.engine_rules import WeightFormat

GIB = 2**30
QWEN3_8B = {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 36, "hidden_size": 4096, "head_dim": 128,
            "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936,
            "max_position_embeddings": 40960, "sliding_window": None, "use_sliding_window": False}  # fmt: skip
NVFP4 = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
NO_INPUT = {"config_groups": {"group_0": {"weights": {"num_bits": 4}, "input_activations": None}}}
INPUT = {"config_groups": {"group_0": {"weights": {"num_bits": 4}, "input_activations": {"num_bits": 4}}}}


def checkpoint(folder: Path, gib: float, **config: Any) -> Path:
    """config.json, and a sparse shard whose header claims `gib`."""
    (folder / "config.json").write_text(json.dumps({**QWEN3_8B, **config}), encoding="utf-8")
    size = round(gib * GIB)
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return folder


@pytest.mark.parametrize(
    ("gib", "quantization", "expected"),
    [
        (15.26, None, WeightFormat.BF16),
        (8.79, {"quant_method": "fp8"}, WeightFormat.FP8),
        (5.71, {"quant_method": "awq", "bits": 4}, WeightFormat.AWQ),
        (5.71, {"quant_method": "gptq", "bits": 4}, WeightFormat.GPTQ),
        (8.8, {"quant_method": "gptq", "bits": 8}, WeightFormat.INT8),
        (5.96, {**NVFP4, **INPUT}, WeightFormat.NVFP4),
        (5.96, {**NVFP4, **NO_INPUT}, WeightFormat.NVFP4A16),
        (5.96, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, WeightFormat.NVFP4),
        (8.79, {"quant_method": "compressed-tensors", "format": "float-quantized"}, WeightFormat.FP8),
        (5.7, {"quant_method": "compressed-tensors", "format": "pack-quantized"}, WeightFormat.INT4),
        (5.96, None, WeightFormat.INT4),  # ModelOpt may name the format in another file: the size tells
        (8.79, None, WeightFormat.FP8),
    ],
)
def test_the_format_of_the_weights(
    tmp_path: Path, gib: float, quantization: dict[str, Any] | None, expected: WeightFormat
) -> None:
    config = {} if quantization is None else {"quantization_config": quantization}
    model = stored_model("x", read_checkpoint(checkpoint(tmp_path, gib, **config)))

    assert model.weights is expected
    assert model.architecture == "Qwen3ForCausalLM"
    assert model.checkpoint_bytes == round(gib * GIB)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    small = {"num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16}
    model = stored_model("x", read_checkpoint(checkpoint(tmp_path, 1.11, tie_word_embeddings=True, **small)))

    assert model.shape.embedding_bytes == 151936 * 1024 * 2
    assert model.weights is WeightFormat.BF16


def test_a_llama_without_head_dim_has_its_own_defaults(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 15.26, architectures=["LlamaForCausalLM"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["head_dim"], config["num_key_value_heads"]
    config |= {"hidden_size": 2048, "num_attention_heads": 32}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shape = stored_model("x", read_checkpoint(folder)).shape

    assert (shape.head_dim, shape.kv_heads) == (64, 32)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128}, "Qwen3MoeForCausalLM is a mixture of experts"),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, "mixture of experts"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512}, "latent attention"),
        ({"architectures": ["Qwen3NextForCausalLM"], "layer_types": ["linear_attention", "full_attention"]}, "hybrid"),
        ({"architectures": ["FalconH1ForCausalLM"], "mamba_d_state": 256}, "hybrid"),
        (
            {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 1024, "use_sliding_window": True},
            "sliding-window",
        ),
        ({"architectures": ["GptOssForCausalLM"], "layer_types": ["sliding_attention"]}, "sliding-window"),
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}}, "multimodal"),
    ],
)
def test_what_has_no_formulas_is_refused_by_name(tmp_path: Path, config: dict[str, Any], why: str) -> None:
    with pytest.raises(BadConfigError, match=why):
        stored_model("x", read_checkpoint(checkpoint(tmp_path, 8.0, **config)))
