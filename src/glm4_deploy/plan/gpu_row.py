"""From what a host tells of its GPU to the row that the planner works with. Pure."""

from dataclasses import replace

from glm4_deploy.catalog.gpus import Gpu, gpu_by_size, recognise
from glm4_deploy.facts.gpu_model import GpuReport
from glm4_deploy.facts.host import HostFacts


def gpu_row(report: GpuReport, host: HostFacts | None) -> Gpu | None:
    """The first GPU; None where its size or compute capability is not known (no GPU, MIG is on)."""
    if not report.gpus:
        return None
    facts = report.gpus[0]
    known = recognise(facts.name)
    capability = facts.compute_capability or (known.compute_capability if known else None)
    pool = host.memory_total / 2**20 if host and host.memory_total else None
    if capability is None or facts.mig:
        return None
    if known is not None and known.unified:
        return replace(known, total_mib=pool, exact=True) if pool else known
    if facts.total_mib is not None:
        return gpu_by_size(facts.total_mib, capability, label=facts.name)
    if known is None and pool:
        return gpu_by_size(pool, capability, unified=True, label=facts.name)
    return known
