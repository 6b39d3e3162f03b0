"""API keys: the engine's key as a file, and the gateway's named keys, of which only SHA-256 sums are stored."""

import hashlib
import json
import re
import secrets
import stat
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr

from glm4_deploy.deploy.state import hold_lock
from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.files import read_text, write_text

# The engine's key: created once, never shown.

PRIVATE_DIRECTORY = 0o700


def ensure_key(path: Path) -> bool:
    """Create the key file if it does not exist; True if it was created.

    A new directory is closed to others (0700) and the file in it is 0644, because root in the container lacks the
    capability to read another user's 0600 file. In a directory that is open to others the file is 0600.

    Raises:
        StorageError: the file cannot be written.
        UsageError: the file exists, but is empty or not readable.
    """
    if path.exists():
        read_key(path)
        return False
    try:
        path.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        closed = not stat.S_IMODE(path.parent.stat().st_mode) & 0o077
    except OSError as error:
        raise StorageError(
            f"cannot create {path.parent}: {error.strerror}", hint="choose another api_key_file"
        ) from None
    write_text(path, secrets.token_urlsafe(32) + "\n", mode=0o644 if closed else 0o600)
    return True


def read_key(path: Path) -> str:
    """The key, without the newline at its end.

    Raises:
        UsageError: no such file, not readable, or empty: the engine would take an empty key for no key.
    """
    key = read_text(path).strip()
    if not key:
        raise UsageError(f"the key file {path} is empty", hint="remove it: `glm4-deploy up` makes a new one")
    return key


def secret_key(file: str | None) -> SecretStr | None:
    """As `read_key`, for a deployment that may have none."""
    return SecretStr(read_key(Path(file))) if file else None


# The gateway's named keys, read by templates/services/gateway. A key is 256 random bits, so a plain SHA-256 suffices:
# there is nothing to guess, and nothing to slow down.

SCHEMA = 1
PATHS = ("chat/completions", "completions", "embeddings", "messages", "models", "responses")  # as in the Caddyfile
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A named key. rate: requests per minute, and the burst. created: ISO 8601, UTC. paths: below /v1; (): all."""

    name: str
    rate: int
    created: str
    sha256: str
    paths: tuple[str, ...] = ()


def add_key(directory: Path, name: str, *, rate: int, paths: tuple[str, ...] = ()) -> str:
    """Create a key and return it. It is not stored, so it can be shown only now.

    Args:
        rate: requests per minute.
        paths: those of PATHS that it may use; () for all.

    Raises:
        UsageError: the name is taken or not valid, a path is not one of PATHS, or the file is damaged.
        Locked, StorageError
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:60]!r} is not a valid key name", hint="use at most 63 letters, digits, `.`, `_` and `-`"
        )
    for path in paths:
        if path not in PATHS:
            raise UsageError(f"the gateway has no path /v1/{path[:60]}", hint=f"one of {', '.join(PATHS)}")
    token = f"glm4-{secrets.token_urlsafe(32)}"
    made = Key(
        name=name,
        rate=rate,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sha256=hashlib.sha256(token.encode()).hexdigest(),
        paths=tuple(dict.fromkeys(paths)),
    )
    with hold_lock(directory, "key add"):
        known = load_keys(directory)
        if any(key.name == name for key in known):
            raise UsageError(
                f"a key named {name!r} exists already", hint=f"revoke it first: glm4-deploy key revoke {name}"
            )
        _save(directory, (*known, made))
    return token


def revoke_key(directory: Path, name: str) -> None:
    """Remove a key. Raises UsageError if no key has that name."""
    with hold_lock(directory, "key revoke"):
        known = load_keys(directory)
        remaining = tuple(key for key in known if key.name != name)
        if len(remaining) == len(known):
            raise UsageError(f"no key is named {name[:60]!r}", hint="see: glm4-deploy key list")
        _save(directory, remaining)


def load_keys(directory: Path) -> tuple[Key, ...]:
    """The keys in the file. Raises UsageError if it is damaged or from a newer version."""
    path = directory / "keys.json"
    if not path.exists():
        return ()
    try:
        content = json.loads(read_text(path))
        if content["schema"] != SCHEMA:
            raise UsageError(f"{path} was written by a newer glm4-deploy", hint="upgrade this one")
        return tuple(
            Key(**{**row, "rate": int(row["rate"]), "paths": tuple(row.get("paths", ()))}) for row in content["keys"]
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint="remove it and add the keys again") from None


def _save(directory: Path, keys: tuple[Key, ...]) -> None:
    rows = [asdict(key) for key in keys]
    # 0644: root in the container cannot read another user's 0600 file, and sums of random keys reveal nothing.
    write_text(directory / "keys.json", json.dumps({"schema": SCHEMA, "keys": rows}, indent=2) + "\n")
