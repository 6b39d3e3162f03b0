"""A log from a file or a pipe."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.facts.enginelog import LogReader
from glm4_deploy.facts.logscan import read

CHUNK = 1 << 18


def read_file(name: str) -> tuple[str, LogReader]:
    """A file, or - for standard input; what was read, for people, and the reader that read it.

    Raises:
        UsageError: it cannot be opened. StorageError: it cannot be read to its end.
    """
    try:
        if name == "-":
            return "standard input", read(LogReader(), _chunks(sys.stdin.buffer.read))
        with Path(name).open("rb") as file:
            return name, read(LogReader(), _chunks(file.read))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot read {name}: {error.strerror}", hint="name a log file, or - for a pipe") from None
    except OSError as error:
        raise StorageError(f"cannot read {name}: {error.strerror or error}", hint="check the disk") from error


def _chunks(some: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := some(CHUNK):
        yield chunk
