"""The gateway's named keys: a file that holds SHA-256 sums, never a key. templates/services/gateway reads it.

A key is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess, and nothing to slow down.
"""

import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from glm4_deploy.engine.lock import hold
from glm4_deploy.errors import UsageError
from glm4_deploy.files import read_text, write_text

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A named key. rate: requests a minute, also the burst. created: ISO 8601, UTC."""

    name: str
    rate: int
    created: str
    sha256: str


def add(directory: Path, name: str, *, rate: int) -> str:
    """Make a key and return it: it is nowhere else, so it can be shown this once only.

    Raises:
        UsageError: the name is taken or no name; the file is damaged.
        Locked, StorageError
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"no name for a key: {name[:60]!r}", hint="letters, digits, `.`, `_` and `-`, at most 63")
    token = f"glm4-{secrets.token_urlsafe(32)}"
    made = Key(
        name=name,
        rate=rate,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sha256=hashlib.sha256(token.encode()).hexdigest(),
    )
    with hold(directory, "key add"):
        known = load(directory)
        if any(key.name == name for key in known):
            raise UsageError(f"there is a key named {name!r}", hint=f"revoke it first: glm4-deploy key revoke {name}")
        _save(directory, (*known, made))
    return token


def revoke(directory: Path, name: str) -> None:
    """Raises UsageError where no key has that name."""
    with hold(directory, "key revoke"):
        known = load(directory)
        left = tuple(key for key in known if key.name != name)
        if len(left) == len(known):
            raise UsageError(f"no key is named {name[:60]!r}", hint="see: glm4-deploy key list")
        _save(directory, left)


def load(directory: Path) -> tuple[Key, ...]:
    """Raises UsageError where the file is not one of ours."""
    path = directory / "keys.json"
    if not path.exists():
        return ()
    try:
        content = json.loads(read_text(path))
        if content["schema"] != SCHEMA:
            raise UsageError(f"{path} was written by a newer glm4-deploy", hint="upgrade this one")
        return tuple(Key(**{**row, "rate": int(row["rate"])}) for row in content["keys"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint="remove it and add the keys anew") from None


def _save(directory: Path, keys: tuple[Key, ...]) -> None:
    rows = [asdict(key) for key in keys]
    # 0644: root in the container has no capability to read a 0600 file of another; sums of random keys tell nothing.
    write_text(directory / "keys.json", json.dumps({"schema": SCHEMA, "keys": rows}, indent=2) + "\n")
