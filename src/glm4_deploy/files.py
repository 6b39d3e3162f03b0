"""Reading and writing files so that nothing is ever half-written."""

import os
import tempfile
from pathlib import Path

from glm4_deploy.errors import StorageError, UsageError


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write all of it or nothing, as UTF-8. Raises StorageError."""
    write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write all of it or nothing: a temporary file beside the target, flushed to disk, then renamed.

    Raises:
        StorageError: the directory is missing or not writable, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(mode)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}", hint="check the directory, its owner and free space"
        ) from error


def ensure_writable(path: Path) -> None:
    """Whether `write_text` will find a place, asked before long work; nothing is left behind.

    Raises:
        StorageError: a directory, or one that is missing (and cannot be made) or not writable.
    """
    hint = "check the directory, its owner and free space"
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a directory", hint="name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        UsageError: missing, a directory, not readable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}", hint="check the path"
        ) from None
