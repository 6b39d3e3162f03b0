"""What this host lacks for an engine; read-only. May import `checkpoint`, `plan`, `host`, `settings`, `catalog`."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

from glm4_deploy.catalog.rows import Gpu, Profile, default_tag, recognise, resolve_version
from glm4_deploy.host.gpu import GpuFacts, GpuReport, gpu_row, read_gpus
from glm4_deploy.host.system import (
    COMPOSE_MINIMUM,
    ComposeFacts,
    Disk,
    DockerFacts,
    HostFacts,
    PortState,
    gather,
    read_compose,
    read_disk,
    read_docker,
    read_host,
    read_port,
)
from glm4_deploy.plan.engine_rules import GIB, WeightFormat, kernel_path
from glm4_deploy.plan.memory import MemoryRequest, estimate
from glm4_deploy.plan.services import is_loopback
from glm4_deploy.plan.sizing import HOST_RESERVE_GIB, highest_fraction, solve
from glm4_deploy.plan.spec import engine_version, memory_request
from glm4_deploy.result import Result, Status
from glm4_deploy.settings import Settings

# From what a host is and what a deployment needs to rows and one verdict. Pure.


class HostVerdict(StrEnum):
    """READY: nothing is in the way. SLOW: it will run, without the arithmetic that this checkpoint is made for."""

    READY = "ready"
    SLOW = "slow"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the deployment wants of the host."""

    settings: Settings
    profile: Profile

    @property
    def image(self) -> str:
        return f"{self.settings.image_repository}:{self.settings.image_tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorInput:
    """What the probes found. None: the probe did not answer in time.

    own_port: whether this deployment's own engine is running and so holds the port.
    """

    gpu: GpuReport | None
    host: HostFacts | None
    docker: DockerFacts | None
    compose: ComposeFacts | None
    port: PortState | None
    model_disk: Disk | None
    docker_disk: Disk | None
    checkpoint: Result | None
    own_port: bool | None = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The report of `doctor`."""

    verdict: HostVerdict
    results: tuple[Result, ...]


def doctor_results(seen: DoctorInput, needs: Needs) -> Diagnosis:
    """Judge every row, then the whole."""

    results = (*(gpu_rows(seen, needs) if needs.profile.engine == "nvcr" else ()), *host_rows(seen, needs))
    return Diagnosis(verdict=host_verdict(results), results=results)


def host_verdict(results: Iterable[Result]) -> HostVerdict:
    """A failed row blocks, one that could not be judged leaves it unknown, other arithmetic than FP4 is slow."""
    rows = tuple(results)
    if any(row.status is Status.FAIL for row in rows):
        return HostVerdict.BLOCKED
    if not rows or any(row.status is Status.UNKNOWN for row in rows):
        return HostVerdict.UNKNOWN
    if any(row.check == "kernel-path" and row.status is Status.WARN for row in rows):
        return HostVerdict.SLOW
    return HostVerdict.READY


def unanswered(check: str, expected: str = "") -> Result:
    """The row of a probe that did not answer."""
    return Result(check=check, status=Status.UNKNOWN, expected=expected, reason="the probe did not answer in time")


# The doctor's rows about GPUs: what it is, its driver, who holds its memory, whether the plan fits. Pure.

# CUDA 13, which every image of the catalog holds. GeForce has no forward compatibility: its floor is higher.
DRIVER, DRIVER_GEFORCE = 580, 590


def gpu_rows(seen: DoctorInput, needs: Needs) -> Iterator[Result]:
    """All of them; without a GPU one row that says so, and no rows that would only repeat it."""
    if seen.gpu is None:
        yield unanswered("gpu", "an NVIDIA GPU")
        return
    if not seen.gpu.answered:
        yield Result(
            check="gpu",
            status=Status.UNKNOWN,
            observed=seen.gpu.trouble,
            expected="an NVIDIA GPU",
            reason="the driver's tool hangs",
            remedy="run nvidia-smi by hand; where it hangs, look for `NVRM` in `sudo dmesg` and reboot",
        )
        return
    if not seen.gpu.gpus:
        yield Result(
            check="gpu",
            status=Status.FAIL,
            observed=f"none found ({seen.gpu.trouble})",
            expected="an NVIDIA GPU of compute capability 7.5 or newer",
            remedy="install the NVIDIA driver and reboot; without a GPU use --profile cpu",
        )
        return
    first = seen.gpu.gpus[0]
    row = gpu_row(seen.gpu, seen.host)
    yield _gpu(seen, needs)
    yield _kernel(first, row, needs)
    yield _driver(seen.gpu.driver or first.driver, first.name)
    yield _users(seen)
    yield _memory_plan(seen, needs, row)


def free_bytes(seen: DoctorInput, gpu: Gpu) -> int | None:
    """What an engine could request now."""
    if gpu.unified:
        return seen.host.memory_available if seen.host else None
    facts = seen.gpu.gpus[0] if seen.gpu and seen.gpu.gpus else None
    if facts is None or facts.free_mib is None:
        return None
    return round(min(facts.free_mib, gpu.total_mib) * 2**20)


def _gpu(seen: DoctorInput, needs: Needs) -> Result:
    assert seen.gpu is not None  # noqa: S101 (gpu_rows looked)
    gpus = seen.gpu.gpus
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    observed = f"{len(gpus)} x {names}" if len(gpus) > 1 else names
    expected = f"{needs.settings.tensor_parallel_size} GPU" + ("s" if needs.settings.tensor_parallel_size > 1 else "")
    if len(gpus) < needs.settings.tensor_parallel_size:
        remedy = f"lower tensor_parallel_size to {len(gpus)}"
        return Result(check="gpu", status=Status.FAIL, observed=observed, expected=expected, remedy=remedy)
    if any(gpu.mig for gpu in gpus):
        return Result(
            check="gpu",
            status=Status.WARN,
            observed=f"{observed}; MIG is on",
            expected=expected,
            remedy="an engine sees one MIG instance: plan with --gpu-total-mib of that instance",
        )
    if len(gpus) > needs.settings.tensor_parallel_size:
        return Result(
            check="gpu",
            status=Status.OK,
            observed=observed,
            expected=expected,
            remedy="the others stay idle: run one engine a GPU (data parallel) to use them",
        )
    return Result(check="gpu", status=Status.OK, observed=observed, expected=expected)


def _kernel(facts: GpuFacts, row: Gpu | None, needs: Needs) -> Result:
    capability = facts.compute_capability or (row.compute_capability if row else None)
    expected = "compute capability 10.0 or newer for native FP4"
    if capability is None:
        reason = "the driver does not tell the compute capability and the product is not in the table"
        return Result(check="kernel-path", status=Status.UNKNOWN, expected=expected, reason=reason)
    quantized = needs.settings.quantization != "none"
    version = engine_version(needs.settings, needs.profile) or resolve_version(default_tag())
    path = kernel_path(capability, WeightFormat.NVFP4 if quantized else WeightFormat.BF16, version)
    if path.name == "none":
        remedy = "use a GPU of compute capability 7.5 or newer"
        return Result(check="kernel-path", status=Status.FAIL, observed=path.why, expected=expected, remedy=remedy)
    status = Status.OK if path.native or not quantized else Status.WARN
    return Result(
        check="kernel-path", status=status, observed=f"{path.name}: {path.why}", expected=expected, remedy=path.flaw
    )


def _driver(driver: str | None, product: str) -> Result:
    floor = DRIVER_GEFORCE if "geforce" in product.lower() else DRIVER
    expected = f"{floor} or newer (CUDA 13)"
    if driver is None or not driver.split(".")[0].isdigit():
        reason = "the driver's version could not be read"
        return Result(check="driver", status=Status.UNKNOWN, expected=expected, reason=reason)
    major = int(driver.split(".")[0])
    if major >= floor:
        return Result(check="driver", status=Status.OK, observed=driver, expected=expected)
    compatible = major >= DRIVER or (major >= 535 and "geforce" not in product.lower())
    return Result(
        check="driver",
        status=Status.WARN if compatible else Status.FAIL,
        observed=driver,
        expected=expected,
        remedy=f"update the NVIDIA driver to {floor} or newer"
        + ("; until then the image relies on CUDA forward compatibility" if compatible else ""),
    )


def _users(seen: DoctorInput) -> Result:
    """Who else holds GPU memory. Only told, since the plan row judges whether enough is left."""
    assert seen.gpu is not None  # noqa: S101
    processes = seen.gpu.processes
    if not processes:
        return Result(check="gpu-users", status=Status.OK, observed="no process holds GPU memory", expected="none")
    shown = ", ".join(
        f"{process.name.rsplit('/', 1)[-1][:40] or 'process'} (pid {process.pid},"
        f" {'unknown size' if process.used_mib is None else f'{process.used_mib:.0f} MiB'})"
        for process in processes[:4]
    )
    more = f" and {len(processes) - 4} more" if len(processes) > 4 else ""
    return Result(
        check="gpu-users",
        status=Status.WARN,
        observed=shown + more,
        expected="none",
        remedy="end them if they are not wanted: the engine needs its whole fraction free",
    )


def _memory_plan(seen: DoctorInput, needs: Needs, gpu: Gpu | None) -> Result:
    if gpu is None:
        reason = "the GPU's memory is not known" + (
            " (MIG is on)" if seen.gpu and any(g.mig for g in seen.gpu.gpus) else ""
        )
        return Result(check="memory-plan", status=Status.UNKNOWN, reason=reason, remedy="plan with --gpu-total-mib")
    wish = wish_of(seen, needs, gpu)
    if needs.settings.gpu_memory_utilization == "auto":
        solution = solve(wish)
        fraction, plan, why = solution.fraction, solution.plan, solution.reason
    else:
        fraction, plan, why = wish.gpu_memory_utilization, estimate(wish), "as set"
    expected = f"{needs.settings.max_num_seqs} requests of {needs.settings.max_model_len} tokens"
    if not plan.fits:
        return Result(
            check="memory-plan", status=Status.FAIL, observed=plan.refusal, expected=expected, remedy=plan.remedy
        )
    observed = (
        f"fraction {fraction:g} ({why}): KV cache {plan.kv_cache_gib:.1f} ± {plan.error_range_gib:.1f} GiB,"
        f" {plan.max_concurrency:.1f} requests at once"
    )
    safe = highest_fraction(replace(wish, free_bytes=None))
    if gpu.unified and fraction > safe:
        return Result(
            check="memory-plan",
            status=Status.WARN,
            observed=observed,
            expected=f"{HOST_RESERVE_GIB:g} GiB left to the host",
            remedy=f"set gpu_memory_utilization to {safe:g} or less: memory that runs out here freezes the host",
        )
    if plan.max_concurrency < needs.settings.max_num_seqs:
        return Result(
            check="memory-plan",
            status=Status.WARN,
            observed=observed,
            expected=expected,
            remedy="requests beyond that wait; lower max_num_seqs or max_model_len",
        )
    return Result(check="memory-plan", status=Status.OK, observed=observed, expected=expected)


def wish_of(seen: DoctorInput, needs: Needs, gpu: Gpu) -> MemoryRequest:
    """The deployment's wish on this very host."""
    return replace(memory_request(needs.settings, needs.profile, gpu), free_bytes=free_bytes(seen, gpu))


# The doctor's rows about the host: Docker, memory, disk, address, security modules, clock. Pure.

# What neighbours send to a container's own address: 28.0.0 drops it (its release notes, "Port publishing in bridge
# networks"; moby#49325), a reload of firewalld undid that from 28.2.0 until 28.3.3 (CVE-2025-54388).
SHIELDED, LOST, MENDED = (28, 0, 0), (28, 2, 0), (28, 3, 3)
IMAGE_GIB = 30  # unpacked; the images of the catalog are about 20 GiB
CACHE_GIB = 5
RELEASED = 1_767_225_600  # 2026-01-01: no image of the catalog's default is older than that


def host_rows(seen: DoctorInput, needs: Needs) -> Iterator[Result]:
    yield _docker(seen)
    yield _compose(seen)
    if needs.profile.engine == "nvcr":
        yield _toolkit(seen)
        yield _architecture(seen)
    yield _memory(seen, needs)
    yield _image(seen, needs)
    yield _docker_disk(seen)
    yield _model_disk(seen.model_disk, needs)
    yield _port(seen, needs)
    yield _loopback_ports(seen, needs.settings)
    yield seen.checkpoint or unanswered("checkpoint", "a sound checkpoint")
    if seen.host is None:
        yield unanswered("host")
        return
    yield _shm(seen.host, needs)
    yield _selinux(seen.host)
    yield _apparmor(seen.host)
    yield _cgroup(seen.host)
    yield _clock(seen.host)


def _docker(seen: DoctorInput) -> Result:
    expected = "a Docker engine that answers"
    facts = seen.docker
    if facts is None:
        return unanswered("docker", expected)
    if facts.trouble:
        remedy = (
            "sudo usermod -aG docker $USER, then log in again; or use sudo"
            if facts.denied
            else "install Docker Engine and start it: sudo systemctl start docker"
        )
        return Result(check="docker", status=Status.FAIL, observed=facts.trouble, expected=expected, remedy=remedy)
    observed = f"{facts.version or 'unknown version'}{', rootless' if facts.rootless else ''}"
    if facts.rootless:
        remedy = "rootless engines need the NVIDIA toolkit set up for them (no-cgroups = true)"
        return Result(check="docker", status=Status.WARN, observed=observed, expected=expected, remedy=remedy)
    return Result(check="docker", status=Status.OK, observed=observed, expected=expected)


def _compose(seen: DoctorInput) -> Result:
    expected = f"Compose {'.'.join(map(str, COMPOSE_MINIMUM))} or newer"
    facts = seen.compose
    if facts is None:
        return unanswered("compose", expected)
    remedy = "install the Compose plugin: sudo apt-get install docker-compose-plugin"
    if facts.version is None:
        return Result(check="compose", status=Status.FAIL, observed=facts.trouble, expected=expected, remedy=remedy)
    status = Status.OK if facts.recent else Status.FAIL
    observed = ".".join(map(str, facts.version))
    return Result(
        check="compose",
        status=status,
        observed=observed,
        expected=expected,
        remedy="" if status is Status.OK else remedy,
    )


def _toolkit(seen: DoctorInput) -> Result:
    expected = "NVIDIA Container Toolkit: a runtime named nvidia, or CDI devices"
    facts = seen.docker
    if facts is None or facts.trouble:
        reason = "the Docker engine did not answer"
        return Result(check="nvidia-container", status=Status.SKIPPED, expected=expected, reason=reason)
    if "nvidia" in facts.runtimes:
        return Result(check="nvidia-container", status=Status.OK, observed="runtime nvidia", expected=expected)
    if facts.nvidia:
        return Result(check="nvidia-container", status=Status.OK, observed="CDI devices", expected=expected)
    return Result(
        check="nvidia-container",
        status=Status.FAIL,
        observed=f"runtimes: {', '.join(facts.runtimes) or 'none'}; no CDI devices",
        expected=expected,
        remedy="install nvidia-container-toolkit; sudo nvidia-ctk runtime configure --runtime=docker;"
        " sudo systemctl restart docker",
    )


def _architecture(seen: DoctorInput) -> Result:
    machine = seen.host.machine if seen.host else None
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine or "")
    known = recognise(seen.gpu.gpus[0].name) if seen.gpu and seen.gpu.gpus else None
    expected = "amd64 or arm64, the images of the catalog are for both"
    if machine is None:
        return unanswered("architecture", expected)
    if arch is None:
        remedy = "use an x86_64 or aarch64 host"
        return Result(check="architecture", status=Status.FAIL, observed=machine, expected=expected, remedy=remedy)
    if known is not None and known.unified and known.arch != arch:
        remedy = f"{known.label} is an {known.arch} machine: is this an emulated system?"
        return Result(check="architecture", status=Status.WARN, observed=arch, expected=expected, remedy=remedy)
    return Result(check="architecture", status=Status.OK, observed=arch, expected=expected)


def _memory(seen: DoctorInput, needs: Needs) -> Result:
    """Main memory. On unified memory the plan's row judges it; here it is told."""
    host = seen.host
    if host is None or host.memory_total is None or host.memory_available is None:
        return Result(check="host-memory", status=Status.UNKNOWN, reason="/proc/meminfo could not be read")
    observed = f"{host.memory_available / GIB:.1f} of {host.memory_total / GIB:.1f} GiB available"
    wanted = 16 if needs.profile.engine == "nvcr" else 4
    status = Status.OK if host.memory_available >= wanted * GIB else Status.WARN
    remedy = "" if status is Status.OK else "end other programs: loading and compiling need main memory too"
    return Result(
        check="host-memory", status=status, observed=observed, expected=f"{wanted} GiB available", remedy=remedy
    )


def _image(seen: DoctorInput, needs: Needs) -> Result:
    facts = seen.docker
    if facts is None or facts.trouble or facts.image_here is None:
        reason = "the Docker engine did not answer"
        return Result(check="image", status=Status.SKIPPED, expected=needs.image, reason=reason)
    if facts.image_here:
        return Result(check="image", status=Status.OK, observed=facts.image_digest or "here", expected=needs.image)
    return Result(
        check="image",
        status=Status.WARN,
        observed="not here",
        expected=needs.image,
        remedy="`up` pulls it; or now: docker pull " + needs.image,
    )


def _docker_disk(seen: DoctorInput) -> Result:
    disk, here = seen.docker_disk, bool(seen.docker and seen.docker.image_here)
    wanted = CACHE_GIB if here else IMAGE_GIB + CACHE_GIB
    expected = f"{wanted} GiB free for {'caches' if here else 'the image and caches'}"
    if disk is None:
        reason = "Docker's directory is not known"
        return Result(check="docker-disk", status=Status.SKIPPED, expected=expected, reason=reason)
    free = f"{disk.free / GIB:.0f} GiB free on {disk.path}"
    if disk.free >= wanted * GIB:
        return Result(check="docker-disk", status=Status.OK, observed=free, expected=expected)
    return Result(
        check="docker-disk",
        status=Status.FAIL if disk.free < wanted * GIB / 3 else Status.WARN,
        observed=free,
        expected=expected,
        remedy="docker system df; docker image prune; or move Docker's data-root to a larger disk",
    )


def _model_disk(disk: Disk | None, needs: Needs) -> Result:
    expected = f"the checkpoint in {needs.settings.model_dir}"
    if disk is None:
        return Result(check="model-disk", status=Status.UNKNOWN, expected=expected, reason="the path cannot be asked")
    if disk.exists:
        return Result(
            check="model-disk", status=Status.OK, observed=f"{needs.settings.model_dir} is there", expected=expected
        )
    observed = f"no {needs.settings.model_dir}; {disk.free / GIB:.0f} GiB are free there"
    remedy = "put the checkpoint there (7 GiB), or give its directory with --model-dir"
    return Result(check="model-disk", status=Status.FAIL, observed=observed, expected=expected, remedy=remedy)


def _port(seen: DoctorInput, needs: Needs) -> Result:
    state = seen.port
    where, expected = f"{needs.settings.bind}:{needs.settings.port}", "an address of this host, and a free port"
    if state is None:
        return unanswered("port", expected)
    if state is PortState.FREE:
        return Result(check="port", status=Status.OK, observed=f"{where} is free", expected=expected)
    if state is PortState.NO_ADDRESS:
        remedy = "choose one of `ip -brief address` with --bind"
        return Result(
            check="port",
            status=Status.FAIL,
            observed=f"no address {needs.settings.bind} here",
            expected=expected,
            remedy=remedy,
        )
    if state is PortState.TAKEN and seen.own_port:
        return Result(check="port", status=Status.OK, observed=f"{where} is held by this deployment", expected=expected)
    if state is PortState.TAKEN and seen.own_port is None:
        return unanswered("port", expected)
    if state is PortState.TAKEN:
        remedy = f"find its owner with `ss -ltnp 'sport = :{needs.settings.port}'`, or choose another with --port"
        return Result(check="port", status=Status.FAIL, observed=f"{where} is taken", expected=expected, remedy=remedy)
    reason = "only root may try a port below 1024"
    return Result(check="port", status=Status.UNKNOWN, observed=where, expected=expected, reason=reason)


def _loopback_ports(seen: DoctorInput, settings: Settings) -> Result:
    """Whether a port on loopback is this host's alone. Older engines let in who routes to a container."""
    check, expected = "loopback-ports", f"Docker {SHIELDED[0]} or newer: ports on 127.0.0.1 are this host's alone"
    facts = seen.docker
    if not _on_loopback(settings):
        reason = f"nothing is published on loopback, the engine on {settings.bind}"
        return Result(check=check, status=Status.SKIPPED, expected=expected, reason=reason)
    if facts is None or facts.trouble:
        reason = "the Docker engine did not answer"
        return Result(check=check, status=Status.SKIPPED, expected=expected, reason=reason)
    if facts.rootless:
        observed = "rootless: no other machine can route to its containers"
        return Result(check=check, status=Status.OK, observed=observed, expected=expected)
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", facts.version or "")
    if found is None:
        reason = f"the engine's version is {facts.version or 'not told'}"
        return Result(check=check, status=Status.UNKNOWN, expected=expected, reason=reason)
    version = tuple(int(part) for part in found.groups())
    if version >= SHIELDED and not LOST <= version < MENDED:
        return Result(check=check, status=Status.OK, observed=f"Docker {facts.version}", expected=expected)
    when = "" if version < SHIELDED else "after a reload of firewalld, "
    return Result(
        check=check,
        status=Status.WARN,
        observed=f"Docker {facts.version}: {when}a neighbour that routes to a container reaches its published ports",
        expected=expected,
        remedy="update Docker Engine; until then set api_key_file or use a network you trust (docs/how-to/security.md)",
    )


def _on_loopback(settings: Settings) -> bool:
    """Whether the engine or what stands beside it is published on loopback."""
    beside = {"monitoring", "watch"} & set(settings.extras)
    gateway = "gateway" in settings.extras and is_loopback(settings.gateway_bind)
    return is_loopback(settings.bind) or bool(beside) or gateway


def _shm(host: HostFacts, needs: Needs) -> Result:
    """shm_size is a ceiling inside of the container; the host's /dev/shm counts with ipc: host only."""
    settings = needs.settings
    expected = f"a ceiling of {settings.shm_size}, of the container's own"
    if settings.ipc != "host":
        return Result(check="shm", status=Status.OK, observed=settings.shm_size, expected=expected)
    if host.shm_total is None:
        return Result(check="shm", status=Status.UNKNOWN, expected="the host's", reason="it cannot be asked")
    observed = f"the host's {host.shm_total / GIB:.1f} GiB (ipc: host)"
    return Result(check="shm", status=Status.OK, observed=observed, expected="1 GiB or more")


def _selinux(host: HostFacts) -> Result:
    if host.selinux != "enforcing":
        return Result(check="selinux", status=Status.OK, observed=host.selinux or "none", expected="any")
    remedy = "if the container cannot read the model: chcon -Rt container_file_t on its directory"
    return Result(
        check="selinux", status=Status.WARN, observed="enforcing", expected="labels that let it read", remedy=remedy
    )


def _apparmor(host: HostFacts) -> Result:
    return Result(
        check="apparmor",
        status=Status.OK,
        observed="on" if host.apparmor else "off",
        expected="any: docker-default fits",
    )


def _cgroup(host: HostFacts) -> Result:
    expected = "version 2"
    if host.cgroup is None:
        return Result(check="cgroup", status=Status.UNKNOWN, expected=expected, reason="/sys/fs/cgroup cannot be read")
    if host.cgroup == 2:
        return Result(check="cgroup", status=Status.OK, observed="version 2", expected=expected)
    remedy = "works, though deprecated: boot with systemd.unified_cgroup_hierarchy=1"
    return Result(check="cgroup", status=Status.WARN, observed="version 1", expected=expected, remedy=remedy)


def _clock(host: HostFacts) -> Result:
    import datetime

    shown = datetime.datetime.fromtimestamp(host.clock, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    if host.clock >= RELEASED:
        return Result(check="clock", status=Status.OK, observed=shown, expected="the right time")
    remedy = "set the clock (timedatectl set-ntp true): pulling checks certificates by it"
    return Result(check="clock", status=Status.FAIL, observed=shown, expected="2026 or later", remedy=remedy)


SECONDS = 2.1  # the whole of `doctor` is to stay under 3 s, whatever hangs


def gather_host(needs: Needs, own_port: Callable[[], bool] = lambda: False) -> DoctorInput:
    """What the probes found within SECONDS. own_port: says whether this deployment's engine holds the port."""
    settings = needs.settings
    found = gather(
        {
            "gpu": read_gpus,
            "host": read_host,
            "docker": partial(read_docker, needs.image),
            "compose": read_compose,
            "port": partial(read_port, settings.bind, settings.port),
            "own_port": own_port,
            "model_disk": partial(read_disk, Path(settings.model_dir)),
            "checkpoint": partial(checkpoint_result, needs),
        },
        timeout=SECONDS,
    )
    docker: DockerFacts | None = found.get("docker")
    return DoctorInput(
        gpu=found.get("gpu"),
        host=found.get("host"),
        docker=docker,
        compose=found.get("compose"),
        port=found.get("port"),
        model_disk=found.get("model_disk"),
        docker_disk=read_disk(Path(docker.root)) if docker and docker.root else None,
        checkpoint=found.get("checkpoint"),
        own_port=found.get("own_port"),
    )


def checkpoint_result(needs: Needs) -> Result:
    """The checkpoint's quick verification (headers and small files) as one row."""
    from glm4_deploy.checkpoint.verify import verify_checkpoint
    from glm4_deploy.errors import ModelMissing

    directory = Path(needs.settings.model_dir)
    version = engine_version(needs.settings, needs.profile)
    expected = "a checkpoint that this engine loads"
    try:
        report = verify_checkpoint(directory, vllm=version)
    except ModelMissing as error:
        return Result(check="checkpoint", status=Status.SKIPPED, expected=expected, reason=error.message)
    bad = [row for row in report.results if row.status is report.verdict and row.status is not Status.OK]
    if not bad:
        observed = f"sound by its headers, for {report.engine}"
        return Result(check="checkpoint", status=Status.OK, observed=observed, expected=expected)
    first = bad[0]
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return Result(
        check="checkpoint",
        status=report.verdict,
        observed=f"{first.check}: {first.observed or first.reason}{more}",
        expected=expected,
        remedy=f"glm4-deploy checkpoint verify {directory}",
        reason=first.reason,
    )
