"""Facts from the output of real hosts (tests/data/hosts names each source), and from this host."""

import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from glm4_deploy.host.gpu import from_nvidia_smi, parse_apps, parse_gpus, read_gpus
from glm4_deploy.host.system import (
    PortState,
    gather,
    parse_compose,
    parse_info,
    parse_meminfo,
    read_disk,
    read_host,
    read_port,
)
from glm4_deploy.run import Output, run_program

HOSTS = Path(__file__).parents[2] / "data/hosts"


def recorded(name: str) -> str:
    return (HOSTS / name).read_text(encoding="utf-8")


def printed(text: str, code: int = 0) -> Output:
    return Output(code=code, stdout=text)


def test_a_spark_reports_no_memory_and_it_stays_unknown() -> None:
    report = from_nvidia_smi(printed(recorded("gb10-query.csv")), printed(""))

    assert [gpu.name for gpu in report.gpus] == ["NVIDIA GB10"]
    assert report.gpus[0].total_mib is None
    assert report.gpus[0].free_mib is None


def test_a_sparks_memory_is_in_meminfo() -> None:
    memory = parse_meminfo(recorded("gb10-meminfo.txt"))

    assert memory["MemTotal"] / 2**30 == pytest.approx(121.69, abs=0.01)
    assert memory["MemAvailable"] < memory["MemTotal"]


def test_several_gpus_of_different_kinds() -> None:
    report = from_nvidia_smi(printed(recorded("two-gpus-query.csv")), printed(""))

    assert [gpu.compute_capability for gpu in report.gpus] == [(7, 0), (8, 9)]
    assert report.driver == "570.86.15"


def test_mig_is_on_off_or_unknown() -> None:
    gpus = parse_gpus("index, name, mig.mode.current\n0, H100, Enabled\n1, H100, Disabled\n2, GB10, [N/A]\n")

    assert [gpu.mig for gpu in gpus] == [True, False, None]


def test_processes_without_a_size_stay_unknown() -> None:
    apps = parse_apps("gpu_uuid, pid, process_name, used_gpu_memory [MiB]\nGPU-1, 12, /usr/bin/python, [N/A]\n")

    assert [(process.pid, process.used_mib) for process in apps] == [(12, None)]


@pytest.mark.parametrize("new", [True, False])
def test_memory_in_use_is_counted_as_nvidia_smi_counts_it(new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the driver reserves, where the driver knows the second version of the call."""
    import pynvml

    def memory(_handle: object, version: int | None = None) -> SimpleNamespace:
        if version is not None and not new:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        reserved = 0 if version == pynvml.nvmlMemory_v2 else 615
        return SimpleNamespace(total=143771 * 2**20, used=(71873 + reserved) * 2**20, free=71283 * 2**20)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", memory)

    (gpu,) = read_gpus().gpus

    assert (gpu.used_mib, gpu.free_mib) == (71873 if new else 72488, 71283)


def test_a_missing_driver_is_reported_with_the_tools_message() -> None:
    report = from_nvidia_smi(printed(recorded("no-driver.txt"), code=9), printed("", code=9))

    assert report.gpus == ()
    assert report.trouble.startswith("NVIDIA-SMI has failed")


def test_a_missing_tool_is_reported() -> None:
    missing = run_program("nvidia-smi-that-nobody-has", timeout=2)

    assert missing.code is None
    assert from_nvidia_smi(missing, missing).trouble == "nvidia-smi-that-nobody-has is not installed"


@pytest.mark.parametrize("text", ["", "\n\n", "No devices were found\n", "a,b\n1,2,3\n", "index, name\n0\n"])
def test_nonsense_is_not_a_gpu(text: str) -> None:
    assert from_nvidia_smi(printed(text), printed(text)).gpus == ()


def test_this_host_answers_without_raising() -> None:
    report = read_gpus()

    assert report.gpus or report.trouble


def test_a_command_that_hangs_is_left_alone() -> None:
    slow = run_program("sleep", "5", timeout=0.2)

    assert slow.code is None
    assert "did not answer" in slow.trouble


def test_gather_leaves_out_what_hangs_or_dies() -> None:
    begin = time.monotonic()
    found = gather({"good": lambda: 1, "slow": lambda: time.sleep(3), "dies": lambda: 1 / 0}, timeout=0.3)

    assert found == {"good": 1}
    assert time.monotonic() - begin < 1


def test_a_docker_engine_without_nvidia() -> None:
    facts = parse_info(json.loads(recorded("docker-info-no-nvidia.json")), image_here=False)

    assert facts.version == "20.10.24+dfsg1"
    assert not facts.nvidia
    assert facts.root == "/var/lib/docker"


@pytest.mark.parametrize(
    ("info", "nvidia"),
    [
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, True),
        ({"Runtimes": {"runc": {}}, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]}, True),
        ({"Runtimes": {"runc": {}}, "CDISpecDirs": ["/etc/cdi"]}, False),
        ({}, False),
    ],
)
def test_how_an_engine_hands_out_gpus(info: dict[str, object], nvidia: bool) -> None:
    assert parse_info(info).nvidia is nvidia


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('{"version":"v2.40.3"}', (2, 40, 3)),
        ("Docker Compose version v2.20.0\n", (2, 20, 0)),
        ("5.1", (5, 1, 0)),
        ("", None),
    ],
)
def test_compose_versions(text: str, version: tuple[int, ...] | None) -> None:
    assert parse_compose(text).version == version


def test_this_host() -> None:
    host = read_host()

    assert host.memory_total and host.memory_available
    assert 0 < host.memory_available <= host.memory_total


def test_an_unreadable_host_is_unknown_and_not_zero(tmp_path: Path) -> None:
    host = read_host(proc=tmp_path, sys=tmp_path, shm=tmp_path / "none")

    assert (host.memory_total, host.memory_available, host.shm_total, host.cgroup) == (None, None, None, None)


def test_a_port_that_is_taken_and_one_that_is_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert read_port("127.0.0.1", port) is PortState.TAKEN
    assert read_port("127.0.0.1", port) is PortState.FREE
    assert read_port("203.0.113.7", port) is PortState.NO_ADDRESS


def test_the_disk_of_a_directory_yet_to_be_made(tmp_path: Path) -> None:
    disk = read_disk(tmp_path / "models" / "glm")

    assert disk is not None
    assert disk.free > 0
    assert not disk.exists
