"""What this host lacks for an engine; read-only. May import `checkpoint`, `plan`, `host`, `settings`, `catalog`.

`gather_host` runs every probe at once; `doctor_results` is pure and turns their findings into rows. To add a row, add a
function to GPU_ROWS, DOCKER_ROWS, NVIDIA_ROWS, HOST_ROWS or SYSTEM_ROWS.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from glm4_deploy.catalog.rows import (
    Gpu,
    Profile,
    recognise,
)
from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.errors import ModelMissing
from glm4_deploy.host.gpu import GpuFacts, GpuReport, free_bytes, gpu_row, read_gpus
from glm4_deploy.host.gpu_health import GpuHealth, Xid, read_gpu_health, read_xids
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
from glm4_deploy.plan.engine_rules import GIB, WeightFormat
from glm4_deploy.plan.image import engine_image
from glm4_deploy.plan.kernels import kernel_path
from glm4_deploy.plan.memory import estimate
from glm4_deploy.plan.services import is_loopback
from glm4_deploy.plan.sizing import highest_fraction, solve
from glm4_deploy.plan.spec import assumed_version, memory_request
from glm4_deploy.result import Result, Status, fail, ok, skipped, unknown, verdict, warn
from glm4_deploy.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the deployment needs from the host."""

    settings: Settings
    profile: Profile

    @property
    def image(self) -> str:
        return self.settings.image


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorInput:
    """What the probes found. None: the probe did not answer in time.

    Attributes:
        own_port: whether this deployment's engine is running and therefore occupies the port.
    """

    gpu: GpuReport | None = None
    gpu_health: tuple[GpuHealth, ...] | None = None
    xids: tuple[Xid, ...] | None = None
    host: HostFacts | None = None
    docker: DockerFacts | None = None
    compose: ComposeFacts | None = None
    port: PortState | None = None
    model_disk: Disk | None = None
    docker_disk: Disk | None = None
    checkpoint: Result | None = None
    own_port: bool | None = False

    @property
    def gpus(self) -> tuple[GpuFacts, ...]:
        return self.gpu.gpus if self.gpu else ()

    @property
    def planned_gpu(self) -> Gpu | None:
        """The first GPU as the planner models it; None where its memory is not known."""
        return gpu_row(self.gpu, self.host) if self.gpu else None


Row = Callable[[DoctorInput, Needs], Result]
Rows = dict[str, Row]


def doctor_results(seen: DoctorInput, needs: Needs) -> tuple[Result, ...]:
    """Every row; its id is its key in the table."""
    nvidia = needs.profile.engine == "nvcr"
    rows = (_gpu_rows(seen) if nvidia else {}) | DOCKER_ROWS | (NVIDIA_ROWS if nvidia else {}) | HOST_ROWS
    results = [replace(row(seen, needs), check=name) for name, row in rows.items()]
    if seen.host is None:
        return (*results, replace(unanswered(), check="host"))
    return (*results, *(replace(row(seen.host, needs), check=name) for name, row in SYSTEM_ROWS.items()))


def readiness(results: Iterable[Result]) -> str:
    """The verdict in the doctor's words: blocked, unknown, slow (it runs, without FP4 arithmetic) or ready."""
    rows = tuple(results)
    status = verdict(rows)
    if not status.passed:
        return "blocked" if status is Status.FAIL else "unknown"
    return "slow" if any(row.check == "kernel-path" and row.status is Status.WARN for row in rows) else "ready"


def unanswered(expected: str = "") -> Result:
    """The row of a probe that did not answer."""
    return unknown("the probe did not answer in time", expected=expected)


# GPUs: product, driver, processes that use their memory, and whether the plan fits.

# Required by CUDA 13, which every image in the catalog contains. GeForce has no forward compatibility.
DRIVER, DRIVER_GEFORCE = 580, 590


def _gpu_rows(seen: DoctorInput) -> Rows:
    """Without a GPU, one row that says so instead of several that repeat it."""
    return GPU_ROWS if seen.gpus and seen.gpu and seen.gpu.answered else {"gpu": _no_gpu}


def _no_gpu(seen: DoctorInput, _needs: Needs) -> Result:
    if seen.gpu is None:
        return unanswered("an NVIDIA GPU")
    if not seen.gpu.answered:
        return unknown(
            "nvidia-smi hangs",
            "run nvidia-smi by hand; if it hangs too, look for `NVRM` in `sudo dmesg` and reboot",
            observed=seen.gpu.trouble,
            expected="an NVIDIA GPU",
        )
    return fail(
        f"none found ({seen.gpu.trouble})",
        "an NVIDIA GPU of compute capability 7.5 or newer",
        remedy="install the NVIDIA driver and reboot; without a GPU use --profile cpu",
    )


def _gpu(seen: DoctorInput, needs: Needs) -> Result:
    gpus, needed = seen.gpus, needs.settings.tensor_parallel_size
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    observed = f"{len(gpus)} x {names}" if len(gpus) > 1 else names
    expected = f"{needed} GPU{'s' if needed > 1 else ''}"
    if len(gpus) < needed:
        return fail(observed, expected, remedy=f"lower tensor_parallel_size to {len(gpus)}")
    if any(gpu.mig for gpu in gpus):
        remedy = "an engine sees one MIG instance: plan with --gpu-total-mib of that instance"
        return warn(f"{observed}; MIG is on", expected, remedy=remedy)
    if len(gpus) > needed:
        return ok(observed, expected, remedy="the others stay idle: run one engine per GPU to use them")
    return ok(observed, expected)


def _kernel(seen: DoctorInput, needs: Needs) -> Result:
    facts, row = seen.gpus[0], seen.planned_gpu
    capability = facts.compute_capability or (row.compute_capability if row else None)
    expected = "compute capability 10.0 or newer for native FP4"
    if capability is None:
        reason = "the driver does not report the compute capability, and the product is not in the catalog"
        return unknown(reason, expected=expected)
    quantized = needs.settings.quantization != "none"
    image = engine_image(needs.settings)
    weights = WeightFormat.NVFP4 if quantized else WeightFormat.BF16
    path = kernel_path(capability, weights, image.vllm or assumed_version(), image.kind)
    if path.name == "none":
        return fail(path.why, expected, remedy="use a GPU of compute capability 7.5 or newer")
    judge = ok if path.native or not quantized else warn
    return judge(f"{path.name}: {path.why}", expected, remedy=path.flaw)


def _driver(seen: DoctorInput, _needs: Needs) -> Result:
    product, driver = seen.gpus[0].name, (seen.gpu and seen.gpu.driver) or seen.gpus[0].driver
    floor = DRIVER_GEFORCE if "geforce" in product.lower() else DRIVER
    expected = f"{floor} or newer (CUDA 13)"
    if driver is None or not driver.split(".")[0].isdigit():
        return unknown("the driver's version could not be read", expected=expected)
    major = int(driver.split(".")[0])
    if major >= floor:
        return ok(driver, expected)
    compatible = major >= DRIVER or (major >= 535 and "geforce" not in product.lower())
    return (warn if compatible else fail)(
        driver,
        expected,
        remedy=f"update the NVIDIA driver to {floor} or newer"
        + ("; until then the image relies on CUDA forward compatibility" if compatible else ""),
    )


def _users(seen: DoctorInput, _needs: Needs) -> Result:
    """Processes that use GPU memory. At worst a warning: `memory-plan` judges whether enough is left."""
    processes = seen.gpu.processes if seen.gpu else ()
    if not processes:
        return ok("no process uses GPU memory", "none")
    shown = ", ".join(
        f"{process.name.rsplit('/', 1)[-1][:40] or 'process'} (pid {process.pid},"
        f" {'unknown size' if process.used_mib is None else f'{process.used_mib:.0f} MiB'})"
        for process in processes[:4]
    )
    shown += f" and {len(processes) - 4} more" if len(processes) > 4 else ""
    return warn(
        shown, "none", remedy="stop them if they are not needed: the engine needs its whole fraction to be free"
    )


def _gpu_health(seen: DoctorInput, _needs: Needs) -> Result:
    """Slowdowns, clocks, memory errors. At worst a warning: an engine still starts."""
    expected = "no slowdown, no memory errors, clocks that fit the load"
    gpus = [gpu for gpu in seen.gpu_health or () if gpu.known]
    if not gpus:
        return skipped("not known: the driver reports neither slowdowns nor memory errors", expected=expected)
    troubles = [f"GPU {gpu.index}: {trouble}" for gpu in gpus for trouble in gpu.troubles()]
    if not troubles:
        return ok("nothing wrong", expected)
    remedy = "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER,ECC,ROW_REMAPPER; check cooling and power supply"
    return warn("; ".join(troubles), expected, remedy=remedy)


def _xids(seen: DoctorInput, _needs: Needs) -> Result:
    """What the driver wrote into the kernel's log since the host's boot."""
    expected = "no Xid error since the boot"
    if seen.xids is None:
        return skipped("not known: this user may not read the kernel's log; sudo dmesg | grep Xid", expected=expected)
    if not seen.xids:
        return ok("none in the kernel's log", expected)
    last = seen.xids[-1].text[:200]
    remedy = "sudo dmesg | glm4-deploy diagnose - says what it means"
    return warn(f"{len(seen.xids)}, the last one: {last}", expected, remedy=remedy)


def _fit(seen: DoctorInput, needs: Needs) -> Result:
    gpu = seen.planned_gpu
    if gpu is None:
        mig = " (MIG is on)" if any(facts.mig for facts in seen.gpus) else ""
        return unknown(f"the size of the GPU's memory is not known{mig}", "give it: glm4-deploy plan --gpu-total-mib")
    request = replace(
        memory_request(needs.settings, needs.profile, gpu), free_bytes=free_bytes(seen.gpus, seen.host, gpu)
    )
    reserve = needs.settings.host_reserve_gib
    if needs.settings.gpu_memory_utilization == "auto":
        solution = solve(request, host_reserve_gib=reserve)
        fraction, plan, why = solution.fraction, solution.plan, solution.reason
    else:
        fraction, plan, why = request.gpu_memory_utilization, estimate(request), "as configured"
    expected = f"{needs.settings.max_num_seqs} requests of {needs.settings.max_model_len} tokens"
    if not plan.fits:
        return fail(plan.refusal, expected, remedy=plan.remedy)
    observed = (
        f"fraction {fraction:g} ({why}): KV cache {plan.kv_cache_gib:.1f} ± {plan.error_range_gib:.1f} GiB,"
        f" {plan.max_concurrency:.1f} requests at once"
    )
    safe = highest_fraction(replace(request, free_bytes=None), host_reserve_gib=reserve)
    if gpu.unified and fraction > safe:
        return warn(
            observed,
            f"{reserve:g} GiB left for the host",
            remedy=f"set gpu_memory_utilization to {safe:g} or less: running out of unified memory freezes the host",
        )
    if plan.max_concurrency < needs.settings.max_num_seqs:
        return warn(observed, expected, remedy="further requests wait; lower max_num_seqs or max_model_len")
    return ok(observed, expected)


GPU_ROWS: Rows = {
    "gpu": _gpu,
    "kernel-path": _kernel,
    "driver": _driver,
    "gpu-users": _users,
    "gpu-health": _gpu_health,
    "gpu-errors": _xids,
    "memory-plan": _fit,
}

# The host: Docker, memory, disk, address, security modules, clock.

# Traffic from neighbouring machines to a container's address: Docker drops it since 28.0.0 (release notes, "Port
# publishing in bridge networks"; moby#49325), but not after a firewalld reload from 28.2.0 until 28.3.3
# (CVE-2025-54388).
SHIELDED, LOST, REPAIRED = (28, 0, 0), (28, 2, 0), (28, 3, 3)
IMAGE_GIB = 30  # unpacked, with a margin: the images in the catalog take about 20 GiB
CACHE_GIB = 5
RELEASED = 1_767_225_600  # 2026-01-01: the catalog's default image is not older


def _docker(seen: DoctorInput, _needs: Needs) -> Result:
    expected = "a Docker engine that answers"
    facts = seen.docker
    if facts is None:
        return unanswered(expected)
    if facts.trouble:
        join = "sudo usermod -aG docker $USER, then log in again; or use sudo"
        remedy = join if facts.denied else "install Docker Engine and start it: sudo systemctl start docker"
        return fail(facts.trouble, expected, remedy=remedy)
    observed = f"{facts.version or 'unknown version'}{', rootless' if facts.rootless else ''}"
    if facts.rootless:
        remedy = "configure the NVIDIA toolkit for rootless Docker (no-cgroups = true)"
        return warn(observed, expected, remedy=remedy)
    return ok(observed, expected)


def _compose(seen: DoctorInput, _needs: Needs) -> Result:
    expected = f"Compose {'.'.join(map(str, COMPOSE_MINIMUM))} or newer"
    facts = seen.compose
    if facts is None:
        return unanswered(expected)
    remedy = "install the Compose plugin: sudo apt-get install docker-compose-plugin"
    if facts.version is None:
        return fail(facts.trouble, expected, remedy=remedy)
    observed = ".".join(map(str, facts.version))
    return ok(observed, expected) if facts.recent else fail(observed, expected, remedy=remedy)


def _toolkit(seen: DoctorInput, _needs: Needs) -> Result:
    expected = "NVIDIA Container Toolkit: a runtime named nvidia, or CDI devices"
    facts = seen.docker
    if facts is None or facts.trouble:
        return skipped("the Docker engine did not answer", expected=expected)
    if "nvidia" in facts.runtimes:
        return ok("runtime nvidia", expected)
    if facts.nvidia:
        return ok("CDI devices", expected)
    return fail(
        f"runtimes: {', '.join(facts.runtimes) or 'none'}; no CDI devices",
        expected,
        remedy="install nvidia-container-toolkit; sudo nvidia-ctk runtime configure --runtime=docker;"
        " sudo systemctl restart docker",
    )


def _architecture(seen: DoctorInput, _needs: Needs) -> Result:
    machine = seen.host.machine if seen.host else None
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine or "")
    known = recognise(seen.gpus[0].name) if seen.gpus else None
    expected = "amd64 or arm64: the images in the catalog support both"
    if machine is None:
        return unanswered(expected)
    if arch is None:
        return fail(machine, expected, remedy="use an x86_64 or aarch64 host")
    if known is not None and known.unified and known.arch != arch:
        return warn(
            arch, expected, remedy=f"{known.label} is an {known.arch} machine: check whether this system is emulated"
        )
    return ok(arch, expected)


def _memory(seen: DoctorInput, needs: Needs) -> Result:
    """Main memory. On unified memory, `memory-plan` judges it more closely."""
    host = seen.host
    if host is None or host.memory_total is None or host.memory_available is None:
        return unknown("/proc/meminfo could not be read")
    observed = f"{host.memory_available / GIB:.1f} of {host.memory_total / GIB:.1f} GiB available"
    needed = 16 if needs.profile.engine == "nvcr" else 4
    expected = f"{needed} GiB available"
    if host.memory_available >= needed * GIB:
        return ok(observed, expected)
    return warn(observed, expected, remedy="stop other programs: loading and compiling need main memory too")


def _image(seen: DoctorInput, needs: Needs) -> Result:
    facts = seen.docker
    if facts is None or facts.trouble or facts.image_here is None:
        return skipped("the Docker engine did not answer", expected=needs.image)
    if facts.image_here:
        return ok(facts.image_digest or "on this host", needs.image)
    return warn("not on this host", needs.image, remedy=f"`up` pulls it; to pull it now: docker pull {needs.image}")


def _docker_disk(seen: DoctorInput, _needs: Needs) -> Result:
    disk, here = seen.docker_disk, bool(seen.docker and seen.docker.image_here)
    wanted = CACHE_GIB if here else IMAGE_GIB + CACHE_GIB
    expected = f"{wanted} GiB free for {'caches' if here else 'the image and caches'}"
    if disk is None:
        return skipped("Docker's directory is not known", expected=expected)
    free = f"{disk.free / GIB:.0f} GiB free on {disk.path}"
    if disk.free >= wanted * GIB:
        return ok(free, expected)
    return (fail if disk.free < wanted * GIB / 3 else warn)(
        free, expected, remedy="docker system df; docker image prune; or move Docker's data-root to a larger disk"
    )


def _model_disk(seen: DoctorInput, needs: Needs) -> Result:
    disk = seen.model_disk
    expected = f"the checkpoint in {needs.settings.model_dir}"
    if disk is None:
        return unknown("the path could not be checked", expected=expected)
    if disk.exists:
        return ok(f"{needs.settings.model_dir} exists", expected)
    observed = f"{needs.settings.model_dir} does not exist; {disk.free / GIB:.0f} GiB are free on its disk"
    return fail(observed, expected, remedy="put the checkpoint there (7 GiB), or give its directory with --model-dir")


def _port(seen: DoctorInput, needs: Needs) -> Result:
    state = seen.port
    where, expected = f"{needs.settings.bind}:{needs.settings.port}", "an address of this host, and a free port"
    if state is None:
        return unanswered(expected)
    if state is PortState.FREE:
        return ok(f"{where} is free", expected)
    if state is PortState.NO_ADDRESS:
        remedy = "choose an address from `ip -brief address` with --bind"
        return fail(f"{needs.settings.bind} is not an address of this host", expected, remedy=remedy)
    if state is PortState.TAKEN and seen.own_port:
        return ok(f"{where} is held by this deployment", expected)
    if state is PortState.TAKEN and seen.own_port is None:
        return unanswered(expected)
    if state is PortState.TAKEN:
        remedy = f"find its owner with `ss -ltnp 'sport = :{needs.settings.port}'`, or choose another port with --port"
        return fail(f"{where} is taken", expected, remedy=remedy)
    return unknown("only root can test a port below 1024", observed=where, expected=expected)


def _loopback_ports(seen: DoctorInput, needs: Needs) -> Result:
    """Whether ports on loopback are private. With older engines, neighbours that route to a container reach them."""
    expected = f"Docker {SHIELDED[0]} or newer: ports on 127.0.0.1 are private to this host"
    facts = seen.docker
    if not _on_loopback(needs.settings):
        return skipped(f"nothing is published on loopback (the engine: {needs.settings.bind})", expected=expected)
    if facts is None or facts.trouble:
        return skipped("the Docker engine did not answer", expected=expected)
    if facts.rootless:
        return ok("rootless: no other machine can route to its containers", expected)
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", facts.version or "")
    if found is None:
        return unknown(f"the engine's version is {facts.version or 'unknown'}", expected=expected)
    version = tuple(int(part) for part in found.groups())
    if version >= SHIELDED and not LOST <= version < REPAIRED:
        return ok(f"Docker {facts.version}", expected)
    when = "" if version < SHIELDED else "after a firewalld reload, "
    return warn(
        f"Docker {facts.version}: {when}neighbouring machines that route to a container can reach its published ports",
        expected,
        remedy="update Docker Engine; until then set api_key_file or use a network you trust (docs/how-to/security.md)",
    )


def _on_loopback(settings: Settings) -> bool:
    """Whether the engine or a service next to it is published on loopback."""
    extras = {"monitoring", "watch"} & set(settings.extras)
    gateway = "gateway" in settings.extras and is_loopback(settings.gateway_bind)
    return is_loopback(settings.bind) or bool(extras) or gateway


def _shm(host: HostFacts, needs: Needs) -> Result:
    """shm_size is a limit inside the container; the host's /dev/shm matters only with `ipc: host`."""
    if needs.settings.ipc != "host":
        return ok(needs.settings.shm_size, f"a limit of {needs.settings.shm_size} in the container")
    if host.shm_total is None:
        return unknown("the size of /dev/shm could not be read", expected="1 GiB or more")
    return ok(f"the host's {host.shm_total / GIB:.1f} GiB (ipc: host)", "1 GiB or more")


def _selinux(host: HostFacts, _needs: Needs) -> Result:
    if host.selinux != "enforcing":
        return ok(host.selinux or "none", "any")
    remedy = "if the container cannot read the model: chcon -Rt container_file_t MODEL_DIR"
    return warn("enforcing", "a label that lets the container read the model", remedy=remedy)


def _apparmor(host: HostFacts, _needs: Needs) -> Result:
    return ok("on" if host.apparmor else "off", "any: the docker-default profile works")


def _cgroup(host: HostFacts, _needs: Needs) -> Result:
    expected = "version 2"
    if host.cgroup is None:
        return unknown("/sys/fs/cgroup cannot be read", expected=expected)
    if host.cgroup == 2:
        return ok("version 2", expected)
    return warn(
        "version 1", expected, remedy="version 1 works but is deprecated: boot with systemd.unified_cgroup_hierarchy=1"
    )


def _clock(host: HostFacts, _needs: Needs) -> Result:
    shown = datetime.fromtimestamp(host.clock, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    if host.clock >= RELEASED:
        return ok(shown, "2026 or later")
    remedy = "set the clock (timedatectl set-ntp true): pulls fail certificate checks with a wrong date"
    return fail(shown, "2026 or later", remedy=remedy)


DOCKER_ROWS = {"docker": _docker, "compose": _compose}
NVIDIA_ROWS = {"nvidia-container": _toolkit, "architecture": _architecture}
HOST_ROWS: Rows = {
    "host-memory": _memory,
    "image": _image,
    "docker-disk": _docker_disk,
    "model-disk": _model_disk,
    "port": _port,
    "loopback-ports": _loopback_ports,
    "checkpoint": lambda seen, _: seen.checkpoint or unanswered("a checkpoint that this engine loads"),
}
SYSTEM_ROWS = {"shm": _shm, "selinux": _selinux, "apparmor": _apparmor, "cgroup": _cgroup, "clock": _clock}

SECONDS = 2.1  # keeps `doctor` under 3 s, whatever hangs


def gather_host(needs: Needs, own_port: Callable[[], bool] = lambda: False) -> DoctorInput:
    """What the probes found within SECONDS; `own_port` says whether this deployment's engine occupies the port."""
    settings = needs.settings
    found = gather(
        {
            "gpu": read_gpus,
            "gpu_health": read_gpu_health,
            "xids": read_xids,
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
    docker_disk = read_disk(Path(docker.root)) if docker and docker.root else None
    return DoctorInput(**{"own_port": None, **found}, docker_disk=docker_disk)


def checkpoint_result(needs: Needs) -> Result:
    """The quick verification of the checkpoint (headers and small files) as one row."""
    directory = Path(needs.settings.model_dir)
    image = engine_image(needs.settings)
    expected = "a checkpoint that this engine loads"
    try:
        report = verify_checkpoint(directory, vllm=image.vllm, transformers=image.transformers_major)
    except ModelMissing as error:
        return skipped(error.message, expected=expected)
    bad = [row for row in report.results if row.status is report.verdict and row.status is not Status.OK]
    if not bad:
        return ok(f"headers and small files are valid for {report.engine}", expected)
    first = bad[0]
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    observed = f"{first.check}: {first.observed or first.reason}{more}"
    return replace(first, observed=observed, expected=expected, remedy=f"glm4-deploy checkpoint verify {directory}")
