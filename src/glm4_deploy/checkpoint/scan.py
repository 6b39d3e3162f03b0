"""Read every byte of the shards once: scales finite and positive, weights finite, no holes; and their SHA-256.

NumPy examines one buffer while a second thread hashes it (hashlib releases the interpreter lock), so a scan takes
little longer than the hash alone. Memory: two buffers of 8 MiB.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedReader
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from glm4_deploy.checkpoint.header import Tensor
from glm4_deploy.checkpoint.model import GET_SHARD_AGAIN, GROUP_SIZE, listed, plural
from glm4_deploy.checkpoint.read import Checkpoint, Shard, open_file
from glm4_deploy.result import Result, because, fail, ok, skipped

Bytes: TypeAlias = NDArray[np.uint8]
Progress: TypeAlias = Callable[[int], None]
BUFFER = 8 << 20
BLOCK = 64 << 10  # a block of weights that is all zero is a hole: a trained layer has none
STEP = 1 << 18  # bytes examined at once: small enough for the processor's cache
# dtype -> (unsigned type of that width, mask that clears the sign, first pattern that is infinite or NaN)
FLOAT_BITS: Mapping[str, tuple[type[np.unsignedinteger], int, int]] = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
}
E4M3_NAN = 0x7F  # patterns above it have the sign bit: every negative number


@dataclass(slots=True)
class TensorTally:
    """Names of tensors by what is wrong with them.

    Attributes:
        zero_scales: to be compared with the weights that they scale.
        examined: number of tensors by kind: scale, float, packed.
    """

    bad_scales: list[str] = field(default_factory=list)
    zero_scales: list[Tensor] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    all_zero: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    examined: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def scan_tensors(
    checkpoint: Checkpoint, *, digest: bool, progress: Progress | None = None
) -> tuple[TensorTally, dict[str, str]]:
    """Examine every tensor.

    Args:
        digest: compute the SHA-256 of each shard too.
        progress: called with the number of bytes just read.

    Returns:
        What is wrong, and the digests by file name.
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
        _judge_zero_scales(checkpoint, tally)
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
            examination = _TensorExamination(tensor, tally)
            for offset in range(0, tensor.nbytes, BUFFER):
                turn ^= 1  # the other buffer: this one may still be being hashed
                data = _fill(file, buffers[turn][: min(BUFFER, tensor.nbytes - offset)])
                if hasher:
                    hasher.update(data)
                examination.feed(data)
                progress(data.size)
            examination.close()


def _fill(file: BufferedReader, buffer: Bytes) -> Bytes:
    done, view = 0, buffer.data
    while done < buffer.size:
        count = file.readinto(view[done:])
        if not count:
            raise OSError("ends early: it changed while it was read")
        done += count
    return buffer


class _TensorExamination:
    """Examines one tensor, buffer by buffer."""

    def __init__(self, tensor: Tensor, tally: TensorTally) -> None:
        self.tensor, self.tally = tensor, tally
        self.nonzero = self.hole = self.wrong = self.zero = False
        name = tensor.name
        self.scale = name.endswith(".weight_scale") and tensor.dtype == "F8_E4M3"
        self.float = FLOAT_BITS.get(tensor.dtype)
        self.matrix = len(tensor.shape) == 2 and name.endswith((".weight", ".weight_packed"))
        # Rows of tokens that were never trained may be zero, so these are not searched for holes.
        self.dense = self.matrix and not name.endswith(("embed_tokens.weight", "lm_head.weight"))
        tally.examined["scale" if self.scale else "float" if self.float else "packed"] += 1

    def feed(self, data: Bytes) -> None:
        if self.scale:
            self.wrong |= int(data.max()) >= E4M3_NAN
            self.zero |= int(data.min()) == 0
        elif self.float:
            self.wrong |= not _finite(data, *self.float)
        self.nonzero = self.nonzero or bool(data[: 4 << 10].any()) or bool(data.any())
        if self.dense and not self.hole:
            self.hole = _has_hole(data)

    def close(self) -> None:
        tensor, tally = self.tensor, self.tally
        if self.wrong:
            (tally.bad_scales if self.scale else tally.not_finite).append(tensor.name)
        if self.scale and self.zero:
            tally.zero_scales.append(tensor)
        elif not self.nonzero and (self.matrix or tensor.name.endswith("norm.weight")):
            tally.all_zero.append(tensor.name)
        elif self.hole:
            tally.holes.append(tensor.name)


def _finite(data: Bytes, kind: type[np.unsignedinteger], mask: int, limit: int) -> bool:
    """No exponent of all ones. In steps that stay in the cache: a pass over memory costs more than the arithmetic."""
    for start in range(0, data.size, STEP):
        bits = data[start : start + STEP].view(kind) & kind(mask)
        if int(bits.max()) >= limit:
            return False
    return True


def _has_hole(data: Bytes) -> bool:
    """A 64 KiB block of zeros. A sparse sample comes first: if any of its bits is set, the block is not a hole."""
    blocks = data[: data.size // BLOCK * BLOCK].reshape(-1, BLOCK)
    suspects = np.flatnonzero(~blocks[:, ::4093].any(axis=1))
    return any(not blocks[index].any() for index in suspects)


def _judge_zero_scales(checkpoint: Checkpoint, tally: TensorTally) -> None:
    """A zero scale is harmless over weights that are zero themselves (a pruned group); else it erases them."""
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
    paths = {shard.file.name: shard.file.path for shard in checkpoint.shards}
    for scale in tally.zero_scales:
        packed = tensors.get(scale.name.removesuffix("weight_scale") + "weight_packed")
        if packed is None or packed.nbytes != scale.nbytes * (GROUP_SIZE // 2):
            continue  # the shapes are wrong, which another rule reports
        with open_file(paths[scale.shard]) as scale_file, open_file(paths[packed.shard]) as packed_file:
            scale_file.seek(scale.start)
            packed_file.seek(packed.start)
            for offset in range(0, scale.nbytes, BUFFER // 8):
                count = min(BUFFER // 8, scale.nbytes - offset)
                groups = _fill(packed_file, np.empty(count * 8, np.uint8)).reshape(count, 8)
                zero = _fill(scale_file, np.empty(count, np.uint8)) == 0
                if (groups[zero] & 0x77).any():  # 0x77: both nibbles without their signs
                    tally.bad_scales.append(scale.name)
                    break


def results_of(tally: TensorTally) -> tuple[Result, ...]:
    """The rows of `--full`."""
    return (
        _row("bytes-readable", tally.unreadable, "every byte could be read", "the disk or the network failed"),
        _row(
            "weight-scales",
            sorted(set(tally.bad_scales)),
            f"{plural(tally.examined['scale'], 'scale tensor')} finite and positive",
            "a scale that is NaN, negative, or zero over weights that are not: loops and garbage",
            count=tally.examined["scale"],
        ),
        _row(
            "finite-weights",
            tally.not_finite,
            f"{plural(tally.examined['float'], 'tensor')} without NaN or infinity",
            "one NaN makes every later number NaN: the answer is '!!!!'",
            count=tally.examined["float"],
        ),
        _row(
            "zero-weights",
            [f"{name}: all zero" for name in tally.all_zero] + [f"{name}: a hole of zeros" for name in tally.holes],
            "no tensor is all zero, none has a hole",
            "a download reserved the space and did not fill it",
        ),
    )


def _row(check: str, faults: list[str], fine: str, why: str, count: int = 1) -> Result:
    if faults:
        return fail(listed(faults), "", *because(why, faults), remedy=GET_SHARD_AGAIN, check=check)
    return ok(fine, check=check) if count else skipped("there is none", check=check)
