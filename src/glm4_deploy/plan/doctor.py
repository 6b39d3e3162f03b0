"""From what a host is and what a deployment needs to rows and one verdict. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from glm4_deploy.catalog.profiles import Profile
from glm4_deploy.facts.docker import ComposeFacts, DockerFacts
from glm4_deploy.facts.gpu_model import GpuReport
from glm4_deploy.facts.host import Disk, HostFacts, PortState
from glm4_deploy.result import Result, Status
from glm4_deploy.settings import Settings


class Verdict(StrEnum):
    """READY: nothing is in the way. SLOW: it will run, without the arithmetic that this checkpoint is made for."""

    READY = "ready"
    SLOW = "slow"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the deployment wants of the host.

    own_port: this deployment's own engine is running and may hold the port.
    """

    settings: Settings
    profile: Profile
    own_port: bool = False

    @property
    def image(self) -> str:
        return f"{self.settings.image_repository}:{self.settings.image_tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the probes found. None: the probe did not answer in time."""

    gpu: GpuReport | None
    host: HostFacts | None
    docker: DockerFacts | None
    compose: ComposeFacts | None
    port: PortState | None
    model_disk: Disk | None
    docker_disk: Disk | None
    checkpoint: Result | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The report of `doctor`."""

    verdict: Verdict
    results: tuple[Result, ...]


def diagnose(seen: Seen, needs: Needs) -> Diagnosis:
    """Judge every row, then the whole."""
    from glm4_deploy.plan.doctor_gpu import gpu_rows
    from glm4_deploy.plan.doctor_host import host_rows

    results = (*(gpu_rows(seen, needs) if needs.profile.engine == "nvcr" else ()), *host_rows(seen, needs))
    return Diagnosis(verdict=judge(results), results=results)


def judge(results: Iterable[Result]) -> Verdict:
    """A failed row blocks, one that could not be judged leaves it unknown, other arithmetic than FP4 is slow."""
    rows = tuple(results)
    if any(row.status is Status.FAIL for row in rows):
        return Verdict.BLOCKED
    if not rows or any(row.status is Status.UNKNOWN for row in rows):
        return Verdict.UNKNOWN
    if any(row.check == "kernel-path" and row.status is Status.WARN for row in rows):
        return Verdict.SLOW
    return Verdict.READY


def unanswered(check: str, expected: str = "") -> Result:
    """The row of a probe that did not answer."""
    return Result(check=check, status=Status.UNKNOWN, expected=expected, reason="the probe did not answer in time")
