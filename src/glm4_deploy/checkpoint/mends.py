"""What repair changes in the small files, as pure functions: documents in, changed documents out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from glm4_deploy.checkpoint import fuse, rules_chat, rules_engine
from glm4_deploy.checkpoint.finding import plural
from glm4_deploy.checkpoint.shape import GATE, GATE_UP, UP, fused_nvfp4, split_layers
from glm4_deploy.checkpoint.target import GateUp, Target
from glm4_deploy.checkpoint.writer import Piece
from glm4_deploy.facts.checkpoint import INDEX, Checkpoint
from glm4_deploy.result import Result, Status

Documents: TypeAlias = dict[str, dict[str, Any]]

# Chat without tools, in GLM-4's own form (llama.cpp's test of "ChatGLM4" has its expected output).
CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages -%}
{%- set role = 'observation' if message['role'] == 'tool' else message['role'] -%}
{{- '<|' + role + '|>\\n' + (message['content'] or '') -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""
TEMPLATE_TOKENS = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that repair does. `check` is the finding that it mends."""

    check: str
    file: str
    detail: str


@dataclass(slots=True)
class Draft:
    """What is to be written: JSON documents that mends may change, plain texts, and shards by name."""

    checkpoint: Checkpoint
    target: Target
    documents: Documents
    texts: dict[str, str]
    shards: dict[str, list[Piece]]


Mend: TypeAlias = Callable[[Draft], list[Change]]


def quantization_keys(draft: Draft) -> list[Change]:
    settings = draft.documents.get("config.json", {}).get("quantization_config")
    if not draft.target.refuses_dtype_keys or not isinstance(settings, dict):
        return []
    stripped = []
    for path, args in rules_engine.quantization_args(settings):
        for key in rules_engine.DTYPE_KEYS:
            if key in args:
                del args[key]
                stripped.append(f"{path}.{key}")
    if not stripped:
        return []
    return [Change(check="quantization-keys", file="config.json", detail=f"stripped {', '.join(stripped)}")]


def rope_theta(draft: Draft) -> list[Change]:
    config = draft.documents.get("config.json", {})
    nested = rules_engine.rope_parameters(config)
    if "rope_theta" not in nested or config.get("rope_theta") is not None or draft.target.transformers == 5:
        return []
    # partial_rotary_factor moved with it, and has the same trap for a model with another value than the default.
    keys = [key for key in ("rope_theta", "partial_rotary_factor") if key in nested and config.get(key) is None]
    _set(config, {key: nested[key] for key in keys})
    detail = ", ".join(f"{key} {nested[key]}" for key in keys) + " written at the top level too"
    return [Change(check="rope-theta", file="config.json", detail=detail)]


def tokenizer_class(draft: Draft) -> list[Change]:
    settings = draft.documents.get("tokenizer_config.json")
    if settings is None or draft.target.transformers == 5:
        return []
    details = []
    if settings.get("tokenizer_class") == rules_engine.TRANSFORMERS_5_TOKENIZER:
        settings["tokenizer_class"] = rules_engine.PLAIN_TOKENIZER
        details.append(f"tokenizer_class {rules_engine.PLAIN_TOKENIZER}")
    if isinstance(settings.get("extra_special_tokens"), list):
        extra = settings.pop("extra_special_tokens")
        _set(settings, {"additional_special_tokens": settings.get("additional_special_tokens") or extra})
        details.append(f"{len(extra)} extra_special_tokens under their older name")
    return [Change(check="tokenizer-class", file="tokenizer_config.json", detail=detail) for detail in details]


def eos_ids(draft: Draft) -> list[Change]:
    if not _found(rules_chat.stops(draft.checkpoint, draft.target)):
        return []
    wanted = tuple(rules_chat.stop_ids(draft.checkpoint).values())
    changes = []
    config = draft.documents.setdefault("config.json", {})
    generation = draft.documents.setdefault("generation_config.json", {})
    for name, document in (("config.json", config), ("generation_config.json", generation)):
        present = rules_chat.eos_ids(document) or ()
        ids = [*present, *(number for number in wanted if number not in present)]
        if document.get("eos_token_id") != ids:
            _set(document, {"eos_token_id": ids})
            changes.append(Change(check="eos-ids", file=name, detail=f"eos_token_id {ids}"))
    if generation.get("pad_token_id") is None and type(config.get("pad_token_id")) is int:
        _set(generation, {"pad_token_id": config["pad_token_id"]})
    return changes


def chat_template(draft: Draft) -> list[Change]:
    tokens = rules_chat.added_tokens(draft.checkpoint)
    if draft.checkpoint.chat_template or not all(token in tokens for token in TEMPLATE_TOKENS):
        return []
    draft.texts["chat_template.jinja"] = CHAT_TEMPLATE
    return [Change(check="chat-template", file="chat_template.jinja", detail="GLM-4's form of a chat, without tools")]


def gate_up(draft: Draft) -> list[Change]:
    """Split or join the gate and up projections, in the shards that hold them, the index and the ignore list."""
    checkpoint, changes = draft.checkpoint, []
    if draft.target.gate_up is GateUp.SPLIT_IF_NVFP4:
        layers, reshaped, how = fused_nvfp4(checkpoint), fuse.split_layers(checkpoint), "gate_proj and up_proj apart"
    elif draft.target.gate_up is GateUp.FUSED:
        layers, reshaped, how = split_layers(checkpoint), fuse.join_layers(checkpoint), "gate_up_proj fused"
    else:
        return []
    for name, pieces in reshaped.items():
        draft.shards[name] = pieces
        changes.append(Change(check="gate-up", file=name, detail=how))
    if not changes:
        return []
    changes[0] = replace(changes[0], detail=f"{how}, {plural(len(layers), 'layer')}")
    if draft.target.gate_up is GateUp.FUSED:
        _rename_ignored(draft.documents.get("config.json", {}))
    index = draft.documents.get(INDEX)
    if index is not None:
        _rewrite_index(index, checkpoint, draft.shards)
        changes.append(Change(check="gate-up", file=INDEX, detail="the new names"))
    return changes


def _rewrite_index(index: dict[str, Any], checkpoint: Checkpoint, shards: Mapping[str, list[Piece]]) -> None:
    held = {shard.file.name: fuse.pieces(shard.header.tensors) for shard in checkpoint.shards} | dict(shards)
    index["weight_map"] = dict(sorted((piece.name, shard) for shard, pieces in held.items() for piece in pieces))
    if isinstance(index.get("metadata"), dict) and "total_size" in index["metadata"]:
        index["metadata"]["total_size"] = sum(piece.nbytes for pieces in held.values() for piece in pieces)


def _rename_ignored(config: Mapping[str, Any]) -> None:
    """`ignore` names modules: where gate and up become one, so do their names there."""
    settings = config.get("quantization_config")
    ignored = settings.get("ignore") if isinstance(settings, dict) else None
    if isinstance(settings, dict) and isinstance(ignored, list):
        renamed = (str(name).replace(GATE, GATE_UP).replace(UP, GATE_UP) for name in ignored)
        settings["ignore"] = list(dict.fromkeys(renamed))


MENDS: Mapping[str, Mend] = {
    "gate-up": gate_up,
    "quantization-keys": quantization_keys,
    "rope-theta": rope_theta,
    "tokenizer-class": tokenizer_class,
    "eos-ids": eos_ids,
    "chat-template": chat_template,
}


def _found(result: Result) -> bool:
    return result.status in (Status.FAIL, Status.WARN)


def _set(document: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Set keys, and keep the document sorted if it was."""
    in_order = list(document) == sorted(document)
    document.update(values)
    if in_order:
        items = sorted(document.items())
        document.clear()
        document.update(items)
