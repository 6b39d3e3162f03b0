"""The shape of a model, as far as memory goes. Bytes everywhere; GiB only where something is shown."""

from dataclasses import dataclass
from enum import StrEnum

GIB = 2**30
MIB = 2**20

# Bytes of one element in the KV cache. `auto` is the model's own type, 16 bit here.
KV_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


class Weights(StrEnum):
    NVFP4 = "nvfp4"
    BF16 = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a dense decoder. `checkpoint_bytes` is the sum of its tensors as stored.

    max_position: longest context that the model was made for, tokens.
    """

    name: str
    weights: Weights
    checkpoint_bytes: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_position: int

    def kv_heads_per_rank(self, tensor_parallel: int) -> int:
        """KV heads are split over ranks as far as there are any, then copied."""
        return max(1, self.kv_heads // tensor_parallel)

    def kv_token_bytes(self, dtype: str, tensor_parallel: int = 1) -> int:
        """Bytes that one token takes in one rank's KV cache: K and V, all layers."""
        return 2 * self.layers * self.kv_heads_per_rank(tensor_parallel) * self.head_dim * KV_BYTES[dtype]


def glm4_9b(weights: Weights = Weights.NVFP4) -> ModelShape:
    """GLM-4-9B-chat-hf. Source: the base checkpoint's config.json and tensors; NVFP4 as llm-compressor writes it."""
    size = {Weights.NVFP4: 7_072_892_800, Weights.BF16: 18_799_902_720}[weights]
    return ModelShape(
        name="GLM-4-9B",
        weights=weights,
        checkpoint_bytes=size,
        layers=40,
        hidden=4096,
        ffn=13696,
        heads=32,
        kv_heads=2,
        head_dim=128,
        vocab=151552,
        max_position=131072,
    )
