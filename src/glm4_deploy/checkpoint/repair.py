"""Make a checkpoint that the engine loads out of one that it would not: a new directory, the old one untouched.

Crash-safe: all is written under DIR2.partial-…, synced to disk, opened with the reference library and verified, and
only then renamed. Files that do not change are hard links where the file system allows it.
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
from typing import Any

from safetensors import SafetensorError, safe_open

from glm4_deploy.catalog.images import Version
from glm4_deploy.checkpoint import manifest
from glm4_deploy.checkpoint.fuse import LossyError
from glm4_deploy.checkpoint.mends import MENDS, Change, Draft
from glm4_deploy.checkpoint.target import Target, default_version, target
from glm4_deploy.checkpoint.verify import RULES, Report, changed_files, verify
from glm4_deploy.checkpoint.writer import storage_error, write_shard
from glm4_deploy.errors import CheckpointRefused, StorageError, UsageError
from glm4_deploy.facts.checkpoint import Checkpoint, File, read_checkpoint
from glm4_deploy.result import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done. `report` judges the new directory; `left_out` are entries that were not carried over."""

    output: str
    changes: tuple[Change, ...]
    written: tuple[str, ...]
    linked: tuple[str, ...]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    report: Report


def repair(
    directory: Path,
    output: Path,
    *,
    vllm: Version | None = None,
    only: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Write a repaired copy of `directory` to `output`.

    With nothing to repair the copy is made all the same (of links), so that `output` is there after every success.

    Args:
        vllm: the engine it is for; default: that of the kit's default image.
        only: findings to mend (keys of MENDS); default: all.
        progress: called with (bytes written, bytes to write).

    Raises:
        ModelMissing: no checkpoint there.
        CheckpointRefused: it has a fault that no repair can mend.
        StorageError: it cannot be written; nothing is left behind.
        UsageError: `output` is there already, or `only` names what is no mend.
    """
    engine = target(vllm or default_version())
    check_output(directory, output)
    checkpoint = read_checkpoint(directory)
    _refuse_the_unmendable(checkpoint, engine)
    draft, changes = plan(checkpoint, engine, only=only)
    partial = output.parent / f"{output.name}.partial-{secrets.token_hex(4)}"
    try:
        partial.mkdir()
        placed = _write(checkpoint, draft, partial, progress or (lambda _done, _total: None))
        report = _prove(checkpoint, draft, partial, engine, only)
        partial.rename(output)
        _sync_directory(output.parent)
    except OSError as error:
        raise storage_error(output, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Outcome(
        output=str(output),
        changes=changes,
        written=tuple(placed["written"]),
        linked=tuple(placed["linked"]),
        copied=tuple(placed["copied"]),
        left_out=tuple(placed["left out"]),
        report=_renamed(report, partial, output),
    )


def plan(checkpoint: Checkpoint, engine: Target, *, only: Collection[str] = ()) -> tuple[Draft, tuple[Change, ...]]:
    """What repair would change: files as they are to be, and a line for each change. Writes nothing.

    Raises:
        CheckpointRefused: gate and up cannot be changed without loss.
        UsageError: `only` names what is no mend.
    """
    strange = [name for name in only if name not in MENDS]
    if strange:
        raise UsageError(f"{strange[0]!r} is nothing that repair mends", hint=f"choose from {', '.join(MENDS)}")
    documents = {name: document for name, document in checkpoint.documents.items() if name != "tokenizer.json"}
    draft = Draft(checkpoint=checkpoint, target=engine, documents=copy.deepcopy(_plain(documents)), texts={}, shards={})
    try:
        changes = [change for name, mend in MENDS.items() if not only or name in only for change in mend(draft)]
    except LossyError as error:
        raise CheckpointRefused(f"cannot repair without loss: {error}", hint="quantise the model again") from None
    for name, document in draft.documents.items():
        if document != checkpoint.documents.get(name):
            draft.texts[name] = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return draft, tuple(changes)


def _plain(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(document) for name, document in documents.items()}


def check_output(directory: Path, output: Path) -> None:
    """Raises UsageError: `output` is there already, lies within `directory`, or has no parent."""
    if output.resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"{output} lies within {directory}", hint="give --output a place outside the checkpoint")
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise UsageError(f"{output} is there already", hint="name a new directory; repair overwrites nothing")
    if not output.parent.is_dir():
        raise UsageError(f"no directory {output.parent}", hint=f"mkdir -p {output.parent}")


def _refuse_the_unmendable(checkpoint: Checkpoint, engine: Target) -> None:
    """A checkpoint that would still fail after every mend is not given the looks of a good one."""
    failed = [result for rule in RULES if (result := rule(checkpoint, engine)).status is Status.FAIL]
    lost = [result for result in failed if result.check not in MENDS]
    if not lost:
        mended = {change.check for change in plan(checkpoint, engine)[1]}
        lost = [result for result in failed if result.check not in mended]
    if lost:
        told = "; ".join(f"{result.check}: {result.observed}" for result in lost)
        raise CheckpointRefused(f"no repair can mend this: {told}", hint=lost[0].remedy)


def _write(
    checkpoint: Checkpoint, draft: Draft, partial: Path, progress: Callable[[int, int], None]
) -> dict[str, list[str]]:
    """Fill the new directory. Returns file names by how they came there."""
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
        if file.name == manifest.NAME:
            placed["left out"].append(file.name)  # its digests are those of the old files
        else:
            placed["linked" if _link(file, partial / file.name) else "copied"].append(file.name)
    _sync_directory(partial)
    return placed


def _write_shards(checkpoint: Checkpoint, draft: Draft, partial: Path, progress: Callable[[int, int], None]) -> None:
    """Raises StorageError; OSError where there is not the room."""
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


def _link(file: File, target_path: Path) -> bool:
    """A hard link, or else a copy."""
    origin = file.path.resolve()
    try:
        os.link(origin, target_path)
    except OSError:
        shutil.copyfile(origin, target_path)
        with target_path.open("rb") as copied:
            os.fsync(copied.fileno())
        return False
    return True


def _write_text(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _renamed(report: Report, partial: Path, output: Path) -> Report:
    """What was found under the name of the moment, told of the name that it has now."""
    results = tuple(
        replace(
            result,
            observed=result.observed.replace(partial.name, output.name),
            remedy=result.remedy.replace(partial.name, output.name),
        )
        for result in report.results
    )
    return replace(report, directory=str(output), results=results)


def _prove(checkpoint: Checkpoint, draft: Draft, partial: Path, engine: Target, only: Collection[str]) -> Report:
    """The original did not change meanwhile, the reference library opens every new shard, and verify agrees."""
    changed = changed_files(checkpoint)
    if changed:
        raise StorageError(
            f"{checkpoint.directory} changed while it was repaired: {', '.join(changed[:3])}",
            hint="wait until nobody writes there, then repair again",
        )
    for name, pieces in draft.shards.items():
        try:
            with safe_open(partial / name, framework="numpy") as opened:
                same = set(opened.keys()) == {piece.name for piece in pieces}
        except SafetensorError as error:
            raise StorageError(f"{name} was not written whole: {error}", hint="check the disk") from None
        if not same:
            raise StorageError(f"{name} was not written whole", hint="check the disk")
    report = verify(partial, vllm=engine.vllm)
    if report.failures and not only:
        told = "; ".join(f"{result.check}: {result.observed}" for result in report.failures)
        raise CheckpointRefused(f"the repaired copy would still fail: {told}", hint="report this")
    return report
