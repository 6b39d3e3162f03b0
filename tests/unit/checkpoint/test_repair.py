"""Repair loses nothing, is idempotent, can be undone, and leaves either a complete directory or none."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import checkpoints as made
from glm4_deploy.checkpoint import repair as repair_module
from glm4_deploy.checkpoint import scan as scan_module
from glm4_deploy.checkpoint.repair import repair_checkpoint
from glm4_deploy.checkpoint.rewrite import Piece, Source, join, split, write_shard
from glm4_deploy.checkpoint.scan import scan_tensors
from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.errors import CheckpointRefused, StorageError, UsageError

OLD, NEWEST = (0, 13, 0), (0, 32, 0)


def test_dequantised_weights_of_a_real_checkpoint_are_bit_equal(tmp_path: Path) -> None:
    repair_checkpoint(made.DATA, tmp_path / "glm-4-out")
    before, after = made.every_weight(made.read(made.DATA)), made.every_weight(made.read(tmp_path / "glm-4-out"))
    assert before.keys() == after.keys() and len(before) == 12
    for name, values in before.items():
        assert (
            np.isfinite(values).all() and np.abs(values).max() > 0.01
        )  # a dequantiser that gives zeros proves nothing
        assert values.tobytes() == after[name].tobytes(), name


def test_what_is_not_gate_and_up_keeps_its_bytes(tmp_path: Path) -> None:
    repair_checkpoint(made.DATA, tmp_path / "glm-4-out")
    before, after = made.read(made.DATA), made.read(tmp_path / "glm-4-out")
    for name in before.keys() & after.keys():
        assert before[name] == after[name]
    assert {name for name in before.keys() ^ after.keys() if "mlp." not in name} == set()


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_repair_then_its_inverse_gives_the_same_files(shards: int, tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made", shards=shards)
    repair_checkpoint(directory, tmp_path / "glm-4-old", vllm=OLD)
    repair_checkpoint(tmp_path / "glm-4-old", tmp_path / "glm-4-back", vllm=NEWEST)
    for path in directory.glob("*.safetensors"):
        assert (tmp_path / "glm-4-back" / path.name).read_bytes() == path.read_bytes()
    assert made.read(tmp_path / "glm-4-back") == made.read(directory)
    assert verify_checkpoint(tmp_path / "glm-4-back", vllm=NEWEST).failures == ()


@pytest.mark.parametrize("shards", [1, 3])
def test_repairing_twice_changes_nothing(shards: int, tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made", shards=shards, healthy=False)
    once = repair_checkpoint(directory, tmp_path / "glm-4-once", vllm=OLD)
    twice = repair_checkpoint(tmp_path / "glm-4-once", tmp_path / "glm-4-twice", vllm=OLD)
    assert once.changes and once.report.failures == ()
    assert (twice.changes, twice.written) == ((), ())
    for path in (tmp_path / "glm-4-once").iterdir():
        assert (tmp_path / "glm-4-twice" / path.name).read_bytes() == path.read_bytes()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(half=st.integers(1, 40), columns=st.integers(1, 9), width=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**16))
def test_any_shape_is_split_into_its_halves_and_joined_again(
    half: int, columns: int, width: int, seed: int, tmp_path: Path
) -> None:
    value = np.random.default_rng(seed).integers(0, 256, (2 * half, columns * width), np.uint8)
    source = tmp_path / "source"
    source.write_bytes(b"before" + value.tobytes() + b"after")
    fused = Piece(
        name="model.layers.0.mlp.gate_up_proj.weight_packed",
        dtype={1: "U8", 2: "BF16", 4: "F32"}[width],
        shape=(2 * half, columns),
        sources=(Source(shard="source", start=6, nbytes=value.nbytes),),
    )
    gate, up = split(fused)
    assert gate.shape == up.shape == (half, columns)
    out = tmp_path / "out.safetensors"
    for pieces, expected in (
        ((gate, up), [value[:half], value[half:]]),
        ((join(gate, up, same_bytes=False),), [value]),
    ):
        out.unlink(missing_ok=True)
        write_shard(out, pieces, metadata={}, shards={"source": source}, progress=lambda _: None)
        assert [data for _, _, data in made.read(tmp_path).values()] == [part.tobytes() for part in expected]


@pytest.mark.parametrize("rows", [3, 1])
def test_an_odd_number_of_rows_is_refused(rows: int, tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    held = made.tensors()
    name = "model.layers.0.mlp.gate_up_proj.weight_packed"
    held[name] = held[name][:rows]
    made.save(directory / "model.safetensors", held)
    with pytest.raises(CheckpointRefused):
        repair_checkpoint(directory, tmp_path / "glm-4-out")


def test_the_report_equals_a_verification_of_the_output(tmp_path: Path) -> None:
    for only in ((), ("gate-up",)):
        output = tmp_path / f"glm-4-out-{len(only)}"
        assert repair_checkpoint(made.DATA, output, only=only).report == verify_checkpoint(output)


def only_whole_or_nothing(directory: Path, before: set[str]) -> None:
    assert {path.name for path in directory.iterdir()} == before


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's limit on file size stands in for a full disk: the same call fails, with EFBIG."""
    directory = made.checkpoint(tmp_path / "glm-4-made")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            repair_checkpoint(directory, tmp_path / "glm-4-out", vllm=OLD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    only_whole_or_nothing(tmp_path, {"glm-4-made"})


def test_a_full_file_system_is_reported(tmp_path: Path) -> None:
    """A real one of 64 KiB, if the machine allows mounting it."""
    directory, small = made.checkpoint(tmp_path / "glm-4-made"), tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", small]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted")
    try:
        with pytest.raises(StorageError) as caught:
            repair_checkpoint(directory, small / "glm-4-out")
        assert "free some space" in caught.value.hint
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_copy_to_another_file_system_is_whole(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    output = shared / f"glm-4-{os.getpid()}"
    try:
        outcome = repair_checkpoint(made.DATA, output)
        assert outcome.linked == () and outcome.report.failures == ()
        expected = made.every_weight(made.read(made.DATA))
        assert all((value == expected[name]).all() for name, value in made.every_weight(made.read(output)).items())
    finally:
        subprocess.run(["rm", "-r", output], check=True)


def test_killed_in_the_middle_it_leaves_no_output(tmp_path: Path) -> None:
    """SIGKILL once the new shard is there: no clean-up can run."""
    directory = made.checkpoint(tmp_path / "glm-4-made")
    code = f"""
import time
from pathlib import Path
from glm4_deploy.checkpoint import repair
repair.sync_directory = lambda path: time.sleep(60)
repair.repair_checkpoint(Path({str(directory)!r}), Path({str(tmp_path / "glm-4-out")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    limit = time.monotonic() + 30
    while not list(tmp_path.glob("glm-4-out.partial-*/config.json")) and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "glm-4-out").exists()
    assert len(list(tmp_path.glob("glm-4-out.partial-*"))) == 1
    assert repair_checkpoint(directory, tmp_path / "glm-4-out").report.failures == ()


def test_a_shard_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    write = write_shard

    def write_during_a_download(*args: object, **named: object) -> None:
        write(*args, **named)  # type: ignore[arg-type]
        os.utime(directory / "model.safetensors")

    monkeypatch.setattr(repair_module, "write_shard", write_during_a_download)
    with pytest.raises(StorageError, match="changed while it was repaired"):
        repair_checkpoint(directory, tmp_path / "glm-4-out", vllm=OLD)
    only_whole_or_nothing(tmp_path, {"glm-4-made"})


def test_verify_reports_a_file_that_changes_while_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    scan = scan_tensors

    def scan_during_a_download(*args: object, **named: object) -> object:
        with (directory / "model.safetensors").open("ab") as file:
            file.write(b"more")
        return scan(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(scan_module, "scan_tensors", scan_during_a_download)
    assert "changed" in {result.check for result in verify_checkpoint(directory, full=True).failures}


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for output in (directory, directory / "in", tmp_path / "full", tmp_path / "dangling", tmp_path / "no/parent"):
        with pytest.raises(UsageError):
            repair_checkpoint(directory, output)
    with pytest.raises(UsageError, match="not a check that can be repaired"):
        repair_checkpoint(directory, tmp_path / "out", only=["licence"])


def test_a_rename_that_fails_is_reported_and_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")

    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match="Read-only"):
        repair_checkpoint(directory, tmp_path / "glm-4-out")
    only_whole_or_nothing(tmp_path, {"glm-4-made"})


def test_the_manifest_of_the_old_files_is_left_out(tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    verify_checkpoint(directory, manifest=directory / "SHA256SUMS")
    (directory / "notes").mkdir()
    outcome = repair_checkpoint(directory, tmp_path / "glm-4-out")
    assert set(outcome.left_out) == {"SHA256SUMS", "notes"}
