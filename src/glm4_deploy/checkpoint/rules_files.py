"""Rules for the files: links, Git LFS pointers, headers, the index, a download in progress."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from glm4_deploy.checkpoint.model import Rule, TargetEngine, listed, plural
from glm4_deploy.checkpoint.read import INDEX, PICKLE_SUFFIXES, Checkpoint, FaultKind, Link
from glm4_deploy.result import Result, because, fail, ok, skipped, warn

DOWNLOAD_AGAIN = "download these files again"


def _faults(checkpoint: Checkpoint, *kinds: FaultKind) -> list[str]:
    return [f"{fault.file!r}: {fault.reason}" for fault in checkpoint.faults if fault.kind in kinds]


def links(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """Docker mounts one directory: in the container, a link out of it leads nowhere."""
    faults = _faults(checkpoint, FaultKind.LINK)
    if faults:
        return fail(
            listed(faults),
            "no symlink out of the directory",
            *because("not followed: only this directory is mounted into the container", faults),
            remedy="replace the links with the files themselves (cp -rL DIR DIR2)",
        )
    hub = [repr(file.name) for file in checkpoint.files if file.link is Link.HUB]
    if hub:
        return warn(
            f"a snapshot of the Hugging Face cache: {plural(len(hub), 'file')} are links into ../../blobs",
            "",
            *because("a container that mounts only this directory finds dead links", hub),
            remedy="mount the cache's entire models--… directory, or copy with cp -rL",
        )
    return ok("no symlink leads out of the directory")


def lfs_pointers(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    faults = _faults(checkpoint, FaultKind.LFS_POINTER)
    if not faults:
        return ok("none")
    return fail(
        listed(faults),
        "",
        *because(
            "git cloned the repository without its large files; the engine ends with HeaderTooLarge or bad JSON", faults
        ),
        remedy="in the clone: git lfs install && git lfs pull",
    )


def readable(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    faults = _faults(checkpoint, FaultKind.UNREADABLE, FaultKind.MALFORMED, FaultKind.TOO_LARGE)
    if not faults:
        return ok(plural(len(checkpoint.files), "file"))
    unreadable = bool(_faults(checkpoint, FaultKind.UNREADABLE))
    return fail(
        listed(faults),
        "",
        *because("the engine reads these files when it starts", faults),
        remedy="check permissions and the disk (dmesg)" if unreadable else DOWNLOAD_AGAIN,
    )


def file_modes(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """Transformers 5's save_pretrained writes weights with mode 0600."""
    private = [f"{file.name!r}: mode {file.mode:04o}" for file in checkpoint.files if not file.mode & 0o004]
    if not private:
        return ok("readable by every user")
    return warn(
        listed(private),
        "readable by every user",
        *because("a container run by another user, or by root without capabilities, gets Permission denied", private),
        remedy="chmod a+r the files",
    )


def being_written(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    partial = [repr(name) for name in checkpoint.unfinished]
    sparse = [
        f"{shard.file.name!r}: {shard.file.allocated} of {shard.file.size} bytes on disk"
        for shard in checkpoint.shards
        if shard.file.allocated < shard.file.size // 2
    ]
    if not partial and not sparse:
        return ok("no sign of an unfinished download")
    return warn(
        listed(partial + sparse),
        "",
        *because(
            "a download or copy is in progress, or was interrupted" if partial else "a file is half empty",
            partial + sparse,
        ),
        remedy="wait for it to finish, then verify again with --full",
    )


def weights_format(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """Only safetensors: a pickle runs code when it is loaded."""
    pickles = [file.name for file in checkpoint.files if file.name.endswith(PICKLE_SUFFIXES)]
    shown = [repr(name) for name in pickles]
    count = sum(file.name.endswith(".safetensors") for file in checkpoint.files)
    count += sum(fault.kind is FaultKind.LINK and fault.file.endswith(".safetensors") for fault in checkpoint.faults)
    if count == 0:
        return fail(
            f"no .safetensors file, but {listed(shown)}" if pickles else "no weights: no .safetensors file",
            "",
            *because("a pickle can run any code when it is loaded: refused" if pickles else "there is nothing to load"),
            remedy="get the safetensors version of this checkpoint",
        )
    weights = [name for name in pickles if name.startswith(("pytorch_model", "model", "consolidated"))]
    if weights:
        return warn(
            f"pickled weights beside safetensors: {listed([repr(name) for name in weights])}",
            "",
            *because("they are not read here, but another loader may prefer them and run their code"),
            remedy="delete the pickles",
        )
    return ok(plural(count, "safetensors file"))


def shard_headers(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    faults = _faults(checkpoint, FaultKind.HEADER)
    if faults:
        return fail(
            listed(faults),
            "",
            *because("the engine ends with HeaderTooLarge, InvalidHeader or MetadataIncompleteBuffer", faults),
            remedy=DOWNLOAD_AGAIN,
        )
    if not checkpoint.shards:
        return skipped("no shard could be read")
    return ok(f"{plural(len(checkpoint.shards), 'shard')}, {len(checkpoint.tensors)} tensors")


def duplicate_tensors(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    counts = Counter(tensor.name for tensor in checkpoint.tensors)
    twice = [repr(name) for name, count in counts.items() if count > 1]
    if not checkpoint.shards:
        return skipped("no shard could be read")
    if not twice:
        return ok("none")
    return fail(
        f"in more than one shard: {listed(twice)}",
        "",
        *because("which copy is used depends on the order of loading (a consolidated file beside the shards?)", twice),
        remedy="remove the shards that the index does not name",
    )


def index(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """The index, if there is one, must agree with the shards."""
    document = checkpoint.documents.get(INDEX)
    if document is None:
        return _no_index(checkpoint)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        return fail(
            f"{INDEX} has no weight_map",
            "",
            *because("the engine reads it first"),
            remedy=DOWNLOAD_AGAIN,
        )
    wrong = _index_faults(checkpoint, weight_map)
    spare = [repr(shard.file.name) for shard in checkpoint.spare_shards]
    if spare and not wrong:
        return warn(
            f"safetensors that the index does not name: {listed(spare)}",
            "",
            *because("the engine does not load them; they only take up space", spare),
            remedy="delete them if nothing else needs them",
        )
    if not wrong:
        return ok(f"{len(weight_map)} tensors, as in the shards")
    return fail(
        listed(wrong),
        "every tensor in the shard that the index names",
        *because("the engine loads only the shards that the index names, and stops or leaves weights unset", wrong),
        remedy="download the missing shards, or the index, again",
    )


def _no_index(checkpoint: Checkpoint) -> Result:
    if any(fault.file == INDEX for fault in checkpoint.faults):
        return skipped(f"{INDEX} could not be read")
    if len(checkpoint.shards) > 1 and checkpoint.file("model.safetensors") is None:
        return warn(
            f"{len(checkpoint.shards)} shards and no {INDEX}",
            "",
            *because("a missing shard would go unnoticed by the engine"),
            remedy=DOWNLOAD_AGAIN,
        )
    return ok("not needed: one file")


def _index_faults(checkpoint: Checkpoint, weight_map: Mapping[str, Any]) -> list[str]:
    shards = {shard.file.name for shard in checkpoint.shards}
    present = {fault.file for fault in checkpoint.faults} | {file.name for file in checkpoint.files}
    stored = {(tensor.name, tensor.shard) for tensor in checkpoint.tensors}
    return [
        *(f"shard {name!r} is missing" for name in dict.fromkeys(weight_map.values()) if name not in present),
        *(
            f"{name!r} is not in {shard!r}"
            for name, shard in weight_map.items()
            if shard in shards and (name, shard) not in stored
        ),
        *(f"{name!r} of {shard!r} is not in the index" for name, shard in sorted(stored) if name not in weight_map),
    ]


FILE_RULES: dict[str, Rule] = {
    "links": links,
    "lfs-pointers": lfs_pointers,
    "files-readable": readable,
    "weights-format": weights_format,
    "shard-headers": shard_headers,
    "index": index,
    "duplicate-tensors": duplicate_tensors,
    "being-written": being_written,
    "file-modes": file_modes,
}
