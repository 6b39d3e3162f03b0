"""Power, clocks, slowdowns and errors of a GPU: through a program that prints what nvidia-smi prints.

The columns and their headers are nvidia-smi's (`nvidia-smi --help-query-gpu`). The figures of the GB10 are those that
people published: eugr/spark-vllm-docker#260 (95 % at 22 W deadlocked, 45 W at work), and [N/A] for what it does not
report (tests/data/hosts/gb10-query.csv); the clocks are made up.
"""

import os
from pathlib import Path

import pytest

from glm4_deploy.host.gpu_health import GpuHealth, parse_health, parse_kmsg, read_gpu_health, read_xids, slowdowns_in

HEADER = (
    "index, power.draw [W], enforced.power.limit [W], utilization.gpu [%], clocks.current.sm [MHz], "
    "clocks.max.sm [MHz], clocks_event_reasons.active, ecc.errors.uncorrected.volatile.total"
)
GB10 = "0, 22.31, [N/A], 95, 2411, 3003, 0x0000000000000000, [N/A]"
# The lines are of public reports: NVIDIA/open-gpu-kernel-modules#1151, and dgx-spark-playbooks#97.
KMSG = (
    "6,1201,48210001,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus.\n"
    " SUBSYSTEM=pci\n"
    "4,1202,48210002,-;NVRM: nvCheckOkFailedNoLog: Check failed: Out of memory [NV_ERR_NO_MEMORY] (0x00000051)\n"
    "6,1203,99000000,-;NVRM: Xid (PCI:000f:01:00): 31, pid=48211, name=VLLM::EngineCor, MMU Fault\n"
)


def test_a_gb10_reports_power_and_clocks_and_neither_limit_nor_memory_errors() -> None:
    (gpu,) = parse_health(f"{HEADER}\n{GB10}\n")
    assert (gpu.power_w, gpu.power_limit_w, gpu.utilization, gpu.ecc_uncorrected) == (22.31, None, 95.0, None)
    assert (gpu.slowdowns, gpu.stuck_low, gpu.rows_failed, gpu.troubles()) == ((), False, None, ())
    assert gpu.known


def test_what_is_not_reported_is_neither_fine_nor_wrong() -> None:
    (gpu,) = parse_health(f"{HEADER}\n0, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n")
    assert gpu == GpuHealth(index=0)
    assert (gpu.known, gpu.stuck_low, gpu.troubles()) == (False, None, ())
    assert parse_health("Field is not a valid field to query.\n") == ()


def test_slowdowns_stuck_clocks_and_errors_are_named() -> None:
    (gpu,) = parse_health(f"{HEADER}\n0, 22.31, 575.00, 96, 611, 3003, 0x00000000000000C4, 2\n")
    assert slowdowns_in(0x44) == ("thermal slowdown by hardware",), "a power cap is no fault"
    troubles = "; ".join(gpu.troubles())
    for words in ("thermal slowdown by hardware", "power brake", "611 of 3003 MHz", "2 uncorrected memory errors"):
        assert words in troubles
    assert "replace the card" in GpuHealth(index=0, rows_pending=True, rows_failed=True).troubles()[0]
    assert "reset the GPU" in GpuHealth(index=0, rows_pending=True, rows_failed=False).troubles()[0]
    assert not GpuHealth(index=0, rows_pending=False, rows_failed=False).troubles()
    assert GpuHealth(index=0, utilization=0.0, sm_clock_mhz=200.0, sm_clock_max_mhz=3003.0).stuck_low is None


@pytest.mark.parametrize("old", [False, True])
def test_an_older_driver_is_asked_by_the_older_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    header = HEADER.replace("clocks_event_reasons", "clocks_throttle_reasons") if old else HEADER
    refusal = 'case "$1" in *clocks_event*) echo "Field \\"x\\" is not a valid field to query."; exit 2;; esac\n'
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{refusal if old else ''}cat <<'END'\n{header}\n{GB10}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (gpu,) = read_gpu_health()
    assert (gpu.power_w, gpu.slowdowns) == (22.31, ())


def test_xids_are_read_from_the_kernels_records(tmp_path: Path) -> None:
    assert [(xid.code, xid.at) for xid in parse_kmsg(KMSG)] == [(79, 48.210001), (31, 99.0)]
    log = tmp_path / "kmsg"
    log.write_text(KMSG)
    assert read_xids(log) == parse_kmsg(KMSG)
    log.write_text("6,1,2,-;Linux version 6.18\n")
    assert read_xids(log) == ()
    assert read_xids(tmp_path / "none") is None, "unreadable is unknown"
