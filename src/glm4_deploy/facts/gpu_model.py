"""What is known of a GPU and of who holds its memory. What the driver does not tell is None, never 0."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds GPU memory. `used_mib` is None where the driver does not tell."""

    pid: int
    name: str
    used_mib: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One GPU as the driver describes it. Sizes in MiB; None: not told (a GB10 tells no memory).

    mig: whether MIG mode is on; None where the product has none.
    """

    index: int
    name: str
    driver: str | None = None
    compute_capability: tuple[int, int] | None = None
    total_mib: float | None = None
    used_mib: float | None = None
    free_mib: float | None = None
    mig: bool | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """All of it. `trouble` says, in words for a person, why nothing or not everything could be read.

    answered: False where the driver's tool hung: then no GPU listed does not mean that there is none.
    """

    gpus: tuple[GpuFacts, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    driver: str | None = None
    source: str = ""
    trouble: str = ""
    answered: bool = True
