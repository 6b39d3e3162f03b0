"""What the GPUs draw, how fast they run and what is wrong with them: NVML or nvidia-smi, and the kernel's log.

A value that is not reported is None, never 0 and never fine.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4_deploy.host.gpu import ask_nvml, csv_rows, number_in
from glm4_deploy.run import run_program

# NVML's bits of nvmlClocksEventReasons that slow a GPU down because something is wrong. A power cap (0x4), which every
# card reaches at work, application clocks and idling are not among them.
SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}
LOW_CLOCK = 0.4  # of the highest: below it a busy GPU is stuck (a GB10 in its low-power state, until a power cycle)
BUSY = 50.0  # percent


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHealth:
    """One GPU now.

    Attributes:
        utilization: percent of the time in which a kernel was resident, whether or not it got anywhere.
        slowdowns: values of SLOWDOWNS that hold; None: not reported.
        ecc_uncorrected: memory errors since the driver was loaded.
        rows_pending, rows_failed: whether a bad memory row waits for a reset to be remapped, or could not be.
    """

    index: int
    power_w: float | None = None
    power_limit_w: float | None = None
    utilization: float | None = None
    sm_clock_mhz: float | None = None
    sm_clock_max_mhz: float | None = None
    slowdowns: tuple[str, ...] | None = None
    ecc_uncorrected: int | None = None
    rows_pending: bool | None = None
    rows_failed: bool | None = None

    @property
    def stuck_low(self) -> bool | None:
        """Whether it is busy at a clock that no load explains; None: not known, or not busy."""
        if self.utilization is None or self.sm_clock_mhz is None or not self.sm_clock_max_mhz:
            return None
        return None if self.utilization < BUSY else self.sm_clock_mhz < LOW_CLOCK * self.sm_clock_max_mhz

    def troubles(self) -> tuple[str, ...]:
        """What is known to be wrong, in words."""
        found = list(self.slowdowns or ())
        if self.stuck_low:
            found.append(
                f"busy at {self.sm_clock_mhz:.0f} of {self.sm_clock_max_mhz:.0f} MHz: stuck at low clocks"
                " (disconnect the power for a minute)"
            )
        if self.ecc_uncorrected:
            found.append(f"{self.ecc_uncorrected} uncorrected memory errors")
        if self.rows_failed:
            found.append("a bad memory row could not be remapped: replace the card")
        elif self.rows_pending:
            found.append("a bad memory row waits to be remapped: reset the GPU or reboot")
        return tuple(found)

    @property
    def known(self) -> bool:
        """Whether the driver reports anything that could be wrong."""
        figures = (self.slowdowns, self.ecc_uncorrected, self.rows_failed, self.stuck_low)
        return any(figure is not None for figure in figures)


QUERY = (
    "index,power.draw,enforced.power.limit,utilization.gpu,clocks.sm,clocks.max.sm,{reasons}.active,"
    "ecc.errors.uncorrected.volatile.total"
)
# Drivers before 535 know the first name only; nvidia-smi refuses the whole query if it does not know one of its fields.
REASONS = ("clocks_event_reasons", "clocks_throttle_reasons")


def read_gpu_health(*, timeout: float = 1.8) -> tuple[GpuHealth, ...]:
    """Each GPU now; () if neither NVML nor nvidia-smi answers. Does not raise."""
    if found := _from_nvml():
        return found
    for reasons in REASONS:
        words = (f"--query-gpu={QUERY.format(reasons=reasons)}", "--format=csv,nounits")
        output = run_program("nvidia-smi", *words, timeout=timeout)
        if output.ok:
            return parse_health(output.stdout)
        if "not a valid field" not in output.stdout + output.stderr:
            break
    return ()


def parse_health(text: str) -> tuple[GpuHealth, ...]:
    """The csv of QUERY."""
    found = []
    for row in csv_rows(text, key="index"):
        index = number_in(row.get("index"))
        mask = next((row[f"{name}.active"] for name in REASONS if f"{name}.active" in row), "")
        errors = number_in(row.get("ecc.errors.uncorrected.volatile.total"))
        if index is not None:
            found.append(
                GpuHealth(
                    index=int(index),
                    power_w=number_in(row.get("power.draw")),
                    power_limit_w=number_in(row.get("enforced.power.limit")),
                    utilization=number_in(row.get("utilization.gpu")),
                    sm_clock_mhz=number_in(row.get("clocks.current.sm") or row.get("clocks.sm")),
                    sm_clock_max_mhz=number_in(row.get("clocks.max.sm")),
                    slowdowns=slowdowns_in(int(mask, 16)) if re.fullmatch("0x[0-9A-Fa-f]+", mask) else None,
                    ecc_uncorrected=None if errors is None else int(errors),
                )
            )
    return tuple(found)


def slowdowns_in(mask: int) -> tuple[str, ...]:
    return tuple(name for bit, name in SLOWDOWNS.items() if mask & bit)


def _from_nvml() -> tuple[GpuHealth, ...]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return ()
    try:
        count = ask_nvml(pynvml.nvmlDeviceGetCount) or 0
        handles = [ask_nvml(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
        return tuple(_nvml_health(index, handle) for index, handle in enumerate(handles) if handle is not None)
    finally:
        ask_nvml(pynvml.nvmlShutdown)


def _nvml_health(index: int, handle: Any) -> GpuHealth:
    import pynvml

    power, limit = (
        ask_nvml(one, handle) for one in (pynvml.nvmlDeviceGetPowerUsage, pynvml.nvmlDeviceGetEnforcedPowerLimit)
    )
    rates = ask_nvml(pynvml.nvmlDeviceGetUtilizationRates, handle)
    mask = ask_nvml(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    errors = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
    rows = ask_nvml(pynvml.nvmlDeviceGetRemappedRows, handle)  # corrected, uncorrected, pending, failed
    return GpuHealth(
        index=index,
        power_w=None if power is None else power / 1000,
        power_limit_w=None if limit is None else limit / 1000,
        utilization=None if rates is None else float(rates.gpu),
        sm_clock_mhz=ask_nvml(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        sm_clock_max_mhz=ask_nvml(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
        slowdowns=None if mask is None else slowdowns_in(mask),
        ecc_uncorrected=ask_nvml(pynvml.nvmlDeviceGetTotalEccErrors, handle, *errors),
        rows_pending=None if rows is None else bool(rows[2]),
        rows_failed=None if rows is None else bool(rows[3]),
    )


# Xid: what the driver writes into the kernel's log when a GPU or a program on it fails.

XID = re.compile(r"NVRM: Xid \([^)]*\): (\d+), ?([^\n]*)")
KMSG = Path("/dev/kmsg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """One line. code: of NVIDIA's table of Xid errors. at: seconds since the host's boot."""

    code: int
    at: float
    text: str


def read_xids(log: Path = KMSG) -> tuple[Xid, ...] | None:
    """Those in the kernel's buffer, oldest first; None if this user may not read it. Does not raise."""
    chunks = bytearray()
    try:
        file = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        while True:
            try:
                chunk = os.read(file, 8192)
            except BrokenPipeError:  # the kernel overwrote the record meanwhile: the next one follows
                continue
            if not chunk:
                break
            chunks += chunk
    except BlockingIOError:
        pass  # the end of the buffer
    except OSError:
        return None
    finally:
        os.close(file)
    return parse_kmsg(chunks.decode("utf-8", errors="replace"))


def parse_kmsg(text: str) -> tuple[Xid, ...]:
    """Records of /dev/kmsg: `PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT` (Documentation/ABI/testing/dev-kmsg)."""
    found = []
    for line in text.splitlines():
        head, _, message = line.partition(";")
        match = XID.match(message)
        fields = head.split(",")
        if match and len(fields) > 2 and fields[2].isdigit():
            found.append(Xid(code=int(match[1]), at=int(fields[2]) / 1e6, text=message[:300]))
    return tuple(found)
