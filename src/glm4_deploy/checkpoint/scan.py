"""Read every byte of the shards once: scales finite and positive, weights finite, no holes; and their SHA-256.

NumPy looks at one buffer while a second thread hashes it (hashlib lets go of the interpreter lock), so that the whole
costs little more than the hash alone. Memory: two buffers of 8 MiB.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from glm4_deploy.checkpoint.header import Tensor
from glm4_deploy.checkpoint.model import GROUP_SIZE, listed, plural
from glm4_deploy.checkpoint.read import Checkpoint, File, Shard, open_file
from glm4_deploy.errors import StorageError
from glm4_deploy.files import write_bytes
from glm4_deploy.result import Result, because, fail, ok, skipped, warn

# A SHA-256 manifest in the format of `sha256sum`, so that `sha256sum -c` reads it too.

NAME = "SHA256SUMS"
MAX_BYTES = 4 << 20
LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")


def manifest_covers(checkpoint: Checkpoint, manifest: Path) -> tuple[File, ...]:
    """The files that a manifest is to name: all of the directory but itself and what is still being downloaded."""
    own = manifest.resolve()
    return tuple(
        file
        for file in checkpoint.files
        if file.name not in checkpoint.unfinished and (checkpoint.directory / file.name).resolve() != own
    )


def digest_file(file: File) -> str:
    """SHA-256 of a file, in hex. Raises OSError."""
    with open_file(file.path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_or_write(manifest: Path, digests: Mapping[str, str], *, damaged: bool) -> Result:
    """Hold `digests` (SHA-256 by file name) against the manifest, or write it where there is none.

    A `damaged` checkpoint is not written down as if it were good.

    Raises:
        StorageError: the manifest cannot be read or written.
    """
    try:
        with open_file(manifest) as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return _write(manifest, digests, damaged=damaged)
    except OSError as error:
        raise StorageError(f"cannot read {manifest}: {error.strerror or error}", hint="check its permissions") from None
    told = parse_manifest(data)
    if told is None:
        return fail(
            f"{manifest.name} is no list of sha256sum",
            "",
            *because("nothing can be held against it"),
            remedy="delete it and verify with --manifest to write a new one",
            check="manifest",
        )
    return _compare(told, digests)


def _compare(told: Mapping[str, str], digests: Mapping[str, str]) -> Result:
    wrong = [f"{name!r} differs" for name, digest in digests.items() if told.get(name, digest) != digest]
    wrong += [f"{name!r} is missing" for name in told if name not in digests]
    if wrong:
        return fail(
            listed(wrong),
            "the bytes that the manifest names",
            *because("these files are not the ones that were written down", wrong),
            remedy="download them again",
            check="manifest",
        )
    new = [repr(name) for name in digests if name not in told]
    if new:
        return warn(
            f"{plural(len(told), 'file')} as written down; not in it: {listed(new)}",
            "",
            *because("nobody vouches for these files", new),
            remedy="delete the manifest and write it again, if you know them",
            check="manifest",
        )
    return ok(f"{plural(len(told), 'file')} as written down", check="manifest")


def parse_manifest(data: bytes) -> dict[str, str] | None:
    """File names to digests; None where it is not such a list."""
    if len(data) > MAX_BYTES:
        return None
    found: dict[str, str] = {}
    for line in data.decode("utf-8", errors="surrogateescape").splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            return None
        name = match[3].replace("\\n", "\n").replace("\\\\", "\\") if match[1] else match[3]
        found[name.removeprefix("./")] = match[2].lower()
    return found or None


def text(digests: Mapping[str, str]) -> str:
    """The manifest's text, sorted by name."""
    return "".join(_line(name, digests[name]) for name in sorted(digests))


def _line(name: str, digest: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _write(manifest: Path, digests: Mapping[str, str], *, damaged: bool) -> Result:
    if damaged:
        return warn(
            "not written",
            "",
            *because("its files are not whole (see above) and are not to be written down as good"),
            remedy="download what is damaged, then verify with --manifest again",
            check="manifest",
        )
    write_bytes(manifest, text(digests).encode("utf-8", errors="surrogateescape"))
    return ok(f"written: {plural(len(digests), 'file')} in {manifest.name}", check="manifest")


Bytes: TypeAlias = NDArray[np.uint8]
Progress: TypeAlias = Callable[[int], None]
BUFFER = 8 << 20
BLOCK = 64 << 10  # a block of packed weights that is all zero is a hole: a trained layer has none
STEP = 1 << 18  # bytes looked at in one go: small enough for the processor's cache
# dtype -> (unsigned type of that width, mask of the sign off, first pattern that is infinite or NaN)
FLOAT_BITS: Mapping[str, tuple[type[np.unsignedinteger], int, int]] = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
}
E4M3_NAN = 0x7F  # above it: the same patterns with the sign bit, so every negative number


@dataclass(slots=True)
class TensorTally:
    """Names of tensors by what is wrong with them. `zero_scales`: to be held against the weights they scale."""

    bad_scales: list[str] = field(default_factory=list)
    zero_scales: list[Tensor] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    all_zero: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    looked_at: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def scan_tensors(
    checkpoint: Checkpoint, *, digest: bool, progress: Progress | None = None
) -> tuple[TensorTally, dict[str, str]]:
    """Look at every tensor. Returns what is wrong, and with `digest` the SHA-256 of each shard by file name.

    Args:
        progress: called with the number of bytes just read.
    """
    tally, digests = TensorTally(), {}
    buffers = (np.empty(BUFFER, np.uint8), np.empty(BUFFER, np.uint8))
    with ThreadPoolExecutor(1) as pool:
        for shard in checkpoint.shards:
            hasher = _Hasher(pool) if digest else None
            try:
                _scan_shard(shard, tally, buffers, hasher, progress or (lambda _: None))
            except OSError as error:
                tally.unreadable.append(f"{shard.file.name}: {error.strerror or error}")
            else:
                if hasher:
                    digests[shard.file.name] = hasher.hexdigest()
    try:
        _zero_scales_that_matter(checkpoint, tally)
    except OSError as error:
        tally.unreadable.append(str(error))
    return tally, digests


class _Hasher:
    """SHA-256 in another thread, at most one buffer behind."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool, self.hash = pool, hashlib.sha256()
        self.pending: Future[None] | None = None

    def update(self, data: Bytes) -> None:
        self.wait()
        self.pending = self.pool.submit(self.hash.update, data.data)

    def wait(self) -> None:
        if self.pending:
            self.pending.result()

    def hexdigest(self) -> str:
        self.wait()
        return self.hash.hexdigest()


def _scan_shard(
    shard: Shard, tally: TensorTally, buffers: tuple[Bytes, Bytes], hasher: _Hasher | None, progress: Progress
) -> None:
    with open_file(shard.file.path) as file:
        if hasher:
            hasher.update(_fill(file, np.empty(shard.header.data_start, np.uint8)))
        file.seek(shard.header.data_start)
        turn = 0
        for tensor in shard.header.tensors:
            look = _Look(tensor, tally)
            for offset in range(0, tensor.nbytes, BUFFER):
                turn ^= 1  # the other buffer: the hash of this one may still be under way
                data = _fill(file, buffers[turn][: min(BUFFER, tensor.nbytes - offset)])
                if hasher:
                    hasher.update(data)
                look.at(data)
                progress(data.size)
            look.end()


def _fill(file: BufferedReader, buffer: Bytes) -> Bytes:
    done, view = 0, buffer.data
    while done < buffer.size:
        count = file.readinto(view[done:])
        if not count:
            raise OSError("ends early: it changed while it was read")
        done += count
    return buffer


class _Look:
    """What is seen of one tensor, buffer by buffer."""

    def __init__(self, tensor: Tensor, tally: TensorTally) -> None:
        self.tensor, self.tally = tensor, tally
        self.seen_nonzero = self.hole = self.wrong = self.zero = False
        name = tensor.name
        self.scale = name.endswith(".weight_scale") and tensor.dtype == "F8_E4M3"
        self.float = FLOAT_BITS.get(tensor.dtype)
        self.matrix = len(tensor.shape) == 2 and name.endswith((".weight", ".weight_packed"))
        # Rows of tokens that were never trained may be zero: no holes are looked for there.
        self.dense = self.matrix and not name.endswith(("embed_tokens.weight", "lm_head.weight"))
        tally.looked_at["scale" if self.scale else "float" if self.float else "packed"] += 1

    def at(self, data: Bytes) -> None:
        if self.scale:
            self.wrong |= int(data.max()) >= E4M3_NAN
            self.zero |= int(data.min()) == 0
        elif self.float:
            self.wrong |= not _finite(data, *self.float)
        self.seen_nonzero = self.seen_nonzero or bool(data[: 4 << 10].any()) or bool(data.any())
        if self.dense and not self.hole:
            self.hole = _has_hole(data)

    def end(self) -> None:
        tensor, tally = self.tensor, self.tally
        if self.wrong:
            (tally.bad_scales if self.scale else tally.not_finite).append(tensor.name)
        if self.scale and self.zero:
            tally.zero_scales.append(tensor)
        elif not self.seen_nonzero and (self.matrix or tensor.name.endswith("norm.weight")):
            tally.all_zero.append(tensor.name)
        elif self.hole:
            tally.holes.append(tensor.name)


def _finite(data: Bytes, kind: type[np.unsignedinteger], mask: int, limit: int) -> bool:
    """No pattern of all-ones exponent. In steps that stay in the cache: a pass over memory costs more than the sum."""
    for start in range(0, data.size, STEP):
        bits = data[start : start + STEP].view(kind) & kind(mask)
        if int(bits.max()) >= limit:
            return False
    return True


def _has_hole(data: Bytes) -> bool:
    """A 64 KiB block of zeros. A sparse sample first: a block whose sample has any bit set is no hole."""
    blocks = data[: data.size // BLOCK * BLOCK].reshape(-1, BLOCK)
    suspects = np.flatnonzero(~blocks[:, ::4093].any(axis=1))
    return any(not blocks[index].any() for index in suspects)


def _zero_scales_that_matter(checkpoint: Checkpoint, tally: TensorTally) -> None:
    """A zero scale is harmless over weights that are zero themselves (a pruned group); else it erases them."""
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
    paths = {shard.file.name: shard.file.path for shard in checkpoint.shards}
    for scale in tally.zero_scales:
        packed = tensors.get(scale.name.removesuffix("weight_scale") + "weight_packed")
        if packed is None or packed.nbytes != scale.nbytes * (GROUP_SIZE // 2):
            continue  # another finding speaks of the shapes
        with open_file(paths[scale.shard]) as scale_file, open_file(paths[packed.shard]) as packed_file:
            scale_file.seek(scale.start)
            packed_file.seek(packed.start)
            for offset in range(0, scale.nbytes, BUFFER // 8):
                count = min(BUFFER // 8, scale.nbytes - offset)
                groups = _fill(packed_file, np.empty(count * 8, np.uint8)).reshape(count, 8)
                zero = _fill(scale_file, np.empty(count, np.uint8)) == 0
                if (groups[zero] & 0x77).any():  # 0x77: both nibbles less their signs
                    tally.bad_scales.append(scale.name)
                    break


def findings(tally: TensorTally) -> tuple[Result, ...]:
    """The rows of `--full`."""
    again = "download the shard again, or quantise again: it cannot be repaired from what is here"
    return (
        _row("bytes-readable", tally.unreadable, "every byte could be read", "the disk or the network failed", again),
        _row(
            "weight-scales",
            sorted(set(tally.bad_scales)),
            f"{plural(tally.looked_at['scale'], 'scale tensor')} finite and positive",
            "a scale that is NaN, negative, or zero over weights that are not: loops and garbage",
            again,
            count=tally.looked_at["scale"],
        ),
        _row(
            "finite-weights",
            tally.not_finite,
            f"{plural(tally.looked_at['float'], 'tensor')} without NaN or infinity",
            "one NaN makes every later number NaN: '!!!!' as the answer",
            again,
            count=tally.looked_at["float"],
        ),
        _row(
            "zero-weights",
            [f"{name}: all zero" for name in tally.all_zero] + [f"{name}: a hole of zeros" for name in tally.holes],
            "no tensor is empty, none has a hole",
            "a download that reserved the room and did not fill it",
            again,
        ),
    )


def _row(check: str, items: list[str], fine: str, why: str, remedy: str, count: int = 1) -> Result:
    if items:
        return fail(listed(items), "", *because(why, items), remedy=remedy, check=check)
    return ok(fine, check=check) if count else skipped("there is none", check=check)
