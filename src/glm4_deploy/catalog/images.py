"""Images that hold a vLLM: which one a reference means, and how the server is started in it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any

from glm4_deploy.catalog.rows import Capability, Version, holds, load_catalog, parse_version
from glm4_deploy.errors import UsageError


class CommandShape(StrEnum):
    """How the server is started in an image."""

    PROGRAM = "program"
    """The image's entrypoint stays, if it has one: it prepares the container and runs the command, which begins with a
    program."""
    SERVE = "vllm-serve"
    """`vllm serve` takes the place of the image's entrypoint."""
    MODULE = "python-module"
    """`python3 -m vllm.entrypoints.openai.api_server` takes the place of the image's entrypoint."""


class ImageKind(StrEnum):
    """Who compiled the engine: NVIDIA's image is built for every Blackwell card, the wheels on PyPI are not."""

    NVIDIA = "nvidia"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineImage:
    """What is known of one image. '' , () and None: not known.

    Attributes:
        tag: '' for an image that only a digest names.
        command: None if it is unknown how the server is started in it.
        python: the name of Python 3 in it.
        seen: compute capabilities on which others reported that it answers requests.
        entrypoint, user: as `docker image inspect` shows them; () also for an image without an entrypoint.
        trouble: what is known to go wrong; trouble_gpu: for which compute capabilities, `>=12.0`; '' for all.
    """

    repository: str
    tag: str
    vllm: Version | None = None
    command: CommandShape | None = None
    kind: ImageKind = ImageKind.OTHER
    python: str = ""
    transformers: str = ""
    cuda: str = ""
    architectures: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    digests: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    note: str = ""
    trouble: str = ""
    trouble_gpu: str = ""
    source: str = ""

    @property
    def reference(self) -> str:
        return f"{self.repository}:{self.tag}" if self.tag else self.repository

    @property
    def transformers_major(self) -> int | None:
        return parse_version(self.transformers)[0] if self.transformers else None

    @property
    def driver(self) -> int | None:
        """The oldest NVIDIA driver that fits its CUDA, as a major version."""
        floors: Mapping[int, int] = load_catalog("images")["drivers"]
        return floors.get(int(self.cuda.partition(".")[0])) if self.cuda else None

    def trouble_on(self, capability: Capability | None) -> str:
        """What is known to go wrong on such a card; '' if nothing is. A card that is not known may be any."""
        limited = self.trouble_gpu and capability is not None and not holds(self.trouble_gpu, capability)
        return "" if limited else self.trouble


@cache
def _rows() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = load_catalog("images")["repositories"]
    return rows


def default_image() -> EngineImage:
    """The image that is deployed where neither the settings nor the profile name another."""
    repository, _, tag = str(load_catalog("images")["default"]).rpartition(":")
    return listed(repository)[tag]


def default_tag() -> str:
    return default_image().tag


def repository() -> str:
    return default_image().repository


def versions_tested() -> frozenset[Version]:
    """The versions of vLLM that went through this kit's engine tests."""
    return frozenset(parse_version(text) for text in load_catalog("images")["tested"])


@cache
def listed(name: str) -> dict[str, EngineImage]:
    """The tags of a repository that have a row, oldest first."""
    return {tag: _made(name, tag, row) for tag, row in _rows()[name]["tags"].items()}


def images() -> dict[str, EngineImage]:
    """The listed tags of the default repository, oldest first."""
    return listed(repository())


def known_images() -> Iterator[EngineImage]:
    """Every listed tag of every repository."""
    return (image for name in _rows() if "tags" in _rows()[name] for image in listed(name).values())


def find_image(name: str, tag: str, digest: str | None = None) -> EngineImage:
    """What is known of `name:tag@digest`. A repository without a row gives an image of which nothing is known.

    Args:
        tag: '' if only a digest names the image.
    """
    row_name = next((row for row in _rows() if _parts(row) == _parts(name)), None)
    if digest is not None:
        by_digest = next((image for image in known_images() if digest in image.digests), None)
        if by_digest is not None:
            return replace(by_digest, repository=name, tag=tag)
    if row_name is None:
        return EngineImage(repository=name, tag=tag)
    known = listed(row_name) if "tags" in _rows()[row_name] else {}
    image = known.get(tag) or known.get(f"{tag}-py3") or _made(row_name, tag, {})
    return replace(image, repository=name, tag=tag)


def _parts(name: str) -> tuple[str, ...]:
    """The last two parts of a repository's name, which a mirror keeps."""
    return tuple(name.split("/")[-2:])


def _made(name: str, tag: str, own: Mapping[str, Any]) -> EngineImage:
    """A tag's own values over those of its repository."""
    shared = {key: value for key, value in _rows()[name].items() if key not in ("tags", "version", "cuda")}
    row = {**shared, **own}
    text = str(own.get("vllm") or _version_in(tag, _rows()[name].get("version")))
    vllm = parse_version(text) if text else None
    trouble = row.get("trouble", "")
    return EngineImage(
        repository=name,
        tag=tag,
        vllm=vllm,
        command=CommandShape(row["command"]),
        kind=ImageKind(row["kind"]),
        python=row.get("python", ""),
        transformers=str(row.get("transformers", "")),
        cuda=str(own.get("cuda") or _cuda(tag, vllm, _rows()[name].get("cuda", {}))),
        architectures=tuple(row.get("architectures", ())),
        entrypoint=tuple(row.get("entrypoint", ())),
        user=row.get("user", ""),
        digests=tuple(row.get("digests", ())),
        seen=tuple(row.get("seen", ())),
        note=row.get("note", ""),
        trouble=trouble,
        trouble_gpu=row.get("trouble_gpu", ""),
        source=row["source"],
    )


def _version_in(tag: str, pattern: str | None) -> str:
    match = re.match(pattern, tag) if pattern else None
    return match[1] if match else ""


def _cuda(tag: str, vllm: Version | None, since: Mapping[str, object]) -> str:
    """`-cu129` → 12.9; else that of the newest row that is not newer than this vLLM."""
    if match := re.search(r"-cu(\d{2})(\d)(?=-|$)", tag):
        return f"{match[1]}.{match[2]}"
    fitting = [text for first, text in since.items() if vllm is not None and parse_version(str(first)) <= vllm]
    return str(fitting[-1]) if fitting else ""


def find_image_tag(tag: str) -> EngineImage | None:
    """A tag of the default repository (`26.01-py3` or `26.01`); None if the catalog does not list it."""
    known = images()
    return known.get(tag) or known.get(f"{tag}-py3")


def named_image(text: str) -> EngineImage | None:
    """A tag of the default repository, or `repository:tag` of any; None if its vLLM is not known."""
    name, colon, tag = text.rpartition(":")
    found = find_image(name, tag) if colon and "/" not in tag else find_image_tag(text)
    return found if found is not None and found.vllm is not None else None


def transformers_major(text: str) -> int | None:
    """The major version of Transformers in an image, by its tag or its full name; None if it is not known."""
    image = named_image(text)
    return image.transformers_major if image else None


def resolve_version(text: str) -> Version:
    """An image (26.01, 26.01-py3, vllm/vllm-openai:v0.31.0) or a vLLM version (0.13.0) as a version.

    Raises:
        UsageError: neither a known image nor a version.
    """
    found = named_image(text)
    if found is not None and found.vllm is not None:
        return found.vllm
    if re.match(r"\d\d\.\d\d(\.|-|$)", text) or ":" in text:
        what = f"image {text[:80]!r}" if ":" in text else f"image tag {text[:40]!r}"
        raise UsageError(
            f"{what} is not in the catalog (known: {', '.join(images())})",
            hint="give the vLLM version instead, for example --vllm 0.13.0",
        )
    return parse_version(text)
