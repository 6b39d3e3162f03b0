"""The catalog as typed rows: GPUs, profiles, variables, failure signatures, symptoms and metrics.

Each YAML file in this directory is a table with a source for every row.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

import yaml

from glm4_deploy.errors import UsageError
from glm4_deploy.text import did_you_mean


@cache
def load_catalog(name: str) -> Any:
    """The parsed content of `catalog/NAME.yaml`. Cached, so treat it as read-only."""
    text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(text, Loader=loader)  # noqa: S506 (a safe loader, in C where there is one)


Version: TypeAlias = tuple[int, ...]


def parse_version(text: str) -> Version:
    """`0.13.0+faa43dbf.nv26.01`, `v0.24.0`, `0.20.0rc1` → (0, 13, 0), (0, 24, 0), (0, 20, 0).

    Raises:
        UsageError: it does not start with a version number.
    """
    match = re.match(r"v?([0-9]{1,9}(?:\.[0-9]{1,9}){1,9})", text.strip())
    if match is None:
        raise UsageError(f"not a vLLM version: {text[:40]!r}", hint="write it like 0.13.0")
    return tuple(int(part) for part in match[1].split("."))


# GPUs, and how to find the row of a requested or detected GPU.

Capability: TypeAlias = tuple[int, int]

# nvidia-smi's total exceeds cudaMemGetInfo's by the driver's share: 0.4 to 2.8 % in gpus.yaml.
SAME_TOTAL = 0.004
# nvidia-smi's totals of one size differ by a few MiB between products: 16303 (RTX 5070 Ti), 16311 (RTX 5060 Ti).
SAME_PRODUCT_MIB = 10
# For unknown products: the driver's share is about this much in most rows of gpus.yaml.
DRIVER_SHARE_MIB = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. total_mib: cudaMemGetInfo's total. smi_mib: nvidia-smi's total; None if it reports none.

    exact: the total comes from logs of this product; False marks an estimate.
    wsl: under WSL2, where CUDA sees all that nvidia-smi reports.
    """

    name: str
    label: str
    compute_capability: Capability
    total_mib: float
    smi_mib: float | None = None
    unified: bool = False
    arch: str = "amd64"
    exact: bool = False
    wsl: bool = False
    names: tuple[str, ...] = ()
    source: str = ""

    @property
    def total_bytes(self) -> int:
        return round(self.total_mib * 2**20)

    @property
    def native_fp4(self) -> bool:
        """Whether it has FP4 tensor cores: the Blackwell families."""
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
        UsageError: not of the form X.Y.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d)", text.strip())
    if match is None:
        raise UsageError(
            f"not a compute capability: {text[:20]!r}", hint="write it like 12.1 (see developer.nvidia.com/cuda-gpus)"
        )
    return int(match[1]), int(match[2])


def gpu_by_name(name: str, *, other: str = "--gpu-total-mib and --compute-capability") -> Gpu:
    """A row by its key (`gb10`) or by the name that nvidia-smi prints (`NVIDIA GeForce RTX 5090`).

    other: what to give for a GPU that is not in the table.

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
    """The row whose name is part of a product name; None if no row matches."""
    text = re.sub(r"[^a-z0-9]+", " ", product.lower())
    for gpu in gpus().values():
        if any(re.search(rf"\b{re.escape(name)}\b", text) for name in gpu.names):
            return gpu
    return None


def gpu_by_size(
    total_mib: float,
    capability: Capability,
    *,
    unified: bool = False,
    label: str = "",
    wsl: bool = False,
    from_cuda: bool = False,
) -> Gpu:
    """A GPU from its figures; `total_mib` may be nvidia-smi's or cudaMemGetInfo's.

    nvidia-smi's figure for a known product becomes that product's cudaMemGetInfo total. Any other figure is used as it
    is for unified memory, and minus the driver's usual share otherwise.

    Args:
        wsl: the host is WSL2, where both figures are the same.
        from_cuda: the figure is cudaMemGetInfo's, as the engine logs it.
    """
    unknown = Gpu(
        name=label.lower() or "custom",
        label=label or f"GPU of {total_mib:g} MiB",
        compute_capability=capability,
        total_mib=total_mib,
        unified=unified,
        arch="arm64" if unified else "amd64",
        source="figures given by hand",
    )
    known = [gpu for gpu in gpus().values() if gpu.compute_capability == capability and gpu.unified == unified]
    if wsl or from_cuda:
        row = next(
            (gpu for gpu in known if gpu.smi_mib and abs(total_mib - gpu.smi_mib) <= SAME_TOTAL * total_mib), unknown
        )
        return replace(row, total_mib=total_mib, exact=True, wsl=wsl, label=label or row.label)
    for gpu in known:
        if gpu.smi_mib and abs(total_mib - gpu.smi_mib) <= SAME_PRODUCT_MIB:
            return replace(gpu, label=label or gpu.label)
        if abs(total_mib - gpu.total_mib) <= gpu.total_mib * SAME_TOTAL:
            return replace(gpu, total_mib=total_mib, label=label or gpu.label)
    return unknown if unified else replace(unknown, total_mib=total_mib - DRIVER_SHARE_MIB, smi_mib=total_mib)


def on_wsl(gpu: Gpu) -> Gpu:
    """The same card under WSL2, where CUDA's total is nvidia-smi's (15.92 and 31.84 GiB in engine logs)."""
    return replace(gpu, total_mib=gpu.smi_mib or gpu.total_mib, wsl=True)


# Host profiles, and the environment variables that the kit renders.


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One row of profiles.yaml: what a class of cards needs.

    gpu: the key in gpus.yaml that it is solved for where no host is known; None if it needs no GPU.
    capabilities: it also serves every other card of these compute capabilities.
    """

    name: str
    summary: str
    engine: str = "nvcr"
    gpu: str | None = None
    capabilities: tuple[Capability, ...] = ()
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
    return {name: Profile(name=name, **_typed_profile(row)) for name, row in rows.items()}


def _typed_profile(row: dict[str, Any]) -> dict[str, Any]:
    capabilities = tuple(parse_capability(text) for text in row.get("capabilities", ()))
    return {**row, "capabilities": capabilities}


def profile_for(gpu: Gpu) -> Profile | None:
    """The profile made for a product, else for cards of its compute capability; None if there is neither."""
    made = [profile for profile in profiles().values() if profile.name != "seed"]
    named = (profile for profile in made if gpu.name == profile.gpu)
    of_class = (profile for profile in made if gpu.compute_capability in profile.capabilities)
    return next(named, None) or next(of_class, None)


@cache
def variables() -> dict[str, CatalogVariable]:
    rows = load_catalog("variables")["variables"]
    return {
        name: CatalogVariable(name=name, **{**row, "engines": tuple(row.get("engines", ("nvcr", "cpu")))})
        for name, row in rows.items()
    }


@cache
def mistaken_variables() -> dict[str, str]:
    """Misspelled names that nothing reads, with the intended name."""
    return dict(load_catalog("variables")["mistaken"])


class Role(IntEnum):
    """What a signature says about a failure, in the order in which findings are believed to be its cause."""

    CAUSE = 0  # names the cause
    PLACE = 1  # names only where, or what kind of exception; a message that names the cause is better
    SYMPTOM = 2  # usually follows from another failure: a time-out, a process that has gone
    WRAPPER = 3  # says only that something failed; its cause is elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Another cause or fix for some versions of vLLM or some GPUs.

    vllm, gpu: `<0.20` or `>=12.0`, compared with the log's version and its compute capability; "" for any.
    """

    vllm: str = ""
    gpu: str = ""
    cause: str = ""
    fix: str = ""

    def fits(self, version: Version | None, capability: Capability | None) -> bool:
        """False as well if the log does not say what the condition needs."""
        return all(
            known is not None and holds(condition, known)
            for condition, known in ((self.vllm, version), (self.gpu, capability))
            if condition
        )


def holds(condition: str, known: tuple[int, ...]) -> bool:
    """Whether a version or a compute capability is `<0.20`, or `>=12.0`."""
    limit = tuple(map(int, condition.lstrip("<>=").split(".")))
    return known[: len(limit)] < limit if condition.startswith("<") else known[: len(limit)] >= limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One row. has: literals; every matching line contains one of them, so they are searched before the regex.

    frames: searched in the files and functions of a traceback whose exception no other row knows, innermost first.
    about: searched in the words of an exception that no other row knows, whatever their case.
    quotes: the line says more than the row, so the cause is followed by its words.
    before_ready: severity if the engine has not come up. at_end: severity if, besides, the log ends with such lines.
    example: a line as seen. where: affected versions, GPUs or hosts, for people.
    """

    id: str
    severity: str
    cause: str
    fix: str
    source: str
    example: str
    has: tuple[str, ...] = ()
    regex: str = ""
    frames: str = ""
    about: str = ""
    quotes: bool = False
    role: Role = Role.CAUSE
    before_ready: str = ""
    at_end: str = ""
    advice: tuple[Advice, ...] = ()
    where: str = ""

    def matches(self, text: str) -> bool:
        return bool(self.regex) and _compiled(self.regex).search(text) is not None

    def knows(self, call: str) -> bool:
        """Whether it knows this call, given as file and function."""
        return bool(self.frames) and _compiled(self.frames).search(call) is not None

    def speaks_of(self, words: str) -> bool:
        """Whether these words of an exception are about what this row is about."""
        return bool(self.about) and _compiled(f"(?i:{self.about})").search(words) is not None

    def cause_and_fix(self, version: Version | None, capability: Capability | None) -> tuple[str, str]:
        """Cause and fix for this version and GPU."""
        for one in self.advice:
            if one.fits(version, capability):
                return one.cause or self.cause, one.fix or self.fix
        return self.cause, self.fix


@cache
def signatures() -> tuple[Signature, ...]:
    """All rows, in file order."""
    return tuple(Signature(**_signature(row)) for row in load_catalog("signatures")["signatures"])


def _signature(row: dict[str, Any]) -> dict[str, Any]:
    advice = tuple(Advice(**one) for one in row.get("advice", ()))
    role = Role[row.get("role", "cause").upper()]
    return {**row, "has": tuple(row.get("has", ())), "advice": advice, "role": role}


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """One row of symptoms.yaml: how people describe a failure.

    says: their phrases. see: ids of signatures, the likeliest first. The rest only for a failure without a log line.
    """

    id: str
    says: tuple[str, ...]
    see: tuple[str, ...]
    severity: str = ""
    cause: str = ""
    fix: str = ""
    source: str = ""


@cache
def symptoms() -> tuple[Symptom, ...]:
    """All rows, in file order."""
    rows = load_catalog("symptoms")["symptoms"]
    return tuple(Symptom(**{**row, "says": tuple(row["says"]), "see": tuple(row["see"])}) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the words of a symptom mean.

    same: words in one list mean the same; the first stands for the others. ignored: they say nothing about a failure.
    places: they say where it happens rather than what. field: only who speaks of an engine or its host says them.
    """

    same: tuple[tuple[str, ...], ...]
    ignored: frozenset[str]
    places: frozenset[str]
    field: frozenset[str]


@cache
def vocabulary() -> Vocabulary:
    table = load_catalog("symptoms")
    return Vocabulary(
        same=tuple(map(tuple, table["words"])),
        ignored=frozenset(table["ignored"].split()),
        places=frozenset(table["places"]),
        field=frozenset(table["field"].split()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One row of metrics.yaml. limit: from which value on it is a finding, for the reason in `why`.

    below: severity of a value under the limit that is not 0; '' for no finding. least: observations that it takes.
    """

    id: str
    severity: str
    value: str
    limit: float
    why: str
    cause: str
    fix: str
    source: str
    below: str = ""
    least: float = 0

    def level(self, value: float) -> str:
        """The severity of a value; '' if it is not a finding."""
        return self.severity if value >= self.limit else self.below if value else ""


@cache
def metric_rows() -> tuple[MetricRow, ...]:
    """All rows, in file order."""
    return tuple(MetricRow(**row) for row in load_catalog("metrics")["metrics"])


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compiled when it is first needed: a log needs few of them, and all together take longer than a small log."""
    return re.compile(pattern)
