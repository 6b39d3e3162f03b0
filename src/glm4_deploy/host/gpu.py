"""The GPUs of this host and the processes on them, from NVML or nvidia-smi. A value not reported is None, never 0."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from glm4_deploy.catalog.rows import Gpu, gpu_by_size, on_wsl, recognise
from glm4_deploy.host.system import HostFacts
from glm4_deploy.run import Output, RunFailure, run_program


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds GPU memory. used_mib: None if the driver does not report it."""

    pid: int
    name: str
    used_mib: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One GPU as reported by the driver. None: not reported (a GB10 reports no memory).

    Attributes:
        mig: whether MIG mode is on; None if the product has no MIG.
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
    """All GPUs and processes.

    Attributes:
        source: NVML or nvidia-smi.
        trouble: why nothing or not everything could be read; '' if all went well.
        answered: False if the driver's tool hung: then an empty list does not mean that there is no GPU.
    """

    gpus: tuple[GpuFacts, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    driver: str | None = None
    source: str = ""
    trouble: str = ""
    answered: bool = True


QUERY = "index,name,driver_version,compute_cap,memory.total,memory.used,memory.free,mig.mode.current,temperature.gpu"
APPS = "pid,process_name,used_gpu_memory"
# What nvidia-smi prints for an unknown value.
UNKNOWN = frozenset({"", "[n/a]", "n/a", "[not supported]", "not supported", "[unknown error]", "[gpu requires reset]"})


def read_gpus(*, timeout: float = 1.8) -> GpuReport:
    """Ask NVML, or nvidia-smi if NVML cannot be loaded. Does not raise."""
    report = _from_nvml()
    if report.gpus:
        return report
    gpus = run_program("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,nounits", timeout=timeout)
    apps = Output(code=None)
    if gpus.ok:
        apps = run_program("nvidia-smi", f"--query-compute-apps={APPS}", "--format=csv,nounits", timeout=timeout)
    smi = from_nvidia_smi(gpus, apps)
    if smi.gpus or not report.trouble:
        return smi
    return replace(smi, trouble=f"{smi.trouble}; {report.trouble}".strip("; "))


def from_nvidia_smi(gpus: Output, apps: Output) -> GpuReport:
    """The report of the two queries (csv with a header line)."""
    if not gpus.ok:
        return GpuReport(source="nvidia-smi", trouble=_trouble(gpus), answered=gpus.failure is not RunFailure.TIMEOUT)
    rows = parse_gpus(gpus.stdout)
    if not rows:
        return GpuReport(source="nvidia-smi", trouble=_trouble(gpus) or "nvidia-smi lists no GPU")
    driver = next((row.driver for row in rows if row.driver), None)
    processes = parse_apps(apps.stdout) if apps.ok else ()
    return GpuReport(gpus=rows, processes=processes, driver=driver, source="nvidia-smi")


def _trouble(output: Output) -> str:
    """The first line of the error."""
    text = output.trouble or output.stdout.strip() or output.stderr.strip()
    return text.splitlines()[0][:200] if text else ""


def parse_gpus(text: str) -> tuple[GpuFacts, ...]:
    """The csv of `nvidia-smi --query-gpu`, with any columns, with or without units."""
    return tuple(_gpu(number, row) for number, row in enumerate(csv_rows(text)) if row.get("name"))


def parse_apps(text: str) -> tuple[GpuProcess, ...]:
    """The csv of `nvidia-smi --query-compute-apps`."""
    processes = []
    for row in csv_rows(text):
        pid = number_in(row.get("pid"))
        if pid is not None:
            used = number_in(row.get("used_gpu_memory") or row.get("used_memory"))
            processes.append(GpuProcess(pid=int(pid), name=row.get("process_name") or "", used_mib=used))
    return tuple(processes)


def csv_rows(text: str, key: str = "name") -> list[dict[str, str]]:
    """Rows by column name without its unit; unknown values are left out."""
    lines = [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(text)) if line]
    header = next((line for line in lines if key in line or any(cell.startswith("pid") for cell in line)), None)
    if header is None:
        return []
    names = [cell.split(" [")[0] for cell in header]
    body = lines[lines.index(header) + 1 :]
    return [
        {name: cell for name, cell in zip(names, line, strict=True) if cell.lower() not in UNKNOWN}
        for line in body
        if len(line) == len(names)
    ]


def _gpu(number: int, row: dict[str, str]) -> GpuFacts:
    index = number_in(row.get("index"))
    mig = row.get("mig.mode.current")
    return GpuFacts(
        index=number if index is None else int(index),
        name=row["name"],
        driver=row.get("driver_version"),
        compute_capability=_capability(row.get("compute_cap")),
        total_mib=number_in(row.get("memory.total")),
        used_mib=number_in(row.get("memory.used")),
        free_mib=number_in(row.get("memory.free")),
        mig=None if mig is None else mig.lower() == "enabled",
        temperature_c=number_in(row.get("temperature.gpu")),
    )


def number_in(text: str | None) -> float | None:
    """`81559`, `81559 MiB` → 81559.0; anything else → None."""
    try:
        return float(text.split()[0]) if text else None
    except (ValueError, IndexError):
        return None


def _capability(text: str | None) -> tuple[int, int] | None:
    major, _, minor = (text or "").partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _from_nvml() -> GpuReport:
    """NVML through nvidia-ml-py. Each value is queried separately: one that is not supported is None."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        return GpuReport(source="NVML", trouble=f"NVML: {error}")
    try:
        driver = _text(ask_nvml(pynvml.nvmlSystemGetDriverVersion))
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        gpus = tuple(_nvml_gpu(index, handle, driver) for index, handle in enumerate(handles))
        processes = tuple(process for handle in handles for process in _nvml_processes(handle))
        return GpuReport(gpus=gpus, processes=processes, driver=driver, source="NVML")
    except pynvml.NVMLError as error:
        return GpuReport(source="NVML", trouble=f"NVML: {error}")
    finally:
        ask_nvml(pynvml.nvmlShutdown)


def ask_nvml(function: Any, *arguments: Any) -> Any:
    """An NVML value; None if this product or driver does not support it."""
    import pynvml

    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _nvml_gpu(index: int, handle: Any, driver: str | None) -> GpuFacts:
    import pynvml

    # The second version counts as nvidia-smi does: without what the driver reserves (615 MiB of an H200).
    memory = ask_nvml(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    memory = memory or ask_nvml(pynvml.nvmlDeviceGetMemoryInfo, handle)
    mig = ask_nvml(pynvml.nvmlDeviceGetMigMode, handle)
    known = memory is not None and memory.total > 0
    return GpuFacts(
        index=index,
        name=_text(ask_nvml(pynvml.nvmlDeviceGetName, handle)) or "unnamed GPU",
        driver=driver,
        compute_capability=ask_nvml(pynvml.nvmlDeviceGetCudaComputeCapability, handle),
        total_mib=memory.total / 2**20 if known else None,
        used_mib=memory.used / 2**20 if known else None,
        free_mib=memory.free / 2**20 if known else None,
        mig=None if mig is None else bool(mig[0]),
        temperature_c=ask_nvml(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
    )


def _nvml_processes(handle: Any) -> list[GpuProcess]:
    import pynvml

    return [
        GpuProcess(
            pid=process.pid,
            name=_text(ask_nvml(pynvml.nvmlSystemGetProcessName, process.pid)) or "",
            used_mib=None if process.usedGpuMemory is None else process.usedGpuMemory / 2**20,
        )
        for process in ask_nvml(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
    ]


def _text(value: Any) -> str | None:
    """Text; older NVML bindings return bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return None if value is None else str(value)


# Not free although nothing uses it: the CUDA context that the engine opens before it looks (78.57 of 79.18 GiB on an
# idle H100), and on unified memory its own processes (113.69 GiB where the idle host had 116.43 available).
CONTEXT_MIB, PROCESSES = 600, 2.7 * 2**30


def gpu_row(report: GpuReport, host: HostFacts | None, *, ranks: int = 1) -> Gpu | None:
    """The planner's row for the GPUs that an engine gets; None if size or capability is unknown (no GPU, MIG on).

    Of several different cards it is the smallest of the first `ranks`: each rank gets the same share.
    """
    rows = [_row(facts, host) for facts in report.gpus[:ranks]]
    known = [row for row in rows if row is not None]
    return min(known, key=lambda row: row.total_mib) if known and len(known) == len(rows) else None


def _row(facts: GpuFacts, host: HostFacts | None) -> Gpu | None:
    known = recognise(facts.name)
    capability = facts.compute_capability or (known.compute_capability if known else None)
    pool = host.memory_total / 2**20 if host and host.memory_total else None
    if capability is None or facts.mig:
        return None
    if known is not None and known.unified:
        return replace(known, total_mib=pool, exact=True) if pool else known
    if facts.total_mib is not None:
        return gpu_by_size(facts.total_mib, capability, label=facts.name, wsl=host is not None and host.wsl)
    if known is None and pool:
        return gpu_by_size(pool, capability, unified=True, label=facts.name)
    return on_wsl(known) if known and host and host.wsl else known


def free_bytes(gpus: Sequence[GpuFacts], host: HostFacts | None, gpu: Gpu) -> int | None:
    """Bytes that an engine would find free on `gpu` now; None if not known."""
    if gpu.unified:
        available = host.memory_available if host else None
        return None if available is None else max(0, round(available - PROCESSES))
    free = [facts.free_mib for facts in gpus if facts.free_mib is not None]
    if not free:
        return None
    return max(0, round((min(free[0], gpu.total_mib) - CONTEXT_MIB) * 2**20))
