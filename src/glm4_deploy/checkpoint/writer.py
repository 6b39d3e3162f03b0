"""Write a safetensors file out of pieces of others, byte for byte, without holding a tensor in memory.

The layout is the reference serialiser's own (widest dtype first, then by name; header padded to 8 bytes), so a file
that was written by it, taken apart and put together again is the same file.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm4_deploy.errors import StorageError
from glm4_deploy.facts.checkpoint import open_file
from glm4_deploy.facts.checkpoint_header import DTYPE_BITS

CHUNK = 64 << 20  # bytes a system call: often enough for progress and Ctrl-C
FALLBACK_CHUNK = 4 << 20
WRITEBACK = 1 << 20  # less than this is not worth a call: it goes out with the fsync
WIDTH_ORDER = {dtype: index for index, dtype in enumerate(DTYPE_BITS)}
# The kernel or file system cannot copy between these two files by itself.
NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`nbytes` bytes from `start` of the shard named `shard`."""

    shard: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A tensor to write: its bytes are those of its sources, one after the other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]

    @property
    def nbytes(self) -> int:
        return sum(source.nbytes for source in self.sources)


def ordered(pieces: Iterable[Piece]) -> list[Piece]:
    """In the reference serialiser's order."""
    return sorted(pieces, key=lambda piece: (-WIDTH_ORDER[piece.dtype], piece.name))


def header(pieces: Sequence[Piece], metadata: Mapping[str, str]) -> bytes:
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
        shards: where the sources' shards are.
        progress: called with the number of bytes just written.

    Raises:
        StorageError: it cannot be written, or a source ends early.
        FileExistsError: there is a file already.
    """
    pieces = ordered(pieces)
    head = header(pieces, metadata)
    used = {source.shard for piece in pieces for source in piece.sources}
    files = {name: open_file(shards[name]) for name in used}
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        _reserve(target, len(head) + sum(piece.nbytes for piece in pieces))
        _write_all(target, head)
        for source in _merged(source for piece in pieces for source in piece.sources):
            _copy(files[source.shard].fileno(), target, source, progress)
        os.fsync(target)
    except OSError as error:
        raise storage_error(path, error) from None
    finally:
        os.close(target)
        for file in files.values():
            file.close()


def storage_error(path: Path, error: OSError) -> StorageError:
    """What to tell of a failed write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "free some room, or give --output on another disk" if full else "check the disk and its permissions"
    return StorageError(f"cannot write {path}: {error.strerror or error}", hint=hint)


def _reserve(target: int, size: int) -> None:
    """Ask for the room at once: a full disk is told before a byte is copied."""
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
    """Neighbours on disk as one source: most of a shard goes over in a few calls."""
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
            in_kernel = False  # some file systems copy nothing and say so with 0: read() tells whether it is the end
            continue
        if count == 0:
            raise OSError(errno.EIO, f"{source.shard} ends early: it changed while it was read")
        position, left = position + count, left - count
        _start_writeback(target, count)
        progress(count)


def _start_writeback(target: int, count: int) -> None:
    """Let the disk work while the next chunk is copied, so that the fsync at the end has little left to wait for.

    Told that it will not need the last `count` bytes, Linux begins to write them out; what is still dirty at that
    moment stays in the page cache. It is advice: whether they reach the disk is for fsync to say.
    """
    if count >= WRITEBACK:
        with contextlib.suppress(OSError):
            os.posix_fadvise(target, os.lseek(target, 0, os.SEEK_CUR) - count, count, os.POSIX_FADV_DONTNEED)
