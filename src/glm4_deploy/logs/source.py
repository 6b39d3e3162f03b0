"""A log from a file or a pipe."""

import codecs
import re
import sys
import zlib
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import accumulate, chain
from pathlib import Path

from ahocorasick_rs import BytesAhoCorasick

from glm4_deploy.catalog.rows import signatures
from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.logs.facts import literals
from glm4_deploy.logs.line import IGNORED, LONGEST_READ, START, decode
from glm4_deploy.logs.noise import Unwrapped, plain, rejoin, without_prompts
from glm4_deploy.logs.reader import LogReader

# A whole log of any size through a LogReader; most lines are skipped without parsing.
#
# A large log repeats a few messages with other numbers. So each line is reduced to its shape (each digit a 0), and the
# shapes without a literal of any fact, phase or signature are remembered: further lines of such a shape are only
# counted. Nothing is lost, because the literals are reduced in the same way.

# How PyTorch begins lines of level error or fatal: `[E1123 14:42:43.1 …`, `[E321 …`, `[E x.cpp:2]`.
_TORCH = ("E0000 00:00:00", "F0000 00:00:00", "E000 00:00:00", "F000 00:00:00", "[E ", "[F ")
COMMON = ("Error", "error", "ailed", "ERROR", "CRITICAL", "FATAL", "fatal", "panic", *_TORCH)
_UTF16 = re.compile(rb"\xff\xfe[^\0]\0|\xfe\xff\0[^\0]", re.DOTALL)
MOST_SHAPES = 1 << 14
MOST_BYTES = 1 << 20
_DIGITS = bytes.maketrans(b"123456789", b"000000000")


@cache
def _needles() -> BytesAhoCorasick:
    """Finds what the shape of every line that may matter contains."""
    words = {START, IGNORED, *COMMON, *literals(), *(word for row in signatures() for word in row.has)}
    return BytesAhoCorasick(sorted({word.encode().translate(_DIGITS) for word in words}))


def scan_log(reader: LogReader, chunks: Iterable[bytes]) -> LogReader:
    """Feed the reader a stream of bytes, cut anywhere: UTF-8, UTF-16 (PowerShell writes it), records of JSON."""
    dull: set[bytes] = set()
    for block in _lines(_utf8(chunks)):
        lines = block.split(b"\n")
        shapes = block.translate(_DIGITS).split(b"\n")
        new = set(shapes) - dull
        telling = _telling(new)
        dull |= new - telling
        if not telling and not reader.watching:
            reader.skip(lines)
        else:
            _look(reader, lines, shapes, telling)
        if len(dull) > MOST_SHAPES or sum(map(len, new)) > MOST_BYTES:
            dull.clear()
    return reader


def _telling(shapes: set[bytes]) -> set[bytes]:
    listed = list(shapes)
    ends = list(accumulate(len(shape) + 1 for shape in listed))
    found = _needles().find_matches_as_indexes(b"\n".join(listed))
    return {listed[bisect(ends, start)] for _, start, _ in found}


def _look(reader: LogReader, lines: list[bytes], shapes: list[bytes], telling: set[bytes]) -> None:
    """Feed the lines that may matter, and all of them while a traceback is open; skip the others."""
    for line, shape in zip(lines, shapes, strict=True):
        if shape in telling or reader.watching:
            reader.feed(decode(line))
        else:
            reader.skip((line,))


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines as the engine wrote them, without the text of its users."""
    unwrapped, first = Unwrapped(), True
    for block in _blocks(chunks):
        lines = plain(without_prompts(unwrapped.feed(block)))
        yield rejoin(lines) if first else lines  # wrapped logs are pasted ones, and short
        first = False
    if rest := unwrapped.rest():
        yield plain(rest)


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks of whole lines, without the last newline; lines beyond the limit are cut."""
    rest = b""
    for chunk in chunks:
        block, newline, tail = chunk.rpartition(b"\n")
        if newline:
            yield rest + block
            rest = tail
        elif len(rest) < LONGEST_READ:
            rest += tail
    if rest:
        yield rest


def _utf8(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decode UTF-16, recognised by its byte order mark. Without one its NULs are dropped later, which leaves ASCII."""
    begin, plain, decoder = b"", False, None
    for chunk in chunks:
        if decoder is not None:
            yield decoder.decode(chunk).encode(errors="replace")
        elif plain:
            yield chunk
        elif len(begin := begin + chunk) >= 4:
            decoder = codecs.getincrementaldecoder("utf-16")("replace") if _UTF16.match(begin) else None
            plain = decoder is None
            yield begin if decoder is None else decoder.decode(begin).encode(errors="replace")
    if not plain and decoder is None and begin:
        yield begin


CHUNK = 1 << 18
GZIP = 31  # zlib's wbits for a gzip header


def read_file(name: str) -> tuple[str, LogReader]:
    """Read a file, or standard input for `-`. Returns the source's name for messages, and the reader.

    Raises:
        UsageError: it cannot be opened.
        StorageError: it cannot be read to its end.
    """
    try:
        if name == "-":
            return "standard input", scan_log(LogReader(), _inflated(_chunks(sys.stdin.buffer.read)))
        with Path(name).open("rb") as file:
            return name, scan_log(LogReader(), _inflated(_chunks(file.read)))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot read {name}: {error.strerror}", hint="name a log file, or - for a pipe") from None
    except OSError as error:
        raise StorageError(f"cannot read {name}: {error.strerror or error}", hint="check the disk") from error


def _inflated(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The contents of gzip data (a rotated log) as far as they are intact; other data unchanged."""
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
                # A chunk can hold a thousand times its size.
                yield inflate.decompress(chunk, CHUNK)
            except zlib.error:
                return  # damaged from here on, or zeros after the end
            chunk = inflate.unconsumed_tail or inflate.unused_data
            if inflate.eof:
                inflate = zlib.decompressobj(wbits=GZIP)
    yield inflate.flush()


def _chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := read(CHUNK):
        yield chunk
