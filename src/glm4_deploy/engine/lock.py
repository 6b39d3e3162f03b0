"""One deployment, one hand at a time: an advisory lock that the kernel drops when its holder dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from glm4_deploy.errors import Locked, StorageError

NAME = "lock"


@contextmanager
def hold(directory: Path, what: str) -> Iterator[None]:
    """Hold the directory's lock while the body runs.

    Raises:
        Locked: another process holds it; the message says which and what it does.
        StorageError: the directory cannot be made or written.
    """
    path = directory / NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="check the directory's owner") from error
    with file:
        if not _take(file):
            file.seek(0)
            holder = file.read(200).strip() or "another glm4-deploy"
            raise Locked(f"{holder} is at work in {directory}", hint="wait for it to end, or end it")
        with suppress(OSError):  # a full disk: the lock holds without its label
            file.truncate(0)
            file.write(f"`glm4-deploy {what}` (pid {os.getpid()})")
            file.flush()
        yield
        file.truncate(0)


def _take(file: TextIO) -> bool:
    """A second try or two: `held` takes the lock for a moment to look."""
    for _ in range(4):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def held(directory: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        with (directory / NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
