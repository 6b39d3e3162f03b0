"""JSON and safetensors headers from untrusted files: bounded, checked, and with one kind of failure each.

A safetensors file (huggingface/safetensors README): 8 bytes little-endian N, N bytes of JSON, then the data. The JSON
maps each tensor to dtype, shape and [begin, end) within the data; the ranges cover the data without hole or overlap.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError

MAX_DEPTH = 64  # config.json has 5 levels; copying and writing a document recurses a frame or two per level


class MalformedJsonError(ValueError):
    """Why a text is not the expected JSON object, in one phrase."""


def parse_object(data: bytes, *, unique: bool = True) -> dict[str, Any]:
    """Parse a JSON object. The caller bounds the size of `data`.

    Args:
        unique: refuse duplicate keys, and nesting deeper than MAX_DEPTH.

    Raises:
        MalformedJsonError: not UTF-8, not JSON, nested too deeply, a number too long, a duplicate key, not an object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique if unique else None)
    except MalformedJsonError:
        raise
    except UnicodeDecodeError as error:
        raise MalformedJsonError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise MalformedJsonError(f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise MalformedJsonError("nested too deeply") from None
    except ValueError:
        # CPython refuses integers of more than 4300 digits; its message suggests sys.set_int_max_str_digits.
        raise MalformedJsonError("has an integer of thousands of digits") from None
    if not isinstance(value, dict):
        raise MalformedJsonError(f"contains a {type(value).__name__}, not an object")
    if unique and _too_deep(value):
        raise MalformedJsonError(f"nested too deeply (limit {MAX_DEPTH})")
    return value


class _Tokenizer(BaseModel):
    added_tokens: Any = None


def parse_tokenizer(data: bytes) -> dict[str, Any]:
    """Check all of a tokenizer.json, but keep only `added_tokens` (None if it has none).

    pydantic's parser creates no Python objects for what it skips: for 20 MB of words a quarter of the time and half of
    the memory. What it refuses is parsed again by `parse_object`, which decides and has the message.

    Raises:
        MalformedJsonError: as `parse_object` with `unique` off: this file is never written back.
    """
    try:
        tokens = _Tokenizer.model_validate_json(data).added_tokens
    except ValidationError:
        tokens = parse_object(data, unique=False).get("added_tokens")
    return {"added_tokens": tokens}


def _too_deep(value: Any) -> bool:
    """Nested deeper than MAX_DEPTH. Level by level, so that no depth can exhaust the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        duplicate = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise MalformedJsonError(f"names {duplicate[:80]!r} twice")
    return value


# The format allows 100 MB. GLM-4-9B needs 0.2 MB; a header far above that is damage or an attack on memory.
MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_RANK = 8
LFS_MAGIC = b"version https://git-lfs.github.com/spec/"
# A zip file as torch.save writes it, or a bare pickle.
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

# Bits per element, in the order in which the reference serialiser lays out tensors, widest last.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


class HeaderFault(ValueError):
    """Why a file is not a complete safetensors file, in one phrase for the user."""


class LfsPointer(HeaderFault):
    """The file is the placeholder that Git LFS leaves where it did not download the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor on disk.

    Attributes:
        shard: name of its file.
        start: offset of its data in that file, in bytes.
        nbytes: length of its data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    start: int
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of a shard.

    Attributes:
        tensors: in the order of their data.
        data_start: offset of the first tensor's data, in bytes.
        digest: SHA-256 of the header's JSON.
    """

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]
    data_start: int
    digest: str


def read_header(file: BinaryIO, *, size: int, shard: str) -> Header:
    """Read and check the header of an open safetensors file of `size` bytes.

    Raises:
        HeaderFault: not a complete, well-formed safetensors file; the message is one phrase.
        OSError: the file cannot be read.
    """
    prefix = file.read(min(size, 512))
    if prefix.startswith(LFS_MAGIC):
        raise LfsPointer(f"a Git LFS pointer of {size} bytes, not the weights")
    if len(prefix) < 8:
        raise HeaderFault(f"{size} bytes long: too short for a safetensors file")
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES and prefix.startswith(PICKLE_MAGIC):
        raise HeaderFault("a pickle (torch.save), which runs code when loaded: refused")
    if length > MAX_HEADER_BYTES:
        raise HeaderFault(f"claims a header of {length} bytes (limit {MAX_HEADER_BYTES}): not a safetensors file")
    if 8 + length > size:
        raise HeaderFault(f"truncated: {size} bytes, but its header alone ends at byte {8 + length}")
    file.seek(8)
    raw = file.read(length)
    if len(raw) != length:
        raise HeaderFault("ends inside its header")
    return parse_header(raw, size=size, shard=shard)


def parse_header(raw: bytes, *, size: int, shard: str) -> Header:
    """Check the header JSON `raw` of a file of `size` bytes. Pure. Raises HeaderFault."""
    if not raw.startswith(b"{"):
        raise HeaderFault("its header is not a JSON object")
    try:
        document = parse_object(raw)
    except MalformedJsonError as error:
        raise HeaderFault(f"bad header: {error}") from None
    if not _encodable(document):
        raise HeaderFault("bad header: a name that is not Unicode text")
    metadata = document.pop("__metadata__", {})
    if (
        not isinstance(metadata, dict)
        or not all(isinstance(value, str) for value in metadata.values())
        or not _encodable([*metadata, *metadata.values()])
    ):
        raise HeaderFault("bad header: __metadata__ is not a map of strings")
    data_start = 8 + len(raw)
    tensors = sorted(
        (_tensor(name, entry, shard=shard, data_start=data_start) for name, entry in document.items()),
        key=lambda tensor: (tensor.start, tensor.nbytes),
    )
    _check_cover(tensors, data_start=data_start, size=size)
    return Header(
        tensors=tuple(tensors), metadata=metadata, data_start=data_start, digest=hashlib.sha256(raw).hexdigest()
    )


def _tensor(name: str, entry: Any, *, shard: str, data_start: int) -> Tensor:
    shown = repr(name[:80])
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderFault(f"bad header: tensor {shown} lacks dtype, shape or data_offsets, or has more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderFault(f"bad header: tensor {shown} has an unknown dtype {str(dtype)[:20]!r}")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise HeaderFault(f"bad header: tensor {shown} has an invalid shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderFault(f"bad header: tensor {shown} has invalid data_offsets")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    nbytes = offsets[1] - offsets[0]
    if bits != nbytes * 8:
        raise HeaderFault(f"bad header: tensor {shown} of {dtype} {shape} needs {bits / 8:g} bytes, has {nbytes}")
    return Tensor(name=name, dtype=dtype, shape=tuple(shape), shard=shard, start=data_start + offsets[0], nbytes=nbytes)


def _encodable(names: Iterable[str]) -> bool:
    """JSON can contain half a surrogate pair, which cannot be written as UTF-8."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return False
    return True


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**56 for item in value)


def _check_cover(tensors: list[Tensor], *, data_start: int, size: int) -> None:
    """The ranges must follow one another from the first byte of the data to the end of the file."""
    position = data_start
    for tensor in tensors:
        if tensor.start != position:
            fault = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise HeaderFault(f"bad header: the data of {tensor.name[:80]!r} {fault}")
        position += tensor.nbytes
    if position > size:
        raise HeaderFault(f"truncated: {size} bytes of {position}, {position - size} are missing")
    if position < size:
        raise HeaderFault(f"{size - position} bytes follow the last tensor: not the file that its header describes")
