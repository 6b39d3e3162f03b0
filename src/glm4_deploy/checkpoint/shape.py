"""From config.json to the tensors that a GLM checkpoint must have; and how its linear layers are stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from glm4_deploy.facts.checkpoint import Checkpoint
from glm4_deploy.facts.checkpoint_header import Tensor

ARCHITECTURE = "GlmForCausalLM"
NVFP4_FORMAT = "nvfp4-pack-quantized"
GROUP_SIZE = 16  # weights that share one FP8 scale
PARTS = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")
GATE_UP, GATE, UP = "mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj"
FLOATS = ("BF16", "F16", "F32")
MAX_LAYERS = 1000
Wanted: TypeAlias = tuple[str, tuple[int, ...], tuple[str, ...]]  # a tensor's name, its shape, the dtypes allowed


class BadConfigError(ValueError):
    """What config.json lacks to say which tensors there must be, in one phrase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The dimensions of a GLM. Sizes in elements; `ffn` is the width of gate and of up, each."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    attention_bias: bool
    tied: bool
    max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear layer `name` with weight [rows, columns]."""

    name: str
    rows: int
    columns: int
    bias: bool = False


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Read the dimensions; what config.json leaves out has GlmConfig's default. Raises BadConfigError."""

    def size(key: str, default: int | None = None, limit: int = 2**31) -> int:
        value = config.get(key, default)
        if value is None:
            raise BadConfigError(f"no {key}")
        if type(value) is not int or not 0 < value < limit:
            raise BadConfigError(f"{key} is {str(value)[:40]!r}")
        return value

    return ModelShape(
        layers=size("num_hidden_layers", limit=MAX_LAYERS),
        hidden=size("hidden_size"),
        ffn=size("intermediate_size"),
        heads=size("num_attention_heads"),
        kv_heads=size("num_key_value_heads", 2),
        head_dim=size("head_dim", 128),
        vocab=size("vocab_size"),
        attention_bias=config.get("attention_bias", True) is not False,
        tied=config.get("tie_word_embeddings", False) is True,
        max_positions=size("max_position_embeddings", 131072),
    )


def layer_linears(shape: ModelShape, layer: int, *, split: bool) -> tuple[Linear, ...]:
    """The linear layers of one decoder layer, gate and up apart where `split`."""
    prefix = f"model.layers.{layer}."
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    mlp = ((GATE, shape.ffn), (UP, shape.ffn)) if split else ((GATE_UP, 2 * shape.ffn),)
    return (
        Linear(name=f"{prefix}self_attn.q_proj", rows=queries, columns=shape.hidden, bias=shape.attention_bias),
        Linear(name=f"{prefix}self_attn.k_proj", rows=keys, columns=shape.hidden, bias=shape.attention_bias),
        Linear(name=f"{prefix}self_attn.v_proj", rows=keys, columns=shape.hidden, bias=shape.attention_bias),
        Linear(name=f"{prefix}self_attn.o_proj", rows=shape.hidden, columns=queries),
        *(Linear(name=prefix + name, rows=rows, columns=shape.hidden) for name, rows in mlp),
        Linear(name=f"{prefix}mlp.down_proj", rows=shape.hidden, columns=shape.ffn),
    )


def expected(shape: ModelShape, tensors: Mapping[str, Tensor]) -> Iterator[Wanted]:
    """Each tensor that must be there.

    What is there decides between the ways to store a linear layer: plain or NVFP4, gate and up fused or apart.
    """
    plain = [("model.embed_tokens.weight", (shape.vocab, shape.hidden)), ("model.norm.weight", (shape.hidden,))]
    linears: list[Linear] = []
    if not shape.tied:
        linears.append(Linear(name="lm_head", rows=shape.vocab, columns=shape.hidden))
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        plain += [(f"{prefix}{norm}_layernorm.weight", (shape.hidden,)) for norm in ("input", "post_attention")]
        split = is_stored(f"{prefix}{GATE}", tensors) or is_stored(f"{prefix}{UP}", tensors)
        linears += layer_linears(shape, layer, split=split)
    yield from ((name, sizes, FLOATS) for name, sizes in plain)
    for linear in linears:
        yield from _stored(linear, tensors)


def is_stored(linear: str, tensors: Mapping[str, Tensor]) -> bool:
    return f"{linear}.weight" in tensors or f"{linear}.weight_packed" in tensors


def _stored(linear: Linear, tensors: Mapping[str, Tensor]) -> Iterator[Wanted]:
    if linear.bias:
        yield f"{linear.name}.bias", (linear.rows,), FLOATS
    if f"{linear.name}.weight_packed" not in tensors:
        yield f"{linear.name}.weight", (linear.rows, linear.columns), (*FLOATS, "F8_E4M3", "I8")
        return
    yield f"{linear.name}.weight_packed", (linear.rows, linear.columns // 2), ("U8",)
    yield f"{linear.name}.weight_scale", (linear.rows, linear.columns // GROUP_SIZE), ("F8_E4M3",)
    yield f"{linear.name}.weight_global_scale", (1,), ("F32",)
    if f"{linear.name}.input_global_scale" in tensors:
        yield f"{linear.name}.input_global_scale", (1,), ("F32",)


def parameters(checkpoint: Checkpoint) -> int:
    """Weights of the model: two a packed byte; scales are not weights."""
    scales = tuple(f".{part}" for part in PARTS[1:])
    return sum(
        tensor.elements * (2 if tensor.name.endswith(".weight_packed") else 1)
        for tensor in checkpoint.tensors
        if not tensor.name.endswith(scales)
    )


def quantization(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """`quantization_config` of config.json; None for a checkpoint that is not quantised."""
    value = (checkpoint.config or {}).get("quantization_config")
    return value if isinstance(value, dict) else None


def quantization_format(checkpoint: Checkpoint) -> str | None:
    """ "nvfp4-pack-quantized", or another format or method; None for a checkpoint that is not quantised."""
    settings = quantization(checkpoint)
    if settings is None:
        return None
    named = settings.get("format") if settings.get("quant_method") == "compressed-tensors" else None
    return str(named or settings.get("quant_method") or "unknown")[:60]


def foreign_quantization(checkpoint: Checkpoint) -> bool:
    """Quantised, but not in the way that this module knows."""
    return quantization_format(checkpoint) not in (None, NVFP4_FORMAT)


def quantized_layers(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the linear layers that are stored packed."""
    suffix = ".weight_packed"
    return tuple(tensor.name.removesuffix(suffix) for tensor in checkpoint.tensors if tensor.name.endswith(suffix))


def fused_nvfp4(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the packed `…mlp.gate_up_proj` layers."""
    return tuple(name for name in quantized_layers(checkpoint) if name.endswith(GATE_UP))


def split_layers(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Prefixes (`model.layers.3.`) of the decoder layers that store gate apart from up."""
    ends = (f"{GATE}.weight", f"{GATE}.weight_packed")
    return tuple(tensor.name.split(GATE)[0] for tensor in checkpoint.tensors if tensor.name.endswith(ends))
