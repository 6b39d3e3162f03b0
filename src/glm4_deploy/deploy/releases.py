"""Releases, one per judged start: their store, and the comparison of two of them."""

import difflib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from glm4_deploy.deploy.compose_cli import made_from
from glm4_deploy.deploy.endpoint import Endpoint, release_of_schema_1
from glm4_deploy.errors import DeployError, StorageError, UsageError
from glm4_deploy.files import read_bytes, read_text, sync_directory, write_text
from glm4_deploy.report.wire import dumps
from glm4_deploy.result import Status
from glm4_deploy.text import redact

RELEASE_SCHEMA = 2
PIN = "image.yaml"  # names the image by its id if its tag has moved; not part of `content_of`, which counts the image
HOST_FILE = "host.yaml"  # names the cache volumes by image, GPU and driver; not part of `content_of` either


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseImage:
    """The image that a release ran on."""

    reference: str
    """As the Compose files name it."""
    id: str
    """Docker's own, `sha256:…`."""
    digest: str | None = None
    """`repository@sha256:…`; None if no registry gave one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """The caches of compiled kernels that a release ran on, and what they belong to. gpu, driver: '' for none."""

    volumes: tuple[str, ...]
    image: str
    gpu: str = ""
    driver: str = ""
    cold: bool = False
    """Whether one of them was new, so that this start compiled."""

    @property
    def label(self) -> str:
        """What it belongs to, in words."""
        driver = f"driver {self.driver}" if self.driver else ""
        return ", ".join(filter(None, (f"image {self.image}", self.gpu, driver)))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A copy beside release.json."""

    name: str
    sha256: str
    compose: int | None = None
    """Its place in the order of `-f`; None for a file that the Compose files refer to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One judged start."""

    schema: int = RELEASE_SCHEMA
    id: str
    """Releases are ordered by the number it begins with."""
    created_at: str
    """UTC, for people."""
    kit: str
    """The version of this kit."""
    verdict: Status
    """OK or WARN is good; anything else is kept for diagnosis and never put back."""
    reason: str = ""
    """Why it is not good."""
    restores: str = ""
    """The release that this one put back."""
    endpoint: Endpoint
    image: ReleaseImage | None
    """None for a process."""
    fingerprint: str | None
    """Of the checkpoint's configuration, headers and sizes."""
    stamp: str | None
    """Of the checkpoint's file sizes and modification times."""
    files: tuple[KeptFile, ...]
    settings: dict[str, Any]
    """Without secrets."""
    engine: dict[str, Any]
    """Facts from its log."""
    phases: dict[str, FiniteFloat] = field(default_factory=dict)
    """Seconds from the start to each phase."""
    ready_seconds: FiniteFloat | None = None
    """From the start to /health."""
    gate_seconds: FiniteFloat | None = None
    """From /health to the verdict."""
    cache: CacheUse | None = None
    """None for a process, a cache that the user named, and a release of an earlier kit."""

    @property
    def good(self) -> bool:
        return self.verdict in (Status.OK, Status.WARN)

    @property
    def number(self) -> int:
        return int(self.id.partition("-")[0])

    @property
    def content(self) -> str:
        """Equal for two releases that would start the same thing."""
        return content_of(self.files, self.image, self.fingerprint, self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A release directory that cannot be read: listed, but never put back and never counted as good."""

    id: str
    reason: str


def content_of(
    files: tuple[KeptFile, ...], image: ReleaseImage | None, fingerprint: str | None, settings: Mapping[str, Any]
) -> str:
    """A digest of what is started. The settings count only if there are no files (a plain process)."""
    kept = sorted((file.name, file.sha256) for file in files if file.name not in (PIN, HOST_FILE))
    parts = [f"{name}={sha256}" for name, sha256 in kept] or [repr(settings)]
    parts += [image.id if image else "", fingerprint or ""]
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()[:12]


# Releases as plain files: `releases/ID/release.json` and the copies beside it.
#
# A release is written into a hidden draft, flushed, and renamed into place, so a directory with a release's name is
# complete. A crash leaves at most a hidden directory, which the next deployment removes. The caller holds the lock.

NAME = re.compile(r"(\d{4,})-\d{8}T\d{6}Z")
RECORD, BOOT_LOG, REPORT = "release.json", "boot.log", "smoke.json"
CERTIFICATE = "certificate.json"  # the last one written about it
KEPT = 20  # releases, including failed ones
LOG_BYTES = 1 << 20  # of a boot log, at most
RESERVED_BYTES = 2 * LOG_BYTES
DRAFT, TRASH = ".draft-", ".trash-"
PRIVATE = 0o600  # an override may hold a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What a release is started from."""

    texts: Mapping[str, str]
    """By file name."""
    compose: tuple[str, ...]
    """The names for `docker compose -f`, in order."""

    def kept(self) -> tuple[KeptFile, ...]:
        order = {name: place for place, name in enumerate(self.compose)}
        return tuple(
            KeptFile(name=name, sha256=_digest(text), compose=order.get(name)) for name, text in self.texts.items()
        )


class ReleaseDraft:
    """A release being written. Room for its log and report is reserved before anything that runs is touched."""

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
            raise _cannot_write(self._directory, error) from None

    def complete(self, files: Files) -> None:
        """Write the files again, with what was only known after the pull.

        Raises:
            StorageError
        """
        for name, text in files.texts.items():
            write_text(self._directory / name, text, mode=PRIVATE)
        self.files = files.kept()

    def publish(self, release: Release, notes: Mapping[str, str]) -> None:
        """Make it a release. notes: further texts to keep, by file name (the log, the report).

        Raises:
            StorageError: it could not be written; only the draft is lost.
        """
        try:
            (self._directory / "reserve").unlink(missing_ok=True)
            for name, text in notes.items():
                write_text(self._directory / name, text, mode=PRIVATE)
            write_text(self._directory / RECORD, dumps(release) + "\n", mode=PRIVATE)
            sync_directory(self._directory)
            self._directory.rename(self._root / release.id)
            sync_directory(self._root)
        except (OSError, StorageError) as error:
            self.discard()
            raise _cannot_write(self._root / release.id, error) from None

    def discard(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class Store:
    """The releases of one state directory."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "releases"

    def all(self) -> tuple[Release | Damaged, ...]:
        """Oldest first, without half-written directories (those that have no record)."""
        rows = (self._load(path) for path in self._directories() if (path / RECORD).exists())
        return tuple(sorted(rows, key=lambda release: _number(release.id)))

    def releases(self) -> tuple[Release, ...]:
        return tuple(release for release in self.all() if isinstance(release, Release))

    def find(self, name: str) -> Release:
        """The release of an id, its number, or the beginning of the id.

        Raises:
            UsageError: none or several match, or it is damaged.
        """
        everything = self.all()
        exact = [one for one in everything if one.id == name or (name.isdigit() and _number(one.id) == int(name))]
        matches = exact or [one for one in everything if name and one.id.startswith(name)]
        if len(matches) != 1:
            known = ", ".join(one.id for one in everything[-5:]) or "none yet"
            what = "more than one release begins with" if matches else "no release"
            raise UsageError(f"{what} {name[:40]!r}", hint=f"see `glm4-deploy releases` (the last: {known})")
        if isinstance(matches[0], Damaged):
            raise UsageError(f"release {matches[0].id} is damaged: {matches[0].reason}", hint="choose another")
        return matches[0]

    def last_good(self, *, but: str = "") -> Release | None:
        """The newest good release whose content is not `but`."""
        good = (release for release in reversed(self.releases()) if release.good)
        return next((release for release in good if release.content != but), None)

    def usual_ready_seconds(self, model_dir: str) -> float | None:
        """Median time to /health of the recent good starts of this model; None if there are none."""
        same = sorted(
            release.ready_seconds
            for release in self.releases()[-10:]
            if release.good and release.ready_seconds and release.endpoint.model_dir == model_dir
        )
        return same[len(same) // 2] if same else None

    def last_cold_seconds(self, model_dir: str) -> float | None:
        """Time to /health of the last good start of this model that had to compile; None if there was none."""
        cold = (
            release.ready_seconds
            for release in reversed(self.releases())
            if release.good and release.cache and release.cache.cold and release.endpoint.model_dir == model_dir
        )
        return next((seconds for seconds in cold if seconds), None)

    def files_of(self, release: Release) -> Files:
        """The kept copies, verified by checksum.

        Raises:
            StorageError: one is missing or has changed.
        """
        texts = {}
        for file in release.files:
            path = self.root / release.id / file.name
            try:
                text = read_bytes(path).decode("utf-8")
            except UnicodeDecodeError as error:
                raise StorageError(f"cannot read {path}: {error}", hint="choose another release") from None
            except UsageError as error:
                raise StorageError(error.message, hint="choose another release") from None
            if _digest(text) != file.sha256:
                raise StorageError(f"{path} was changed after it was recorded", hint="choose another release")
            texts[file.name] = text
        order = sorted((file for file in release.files if file.compose is not None), key=lambda file: file.compose or 0)
        return Files(texts=texts, compose=tuple(file.name for file in order))

    def draft(self, files: Files) -> ReleaseDraft:
        """Begin a release. Raises StorageError, with nothing changed, if there is no room or it is not writable."""
        self.sweep()
        return ReleaseDraft(self.root, files)

    def next_id(self) -> str:
        """An id that sorts after every present release, whatever the clock says."""
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

    def surplus(self, keep: int = KEPT) -> tuple[str, ...]:
        """The ids of all but the newest `keep`, and but the last two good ones that differ: a way back is left."""
        newest = self.last_good()
        other = self.last_good(but=newest.content) if newest else None
        spared = {release.id for release in (newest, other) if release}
        return tuple(release.id for release in self.all()[:-keep] if release.id not in spared)

    def prune(self, keep: int = KEPT) -> None:
        """Remove the surplus."""
        for name in self.surplus(keep):
            trash = self.root / f"{TRASH}{name}"
            with suppress(OSError):
                (self.root / name).rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def _directories(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return [path for path in self.root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]

    @staticmethod
    def _load(path: Path) -> Release | Damaged:
        try:
            content = json.loads(read_text(path / RECORD), parse_constant=_no_number, parse_float=_finite)
            schema = content.get("schema")
            if isinstance(schema, int) and schema > RELEASE_SCHEMA:
                return Damaged(id=path.name, reason="written by a newer glm4-deploy")
            release = TypeAdapter(Release).validate_python(release_of_schema_1(content) if schema == 1 else content)
        except DeployError as error:
            return Damaged(id=path.name, reason=error.message)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return Damaged(id=path.name, reason=f"{RECORD}: {where} {first['msg']}".replace("  ", " "))
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            return Damaged(id=path.name, reason=f"{RECORD} is not a release: {error}"[:200])
        if release.id != path.name:
            return Damaged(id=path.name, reason=f"its record is that of {release.id[:40]!r}")
        outside = next((file.name for file in release.files if not _inside(file.name)), None)
        if outside is not None:  # `rollback` writes each file where it was
            return Damaged(id=path.name, reason=f"names the file {outside[:40]!r}, outside the release")
        return release


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text[:20]} is not a number that JSON can hold")


def _inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _cannot_write(path: Path, error: OSError | StorageError) -> StorageError:
    if isinstance(error, StorageError):
        return error
    return StorageError(
        f"cannot write {path}: {error.strerror or error}", hint="check the directory, its owner and free space"
    )


# What differs between two releases.


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueChange:
    """One value that differs."""

    group: str
    """settings, image, cache, checkpoint, engine, gate, time or made from."""
    name: str
    a: Any
    """None where it is absent."""
    b: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A file that differs, as a unified diff with secrets masked."""

    name: str
    diff: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Everything that differs between the releases `a` and `b`."""

    a: str
    b: str
    same: bool
    """Whether both would start the same thing, whatever the verdicts."""
    changes: tuple[ValueChange, ...]
    files: tuple[FileChange, ...]


def compare_releases(a: Release, b: Release, texts_a: Mapping[str, str], texts_b: Mapping[str, str]) -> Difference:
    """Compare everything that was recorded of two releases. texts_a, texts_b: their kept files, by name."""
    return Difference(
        a=a.id,
        b=b.id,
        same=a.content == b.content,
        changes=(*_changes(a, b), *_compared("made from", _made_from(texts_a), _made_from(texts_b))),
        files=tuple(_files(a.id, b.id, texts_a, texts_b)),
    )


def _changes(a: Release, b: Release) -> Iterator[ValueChange]:
    groups: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = (
        ("settings", _flat(a.settings), _flat(b.settings)),
        ("image", _image(a), _image(b)),
        ("cache", _cache(a), _cache(b)),
        ("checkpoint", _checkpoint(a), _checkpoint(b)),
        ("engine", _flat(a.engine), _flat(b.engine)),
        ("gate", _gate(a), _gate(b)),
        ("time", _times(a), _times(b)),
    )
    for group, old, new in groups:
        yield from _compared(group, old, new)


def _compared(group: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[ValueChange]:
    for name in (*old, *(name for name in new if name not in old)):
        if old.get(name) != new.get(name):
            yield ValueChange(group=group, name=name, a=old.get(name), b=new.get(name))


REPEATED = ("image", "image_id", "digest", "checkpoint", "gpu", "driver")  # the groups above compare these


def _made_from(texts: Mapping[str, str]) -> dict[str, Any]:
    return {name: value for name, value in _flat(made_from(texts.values())).items() if name not in REPEATED}


def _image(release: Release) -> dict[str, Any]:
    image = release.image
    return {"reference": image.reference, "id": image.id, "digest": image.digest} if image else {}


def _cache(release: Release) -> dict[str, Any]:
    use = release.cache
    return {"volumes": ", ".join(use.volumes), "gpu": use.gpu or None, "driver": use.driver or None} if use else {}


def _checkpoint(release: Release) -> dict[str, Any]:
    return {"directory": release.endpoint.model_dir, "fingerprint": release.fingerprint, "files": release.stamp}


def _gate(release: Release) -> dict[str, Any]:
    return {"verdict": str(release.verdict), "reason": release.reason or None, "kit": release.kit}


def _times(release: Release) -> dict[str, Any]:
    return {"ready_seconds": release.ready_seconds, "gate_seconds": release.gate_seconds}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _files(a: str, b: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[FileChange]:
    for name in sorted({*old, *new}):
        before, after = old.get(name, ""), new.get(name, "")
        if before != after:
            lines = difflib.unified_diff(
                redact(before).splitlines(), redact(after).splitlines(), f"{a}/{name}", f"{b}/{name}", lineterm="", n=1
            )
            yield FileChange(name=name, diff="\n".join(lines) or "only secret values differ")
