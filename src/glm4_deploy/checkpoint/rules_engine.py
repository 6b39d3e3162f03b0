"""Rules for traps that depend on the engine's version: each makes an intact checkpoint load wrongly or not at all.

model.py has the ranges of versions, and repair.py a repair for most.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from glm4_deploy.checkpoint.model import (
    GATE,
    GATE_UP,
    REPAIR,
    UP,
    GateUp,
    Rule,
    TargetEngine,
    foreign_quantization,
    fused_nvfp4,
    listed,
    plural,
    quantization_config,
    quantization_format,
    quantized_layers,
    split_layers,
)
from glm4_deploy.checkpoint.read import Checkpoint
from glm4_deploy.result import Result, because, fail, ok, skipped, unknown, warn

DTYPE_KEYS = ("scale_dtype", "zp_dtype")
# Keys of compressed-tensors' QuantizationArgs from 0.11 to 0.19, which refuses any other.
ARGS_KEYS = {
    "actorder",
    "block_structure",
    "dynamic",
    "group_size",
    "num_bits",
    "observer",
    "observer_kwargs",
    "strategy",
    "symmetric",
    "type",
    *DTYPE_KEYS,
}
TRANSFORMERS_5_TOKENIZER = "TokenizersBackend"
# The class that Transformers 4 loads from tokenizer.json alone.
PLAIN_TOKENIZER = "PreTrainedTokenizerFast"


def gate_up(checkpoint: Checkpoint, target: TargetEngine) -> Result:
    """Whether the engine loads gate and up as they are stored."""
    fused, split = fused_nvfp4(checkpoint), split_layers(checkpoint)
    if not checkpoint.tensors:
        return skipped("no tensor could be read")
    if target.gate_up is GateUp.SPLIT_IF_NVFP4 and fused:
        return fail(
            f"{plural(len(fused), 'NVFP4 layer')} with {GATE_UP} fused",
            "separate gate_proj and up_proj",
            *because(
                f"{target.label} fills one of two slots of the fused global scale and takes the larger: "
                "undefined memory decides, so random loops and garbage with HTTP 200 (vllm#39764, fixed in 0.20)",
                fused,
            ),
            remedy=REPAIR,
        )
    if target.gate_up is GateUp.FUSED and split:
        return fail(
            f"{plural(len(split), 'layer')} with separate gate_proj and up_proj",
            f"{GATE_UP} fused",
            *because(
                f"{target.label} loads GLM through the Transformers backend, which knows only the fused name", split
            ),
            remedy=REPAIR,
        )
    how = "separate" if split else "fused, NVFP4" if fused else "fused, not NVFP4"
    return ok(f"{how}: {target.label} loads it")


def quantization_args(settings: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, arguments) of each set of QuantizationArgs in quantization_config."""
    groups = settings.get("config_groups")
    for name, group in groups.items() if isinstance(groups, dict) else ():
        for key in ("weights", "input_activations", "output_activations"):
            if isinstance(group, dict) and isinstance(group.get(key), dict):
                yield f"config_groups.{name}.{key}", group[key]
    if isinstance(settings.get("kv_cache_scheme"), dict):
        yield "kv_cache_scheme", settings["kv_cache_scheme"]


def quantization_keys(checkpoint: Checkpoint, target: TargetEngine) -> Result:
    """Keys of quantization_config that the engine's compressed-tensors refuses."""
    settings = quantization_config(checkpoint)
    if settings is None or settings.get("quant_method") != "compressed-tensors":
        return skipped("no compressed-tensors settings in config.json")
    keys = [(path, key) for path, args in quantization_args(settings) for key in args]
    unknown_keys = [f"{path}.{key}"[:120] for path, key in keys if key not in ARGS_KEYS]
    if unknown_keys:
        return warn(
            listed([repr(name) for name in unknown_keys]),
            "",
            *because("compressed-tensors 0.10 to 0.19 never write them, and strict versions refuse them", unknown_keys),
            remedy="check what wrote this config.json",
        )
    newer = [f"{path}.{key}" for path, key in keys if key in DTYPE_KEYS]
    if newer and target.refuses_dtype_keys:
        return fail(
            listed(newer),
            "no scale_dtype, no zp_dtype",
            *because(
                f"written by compressed-tensors >= 0.13; {target.label} has an older one and ends with "
                "'scale_dtype: Extra inputs are not permitted'",
                newer,
            ),
            remedy=REPAIR,
        )
    return ok(f"known to {target.label}")


def quantization(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """Whether quantization_config agrees with the tensors."""
    settings, packed = quantization_config(checkpoint), quantized_layers(checkpoint)
    format_ = quantization_format(checkpoint)
    if checkpoint.config is None or not checkpoint.tensors:
        return skipped("config.json or the shards could not be read")
    if foreign_quantization(checkpoint):
        return unknown("neither compressed-tensors' NVFP4 nor plain weights", observed=f"{format_}")
    if settings is None and packed:
        observed = f"{len(packed)} packed layers, no quantization_config"
    elif settings is not None and not packed:
        observed = f"{format_} in config.json, no packed layer"
    elif settings is not None and (plain := _plain_layers(checkpoint, settings)):
        observed = f"plain, but not in the ignore list: {listed(plain)}"
    else:
        return ok(f"NVFP4, {len(packed)} packed layers" if packed else "none: plain weights")
    return fail(
        observed,
        "",
        *because(
            "config.json and the shards describe different weights: the engine looks for tensors that do not exist"
        ),
        remedy="get the config.json that belongs to these weights",
    )


def _plain_layers(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> list[str]:
    """Linear layers that are stored plain but not in the ignore list."""
    ignored = settings.get("ignore")
    names = {str(name) for name in ignored} if isinstance(ignored, list) else set()
    if any(name.startswith("re:") for name in names):
        return []  # an untrusted regular expression is not run here
    linear = (
        tensor.name.removesuffix(".weight")
        for tensor in checkpoint.tensors
        if tensor.name.endswith(("_proj.weight", "lm_head.weight"))
    )
    return [name for name in linear if name not in names and not names & _fused_names(name)]


def _fused_names(name: str) -> set[str]:
    """`x.mlp.gate_proj` may be ignored under its fused name."""
    return {name.replace(part, GATE_UP) for part in (GATE, UP) if name.endswith(part)}


def rope_theta(checkpoint: Checkpoint, target: TargetEngine) -> Result:
    """Transformers 4 reads rope_theta at the top level; Transformers 5 in rope_parameters, or at the top level."""
    config = checkpoint.config
    if config is None:
        return skipped("no config.json")
    nested = rope_parameters(config).get("rope_theta")
    top = config.get("rope_theta")
    if top is None and nested is None:
        return warn(
            "not in config.json",
            "",
            *because("the engine uses 10000; long contexts fail if the model was trained with another value"),
            remedy="compare with the base model's config.json",
        )
    if top is not None and nested is not None and top != nested:
        return fail(
            f"{str(top)[:20]} at the top level, {str(nested)[:20]} in rope_parameters",
            "",
            *because("Transformers 4 reads the first, Transformers 5 the second"),
            remedy="write the base model's value to both",
        )
    if top is None and target.transformers != 5:
        certain = target.transformers == 4
        return (fail if certain and nested != 10000 else warn)(
            f"{str(nested)[:20]}, only in rope_parameters",
            "rope_theta also at the top level",
            *because(f"{target.label} runs with {target.transformers_label}; 4 silently uses 10000"),
            remedy=REPAIR,
        )
    return ok(str(nested if top is None else top)[:20])


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    value = config.get("rope_parameters")
    return value if isinstance(value, dict) else {}


def tokenizer_class(checkpoint: Checkpoint, target: TargetEngine) -> Result:
    """Settings in tokenizer_config.json that Transformers 5 writes and Transformers 4 cannot load."""
    settings = checkpoint.documents.get("tokenizer_config.json")
    if settings is None:
        return skipped("no tokenizer_config.json")
    faults = []
    if settings.get("tokenizer_class") == TRANSFORMERS_5_TOKENIZER:
        faults.append(f"tokenizer_class {TRANSFORMERS_5_TOKENIZER}")
    if isinstance(settings.get("extra_special_tokens"), list):
        faults.append("extra_special_tokens is a list")
    if faults and target.transformers != 5:
        return (fail if target.transformers == 4 else warn)(
            " and ".join(faults),
            f"tokenizer_class {PLAIN_TOKENIZER}, special tokens in additional_special_tokens",
            *because(
                f"saved by Transformers 5; {target.label} runs with {target.transformers_label}, and 4 cannot load it"
            ),
            remedy=REPAIR,
        )
    if "auto_map" in settings:
        return warn(
            "the tokenizer brings its own code (auto_map)",
            "",
            *because("it loads only with --trust-remote-code, which runs that code"),
            remedy="use the -hf version of GLM-4, whose tokenizer is only data",
        )
    return ok(f"{str(settings.get('tokenizer_class'))[:60]}: {target.transformers_label} loads it")


ENGINE_RULES: dict[str, Rule] = {
    "gate-up": gate_up,
    "quantization": quantization,
    "quantization-keys": quantization_keys,
    "rope-theta": rope_theta,
    "tokenizer-class": tokenizer_class,
}
