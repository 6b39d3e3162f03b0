"""A log from a file or a pipe."""

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.facts.enginelog import LogReader
from glm4_deploy.facts.logscan import read

CHUNK = 1 << 18
GZIP = 31  # zlib's wbits for a gzip header


def read_file(name: str) -> tuple[str, LogReader]:
    """A file, or - for standard input; what was read, for people, and the reader that read it.

    Raises:
        UsageError: it cannot be opened. StorageError: it cannot be read to its end.
    """
    try:
        if name == "-":
            return "standard input", read(LogReader(), _inflated(_chunks(sys.stdin.buffer.read)))
        with Path(name).open("rb") as file:
            return name, read(LogReader(), _inflated(_chunks(file.read)))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot read {name}: {error.strerror}", hint="name a log file, or - for a pipe") from None
    except OSError as error:
        raise StorageError(f"cannot read {name}: {error.strerror or error}", hint="check the disk") from error


def _inflated(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """What gzip (a rotated log) holds, as far as it goes; anything else as it is."""
    parts = iter(chunks)
    first = next(parts, b"")
    if not first.startswith(b"\x1f\x8b"):
        yield from chain((first,), parts)
        return
    inflate = zlib.decompressobj(wbits=GZIP)
    for raw in chain((first,), parts):
        chunk = raw
        while chunk:
            try:
                yield inflate.decompress(chunk)
            except zlib.error:
                return  # damaged from here on, or zeros after the end
            chunk = inflate.unused_data
            if inflate.eof:
                inflate = zlib.decompressobj(wbits=GZIP)


def _chunks(some: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := some(CHUNK):
        yield chunk
