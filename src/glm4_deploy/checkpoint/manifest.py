"""A list of SHA-256 sums in the format of `sha256sum`, so that `sha256sum -c` reads it too."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from glm4_deploy.checkpoint.model import listed, plural
from glm4_deploy.checkpoint.read import Checkpoint, File, open_file
from glm4_deploy.errors import StorageError
from glm4_deploy.files import write_bytes
from glm4_deploy.result import Result, because, fail, ok, warn

MANIFEST = "SHA256SUMS"  # its usual name
_MAX_BYTES = 4 << 20
_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")


def covered_files(checkpoint: Checkpoint, manifest: Path) -> tuple[File, ...]:
    """The files that a manifest must name: all of the directory except itself and unfinished downloads."""
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
    """Compare `digests` (SHA-256 by file name) with the manifest; write it if it does not exist.

    Args:
        damaged: the checkpoint failed other checks, so a new manifest must not certify it.

    Raises:
        StorageError: the manifest cannot be read or written.
    """
    try:
        with open_file(manifest) as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return _write(manifest, digests, damaged=damaged)
    except OSError as error:
        raise StorageError(f"cannot read {manifest}: {error.strerror or error}", hint="check its permissions") from None
    recorded = parse_manifest(data)
    if recorded is None:
        return fail(
            f"{manifest.name} is not in the format of sha256sum",
            "",
            *because("there is nothing to compare the files with"),
            remedy="delete it and verify with --manifest to write a new one",
            check="manifest",
        )
    return _compare(recorded, digests)


def parse_manifest(data: bytes) -> dict[str, str] | None:
    """File names to digests; None if it is not such a list."""
    if len(data) > _MAX_BYTES:
        return None
    digests: dict[str, str] = {}
    for line in data.decode("utf-8", errors="surrogateescape").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        name = match[3].replace("\\n", "\n").replace("\\\\", "\\") if match[1] else match[3]
        digests[name.removeprefix("./")] = match[2].lower()
    return digests or None


def _compare(recorded: Mapping[str, str], digests: Mapping[str, str]) -> Result:
    wrong = [f"{name!r} differs" for name, digest in digests.items() if recorded.get(name, digest) != digest]
    wrong += [f"{name!r} is missing" for name in recorded if name not in digests]
    if wrong:
        return fail(
            listed(wrong),
            "the bytes that the manifest records",
            *because("these files are not the ones that the manifest was written for", wrong),
            remedy="download them again",
            check="manifest",
        )
    new = [repr(name) for name in digests if name not in recorded]
    if new:
        return warn(
            f"{plural(len(recorded), 'file')} as recorded; not in the manifest: {listed(new)}",
            "",
            *because("nothing vouches for these files", new),
            remedy="if you trust them, delete the manifest and write it again",
            check="manifest",
        )
    return ok(f"{plural(len(recorded), 'file')} as recorded", check="manifest")


def _write(manifest: Path, digests: Mapping[str, str], *, damaged: bool) -> Result:
    if damaged:
        return warn(
            "not written",
            "",
            *because("the checkpoint is damaged (see above); a manifest would certify the damage"),
            remedy="download what is damaged, then verify with --manifest again",
            check="manifest",
        )
    text = "".join(_line(name, digests[name]) for name in sorted(digests))
    write_bytes(manifest, text.encode("utf-8", errors="surrogateescape"))
    return ok(f"written: {plural(len(digests), 'file')} in {manifest.name}", check="manifest")


def _line(name: str, digest: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
