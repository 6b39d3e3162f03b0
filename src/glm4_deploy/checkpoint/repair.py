"""Write a copy of a checkpoint that the engine loads; the original stays untouched.

Crash-safe: everything is written to DIR2.partial-…, synced to disk, opened with the reference library and verified, and
only then renamed. Files that do not change become hard links where the file system allows it.
"""

import copy
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open

from glm4_deploy.catalog.rows import Version
from glm4_deploy.checkpoint.manifest import MANIFEST
from glm4_deploy.checkpoint.model import (
    GATE,
    GATE_UP,
    UP,
    GateUp,
    TargetEngine,
    default_version,
    fused_nvfp4,
    plural,
    split_layers,
    target_engine,
)
from glm4_deploy.checkpoint.read import INDEX, Checkpoint, File, read_checkpoint
from glm4_deploy.checkpoint.rewrite import (
    LossyError,
    Piece,
    join_split,
    pieces_of,
    split_fused,
    storage_error,
    write_shard,
)
from glm4_deploy.checkpoint.rules_chat import added_tokens, eos_ids, stop_ids, stops
from glm4_deploy.checkpoint.rules_engine import (
    DTYPE_KEYS,
    PLAIN_TOKENIZER,
    TRANSFORMERS_5_TOKENIZER,
    quantization_args,
    rope_parameters,
)
from glm4_deploy.checkpoint.verify import (
    VerifyReport,
    apply_rules,
    changed_files,
    failures_of,
    faults_line,
    verify_checkpoint,
)
from glm4_deploy.errors import CheckpointRefused, StorageError, UsageError
from glm4_deploy.files import sync_directory, template_path
from glm4_deploy.result import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEdit:
    """One change to a file.

    Attributes:
        check: the check that failed.
        detail: what was changed, in one phrase.
    """

    check: str
    file: str
    detail: str


@dataclass(slots=True)
class RepairDraft:
    """What will be written.

    Attributes:
        documents: the JSON documents, for repairs to edit.
        texts: content of the text files to write, by name.
        shards: tensors of the shards to write, by name.
    """

    checkpoint: Checkpoint
    target: TargetEngine
    documents: dict[str, dict[str, Any]]
    texts: dict[str, str]
    shards: dict[str, list[Piece]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairResult:
    """What was done.

    Attributes:
        left_out: entries of the original that the copy lacks.
        report: verification of the copy.
    """

    output: str
    changes: tuple[CheckpointEdit, ...]
    written: tuple[str, ...]
    linked: tuple[str, ...]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    report: VerifyReport


def repair_checkpoint(
    directory: Path,
    output: Path,
    *,
    vllm: Version | None = None,
    transformers: int | None = None,
    only: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> RepairResult:
    """Write a repaired copy of `directory` to `output`.

    Without anything to repair it makes the copy anyway (of links), so that `output` exists after every success.

    Args:
        vllm: the engine's version; default: that of the kit's default image.
        transformers: the major version in its image; None: what this vLLM requires.
        only: checks to repair (keys of REPAIRS); default: all.
        progress: called with (bytes written, bytes to write).

    Raises:
        ModelMissing: there is no checkpoint.
        CheckpointRefused: it has a fault that cannot be repaired.
        StorageError: it cannot be written; nothing is left behind.
        UsageError: `output` exists already, or `only` names a check that cannot be repaired.
    """
    engine = target_engine(vllm or default_version(), transformers)
    check_output(directory, output)
    checkpoint = read_checkpoint(directory)
    _refuse_unrepairable(checkpoint, engine)
    draft, changes = plan_repair(checkpoint, engine, only=only)
    partial = output.parent / f"{output.name}.partial-{secrets.token_hex(4)}"
    try:
        partial.mkdir()
        placed = _write(checkpoint, draft, partial, progress or (lambda _done, _total: None))
        report = _check_copy(checkpoint, draft, partial, engine, only)
        partial.rename(output)
        sync_directory(output.parent)
    except OSError as error:
        raise storage_error(output, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return RepairResult(
        output=str(output),
        changes=changes,
        written=tuple(placed["written"]),
        linked=tuple(placed["linked"]),
        copied=tuple(placed["copied"]),
        left_out=tuple(placed["left out"]),
        report=_renamed(report, partial, output),
    )


def plan_repair(
    checkpoint: Checkpoint, engine: TargetEngine, *, only: Collection[str] = ()
) -> tuple[RepairDraft, tuple[CheckpointEdit, ...]]:
    """What repair would write, and its changes. Writes nothing.

    Raises:
        CheckpointRefused: gate and up cannot be changed without loss.
        UsageError: `only` names a check that cannot be repaired.
    """
    unknown = [name for name in only if name not in REPAIRS]
    if unknown:
        hint = f"choose from {', '.join(REPAIRS)}"
        raise UsageError(f"{unknown[0]!r} is not a check that can be repaired", hint=hint)
    documents = {
        name: copy.deepcopy(dict(document))
        for name, document in checkpoint.documents.items()
        if name != "tokenizer.json"
    }
    draft = RepairDraft(checkpoint=checkpoint, target=engine, documents=documents, texts={}, shards={})
    try:
        changes = [change for name, repair in REPAIRS.items() if not only or name in only for change in repair(draft)]
    except LossyError as error:
        raise CheckpointRefused(f"cannot repair without loss: {error}", hint="quantise the model again") from None
    for name, document in draft.documents.items():
        if document != checkpoint.documents.get(name):
            draft.texts[name] = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return draft, tuple(changes)


def preview_repair(
    directory: Path,
    output: Path,
    *,
    vllm: Version | None = None,
    transformers: int | None = None,
    only: Collection[str] = (),
) -> tuple[CheckpointEdit, ...]:
    """What `repair_checkpoint` would change. Writes nothing, and raises what that raises before it writes."""
    engine = target_engine(vllm or default_version(), transformers)
    check_output(directory, output)
    checkpoint = read_checkpoint(directory)
    _refuse_unrepairable(checkpoint, engine)
    return plan_repair(checkpoint, engine, only=only)[1]


def check_output(directory: Path, output: Path) -> None:
    """Raises UsageError if `output` exists already and is not empty, is inside `directory`, or has no parent."""
    if output.resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"{output} is inside {directory}", hint="give --output a path outside the checkpoint")
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise UsageError(f"{output} exists already", hint="name a new directory; nothing is overwritten")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is not a directory", hint=f"mkdir -p {output.parent}")


def _refuse_unrepairable(checkpoint: Checkpoint, engine: TargetEngine) -> None:
    """Do not make a checkpoint that would still fail look like a good one."""
    failed = failures_of(apply_rules(checkpoint, engine))
    hopeless = [result for result in failed if result.check not in REPAIRS]
    if not hopeless:
        repaired = {change.check for change in plan_repair(checkpoint, engine)[1]}
        hopeless = [result for result in failed if result.check not in repaired]
    if hopeless:
        raise CheckpointRefused(
            f"{checkpoint.directory} cannot be repaired: {faults_line(hopeless)}", hint=hopeless[0].remedy
        )


def _write(
    checkpoint: Checkpoint, draft: RepairDraft, partial: Path, progress: Callable[[int, int], None]
) -> dict[str, list[str]]:
    """Fill the new directory. Returns names of entries by what happened to them."""
    _write_shards(checkpoint, draft, partial, progress)
    placed: dict[str, list[str]] = {
        "written": [*draft.shards, *draft.texts],
        "linked": [],
        "copied": [],
        "left out": [*checkpoint.subdirectories, *checkpoint.unfinished],
    }
    for name, text in draft.texts.items():
        _write_text(partial / name, text)
    for file in checkpoint.files:
        if file.name in placed["written"] or file.name in checkpoint.unfinished:
            continue
        if file.name == MANIFEST:
            placed["left out"].append(file.name)  # its digests are those of the old files
        else:
            placed["linked" if _link(file, partial / file.name) else "copied"].append(file.name)
    sync_directory(partial)
    return placed


def _write_shards(
    checkpoint: Checkpoint, draft: RepairDraft, partial: Path, progress: Callable[[int, int], None]
) -> None:
    """Raises StorageError, or OSError if there is not enough space."""
    shards = {shard.file.name: shard for shard in checkpoint.shards}
    paths = {name: shard.file.path for name, shard in shards.items()}
    total = sum(piece.nbytes for pieces in draft.shards.values() for piece in pieces)
    free = shutil.disk_usage(partial).free
    if free < total:
        raise OSError(errno.ENOSPC, f"{total} bytes needed, {free} free")
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    for name, pieces in draft.shards.items():
        write_shard(partial / name, pieces, metadata=shards[name].header.metadata, shards=paths, progress=step)


def _link(file: File, path: Path) -> bool:
    """Link a file, or copy it where that is not possible. Returns whether it is a link."""
    origin = file.path.resolve()
    try:
        os.link(origin, path)
    except OSError:
        shutil.copyfile(origin, path)
        with path.open("rb") as copied:
            os.fsync(copied.fileno())
        return False
    return True


def _write_text(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _renamed(report: VerifyReport, partial: Path, output: Path) -> VerifyReport:
    """The report of the partial directory, under its final name."""
    results = tuple(
        replace(
            result,
            observed=result.observed.replace(partial.name, output.name),
            remedy=result.remedy.replace(partial.name, output.name),
        )
        for result in report.results
    )
    return replace(report, directory=str(output), results=results)


def _check_copy(
    checkpoint: Checkpoint, draft: RepairDraft, partial: Path, engine: TargetEngine, only: Collection[str]
) -> VerifyReport:
    """The original did not change meanwhile, the reference library opens every new shard, and the copy verifies."""
    changed = changed_files(checkpoint)
    if changed:
        raise StorageError(
            f"{checkpoint.directory} changed while it was repaired: {', '.join(changed[:3])}",
            hint="wait until nothing writes to it, then repair again",
        )
    for name, pieces in draft.shards.items():
        try:
            with safe_open(partial / name, framework="numpy") as opened:
                same = set(opened.keys()) == {piece.name for piece in pieces}
        except SafetensorError as error:
            raise StorageError(f"{name} was not written completely: {error}", hint="check the disk") from None
        if not same:
            raise StorageError(f"{name} was not written completely", hint="check the disk")
    report = verify_checkpoint(partial, vllm=engine.vllm, transformers=engine.transformers)
    if report.failures and not only:
        raise CheckpointRefused(
            f"the repaired copy would still fail: {faults_line(report.failures)}", hint="report this as a defect"
        )
    return report


# The repairs: each edits the draft, and reports what it changed.

TEMPLATE_TOKENS = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def repair_quantization_keys(draft: RepairDraft) -> list[CheckpointEdit]:
    settings = draft.documents.get("config.json", {}).get("quantization_config")
    if not draft.target.refuses_dtype_keys or not isinstance(settings, dict):
        return []
    stripped = []
    for path, args in quantization_args(settings):
        for key in DTYPE_KEYS:
            if key in args:
                del args[key]
                stripped.append(f"{path}.{key}")
    if not stripped:
        return []
    return [CheckpointEdit(check="quantization-keys", file="config.json", detail=f"stripped {', '.join(stripped)}")]


def repair_rope_theta(draft: RepairDraft) -> list[CheckpointEdit]:
    config = draft.documents.get("config.json", {})
    nested = rope_parameters(config)
    if "rope_theta" not in nested or config.get("rope_theta") is not None or draft.target.transformers == 5:
        return []
    # partial_rotary_factor moved with it, and is the same trap for a model whose value is not the default.
    keys = [key for key in ("rope_theta", "partial_rotary_factor") if key in nested and config.get(key) is None]
    _set(config, {key: nested[key] for key in keys})
    detail = ", ".join(f"{key} {nested[key]}" for key in keys) + " also written at the top level"
    return [CheckpointEdit(check="rope-theta", file="config.json", detail=detail)]


def repair_tokenizer_class(draft: RepairDraft) -> list[CheckpointEdit]:
    settings = draft.documents.get("tokenizer_config.json")
    if settings is None or draft.target.transformers == 5:
        return []
    details = []
    if settings.get("tokenizer_class") == TRANSFORMERS_5_TOKENIZER:
        settings["tokenizer_class"] = PLAIN_TOKENIZER
        details.append(f"tokenizer_class {PLAIN_TOKENIZER}")
    if isinstance(settings.get("extra_special_tokens"), list):
        extra = settings.pop("extra_special_tokens")
        _set(settings, {"additional_special_tokens": settings.get("additional_special_tokens") or extra})
        details.append(f"{len(extra)} extra_special_tokens under their older name")
    return [CheckpointEdit(check="tokenizer-class", file="tokenizer_config.json", detail=detail) for detail in details]


def repair_eos_ids(draft: RepairDraft) -> list[CheckpointEdit]:
    if stops(draft.checkpoint, draft.target).status not in (Status.FAIL, Status.WARN):
        return []
    wanted = tuple(stop_ids(draft.checkpoint).values())
    changes = []
    config = draft.documents.setdefault("config.json", {})
    generation = draft.documents.setdefault("generation_config.json", {})
    for name, document in (("config.json", config), ("generation_config.json", generation)):
        present = eos_ids(document) or ()
        ids = [*present, *(number for number in wanted if number not in present)]
        if document.get("eos_token_id") != ids:
            _set(document, {"eos_token_id": ids})
            changes.append(CheckpointEdit(check="eos-ids", file=name, detail=f"eos_token_id {ids}"))
    if generation.get("pad_token_id") is None and type(config.get("pad_token_id")) is int:
        _set(generation, {"pad_token_id": config["pad_token_id"]})
    return changes


def repair_chat_template(draft: RepairDraft) -> list[CheckpointEdit]:
    tokens = added_tokens(draft.checkpoint)
    if draft.checkpoint.chat_template or not all(token in tokens for token in TEMPLATE_TOKENS):
        return []
    draft.texts["chat_template.jinja"] = template_path("tools/glm4_chat_template.jinja").read_text(encoding="utf-8")
    return [CheckpointEdit(check="chat-template", file="chat_template.jinja", detail="GLM-4's chat format, with tools")]


def repair_gate_up(draft: RepairDraft) -> list[CheckpointEdit]:
    """Split or join the gate and up projections, in their shards, in the index and in the ignore list."""
    checkpoint, changes = draft.checkpoint, []
    if draft.target.gate_up is GateUp.SPLIT_IF_NVFP4:
        layers, reshaped, how = fused_nvfp4(checkpoint), split_fused(checkpoint), "separate gate_proj and up_proj"
    elif draft.target.gate_up is GateUp.FUSED:
        layers, reshaped, how = split_layers(checkpoint), join_split(checkpoint), "gate_up_proj fused"
    else:
        return []
    for name, pieces in reshaped.items():
        draft.shards[name] = pieces
        changes.append(CheckpointEdit(check="gate-up", file=name, detail=how))
    if not changes:
        return []
    changes[0] = replace(changes[0], detail=f"{how}, {plural(len(layers), 'layer')}")
    if draft.target.gate_up is GateUp.FUSED:
        _rename_ignored(draft.documents.get("config.json", {}))
    index = draft.documents.get(INDEX)
    if index is not None:
        _rewrite_index(index, checkpoint, draft.shards)
        changes.append(CheckpointEdit(check="gate-up", file=INDEX, detail="the new names"))
    return changes


def _rewrite_index(index: dict[str, Any], checkpoint: Checkpoint, shards: Mapping[str, list[Piece]]) -> None:
    contents = {shard.file.name: pieces_of(shard.header.tensors) for shard in checkpoint.shards} | dict(shards)
    index["weight_map"] = dict(sorted((piece.name, shard) for shard, pieces in contents.items() for piece in pieces))
    if isinstance(index.get("metadata"), dict) and "total_size" in index["metadata"]:
        index["metadata"]["total_size"] = sum(piece.nbytes for pieces in contents.values() for piece in pieces)


def _rename_ignored(config: Mapping[str, Any]) -> None:
    """`ignore` names modules, so when gate and up are joined, their names there must be too."""
    settings = config.get("quantization_config")
    ignored = settings.get("ignore") if isinstance(settings, dict) else None
    if isinstance(settings, dict) and isinstance(ignored, list):
        renamed = (str(name).replace(GATE, GATE_UP).replace(UP, GATE_UP) for name in ignored)
        settings["ignore"] = list(dict.fromkeys(renamed))


def _set(document: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Set keys; a sorted document stays sorted."""
    in_order = list(document) == sorted(document)
    document.update(values)
    if in_order:
        items = sorted(document.items())
        document.clear()
        document.update(items)


Repair: TypeAlias = Callable[[RepairDraft], list[CheckpointEdit]]
REPAIRS: Mapping[str, Repair] = {
    "gate-up": repair_gate_up,
    "quantization-keys": repair_quantization_keys,
    "rope-theta": repair_rope_theta,
    "tokenizer-class": repair_tokenizer_class,
    "eos-ids": repair_eos_ids,
    "chat-template": repair_chat_template,
}
