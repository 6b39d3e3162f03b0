"""A SHA-256 manifest in the format of `sha256sum`, so that `sha256sum -c` reads it too."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from glm4_deploy.checkpoint.finding import bad, listed, ok, plural
from glm4_deploy.errors import StorageError
from glm4_deploy.facts.checkpoint import Checkpoint, File, open_file
from glm4_deploy.files import write_bytes
from glm4_deploy.result import Result, Status

NAME = "SHA256SUMS"
MAX_BYTES = 4 << 20
LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")


def covered(checkpoint: Checkpoint, manifest: Path) -> tuple[File, ...]:
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
    told = parse(data)
    if told is None:
        return bad(
            "manifest",
            Status.FAIL,
            f"{manifest.name} is no list of sha256sum",
            why="nothing can be held against it",
            remedy="delete it and verify with --manifest to write a new one",
        )
    return _compare(told, digests)


def _compare(told: Mapping[str, str], digests: Mapping[str, str]) -> Result:
    wrong = [f"{name!r} differs" for name, digest in digests.items() if told.get(name, digest) != digest]
    wrong += [f"{name!r} is missing" for name in told if name not in digests]
    if wrong:
        return bad(
            "manifest",
            Status.FAIL,
            listed(wrong),
            expected="the bytes that the manifest names",
            why="these files are not the ones that were written down",
            remedy="download them again",
            items=wrong,
        )
    new = [repr(name) for name in digests if name not in told]
    if new:
        return bad(
            "manifest",
            Status.WARN,
            f"{plural(len(told), 'file')} as written down; not in it: {listed(new)}",
            why="nobody vouches for these files",
            remedy="delete the manifest and write it again, if you know them",
            items=new,
        )
    return ok("manifest", f"{plural(len(told), 'file')} as written down")


def parse(data: bytes) -> dict[str, str] | None:
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
        return bad(
            "manifest",
            Status.WARN,
            "not written",
            why="its files are not whole (see above) and are not to be written down as good",
            remedy="download what is damaged, then verify with --manifest again",
        )
    write_bytes(manifest, text(digests).encode("utf-8", errors="surrogateescape"))
    return ok("manifest", f"written: {plural(len(digests), 'file')} in {manifest.name}")
