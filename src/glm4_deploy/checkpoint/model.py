"""The model that config.json describes, the engine that will load it, and what every rule shares."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from glm4_deploy.catalog.images import default_tag, resolve_version
from glm4_deploy.catalog.rows import Version
from glm4_deploy.checkpoint.header import Tensor
from glm4_deploy.checkpoint.read import Checkpoint
from glm4_deploy.plan.engine_rules import ModelShape, StoredModel, WeightFormat
from glm4_deploy.result import Result

ARCHITECTURE = "GlmForCausalLM"
NVFP4_FORMAT = "nvfp4-pack-quantized"
GROUP_SIZE = 16  # weights that share one FP8 scale
PARTS = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")
GATE_UP, GATE, UP = "mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj"
FLOATS = ("BF16", "F16", "F32")
MAX_LAYERS = 1000
ExpectedTensor: TypeAlias = tuple[str, tuple[int, ...], tuple[str, ...]]  # name, shape, allowed dtypes


class BadConfigError(ValueError):
    """Why config.json does not determine the tensors, in one phrase."""


class NotPlannedError(BadConfigError):
    """The planner has no formulas for this model; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear layer `name` with weight [rows, columns]."""

    name: str
    rows: int
    columns: int
    bias: bool = False


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Read the dimensions; a missing key has the default of GlmConfig, or of Llama's for other models.

    Raises:
        BadConfigError: a dimension is missing or wrong.
    """

    def size(key: str, default: int | None = None, limit: int = 2**31) -> int:
        value = config.get(key, default)
        if value is None:
            raise BadConfigError(f"no {key}")
        if type(value) is not int or not 0 < value < limit:
            raise BadConfigError(f"{key} is {str(value)[:40]!r}")
        return value

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    glm = _architecture(config).startswith("Glm")
    return ModelShape(
        layers=size("num_hidden_layers", limit=MAX_LAYERS),
        hidden=hidden,
        ffn=size("intermediate_size"),
        heads=heads,
        kv_heads=size("num_key_value_heads", 2 if glm else heads),
        head_dim=size("head_dim", 128 if glm else hidden // heads),
        vocab=size("vocab_size"),
        attention_bias=config.get("attention_bias", True) is not False,
        tied=config.get("tie_word_embeddings", False) is True,
        max_position=size("max_position_embeddings", 131072),
    )


def layer_linears(shape: ModelShape, layer: int, *, split: bool) -> tuple[Linear, ...]:
    """The linear layers of one decoder layer.

    Args:
        split: gate and up are separate layers.
    """
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


def expected_tensors(shape: ModelShape, tensors: Mapping[str, Tensor]) -> Iterator[ExpectedTensor]:
    """Each tensor that the checkpoint must have.

    A linear layer may be stored plain or in NVFP4, and gate and up fused or separate: `tensors` decides which.
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


def _stored(linear: Linear, tensors: Mapping[str, Tensor]) -> Iterator[ExpectedTensor]:
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
    """Weights of the model: two per packed byte; scales do not count."""
    scales = tuple(f".{part}" for part in PARTS[1:])
    return sum(
        tensor.elements * (2 if tensor.name.endswith(".weight_packed") else 1)
        for tensor in checkpoint.tensors
        if not tensor.name.endswith(scales)
    )


def quantization_config(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """`quantization_config` of config.json; None if the checkpoint is not quantised."""
    value = (checkpoint.config or {}).get("quantization_config")
    return value if isinstance(value, dict) else None


def quantization_format(checkpoint: Checkpoint) -> str | None:
    """The format, such as "nvfp4-pack-quantized", or else the method; None if the checkpoint is not quantised."""
    settings = quantization_config(checkpoint)
    if settings is None:
        return None
    named = settings.get("format") if settings.get("quant_method") == "compressed-tensors" else None
    return str(named or settings.get("quant_method") or "unknown")[:60]


def stored_model(name: str, checkpoint: Checkpoint) -> StoredModel:
    """What the planner needs to know of a checkpoint.

    Raises:
        BadConfigError: config.json lacks a dimension, or a shard is missing.
        NotPlannedError: the planner has no formulas for the model.
    """
    config = checkpoint.config or {}
    unknown = beyond_the_planner(config)
    if unknown:
        raise NotPlannedError(f"{unknown}: the planner knows dense text models with full attention only")
    shape = model_shape(config)
    size = sum(tensor.nbytes for shard in checkpoint.shards for tensor in shard.header.tensors)
    if not size or not checkpoint.complete:
        raise BadConfigError("the checkpoint is incomplete")
    return StoredModel(
        name=name,
        weights=_weight_format(checkpoint, shape, size),
        checkpoint_bytes=size,
        shape=shape,
        architecture=_architecture(config),
    )


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0])[:80] if isinstance(named, list) and named else ARCHITECTURE


# Keys of config.json that name the number of experts, and those that name another kind of state than a KV cache.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
STATE_SPACE = ("mamba_d_state", "ssm_cfg", "linear_num_key_heads", "layers_block_type", "hybrid_override_pattern",
               "state_size", "rwkv_version")  # fmt: skip


def beyond_the_planner(config: Mapping[str, Any]) -> str:
    """Why the planner has no formulas for this model, by name; empty if it has."""
    architecture = _architecture(config)
    layers = {kind for kind in config.get("layer_types") or () if isinstance(kind, str)}
    if any(isinstance(config.get(key), int) and config[key] > 1 for key in EXPERTS):
        return f"{architecture} is a mixture of experts"
    if any(key in config for key in ("vision_config", "audio_config", "text_config")):
        return f"{architecture} is multimodal"
    if config.get("kv_lora_rank"):
        return f"{architecture} has latent attention (MLA)"
    if any(config.get(key) for key in STATE_SPACE) or layers & {"linear_attention", "mamba", "recurrent"}:
        return f"{architecture} is a hybrid with other state than a KV cache"
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", True) is not False
    if layers & {"sliding_attention", "chunked_attention"} or (isinstance(window, int) and window > 0 and used):
        return f"{architecture} has sliding-window attention"
    if config.get("is_encoder_decoder"):
        return f"{architecture} is an encoder-decoder"
    return ""


# Methods of quantization_config (vLLM's model_executor/layers/quantization/__init__.py), as the planner sees them.
METHODS = {
    "awq": WeightFormat.AWQ, "awq_marlin": WeightFormat.AWQ, "gptq": WeightFormat.GPTQ,
    "gptq_marlin": WeightFormat.GPTQ, "auto-round": WeightFormat.INT4, "pack-quantized": WeightFormat.INT4,
    "marlin-24": WeightFormat.INT4, "nvfp4-pack-quantized": WeightFormat.NVFP4, "fp8": WeightFormat.FP8,
    "fbgemm_fp8": WeightFormat.FP8, "float-quantized": WeightFormat.FP8, "naive-quantized": WeightFormat.FP8,
    "int-quantized": WeightFormat.INT8,
}  # fmt: skip


def _weight_format(checkpoint: Checkpoint, shape: ModelShape, size: int) -> WeightFormat:
    """What config.json names; else what the stored size says (ModelOpt names it in another file)."""
    settings = quantization_config(checkpoint)
    if settings is None:
        return _format_by_size(shape, size)
    named = str(quantization_format(checkpoint)).lower()
    if named == "modelopt":
        named = str(settings.get("quant_algo") or "").lower()
        return WeightFormat.NVFP4 if "fp4" in named else WeightFormat.FP8
    if named == "gptq" and settings.get("bits") == 8:
        return WeightFormat.INT8
    found = METHODS.get(named)
    if found is WeightFormat.NVFP4 and _weights_only(settings):
        return WeightFormat.NVFP4A16
    return found or _format_by_size(shape, size)


def _weights_only(settings: Mapping[str, Any]) -> bool:
    """Whether no group of compressed-tensors quantizes activations, as NVFP4A16 does."""
    groups = settings.get("config_groups")
    listed = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    return bool(listed) and all(group.get("input_activations") is None for group in listed)


def _format_by_size(shape: ModelShape, size: int) -> WeightFormat:
    """By bytes for each element of a linear layer: 2 in bf16, about 1 in fp8, 0.5 to 0.6 in a 4-bit format."""
    each = (size - shape.embedding_bytes) / shape.linear_elements
    if each > 1.5:
        return WeightFormat.BF16
    return WeightFormat.FP8 if each > 0.8 else WeightFormat.INT4


def foreign_quantization(checkpoint: Checkpoint) -> bool:
    """Quantised in another way than compressed-tensors' NVFP4."""
    return quantization_format(checkpoint) not in (None, NVFP4_FORMAT)


def quantized_layers(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the linear layers that are stored in NVFP4."""
    suffix = ".weight_packed"
    return tuple(tensor.name.removesuffix(suffix) for tensor in checkpoint.tensors if tensor.name.endswith(suffix))


def fused_nvfp4(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the NVFP4 `…mlp.gate_up_proj` layers."""
    return tuple(name for name in quantized_layers(checkpoint) if name.endswith(GATE_UP))


def split_layers(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Prefixes (`model.layers.3.`) of the decoder layers that store gate and up separately."""
    ends = (f"{GATE}.weight", f"{GATE}.weight_packed")
    return tuple(tensor.name.split(GATE)[0] for tensor in checkpoint.tensors if tensor.name.endswith(ends))


# What the engine needs: ranges of vLLM versions, each with its source.


class GateUp(StrEnum):
    """How `mlp.gate_up_proj` must be stored."""

    SPLIT_IF_NVFP4 = "split-if-nvfp4"
    EITHER = "either"
    FUSED = "fused"


# vllm#39765 fills every slot of a fused layer's global scale; released with 0.20.
FUSED_SCALES_LOAD_FROM: Version = (0, 20)
# vLLM 0.31 has its own class for GlmForCausalLM, which packs gate_proj and up_proj; the model registry of 0.32 maps it
# to the Transformers backend, whose module is `gate_up_proj`.
TRANSFORMERS_BACKEND_FROM: Version = (0, 32)
# vLLM pins compressed-tensors exactly: 0.10.1 -> 0.10.2 (ignores unknown keys), 0.10.2 to 0.13 -> 0.11.0 and 0.12.2
# (refuse unknown keys, and do not know scale_dtype and zp_dtype), 0.14 and later -> 0.13.0 and later (know both).
DTYPE_KEYS_REFUSED_FROM: Version = (0, 10, 2)
DTYPE_KEYS_KNOWN_FROM: Version = (0, 14)
# vLLM's requirement: below 0.20 transformers<5; 0.20 to 0.23 either; from 0.24 transformers>=5.5.3.
TRANSFORMERS_5_POSSIBLE_FROM: Version = (0, 20)
TRANSFORMERS_5_CERTAIN_FROM: Version = (0, 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEngine:
    """The engine that will load the checkpoint.

    Attributes:
        gate_up: how it needs gate and up to be stored.
        transformers: major version; None if vLLM's requirement allows 4 and 5.
        refuses_dtype_keys: it ends with an error at scale_dtype and zp_dtype in quantization_config.
    """

    vllm: Version
    gate_up: GateUp
    transformers: int | None
    refuses_dtype_keys: bool

    @property
    def label(self) -> str:
        return f"vLLM {self.version}"

    @property
    def version(self) -> str:
        return ".".join(str(part) for part in self.vllm)

    @property
    def transformers_label(self) -> str:
        return "Transformers 4 or 5" if self.transformers is None else f"Transformers {self.transformers}"


def target_engine(vllm: Version, transformers: int | None = None) -> TargetEngine:
    """The engine of a vLLM version. transformers: the major version of its image, if known."""
    if vllm < FUSED_SCALES_LOAD_FROM:
        gate_up = GateUp.SPLIT_IF_NVFP4
    else:
        gate_up = GateUp.EITHER if vllm < TRANSFORMERS_BACKEND_FROM else GateUp.FUSED
    if vllm < TRANSFORMERS_5_POSSIBLE_FROM:
        transformers = 4
    elif vllm >= TRANSFORMERS_5_CERTAIN_FROM:
        transformers = 5
    return TargetEngine(
        vllm=vllm,
        gate_up=gate_up,
        transformers=transformers,
        refuses_dtype_keys=DTYPE_KEYS_REFUSED_FROM <= vllm < DTYPE_KEYS_KNOWN_FROM,
    )


def default_version() -> Version:
    """The vLLM of the kit's default image."""
    return resolve_version(default_tag())


# What every rule shares.

Rule: TypeAlias = Callable[[Checkpoint, TargetEngine], Result]
SHOWN = 3
REPAIR = "glm4-deploy checkpoint repair DIR --output DIR2"  # a remedy; the report fills in the directory and the engine
GET_SHARD_AGAIN = "download the shard again, or quantise again: it cannot be repaired"


def listed(items: Sequence[str]) -> str:
    """The first few, and how many more: "a, b, c and 37 more"."""
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
