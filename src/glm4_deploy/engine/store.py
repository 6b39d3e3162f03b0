"""Releases as plain files: `releases/ID/release.json` and the copies beside it.

A release is written into a hidden draft, flushed, and renamed into place: a directory with a release's name is whole.
Whatever a crash leaves is a hidden directory, which the next deployment sweeps away. The caller holds the lock.
"""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from glm4_deploy.engine.release import SCHEMA, Damaged, KeptFile, Release
from glm4_deploy.errors import StorageError, UsageError
from glm4_deploy.files import write_text
from glm4_deploy.report.wire import dumps

NAME = re.compile(r"(\d{4,})-\d{8}T\d{6}Z")
RECORD = "release.json"
KEPT = 20  # releases, the failed ones among them
LOG_BYTES = 1 << 20  # of a boot log, at most
RESERVED_BYTES = 2 * LOG_BYTES
DRAFT, TRASH = ".draft-", ".trash-"
PRIVATE = 0o600  # an override may hold a secret, and a copy must not be more readable than need be


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What a release is started from: texts by name, and the names for `docker compose -f`, in order."""

    texts: Mapping[str, str]
    compose: tuple[str, ...]

    def kept(self) -> tuple[KeptFile, ...]:
        order = {name: place for place, name in enumerate(self.compose)}
        return tuple(
            KeptFile(name=name, sha256=_digest(text), compose=order.get(name)) for name, text in self.texts.items()
        )


class Draft:
    """A release in the making. Room for its log and its report is taken before anything that runs is touched."""

    def __init__(self, root: Path, files: Files) -> None:
        self._root = root
        self._directory = root / f"{DRAFT}{os.getpid()}-{secrets.token_hex(4)}"
        self.files = files.kept()
        try:
            self._directory.mkdir(parents=True, mode=0o700)
            for name, text in files.texts.items():
                write_text(self._directory / name, text, mode=PRIVATE)
            with (self._directory / "reserve").open("wb") as reserve:
                os.posix_fallocate(reserve.fileno(), 0, RESERVED_BYTES)
        except (OSError, StorageError) as error:
            self.discard()
            raise _full(self._directory, error) from None

    def publish(self, release: Release, notes: Mapping[str, str]) -> None:
        """Make it a release: notes are further texts to keep (the log, the report).

        Raises:
            StorageError: it could not be written; nothing but the draft is lost.
        """
        try:
            (self._directory / "reserve").unlink(missing_ok=True)
            for name, text in notes.items():
                write_text(self._directory / name, text, mode=PRIVATE)
            write_text(self._directory / RECORD, dumps(release) + "\n", mode=PRIVATE)
            _flush(self._directory)
            self._directory.rename(self._root / release.id)
            _flush(self._root)
        except (OSError, StorageError) as error:
            self.discard()
            raise _full(self._root / release.id, error) from None

    def discard(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class Store:
    """The releases of one state directory."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "releases"

    def all(self) -> tuple[Release | Damaged, ...]:
        """Oldest first. Half-written directories (no record) are not there."""
        found = (self._load(path) for path in self._directories() if (path / RECORD).exists())
        return tuple(sorted(found, key=lambda release: _number(release.id)))

    def releases(self) -> tuple[Release, ...]:
        return tuple(release for release in self.all() if isinstance(release, Release))

    def find(self, wished: str) -> Release:
        """By id, its number, or the beginning of the id.

        Raises:
            UsageError: none, more than one, or a damaged one.
        """
        everything = self.all()
        exact = [one for one in everything if one.id == wished or (wished.isdigit() and _number(one.id) == int(wished))]
        matches = exact or [one for one in everything if wished and one.id.startswith(wished)]
        if len(matches) != 1:
            known = ", ".join(one.id for one in everything[-5:]) or "none yet"
            what = "more than one release begins with" if matches else "no release"
            raise UsageError(f"{what} {wished[:40]!r}", hint=f"see `glm4-deploy releases` (the last: {known})")
        if isinstance(matches[0], Damaged):
            raise UsageError(f"release {matches[0].id} is damaged: {matches[0].reason}", hint="choose another")
        return matches[0]

    def last_good(self, *, but: str = "") -> Release | None:
        """The newest good release; with `but`, the newest whose content is another."""
        good = (release for release in reversed(self.releases()) if release.good)
        return next((release for release in good if release.content != but), None)

    def files_of(self, release: Release) -> Files:
        """The copies, as they were recorded.

        Raises:
            StorageError: one is gone or no longer the same.
        """
        texts = {}
        for file in release.files:
            path = self.root / release.id / file.name
            try:
                text = path.read_bytes().decode("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise StorageError(f"cannot read {path}: {error}", hint="choose another release") from None
            if _digest(text) != file.sha256:
                raise StorageError(f"{path} was changed after it was recorded", hint="choose another release")
            texts[file.name] = text
        order = sorted((file for file in release.files if file.compose is not None), key=lambda file: file.compose or 0)
        return Files(texts=texts, compose=tuple(file.name for file in order))

    def draft(self, files: Files) -> Draft:
        """Raises StorageError: no room, or not writable; nothing has changed then."""
        self.sweep()
        return Draft(self.root, files)

    def next_id(self) -> str:
        """Sorts after every release that is here, whatever the clock says."""
        number = max((_number(path.name) for path in self._directories()), default=0) + 1
        return f"{number:04d}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"

    def sweep(self) -> None:
        """Remove what a crash left: drafts, half-removed releases, directories without a record."""
        if not self.root.is_dir():
            return
        for path in self.root.iterdir():
            hidden = path.name.startswith((DRAFT, TRASH))
            if hidden or (NAME.fullmatch(path.name) and path.is_dir() and not (path / RECORD).exists()):
                shutil.rmtree(path, ignore_errors=True)

    def prune(self) -> None:
        """Keep the newest; of the older ones, the last good two that differ, so that a way back is always left."""
        newest = self.last_good()
        other = self.last_good(but=newest.content) if newest else None
        spared = {release.id for release in (newest, other) if release}
        for release in self.all()[:-KEPT]:
            if release.id not in spared:
                trash = self.root / f"{TRASH}{release.id}"
                with suppress(OSError):
                    (self.root / release.id).rename(trash)
                shutil.rmtree(trash, ignore_errors=True)

    def _directories(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return [path for path in self.root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]

    @staticmethod
    def _load(path: Path) -> Release | Damaged:
        try:
            release = TypeAdapter(Release).validate_json((path / RECORD).read_bytes())
        except OSError as error:
            return Damaged(id=path.name, reason=f"{RECORD}: {error.strerror}")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return Damaged(id=path.name, reason=f"{RECORD}: {where} {first['msg']}".replace("  ", " "))
        if release.schema > SCHEMA:
            return Damaged(id=path.name, reason="written by a newer glm4-deploy")
        if release.id != path.name:
            return Damaged(id=path.name, reason=f"its record is of {release.id[:40]!r}")
        return release


def capped(lines: list[str], limit: int = LOG_BYTES) -> str:
    """A log within `limit` bytes: its beginning (an eighth), then its end, with a word on what was left out."""
    text = "\n".join(lines) + "\n"
    data = text.encode("utf-8", errors="replace")
    if len(data) <= limit:
        return text
    head, tail = data[: limit // 8], data[-(limit - limit // 8 - 100) :]
    left_out = len(data) - len(head) - len(tail)
    return (
        head.decode("utf-8", errors="ignore")
        + f"\n… {left_out} bytes left out …\n"
        + tail.decode("utf-8", errors="ignore")
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _flush(directory: Path) -> None:
    """Names survive a power cut only when their directory is flushed too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _full(path: Path, error: OSError | StorageError) -> StorageError:
    if isinstance(error, StorageError):
        return error
    return StorageError(
        f"cannot write {path}: {error.strerror or error}", hint="check the directory, its owner and free space"
    )
