"""What differs between two releases: the question at 3 a.m. is what changed. Pure but for the texts it is given."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glm4_deploy.engine.release import Release
from glm4_deploy.facts.redact import redact

ABSENT = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One value that differs; None: not there. group: settings, engine, image, checkpoint, gate or time."""

    group: str
    name: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A file that differs, as a unified diff with secrets masked."""

    name: str
    diff: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`same`: whether both would start the same thing, whatever came of it."""

    a: str
    b: str
    same: bool
    changes: tuple[Change, ...]
    files: tuple[FileChange, ...]


def compare(a: Release, b: Release, texts_a: Mapping[str, str], texts_b: Mapping[str, str]) -> Difference:
    """Everything that was recorded of two releases, held side by side.

    Args:
        texts_a, texts_b: the kept files, and `smoke.json`'s checks are not among them.
    """
    return Difference(
        a=a.id,
        b=b.id,
        same=a.content == b.content,
        changes=tuple(_changes(a, b)),
        files=tuple(_files(a.id, b.id, texts_a, texts_b)),
    )


def _changes(a: Release, b: Release) -> Iterator[Change]:
    groups: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = (
        ("settings", _flat(a.settings), _flat(b.settings)),
        ("image", _image(a), _image(b)),
        (
            "checkpoint",
            _checkpoint(a),
            _checkpoint(b),
        ),
        ("engine", _flat(a.engine), _flat(b.engine)),
        ("gate", _gate(a), _gate(b)),
        ("time", _times(a), _times(b)),
    )
    for group, old, new in groups:
        for name in (*old, *(name for name in new if name not in old)):
            if old.get(name, ABSENT) != new.get(name, ABSENT):
                yield Change(group=group, name=name, a=old.get(name, ABSENT), b=new.get(name, ABSENT))


def _image(release: Release) -> dict[str, Any]:
    image = release.image
    return {"reference": image.reference, "id": image.id, "digest": image.digest} if image else {}


def _checkpoint(release: Release) -> dict[str, Any]:
    return {"directory": release.service.model_dir, "fingerprint": release.fingerprint, "files": release.stamp}


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
