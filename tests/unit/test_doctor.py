"""The doctor's rows and verdict, from recorded hosts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm4_deploy.doctor import DoctorInput, Needs, doctor_results, gather_host, readiness
from glm4_deploy.host.gpu import GpuFacts, GpuProcess, GpuReport, from_nvidia_smi
from glm4_deploy.host.system import ComposeFacts, Disk, DockerFacts, HostFacts, PortState, parse_meminfo
from glm4_deploy.result import Result, Status
from glm4_deploy.run import Output, run_program
from glm4_deploy.settings import load_settings

HOSTS = Path(__file__).parents[1] / "data/hosts"
MEMORY = parse_meminfo((HOSTS / "gb10-meminfo.txt").read_text(encoding="utf-8"))
SPARK = HostFacts(
    machine="aarch64",
    kernel="6.17.0-1008-nvidia",
    memory_total=MEMORY["MemTotal"],
    memory_available=MEMORY["MemAvailable"],
    shm_total=64 * 2**30,
    cgroup=2,
    selinux=None,
    apparmor=True,
    clock=1_790_000_000.0,
)
PC = replace(SPARK, machine="x86_64", memory_total=64 * 2**30, memory_available=60 * 2**30)
DOCKER = DockerFacts(version="29.1.3", runtimes=("runc", "nvidia"), image_here=True, image_digest="sha256:1234")


def report(name: str, driver: str, **figures: Any) -> GpuReport:
    return GpuReport(gpus=(GpuFacts(index=0, name=name, driver=driver, **figures),), driver=driver)


GB10 = report("NVIDIA GB10", "580.126.09")  # it reports no memory
H100 = report("NVIDIA H100 80GB HBM3", "580.126.09", total_mib=81559.0, used_mib=0.0, free_mib=81559.0, mig=False)
FULL_5090 = report("NVIDIA GeForce RTX 5090", "610.57.04", total_mib=32607.0, used_mib=29324.0, free_mib=3283.0)
TWO_5090 = replace(FULL_5090, gpus=(*FULL_5090.gpus, replace(FULL_5090.gpus[0], index=1)))


def needs(profile: str = "gb10", **settings: Any) -> Needs:
    checked, row = load_settings({"profile": profile, **settings}, environ={})
    return Needs(settings=checked, profile=row)


def seen(gpu: GpuReport | None, host: HostFacts | None = SPARK, **changes: Any) -> DoctorInput:
    disk = Disk(path="/", free=200 * 2**30, total=400 * 2**30, exists=True)
    values: dict[str, Any] = {
        "docker": DOCKER,
        "compose": ComposeFacts(version=(2, 40, 3)),
        "port": PortState.FREE,
        "model_disk": disk,
        "docker_disk": disk,
        "checkpoint": Result(check="checkpoint", status=Status.OK, observed="sound"),
    }
    return DoctorInput(gpu=gpu, host=host, **{**values, **changes})


def row(results: tuple[Result, ...], check: str) -> Result:
    return next(result for result in results if result.check == check)


def test_a_spark_is_ready() -> None:
    results = doctor_results(seen(GB10), needs())

    assert readiness(results) == "ready"
    assert "native FP4" in row(results, "kernel-path").observed
    assert "64 requests of 32768 tokens" in row(results, "memory-plan").expected
    assert len({result.check for result in results}) == len(results)


def test_the_model_cards_fraction_on_a_spark_is_safe_but_a_larger_one_warns() -> None:
    high = doctor_results(seen(GB10, replace(SPARK, memory_available=SPARK.memory_total)),
                    needs(gpu_memory_utilization=0.97))  # fmt: skip

    assert row(high, "memory-plan").status is Status.WARN
    assert "freezes the host" in row(high, "memory-plan").remedy


def test_a_spark_whose_memory_is_taken_is_blocked() -> None:
    busy = replace(SPARK, memory_available=20 * 2**30)
    results = doctor_results(seen(GB10, busy), needs(gpu_memory_utilization=0.75))

    assert readiness(results) == "blocked"
    assert "17.30 of 121.69 GiB are free" in row(results, "memory-plan").observed


def test_an_h100_is_slow_and_says_why() -> None:
    results = doctor_results(seen(H100, PC), needs("hopper"))

    assert readiness(results) == "slow"
    assert "Marlin" in row(results, "kernel-path").observed


def test_an_old_driver_on_a_geforce_blocks() -> None:
    old = replace(TWO_5090, driver="570.86.15")
    results = doctor_results(seen(old, PC), needs("rtx-5090"))

    assert row(results, "driver").status is Status.FAIL
    assert "590" in row(results, "driver").expected
    assert readiness(results) == "blocked"


def test_a_full_5090_is_refused_before_anything_is_pulled() -> None:
    results = doctor_results(seen(TWO_5090, PC), needs("rtx-5090", gpu_memory_utilization=0.9))

    assert row(results, "memory-plan").status is Status.FAIL
    assert row(results, "gpu").observed.startswith("2 x")


def test_too_old_a_gpu_is_blocked() -> None:
    csv = (HOSTS / "two-gpus-query.csv").read_text(encoding="utf-8")
    results = doctor_results(seen(from_nvidia_smi(Output(code=0, stdout=csv), Output(code=0)), PC), needs())

    assert row(results, "kernel-path").status is Status.FAIL


def test_a_missing_driver_is_one_plain_row() -> None:
    words = (HOSTS / "no-driver.txt").read_text(encoding="utf-8")
    results = doctor_results(seen(from_nvidia_smi(Output(code=9, stdout=words), Output(code=9)), PC), needs())

    assert readiness(results) == "blocked"
    assert "couldn't communicate with the NVIDIA driver" in row(results, "gpu").observed
    assert not any(result.check == "driver" for result in results)


def test_a_driver_that_hangs_is_unknown_and_not_absent() -> None:
    hung = run_program("sleep", "9", timeout=0.1)
    results = doctor_results(seen(from_nvidia_smi(hung, hung), PC), needs())

    assert row(results, "gpu").status is Status.UNKNOWN
    assert readiness(results) == "unknown"


def test_with_mig_the_memory_is_unknown() -> None:
    gpu = GpuFacts(
        index=0, name="NVIDIA RTX PRO 6000 Blackwell Server Edition", driver="590.1", total_mib=97887, mig=True
    )
    results = doctor_results(seen(GpuReport(gpus=(gpu,), driver="590.1"), PC), needs("rtx-pro-6000"))

    assert row(results, "memory-plan").status is Status.UNKNOWN
    assert readiness(results) == "unknown"


def test_processes_that_hold_gpu_memory_are_named() -> None:
    used = replace(GB10, processes=(GpuProcess(pid=7, name="/usr/bin/python3", used_mib=None),))

    assert row(doctor_results(seen(used), needs()), "gpu-users").observed == "python3 (pid 7, unknown size)"


def test_probes_without_an_answer_make_the_verdict_unknown() -> None:
    results = doctor_results(
        seen(None, None, docker=None, compose=None, port=None, checkpoint=None, model_disk=None, docker_disk=None),
        needs(),
    )

    assert readiness(results) == "unknown"
    assert Status.FAIL not in {result.status for result in results}


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"docker": DockerFacts(trouble="no engine answers")}, "docker"),
        ({"docker": DockerFacts(trouble="no permission on the Docker socket", denied=True)}, "docker"),
        ({"docker": replace(DOCKER, runtimes=("runc",))}, "nvidia-container"),
        ({"compose": ComposeFacts(version=(1, 29, 2))}, "compose"),
        ({"compose": ComposeFacts(trouble="not installed")}, "compose"),
        ({"port": PortState.TAKEN}, "port"),
        ({"port": PortState.NO_ADDRESS}, "port"),
        ({"docker_disk": Disk(path="/", free=2**30, total=2**40, exists=True)}, "docker-disk"),
        ({"model_disk": Disk(path="/m", free=2**40, total=2**40, exists=False)}, "model-disk"),
    ],
)
def test_each_blocker_blocks_with_something_to_do(changes: dict[str, Any], check: str) -> None:
    results = doctor_results(seen(GB10, **changes), needs())

    assert readiness(results) == "blocked"
    assert row(results, check).status is Status.FAIL
    assert row(results, check).remedy


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("20.10.24+dfsg1", Status.WARN),
        ("27.5.1", Status.WARN),
        ("28.0.0", Status.OK),
        ("28.1.1", Status.OK),
        ("28.2.0", Status.WARN),
        ("28.3.2", Status.WARN),
        ("28.3.3", Status.OK),
        ("29.1.3", Status.OK),
        ("dev", Status.UNKNOWN),
        (None, Status.UNKNOWN),
    ],
)
def test_a_docker_version_that_exposes_ports_on_loopback_is_reported(version: str | None, status: Status) -> None:
    docker = replace(DOCKER, version=version)
    results = doctor_results(seen(GB10, docker=docker), needs())

    found = row(results, "loopback-ports")
    assert found.status is status
    assert bool(found.remedy) == (status is Status.WARN)
    assert ("firewalld" in found.observed) == (version in ("28.2.0", "28.3.2"))
    assert readiness(results) == ("unknown" if status is Status.UNKNOWN else "ready")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"bind": "127.0.0.1"}, Status.WARN),
        ({"bind": "::1"}, Status.WARN),
        ({"bind": "0.0.0.0"}, Status.SKIPPED),
        ({"bind": "0.0.0.0", "extras": ["monitoring"]}, Status.WARN),
        ({"bind": "0.0.0.0", "extras": ["gateway"]}, Status.WARN),
        ({"bind": "0.0.0.0", "extras": ["gateway"], "gateway_bind": "0.0.0.0"}, Status.SKIPPED),
    ],
)
def test_only_ports_published_on_loopback_are_judged(changes: dict[str, Any], status: Status) -> None:
    docker = replace(DOCKER, version="27.5.1")

    assert row(doctor_results(seen(GB10, docker=docker), needs(**changes)), "loopback-ports").status is status
    rootless = replace(docker, rootless=True)
    assert row(doctor_results(seen(None, docker=rootless), needs()), "loopback-ports").status is Status.OK


def test_the_cpu_profile_needs_no_gpu() -> None:
    results = doctor_results(seen(GpuReport(trouble="nvidia-smi is not installed"), PC), needs("cpu"))

    assert readiness(results) == "ready"
    assert not any(result.check == "gpu" for result in results)


def test_this_host_can_be_examined() -> None:
    found = gather_host(needs())

    assert found.host is not None
    assert doctor_results(found, needs())
