"""What was deployed from here: one record a start that was judged, good or not."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4_deploy.result import Status

SCHEMA = 1
PIN = "image.yaml"  # names an image by its id where its tag has moved; the image counts by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where a release serves and how it is to be gated. start_period: seconds; port: of the host.

    logs_requests: whether the engine writes a line a request; image: the reference in the rendered file, '' for a
    process. replicas: the services of several engines behind a router, () for one engine.
    """

    runner: str
    project: str
    service: str
    profile: str
    base_url: str
    bind: str
    port: int
    model: str
    model_dir: str
    max_model_len: int
    start_period: int
    logs_requests: bool
    image: str
    vllm: tuple[int, ...] | None = None
    api_key_file: str | None = None
    replicas: tuple[str, ...] = ()

    @property
    def engines(self) -> tuple[str, ...]:
        """The Compose services that are engines."""
        return self.replicas or (self.service,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """id: the engine's own (`sha256:…`); digest: `repository@sha256:…`, None where no registry gave one."""

    reference: str
    id: str
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A copy beside release.json. compose: its place in the order of `-f`, None for a file that is only referred to."""

    name: str
    sha256: str
    compose: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One judged start. Times are seconds; `created_at` is UTC, for people: order is in the id.

    verdict: ok or warn is good; anything else is kept to be read, and is never put back.
    reason: why it is not good. restores: the release that this one put back.
    fingerprint, stamp: of the checkpoint: its configuration, headers and sizes; its sizes and times of change.
    phases: seconds from the start to each phase. engine: facts from its log. results: the gate's rows.
    """

    schema: int = SCHEMA
    id: str
    created_at: str
    kit: str
    verdict: Status
    reason: str = ""
    restores: str = ""
    service: Service
    image: Image | None
    fingerprint: str | None
    stamp: str | None
    files: tuple[KeptFile, ...]
    settings: dict[str, Any]
    engine: dict[str, Any]
    phases: dict[str, float] = field(default_factory=dict)
    ready_seconds: float | None = None
    gate_seconds: float | None = None

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
    """A release directory that cannot be read as one: shown, never put back, never counted good."""

    id: str
    reason: str


def content_of(
    files: tuple[KeptFile, ...], image: Image | None, fingerprint: str | None, settings: Mapping[str, Any]
) -> str:
    """A digest of what a start is made of; the settings count only where there are no files (a plain process)."""
    kept = sorted((file.name, file.sha256) for file in files if file.name != PIN)
    parts = [f"{name}={sha256}" for name, sha256 in kept] or [repr(settings)]
    parts += [image.id if image else "", fingerprint or ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
