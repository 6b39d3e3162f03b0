"""Known failures of an engine's start and service, as typed rows of signatures.yaml."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

import yaml

from glm4_deploy.errors import UsageError
from glm4_deploy.text import did_you_mean

# What is known, as data: each YAML file here is a table with a source for every row, and a typed loader.


@cache
def load_catalog(name: str) -> Any:
    """The parsed content of `catalog/NAME.yaml`. Cached: treat it as read-only, and build frozen rows from it."""
    text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(text, Loader=loader)  # noqa: S506 (a safe loader, in C where there is one)


# Image tags and the vLLM version inside each; versions as comparable tuples.

Version: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTag:
    """One row of images.yaml. `vllm` is the version as text ("0.13.0")."""

    tag: str
    vllm: str
    note: str = ""


@cache
def images() -> dict[str, ImageTag]:
    """Known tags of the default repository, oldest first."""
    rows = load_catalog("images")["tags"]
    return {tag: ImageTag(tag=tag, **row) for tag, row in rows.items()}


def default_tag() -> str:
    return str(load_catalog("images")["default"])


def repository() -> str:
    return str(load_catalog("images")["repository"])


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


# GPUs as typed rows, and how to find the row of a GPU that was asked for or detected.

Capability: TypeAlias = tuple[int, int]

# nvidia-smi's total and cudaMemGetInfo's differ by what the driver keeps: 0.4 to 2.8 % on the rows of gpus.yaml.
SAME_TOTAL = 0.004
# Where the product is not known: the driver kept about this much on most rows of gpus.yaml.
DRIVER_SHARE_MIB = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. `total_mib` is what cudaMemGetInfo calls total, `smi_mib` what nvidia-smi does (None: not told).

    exact: the total was read off logs of this product; False marks an estimate.
    """

    name: str
    label: str
    compute_capability: Capability
    total_mib: float
    smi_mib: float | None = None
    unified: bool = False
    arch: str = "amd64"
    exact: bool = False
    names: tuple[str, ...] = ()
    source: str = ""

    @property
    def total_bytes(self) -> int:
        return round(self.total_mib * 2**20)

    @property
    def native_fp4(self) -> bool:
        """Tensor cores for FP4: the Blackwell families."""
        return self.compute_capability >= (10, 0)


@cache
def gpus() -> dict[str, Gpu]:
    rows = load_catalog("gpus")["gpus"]
    return {name: Gpu(name=name, **_typed(row)) for name, row in rows.items()}


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "compute_capability": parse_capability(row["compute_capability"]), "names": tuple(row["names"])}


def parse_capability(text: str) -> Capability:
    """`12.1` → (12, 1).

    Raises:
        UsageError: no X.Y.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d)", text.strip())
    if match is None:
        raise UsageError(
            f"not a compute capability: {text[:20]!r}", hint="write it like 12.1 (see developer.nvidia.com/cuda-gpus)"
        )
    return int(match[1]), int(match[2])


def gpu_by_name(name: str, *, other: str = "--gpu-total-mib and --compute-capability") -> Gpu:
    """A row by its key (`gb10`) or by what nvidia-smi prints (`NVIDIA GeForce RTX 5090`). other: what to give for a GPU
    that is not in the table.

    Raises:
        UsageError: not in the table; the hint names the keys.
    """
    found = gpus().get(name.strip().lower()) or recognise(name)
    if found is None:
        near = did_you_mean(name.lower(), gpus())
        raise UsageError(
            f"unknown GPU {name[:60]!r}",
            hint=f"{f'{near} ' if near else ''}known: {', '.join(gpus())}; any other: {other}",
        )
    return found


def recognise(product: str) -> Gpu | None:
    """The row whose name stands in a product name, None where no row fits."""
    text = re.sub(r"[^a-z0-9]+", " ", product.lower())
    for gpu in gpus().values():
        if any(re.search(rf"\b{re.escape(name)}\b", text) for name in gpu.names):
            return gpu
    return None


def gpu_by_size(total_mib: float, capability: Capability, *, unified: bool = False, label: str = "") -> Gpu:
    """A GPU from its figures; `total_mib` may be nvidia-smi's or cudaMemGetInfo's.

    A figure that nvidia-smi prints for a known product is turned into that product's cudaMemGetInfo total; any other is
    taken as it is for unified memory, and less the driver's usual share otherwise.
    """
    unknown = Gpu(
        name="custom",
        label=label or f"GPU of {total_mib:g} MiB",
        compute_capability=capability,
        total_mib=total_mib,
        unified=unified,
        arch="arm64" if unified else "amd64",
        source="figures given by hand",
    )
    for gpu in gpus().values():
        if gpu.compute_capability != capability or gpu.unified != unified:
            continue
        if gpu.smi_mib and abs(total_mib - gpu.smi_mib) <= 2:
            return replace(gpu, label=label or gpu.label)
        if abs(total_mib - gpu.total_mib) <= gpu.total_mib * SAME_TOTAL:
            return replace(gpu, total_mib=total_mib, label=label or gpu.label)
    return unknown if unified else replace(unknown, total_mib=total_mib - DRIVER_SHARE_MIB, smi_mib=total_mib)


# Host profiles and the variables that the kit renders, as typed rows.


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One row of profiles.yaml. `gpu` is the key of gpus.yaml that it is solved for, None where there is no GPU;
    `also` names further rows that it serves."""

    name: str
    summary: str
    engine: str = "nvcr"
    gpu: str | None = None
    also: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogVariable:
    """One row of variables.yaml."""

    name: str
    value: str
    read_by: str
    engines: tuple[str, ...] = ("nvcr", "cpu")


@cache
def profiles() -> dict[str, Profile]:
    rows = load_catalog("profiles")["profiles"]
    return {name: Profile(name=name, **{**row, "also": tuple(row.get("also", ()))}) for name, row in rows.items()}


@cache
def variables() -> dict[str, CatalogVariable]:
    rows = load_catalog("variables")["variables"]
    return {
        name: CatalogVariable(name=name, **{**row, "engines": tuple(row.get("engines", ("nvcr", "cpu")))})
        for name, row in rows.items()
    }


@cache
def mistaken_variables() -> dict[str, str]:
    """Names that nothing reads, with the name that was meant."""
    return dict(load_catalog("variables")["mistaken"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One row. has: literals, one of which every matching line contains: they are looked for before the regex.

    wrapper: the line only tells that something failed; its cause stands elsewhere. example: a line as seen.
    where: versions, GPUs or hosts where it matters, for people.
    """

    id: str
    severity: str
    has: tuple[str, ...]
    regex: re.Pattern[str]
    cause: str
    fix: str
    source: str
    example: str
    where: str = ""
    wrapper: bool = False


@cache
def signatures() -> tuple[Signature, ...]:
    """All rows, in the order of the file."""
    return tuple(
        Signature(**{**row, "has": tuple(row["has"]), "regex": re.compile(row["regex"])})
        for row in load_catalog("signatures")["signatures"]
    )
