"""The engine's key as a file: made once, never shown."""

import secrets
import stat
from pathlib import Path

from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.files import read_text, write_text

PRIVATE_DIRECTORY = 0o700


def ensure(path: Path) -> bool:
    """Make the key where there is none; True when it was made.

    A new directory is closed to others (0700) and the file in it is 0644: the container's root has dropped the
    capability to read another user's 0600 file. Where others can look into the directory, the file is 0600.

    Raises:
        StorageError: it cannot be written.
        UsageError: there is one, and it is empty or not readable.
    """
    if path.exists():
        read(path)
        return False
    try:
        path.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        closed = not stat.S_IMODE(path.parent.stat().st_mode) & 0o077
    except OSError as error:
        raise StorageError(f"cannot make {path.parent}: {error.strerror}", hint="choose another api_key_file") from None
    write_text(path, secrets.token_urlsafe(32) + "\n", mode=0o644 if closed else 0o600)
    return True


def read(path: Path) -> str:
    """The key, without the line end.

    Raises:
        UsageError: no such file, not readable, or empty: an empty key would mean no key to the engine.
    """
    key = read_text(path).strip()
    if not key:
        raise UsageError(f"the key file {path} is empty", hint="remove it: `glm4-deploy up` makes a new one")
    return key
