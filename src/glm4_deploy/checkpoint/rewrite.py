"""Split and join gate_up_proj without loss, and write shards: only names, shapes and the order of bytes change.

Rows of a safetensors tensor follow one another, so the gate is the first half of the fused bytes and the up projection
the second; the two global scales of the fused layer serve both.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glm4_deploy.checkpoint.header import DTYPE_BITS, Tensor
from glm4_deploy.checkpoint.model import GATE, GATE_UP, UP, fused_nvfp4
from glm4_deploy.checkpoint.read import Checkpoint, open_file
from glm4_deploy.errors import StorageError

SHARED = ("weight_global_scale", "input_global_scale")  # tensors that gate and up have in common when fused


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`nbytes` bytes from `start` of the shard named `shard`."""

    shard: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A tensor to write: the bytes of its sources, one after another."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]

    @property
    def nbytes(self) -> int:
        return sum(source.nbytes for source in self.sources)


class LossyError(ValueError):
    """Why the layers cannot be changed without loss, in one phrase."""


def pieces_of(tensors: Iterable[Tensor]) -> list[Piece]:
    """Tensors, unchanged."""
    return [
        Piece(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            sources=(Source(shard=tensor.shard, start=tensor.start, nbytes=tensor.nbytes),),
        )
        for tensor in tensors
    ]


def split_fused(checkpoint: Checkpoint) -> dict[str, list[Piece]]:
    """The shards that contain fused NVFP4 layers, with these split. Raises LossyError."""
    fused = frozenset(fused_nvfp4(checkpoint))
    changed: dict[str, list[Piece]] = {}
    for shard in checkpoint.shards:
        if any(_layer(tensor.name) in fused for tensor in shard.header.tensors):
            pieces = pieces_of(shard.header.tensors)
            changed[shard.file.name] = [
                part for piece in pieces for part in (split(piece) if _layer(piece.name) in fused else (piece,))
            ]
    return changed


def join_split(checkpoint: Checkpoint) -> dict[str, list[Piece]]:
    """The shards that contain split layers, with these joined in the gate's shard. Raises LossyError, OSError."""
    paths = {shard.file.name: shard.file.path for shard in checkpoint.shards}
    by_name = {piece.name: piece for piece in pieces_of(checkpoint.tensors)}
    changed: dict[str, list[Piece]] = {}
    for shard in checkpoint.shards:
        joined: list[Piece] = []
        for piece in pieces_of(shard.header.tensors):
            layer, _, part = piece.name.rpartition(".")
            if layer.endswith(GATE):
                up = by_name.get(f"{layer.removesuffix(GATE)}{UP}.{part}")
                if up is None:
                    raise LossyError(f"{piece.name} has no counterpart in {UP}")
                same = part not in SHARED or _bytes(piece, paths) == _bytes(up, paths)
                joined.append(join(piece, up, same_bytes=same))
            elif not layer.endswith(UP):
                joined.append(piece)
        if [piece.name for piece in joined] != [tensor.name for tensor in shard.header.tensors]:
            changed[shard.file.name] = joined
    return changed


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _bytes(piece: Piece, paths: Mapping[str, Path]) -> bytes:
    """The content of a small tensor."""
    (source,) = piece.sources
    with open_file(paths[source.shard]) as file:
        file.seek(source.start)
        return file.read(source.nbytes)


def split(piece: Piece) -> tuple[Piece, ...]:
    """A tensor of a fused `…mlp.gate_up_proj` as gate's and up's; any other unchanged. Raises LossyError."""
    layer, _, part = piece.name.rpartition(".")
    if not layer.endswith(GATE_UP):
        return (piece,)
    prefix = layer.removesuffix(GATE_UP)
    names = (f"{prefix}{GATE}.{part}", f"{prefix}{UP}.{part}")
    if part in SHARED:
        return tuple(replace(piece, name=name) for name in names)
    if not piece.shape or piece.shape[0] % 2:
        raise LossyError(f"{piece.name} has {piece.shape[0] if piece.shape else 'no'} rows: it has no equal halves")
    shape = (piece.shape[0] // 2, *piece.shape[1:])
    return tuple(
        Piece(name=name, dtype=piece.dtype, shape=shape, sources=half)
        for name, half in zip(names, _halves(piece), strict=True)
    )


def _halves(piece: Piece) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    (source,) = piece.sources
    half = source.nbytes // 2
    return (replace(source, nbytes=half),), (replace(source, start=source.start + half, nbytes=half),)


def join(gate: Piece, up: Piece, *, same_bytes: bool) -> Piece:
    """A tensor of gate and its counterpart of up as the fused one.

    Args:
        same_bytes: both have the same content, as a scale that serves both must.

    Raises:
        LossyError: they do not fit together.
    """
    part = gate.name.rpartition(".")[2]
    name = f"{gate.name.removesuffix(f'{GATE}.{part}')}{GATE_UP}.{part}"
    if gate.dtype != up.dtype or gate.shape != up.shape or not gate.shape:
        raise LossyError(f"{gate.name} and {up.name} differ in dtype or shape")
    if part in SHARED:
        if not same_bytes:
            raise LossyError(f"{gate.name} and {up.name} differ: one scale cannot serve both")
        return replace(gate, name=name)
    shape = (2 * gate.shape[0], *gate.shape[1:])
    return Piece(name=name, dtype=gate.dtype, shape=shape, sources=gate.sources + up.sources)


# Write a safetensors file from pieces of others, byte for byte, without holding a tensor in memory. The layout is the
# reference serialiser's (widest dtype first, then by name; header padded to 8 bytes), so a file that it wrote is the
# same file after a split and a join.

CHUNK = 64 << 20  # bytes per system call: small enough for progress and Ctrl-C
FALLBACK_CHUNK = 4 << 20
WRITEBACK = 1 << 20  # less than this is not worth a call: it goes out with the fsync
WIDTH_ORDER = {dtype: index for index, dtype in enumerate(DTYPE_BITS)}
# The kernel or file system cannot copy between these two files.
NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


def _header(pieces: Sequence[Piece], metadata: Mapping[str, str]) -> bytes:
    """The length prefix and the header JSON for tensors that follow in this order."""
    document: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for piece in pieces:
        end = position + piece.nbytes
        document[piece.name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def write_shard(
    path: Path,
    pieces: Iterable[Piece],
    *,
    metadata: Mapping[str, str],
    shards: Mapping[str, Path],
    progress: Callable[[int], None],
) -> None:
    """Write and fsync a new safetensors file.

    Args:
        shards: paths of the sources' shards, by name.
        progress: called with the number of bytes just written.

    Raises:
        StorageError: it cannot be written, or a source ends early.
        FileExistsError: `path` exists already.
    """
    pieces = sorted(pieces, key=lambda piece: (-WIDTH_ORDER[piece.dtype], piece.name))
    head = _header(pieces, metadata)
    used = {source.shard for piece in pieces for source in piece.sources}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open_file(shards[name])) for name in used}
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        stack.callback(os.close, target)
        try:
            _reserve(target, len(head) + sum(piece.nbytes for piece in pieces))
            _write_all(target, head)
            for source in _merged(source for piece in pieces for source in piece.sources):
                _copy(files[source.shard].fileno(), target, source, progress)
            os.fsync(target)
        except OSError as error:
            raise storage_error(path, error) from None


def storage_error(path: Path, error: OSError) -> StorageError:
    """The error for a failed write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "free some space, or give --output on another disk" if full else "check the disk and its permissions"
    return StorageError(f"cannot write {path}: {error.strerror or error}", hint=hint)


def _reserve(target: int, size: int) -> None:
    """Allocate the space first, so that a full disk fails before a byte is copied."""
    try:
        os.posix_fallocate(target, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def _write_all(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _merged(sources: Iterable[Source]) -> Iterable[Source]:
    """Combine adjacent sources, so that most of a shard is copied in a few calls."""
    pending: Source | None = None
    for source in sources:
        if pending and pending.shard == source.shard and pending.start + pending.nbytes == source.start:
            pending = Source(shard=pending.shard, start=pending.start, nbytes=pending.nbytes + source.nbytes)
        else:
            if pending:
                yield pending
            pending = source
    if pending:
        yield pending


def _copy(origin: int, target: int, source: Source, progress: Callable[[int], None]) -> None:
    position, left = source.start, source.nbytes
    in_kernel = True
    while left:
        if in_kernel:
            try:
                count = os.copy_file_range(origin, target, min(left, CHUNK), position)
            except OSError as error:
                if error.errno not in NO_KERNEL_COPY:
                    raise
                in_kernel = False
                continue
        else:
            data = os.pread(origin, min(left, FALLBACK_CHUNK), position)
            count = os.write(target, data)
        if count == 0 and in_kernel:
            in_kernel = False  # some file systems return 0 without copying: read() shows whether this is the end
            continue
        if count == 0:
            raise OSError(errno.EIO, f"{source.shard} ends early: it changed while it was read")
        position, left = position + count, left - count
        _start_writeback(target, count)
        progress(count)


def _start_writeback(target: int, count: int) -> None:
    """Let the disk write while the next chunk is copied, so that the final fsync has little left to do.

    Advised that the last `count` bytes are no longer needed, Linux starts to write them out. This is only advice: fsync
    is what guarantees that they reach the disk.
    """
    if count >= WRITEBACK:
        with contextlib.suppress(OSError):
            os.posix_fadvise(target, os.lseek(target, 0, os.SEEK_CUR) - count, count, os.POSIX_FADV_DONTNEED)
