"""Are the files whole? Links, Git LFS pointers, headers, the index, a download that is still under way."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from glm4_deploy.checkpoint.model import Rule, TargetEngine, bad, listed, ok, plural, skipped
from glm4_deploy.checkpoint.read import INDEX, PICKLE_SUFFIXES, Checkpoint, Fault, FaultKind, Link
from glm4_deploy.result import Result, Status

DOWNLOAD_AGAIN = "download these files again"


def _told(faults: list[Fault]) -> list[str]:
    return [f"{fault.file!r}: {fault.reason}" for fault in faults]


def _of(checkpoint: Checkpoint, *kinds: FaultKind) -> list[Fault]:
    return [fault for fault in checkpoint.faults if fault.kind in kinds]


def links(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """Docker mounts one directory: what a link out of it leads to is not there in the container."""
    told = _told(_of(checkpoint, FaultKind.LINK))
    if told:
        return bad(
            "links",
            Status.FAIL,
            listed(told),
            expected="no symlink out of the directory",
            why="not followed: only this directory is mounted into the container",
            remedy="replace the links by the files themselves (cp -rL DIR DIR2)",
            items=told,
        )
    hub = [repr(file.name) for file in checkpoint.files if file.link is Link.HUB]
    if hub:
        return bad(
            "links",
            Status.WARN,
            f"a snapshot of the Hugging Face cache: {plural(len(hub), 'file')} are links into ../../blobs",
            why="a container that mounts only this directory finds dead links",
            remedy="mount the cache's models--… directory as a whole, or copy with cp -rL",
            items=hub,
        )
    return ok("links", "no symlink leads out of the directory")


def lfs_pointers(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    told = _told(_of(checkpoint, FaultKind.LFS_POINTER))
    if not told:
        return ok("lfs-pointers", "none")
    return bad(
        "lfs-pointers",
        Status.FAIL,
        listed(told),
        why="git cloned the repository without its large files; the engine ends with HeaderTooLarge or bad JSON",
        remedy="in the clone: git lfs install && git lfs pull",
        items=told,
    )


def readable(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    told = _told(_of(checkpoint, FaultKind.UNREADABLE, FaultKind.MALFORMED, FaultKind.TOO_LARGE))
    if not told:
        return ok("files-readable", plural(len(checkpoint.files), "file"))
    unreadable = bool(_of(checkpoint, FaultKind.UNREADABLE))
    return bad(
        "files-readable",
        Status.FAIL,
        listed(told),
        why="the engine reads these files at its start",
        remedy="check permissions and the disk (dmesg)" if unreadable else DOWNLOAD_AGAIN,
        items=told,
    )


def file_modes(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """save_pretrained of Transformers 5 writes weights with mode 0600."""
    private = [f"{file.name!r}: mode {file.mode:04o}" for file in checkpoint.files if not file.mode & 0o004]
    if not private:
        return ok("file-modes", "readable by every user")
    return bad(
        "file-modes",
        Status.WARN,
        listed(private),
        expected="readable by every user",
        why="a container with another user, or root without capabilities, gets Permission denied",
        remedy="chmod a+r the files",
        items=private,
    )


def being_written(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    partial = [repr(name) for name in checkpoint.unfinished]
    sparse = [
        f"{shard.file.name!r}: {shard.file.allocated} of {shard.file.size} bytes on disk"
        for shard in checkpoint.shards
        if shard.file.allocated < shard.file.size // 2
    ]
    if not partial and not sparse:
        return ok("being-written", "no sign of an unfinished download")
    return bad(
        "being-written",
        Status.WARN,
        listed(partial + sparse),
        why="a download or copy seems to be under way, or was cut off" if partial else "a file that is half empty",
        remedy="wait for it to end, then verify again with --full",
        items=partial + sparse,
    )


def weights_format(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """Safetensors or nothing: a pickle runs code when it is loaded."""
    pickles = [file.name for file in checkpoint.files if file.name.endswith(PICKLE_SUFFIXES)]
    shown = [repr(name) for name in pickles]
    count = sum(name.endswith(".safetensors") for name in (file.name for file in checkpoint.files))
    count += sum(fault.file.endswith(".safetensors") for fault in _of(checkpoint, FaultKind.LINK))
    if count == 0:
        return bad(
            "weights-format",
            Status.FAIL,
            f"no .safetensors file, but {listed(shown)}" if pickles else "no weights: no .safetensors file",
            why="a pickle can run any code when it is loaded: refused" if pickles else "there is nothing to load",
            remedy="get the safetensors version of this checkpoint",
        )
    weights = [name for name in pickles if name.startswith(("pytorch_model", "model", "consolidated"))]
    if weights:
        return bad(
            "weights-format",
            Status.WARN,
            f"pickled weights beside safetensors: {listed([repr(name) for name in weights])}",
            why="never read here; another loader may prefer them and run code from them",
            remedy="delete the pickles",
        )
    return ok("weights-format", plural(count, "safetensors file"))


def shard_headers(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    told = _told(_of(checkpoint, FaultKind.HEADER))
    if told:
        return bad(
            "shard-headers",
            Status.FAIL,
            listed(told),
            why="the engine ends with HeaderTooLarge, InvalidHeader or MetadataIncompleteBuffer",
            remedy=DOWNLOAD_AGAIN,
            items=told,
        )
    if not checkpoint.shards:
        return skipped("shard-headers", "no shard could be read")
    return ok("shard-headers", f"{plural(len(checkpoint.shards), 'shard')}, {len(checkpoint.tensors)} tensors")


def duplicate_tensors(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    counts = Counter(tensor.name for tensor in checkpoint.tensors)
    twice = [repr(name) for name, count in counts.items() if count > 1]
    if not checkpoint.shards:
        return skipped("duplicate-tensors", "no shard could be read")
    if not twice:
        return ok("duplicate-tensors", "none")
    return bad(
        "duplicate-tensors",
        Status.FAIL,
        f"in more than one shard: {listed(twice)}",
        why="which copy wins depends on the order of loading (a consolidated file beside the shards?)",
        remedy="remove the shards that the index does not name",
        items=twice,
    )


def index(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """The index, where there is one, must say what the shards say."""
    document = checkpoint.documents.get(INDEX)
    if document is None:
        return _no_index(checkpoint)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        return bad(
            "index", Status.FAIL, f"{INDEX} has no weight_map", why="the engine reads it first", remedy=DOWNLOAD_AGAIN
        )
    lies = _index_lies(checkpoint, weight_map)
    spare = [repr(shard.file.name) for shard in checkpoint.spare_shards]
    if spare and not lies:
        return bad(
            "index",
            Status.WARN,
            f"safetensors that the index does not name: {listed(spare)}",
            why="the engine does not load them; they only take room",
            remedy="delete them if nothing else needs them",
            items=spare,
        )
    if not lies:
        return ok("index", f"{len(weight_map)} tensors, as in the shards")
    return bad(
        "index",
        Status.FAIL,
        listed(lies),
        expected="every tensor in the shard that the index names",
        why="the engine loads only the shards that the index names, and stops or leaves weights unset",
        remedy="download the missing shards, or the index, again",
        items=lies,
    )


def _no_index(checkpoint: Checkpoint) -> Result:
    if any(fault.file == INDEX for fault in checkpoint.faults):
        return skipped("index", f"{INDEX} could not be read")
    if len(checkpoint.shards) > 1 and checkpoint.file("model.safetensors") is None:
        return bad(
            "index",
            Status.WARN,
            f"{len(checkpoint.shards)} shards and no {INDEX}",
            why="a missing shard would go unnoticed by the engine",
            remedy=DOWNLOAD_AGAIN,
        )
    return ok("index", "not needed: one file")


def _index_lies(checkpoint: Checkpoint, weight_map: Mapping[str, Any]) -> list[str]:
    shards = {shard.file.name for shard in checkpoint.shards}
    present = {fault.file for fault in checkpoint.faults} | {file.name for file in checkpoint.files}
    lies = [f"shard {name!r} is missing" for name in dict.fromkeys(weight_map.values()) if name not in present]
    held = {(tensor.name, tensor.shard) for tensor in checkpoint.tensors}
    lies += [
        f"{name!r} is not in {shard!r}"
        for name, shard in weight_map.items()
        if shard in shards and (name, shard) not in held
    ]
    lies += [f"{name!r} of {shard!r} is not in the index" for name, shard in sorted(held) if name not in weight_map]
    return lies


FILE_RULES: tuple[Rule, ...] = (
    links,
    lfs_pointers,
    readable,
    weights_format,
    shard_headers,
    index,
    duplicate_tensors,
    being_written,
    file_modes,
)
