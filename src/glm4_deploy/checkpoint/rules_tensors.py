"""Rules for the tensors: those of the model that config.json describes, in the shapes and dtypes that engines need."""

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence

from glm4_deploy.checkpoint.header import Tensor
from glm4_deploy.checkpoint.model import (
    ARCHITECTURE,
    GATE,
    GET_SHARD_AGAIN,
    UP,
    BadConfigError,
    Rule,
    TargetEngine,
    expected_tensors,
    foreign_quantization,
    listed,
    model_shape,
    plural,
    quantized_layers,
)
from glm4_deploy.checkpoint.read import Checkpoint, open_file
from glm4_deploy.plan.engine_rules import ModelShape
from glm4_deploy.result import Result, because, fail, ok, skipped, unknown

NO_SHAPE = "config.json does not determine the tensors"
INCOMPLETE = "a shard is missing or could not be read: see above"
# Tensors that some writers add and every engine knows or ignores.
HARMLESS_SUFFIXES = ("rotary_emb.inv_freq", ".k_scale", ".v_scale", ".q_scale", ".output_scale")
LAYER = re.compile(r"model\.layers\.(\d{1,6})\.")
# 448 and 6 are the largest FP8 (E4M3) and FP4 (E2M1) numbers: a global scale is 448 * 6 / amax, a divisor.
GLOBAL_SCALE_NUMERATOR = 448.0 * 6.0
AMAX_RANGE = (1e-6, 1e5)
# The norm in front of each linear layer that has one.
BEHIND_NORM = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "input_layernorm") | dict.fromkeys(
    ("gate_up_proj", "gate_proj", "up_proj"), "post_attention_layernorm"
)
NORM_SLACK = 0.9  # bf16 rounds, and the norm's epsilon lets a faint token stay below


def shape_of(checkpoint: Checkpoint) -> ModelShape | None:
    """The model's dimensions; None if config.json lacks them or describes another architecture."""
    config = checkpoint.config
    if config is None or ARCHITECTURE not in _architectures(config):
        return None
    try:
        return model_shape(config)
    except BadConfigError:
        return None


def _architectures(config: Mapping[str, object]) -> Sequence[object]:
    value = config.get("architectures")
    return value if isinstance(value, list) else []


def config(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    if checkpoint.config is None:
        if any(fault.file == "config.json" for fault in checkpoint.faults):
            return skipped("config.json could not be read")
        return fail(
            "no config.json",
            "",
            *because("the engine does not know which model this is"),
            remedy="give the directory that has config.json, or download it",
        )
    names = _architectures(checkpoint.config)
    if ARCHITECTURE not in names:
        return fail(
            f"architectures: {str(names)[:80]}",
            ARCHITECTURE,
            *because("another model, or the old version of GLM-4, which needs its own code (trust_remote_code)"),
            remedy="use the -hf version of GLM-4 (glm-4-9b-chat-hf)",
        )
    try:
        shape = model_shape(checkpoint.config)
    except BadConfigError as error:
        return fail(
            str(error),
            "",
            *because("the engine cannot build the model"),
            remedy="download it again",
        )
    return ok(f"{ARCHITECTURE}, {shape.layers} layers, hidden {shape.hidden}, vocab {shape.vocab}")


def layers(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """Layers 0 to num_hidden_layers - 1, each with at least one tensor."""
    shape = shape_of(checkpoint)
    if shape is None:
        return skipped(NO_SHAPE)
    if not checkpoint.complete:
        return skipped(INCOMPLETE)
    stored = {int(match[1]) for tensor in checkpoint.tensors if (match := LAYER.match(tensor.name))}
    missing = sorted(set(range(shape.layers)) - stored)
    extra = sorted(stored - set(range(shape.layers)))
    if not missing and not extra:
        return ok(f"0–{shape.layers - 1}, as config.json says")
    wrong = [f"layer {layer} is missing" for layer in missing]
    wrong += [f"layer {layer} is beyond num_hidden_layers {shape.layers}" for layer in extra]
    return fail(
        listed(wrong),
        f"0–{shape.layers - 1}",
        *because("a layer without weights keeps uninitialised memory: garbage, or the engine stops", wrong),
        remedy="download the missing shards, or the config.json that belongs to these weights",
    )


def tensor_names(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    shape = shape_of(checkpoint)
    if shape is None:
        return skipped(NO_SHAPE)
    if not checkpoint.complete:
        return skipped(INCOMPLETE)
    tensors = _by_name(checkpoint.tensors)
    wanted = {name for name, _, _ in expected_tensors(shape, tensors)}
    missing = [name for name in wanted if name not in tensors]
    extra = [repr(name) for name in tensors if name not in wanted and not name.endswith(HARMLESS_SUFFIXES)]
    if missing:
        missing.sort()
        return fail(
            f"missing: {listed(missing)}",
            plural(len(wanted), "tensor"),
            *because("weights that are not loaded keep uninitialised memory, or the engine stops", missing),
            remedy="download the shard that contains them again",
        )
    if extra and foreign_quantization(checkpoint):
        return unknown("not quantised as NVFP4", observed=f"{len(extra)} more than a plain GLM has")
    if extra:
        return fail(
            f"not of this model: {listed(extra)}",
            "",
            *because("the engine stops at a name that the model does not have", extra),
            remedy="check that config.json and the shards belong to one checkpoint",
        )
    return ok(f"all {len(wanted)} tensors")


def tensor_shapes(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    shape = shape_of(checkpoint)
    if shape is None:
        return skipped(NO_SHAPE)
    if not checkpoint.complete:
        return skipped(INCOMPLETE)
    tensors = _by_name(checkpoint.tensors)
    wrong = []
    for name, sizes, dtypes in expected_tensors(shape, tensors):
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape != sizes and not (sizes == (1,) and tensor.shape == ()):
            wrong.append(f"{name}: {list(tensor.shape)} instead of {list(sizes)}")
        elif tensor.dtype not in dtypes:
            wrong.append(f"{name}: {tensor.dtype} instead of {' or '.join(dtypes)}")
    if not wrong:
        return ok("shapes and dtypes as config.json requires")
    return fail(
        listed(wrong),
        "",
        *because("the engine stops, or reads these bytes as something else", wrong),
        remedy="download the config.json that belongs to these weights, or the shard again",
    )


def global_scales(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """Global scales are finite, positive and possible; layers that the engine fuses share theirs."""
    names = quantized_layers(checkpoint)
    if not names:
        return skipped("no NVFP4 layer")
    try:
        scales = read_scalars(checkpoint)
        clipped = list(_clipped_inputs(checkpoint, scales))
    except OSError as error:
        return unknown(f"a shard could not be read: {error.strerror or error}", observed="not read")
    wrong = [f"{name} is {value:g}" for name, value in scales.items() if not _plausible(value)]
    if wrong:
        return fail(
            listed(wrong),
            f"{GLOBAL_SCALE_NUMERATOR:g} / amax: finite, positive, amax within {AMAX_RANGE}",
            *because("a whole layer is scaled to zero, infinity or NaN: loops and garbage", wrong),
            remedy=GET_SHARD_AGAIN,
        )
    if clipped:
        return fail(
            listed(clipped),
            "no more than the layer's own norm weights allow",
            *because(
                "the layer's activations do not fit in FP8 scales: the largest are cut off in each token", clipped
            ),
            remedy="quantise again: calibration did not see what goes into this layer",
        )
    differing = list(_differing_scales(names, scales))
    if differing:
        return fail(
            listed(differing),
            "one global scale for q, k, v, and one for gate, up",
            *because(
                "the engine fuses these layers and uses the largest scale for all: the others are wrong", differing
            ),
            remedy="quantise again with a recipe that shares them (llm-compressor does)",
        )
    return ok(f"{len(scales)} finite and positive; q/k/v and gate/up share theirs")


def read_scalars(checkpoint: Checkpoint) -> dict[str, float]:
    """All global scales by tensor name: 4 bytes each, read in place. Raises OSError."""
    scales: dict[str, float] = {}
    for shard in checkpoint.shards:
        with open_file(shard.file.path) as file:
            for tensor in shard.header.tensors:
                if tensor.name.endswith("_global_scale") and tensor.dtype == "F32" and tensor.nbytes == 4:
                    file.seek(tensor.start)
                    data = file.read(4)
                    if len(data) != 4:
                        raise OSError(f"{shard.file.name} ends early")
                    scales[tensor.name] = struct.unpack("<f", data)[0]
    return scales


def _clipped_inputs(checkpoint: Checkpoint, scales: Mapping[str, float]) -> Iterable[str]:
    """Input scales too large for any token. Raises OSError.

    An RMSNorm's output is w_i * x_i with a mean x_i^2 of 1. Its largest element is smallest where all are equal, and
    there it is mean(w_i^-2)^-0.5. Calibration saw at least that, so amax cannot be less.
    """
    norms = {tensor.name: tensor for tensor in checkpoint.tensors if tensor.name.endswith("_layernorm.weight")}
    for name, scale in scales.items():
        layer, _, linear = name.partition(".self_attn." if ".self_attn." in name else ".mlp.")
        kind = BEHIND_NORM.get(linear.removesuffix(".input_global_scale"))
        norm = norms.get(f"{layer}.{kind}.weight")
        if norm is None or not linear.endswith(".input_global_scale") or not _plausible(scale):
            continue
        least, amax = _least_peak(_floats(checkpoint, norm)), GLOBAL_SCALE_NUMERATOR / scale
        if amax < NORM_SLACK * least:
            yield f"{name} is {scale:g}, for inputs up to {amax:.3g}; behind {kind} they reach {least:.3g} or more"


def _least_peak(weights: Sequence[float]) -> float:
    if not weights or not all(weights):
        return 0.0  # a token may have its only elements where the weight is 0
    least = math.fsum(weight**-2.0 for weight in weights) / len(weights)
    return least**-0.5 if math.isfinite(least) else 0.0


def _floats(checkpoint: Checkpoint, tensor: Tensor) -> Sequence[float]:
    """A small tensor's values; none where its type is not a float. Without NumPy, whose import takes longer."""
    path = next(shard.file.path for shard in checkpoint.shards if shard.file.name == tensor.shard)
    with open_file(path) as file:
        file.seek(tensor.start)
        data = file.read(tensor.nbytes)
    if tensor.dtype == "BF16":  # the upper half of a float32
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[::2], data[1::2]
        return struct.unpack(f"<{len(wide) // 4}f", wide)
    kind, size = {"F16": ("e", 2), "F32": ("f", 4)}.get(tensor.dtype, ("", 1))
    return struct.unpack(f"<{len(data) // size}{kind}", data) if kind else ()


def _plausible(scale: float) -> bool:
    low, high = AMAX_RANGE
    return math.isfinite(scale) and scale > 0 and low <= GLOBAL_SCALE_NUMERATOR / scale <= high


def _differing_scales(names: Iterable[str], scales: Mapping[str, float]) -> Iterable[str]:
    prefixes = dict.fromkeys(match[0] for name in names if (match := LAYER.match(name)))
    for prefix in prefixes:
        for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (GATE, UP)):
            for part in ("weight_global_scale", "input_global_scale"):
                values = {scales[key] for name in group if (key := f"{prefix}{name}.{part}") in scales}
                if len(values) > 1:
                    shown = ", ".join(f"{value:g}" for value in sorted(values))
                    yield f"{prefix}{'/'.join(name.split('.')[1] for name in group)} {part}: {shown}"


def _by_name(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in tensors}


TENSOR_RULES: dict[str, Rule] = {
    "config": config,
    "layers": layers,
    "tensors": tensor_names,
    "tensor-shapes": tensor_shapes,
    "global-scales": global_scales,
}
