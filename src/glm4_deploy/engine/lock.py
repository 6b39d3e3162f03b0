"""One deployment, one hand at a time: an advisory lock that the kernel drops when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glm4_deploy.errors import Locked, StorageError


@contextmanager
def hold(directory: Path, what: str) -> Iterator[None]:
    """Hold the directory's lock while the body runs.

    Raises:
        Locked: another process holds it; the message says which and what it does.
        StorageError: the directory cannot be made or written.
    """
    path = directory / "lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="check the directory's owner") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another glm4-deploy"
            raise Locked(f"{holder} is at work in {directory}", hint="wait for it to end, or end it") from None
        file.truncate(0)
        file.write(f"`glm4-deploy {what}` (pid {os.getpid()})")
        file.flush()
        yield
        file.truncate(0)
