"""GPUs as typed rows, and how to find the row of a GPU that was asked for or detected."""

import difflib
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

from glm4_deploy.catalog import load
from glm4_deploy.errors import UsageError

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
    rows = load("gpus")["gpus"]
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
        close = difflib.get_close_matches(name.lower(), list(gpus()), n=1)
        raise UsageError(
            f"unknown GPU {name[:60]!r}",
            hint=f"{f'did you mean {close[0]}? ' if close else ''}known: {', '.join(gpus())}; any other: {other}",
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
