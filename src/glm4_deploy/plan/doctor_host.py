"""The doctor's rows about the host: Docker, memory, disk, address, security modules, clock. Pure."""

import re
from collections.abc import Iterator

from glm4_deploy.catalog.gpus import recognise
from glm4_deploy.facts.host import Disk, HostFacts, PortState
from glm4_deploy.plan.doctor import Needs, Seen, unanswered
from glm4_deploy.plan.hardening import is_loopback
from glm4_deploy.plan.memory_model import GIB
from glm4_deploy.result import Result, Status
from glm4_deploy.settings import Settings

COMPOSE = (2, 20)
# What neighbours send to a container's own address: 28.0.0 drops it (its release notes, "Port publishing in bridge
# networks"; moby#49325), a reload of firewalld undid that from 28.2.0 until 28.3.3 (CVE-2025-54388).
SHIELDED, LOST, MENDED = (28, 0, 0), (28, 2, 0), (28, 3, 3)
IMAGE_GIB = 30  # unpacked; the images of the catalog are about 20 GiB
CACHE_GIB = 5
RELEASED = 1_767_225_600  # 2026-01-01: no image of the catalog's default is older than that


def host_rows(seen: Seen, needs: Needs) -> Iterator[Result]:
    yield _docker(seen)
    yield _compose(seen)
    if needs.profile.engine == "nvcr":
        yield _toolkit(seen)
        yield _architecture(seen)
    yield _memory(seen, needs)
    yield _image(seen, needs)
    yield _docker_disk(seen)
    yield _model_disk(seen.model_disk, needs)
    yield _port(seen.port, needs)
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


def _docker(seen: Seen) -> Result:
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


def _compose(seen: Seen) -> Result:
    expected = f"Compose {'.'.join(map(str, COMPOSE))} or newer"
    facts = seen.compose
    if facts is None:
        return unanswered("compose", expected)
    remedy = "install the Compose plugin: sudo apt-get install docker-compose-plugin"
    if facts.version is None:
        return Result(check="compose", status=Status.FAIL, observed=facts.trouble, expected=expected, remedy=remedy)
    status = Status.OK if facts.version[:2] >= COMPOSE else Status.FAIL
    observed = ".".join(map(str, facts.version))
    return Result(
        check="compose",
        status=status,
        observed=observed,
        expected=expected,
        remedy="" if status is Status.OK else remedy,
    )


def _toolkit(seen: Seen) -> Result:
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


def _architecture(seen: Seen) -> Result:
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


def _memory(seen: Seen, needs: Needs) -> Result:
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


def _image(seen: Seen, needs: Needs) -> Result:
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


def _docker_disk(seen: Seen) -> Result:
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


def _port(state: PortState | None, needs: Needs) -> Result:
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
    if state is PortState.TAKEN and needs.own_port:
        return Result(check="port", status=Status.OK, observed=f"{where} is held by this deployment", expected=expected)
    if state is PortState.TAKEN:
        remedy = f"find its owner with `ss -ltnp 'sport = :{needs.settings.port}'`, or choose another with --port"
        return Result(check="port", status=Status.FAIL, observed=f"{where} is taken", expected=expected, remedy=remedy)
    reason = "only root may try a port below 1024"
    return Result(check="port", status=Status.UNKNOWN, observed=where, expected=expected, reason=reason)


def _loopback_ports(seen: Seen, settings: Settings) -> Result:
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
