"""Image tags and the vLLM version inside each; versions as comparable tuples."""

import re
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from glm4_deploy.catalog import load
from glm4_deploy.errors import UsageError

Version: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One row of images.yaml. `vllm` is the version as text ("0.13.0")."""

    tag: str
    vllm: str
    note: str = ""


@cache
def images() -> dict[str, Image]:
    """Known tags of the default repository, oldest first."""
    rows = load("images")["tags"]
    return {tag: Image(tag=tag, **row) for tag, row in rows.items()}


def default_tag() -> str:
    return str(load("images")["default"])


def repository() -> str:
    return str(load("images")["repository"])


def parse_version(text: str) -> Version:
    """`0.13.0+faa43dbf.nv26.01`, `v0.24.0`, `0.20.0rc1` → (0, 13, 0), (0, 24, 0), (0, 20, 0).

    Raises:
        UsageError: no version number at its beginning.
    """
    match = re.match(r"v?(\d+(?:\.\d+)+)", text.strip())
    if match is None:
        raise UsageError(f"not a vLLM version: {text[:40]!r}", hint="write it like 0.13.0")
    return tuple(int(part) for part in match[1].split("."))


def vllm_version(tag: str) -> Version | None:
    """The vLLM inside an image tag (`26.01-py3` or `26.01`), or None for a tag that the catalog does not know."""
    known = images()
    image = known.get(tag) or known.get(f"{tag}-py3")
    return parse_version(image.vllm) if image else None


def resolve_version(tag_or_version: str) -> Version:
    """What a user wrote after `--for`: an image tag (26.01, 26.01-py3) or a vLLM version (0.13.0).

    Raises:
        UsageError: neither a known tag nor a version.
    """
    found = vllm_version(tag_or_version)
    if found is not None:
        return found
    if re.match(r"\d\d\.\d\d(-|$)", tag_or_version):
        raise UsageError(
            f"image tag {tag_or_version!r} is not in the catalog (known: {', '.join(images())})",
            hint="give the vLLM version instead, for example --vllm 0.13.0",
        )
    return parse_version(tag_or_version)
