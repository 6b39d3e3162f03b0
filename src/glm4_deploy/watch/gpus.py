"""What the watch reads of the GPUs beside the engine's counters: for the witness, the metrics, and the events."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

from glm4_deploy.host.gpu_health import GpuHealth, Xid, read_gpu_health, read_xids
from glm4_deploy.watch.incident import without_figures
from glm4_deploy.watch.witness import LOOK_S, Witness

NO_GPU_S = 300.0  # until the next look where there was no GPU


class GpuMetrics:
    """Series per GPU; a figure that the driver does not report has none."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *more: str) -> Gauge:
            return Gauge(f"glm4_watch_gpu_{name}", text, ("gpu", *more), registry=registry)

        self.power = gauge("power_watts", "What the GPU draws")
        self.utilization = gauge("utilization_percent", "Time in which a kernel was resident, whether or not it worked")
        self.clock = gauge("sm_clock_mhz", "Clock of the multiprocessors")
        self.troubles = gauge("troubles", "Slowdowns, stuck clocks, memory errors: how many hold now")
        self.errors = gauge("ecc_uncorrected", "Uncorrected memory errors since the driver was loaded")
        self.xids = Gauge("glm4_watch_gpu_xids", "Xid errors in the kernel's log", ("code",), registry=registry)
        self._registry = registry
        self._new_xids: Counter | None = None

    def publish(self, gpus: tuple[GpuHealth, ...], xids: tuple[Xid, ...] | None) -> None:
        if not gpus:
            for series in (self.power, self.utilization, self.clock, self.troubles, self.errors):
                series.clear()
        for gpu in gpus:
            rows = (
                (self.power, gpu.power_w),
                (self.utilization, gpu.utilization),
                (self.clock, gpu.sm_clock_mhz),
                (self.troubles, float(len(gpu.troubles())) if gpu.known else None),
                (self.errors, gpu.ecc_uncorrected),
            )
            for series, value in rows:
                if value is not None:
                    series.labels(str(gpu.index)).set(value)
                else:
                    with suppress(KeyError):
                        series.remove(str(gpu.index))
        codes = [xid.code for xid in xids or ()]
        for code in sorted(set(codes)):
            self.xids.labels(str(code)).set(codes.count(code))

    def count_xids(self, new: int) -> None:
        """Count what came since the watch began. Begins at 0, so that the first one is an increase for an alert.

        There is no series where the kernel's log cannot be read: do not call it.
        """
        if self._new_xids is None:
            text = "Xid errors in the kernel's log since the watch began"
            self._new_xids = Counter("glm4_watch_gpu_new_xids", text, registry=self._registry)
        self._new_xids.inc(new)


@dataclass(slots=True, kw_only=True)
class GpuLook:
    """Reads the GPUs and the kernel's log, forever: for the witness, the metrics and the events `gpu`."""

    witness: Witness
    metrics: GpuMetrics
    emit: Callable[..., None]
    _troubles: tuple[str, ...] = ()
    _xid_at: float | None = None  # of the newest that was seen

    async def run(self) -> None:
        there = False
        while True:
            gpus = await asyncio.to_thread(read_gpu_health)
            there = there or bool(gpus)
            xids = await asyncio.to_thread(read_xids)
            self.look(gpus, xids, time.monotonic())
            await asyncio.sleep(LOOK_S if there else NO_GPU_S)

    def look(self, gpus: tuple[GpuHealth, ...], xids: tuple[Xid, ...] | None, at: float) -> None:
        self.witness.saw(gpus, at)
        self.metrics.publish(gpus, xids)
        if gpus:  # a GPU that cannot be read has not got well
            self._report(tuple(f"GPU {gpu.index}: {trouble}" for gpu in gpus for trouble in gpu.troubles()))
        if xids is not None:
            newest = max((xid.at for xid in xids), default=0.0)
            # Those of before the watch say nothing of now. The kernel's buffer drops its oldest lines.
            known = newest if self._xid_at is None else self._xid_at
            new = [xid for xid in xids if xid.at > known]
            for xid in new:
                self.emit("xid", code=xid.code, why=xid.text, hint="sudo dmesg | glm4-deploy diagnose -")
            self.metrics.count_xids(len(new))
            self._xid_at = max(known, newest)

    def _report(self, troubles: tuple[str, ...]) -> None:
        kinds = tuple(without_figures(trouble) for trouble in troubles)
        if kinds != self._troubles:
            self.emit("gpu", state="trouble" if troubles else "well", why="; ".join(troubles))
            self._troubles = kinds
