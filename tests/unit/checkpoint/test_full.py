"""--full and --manifest: every byte is examined, and the digests agree with those of `sha256sum`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import checkpoints as made
from glm4_deploy.checkpoint import scan as scan_module
from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.result import Result, Status

Held = dict[str, np.ndarray]
SCALE, PACKED = "model.layers.0.mlp.down_proj.weight_scale", "model.layers.0.mlp.down_proj.weight_packed"


def nan_scale(held: Held) -> None:
    held[SCALE].view(np.uint8)[3, 1] = 0x7F


def negative_scale(held: Held) -> None:
    held[SCALE].view(np.uint8)[3, 1] = 0x81


def zero_scale(held: Held) -> None:
    held[SCALE].view(np.uint8)[3, 1] = 0


def nan_weight(held: Held) -> None:
    held["lm_head.weight"][5, 5] = np.nan


def infinite_norm(held: Held) -> None:
    held["model.norm.weight"][-1] = np.inf


def empty_tensor(held: Held) -> None:
    held[PACKED][:] = 0
    held[SCALE].view(np.uint8)[:] = 1


FAULTS: dict[str, tuple[Callable[[Held], None], str, str]] = {
    "NaN scale": (nan_scale, "weight-scales", SCALE),
    "negative scale": (negative_scale, "weight-scales", SCALE),
    "zero scale over weights": (zero_scale, "weight-scales", SCALE),
    "NaN weight": (nan_weight, "finite-weights", "lm_head.weight"),
    "infinite norm": (infinite_norm, "finite-weights", "model.norm.weight"),
    "tensor of zeros": (empty_tensor, "zero-weights", PACKED),
}


def named(directory: Path, check: str, manifest: Path | None = None) -> Result:
    report = verify_checkpoint(directory, full=True, manifest=manifest)
    return next(result for result in report.results if result.check == check)


@pytest.mark.parametrize("buffer", [64, 8 << 20])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_bytes_is_found(
    fault: str, buffer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small buffer too: a tensor of the real model spans many."""
    monkeypatch.setattr(scan_module, "BUFFER", buffer)
    damage, check, place = FAULTS[fault]
    directory, held = made.checkpoint(tmp_path / "glm-4-made"), made.tensors()
    damage(held)
    made.save(directory / "model.safetensors", held)
    result = named(directory, check)
    assert (result.status, place in result.observed) == (Status.FAIL, True)
    quick = {result.check for result in verify_checkpoint(directory).failures}
    assert check not in quick


def test_a_hole_of_zeros_in_a_large_tensor_is_found(tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    made.change(directory / "config.json", intermediate_size=16384)
    rng = np.random.default_rng(1)
    held = made.tensors()
    for layer in range(2):
        for name, rows, columns in (("gate_up_proj", 2 * 16384, made.HIDDEN), ("down_proj", made.HIDDEN, 16384)):
            held |= made.packed(f"model.layers.{layer}.mlp.{name}", rows, columns, rng)
    made.save(directory / "model.safetensors", held)
    assert named(directory, "zero-weights").status is Status.OK
    held["model.layers.1.mlp.gate_up_proj.weight_packed"].reshape(-1)[65536 * 2 : 65536 * 4] = 0
    made.save(directory / "model.safetensors", held)
    result = named(directory, "zero-weights")
    assert result.status is Status.FAIL and "hole" in result.observed


def test_a_zero_scale_over_zero_weights_is_harmless(tmp_path: Path) -> None:
    directory, held = made.checkpoint(tmp_path / "glm-4-made"), made.tensors()
    zero_scale(held)
    held[PACKED][3, 8:16] = [0x00, 0x80, 0x08, 0x88, 0, 0, 0, 0]  # both zeros of E2M1
    made.save(directory / "model.safetensors", held)
    assert named(directory, "weight-scales").status is Status.OK


@pytest.mark.parametrize("shards", [1, 3])
def test_the_manifest_has_the_format_of_sha256sum(shards: int, tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made", shards=shards)
    (directory / "odd\nname\\.txt").write_text("x")
    manifest = directory / "SHA256SUMS"
    assert "written" in named(directory, "manifest", manifest).observed
    subprocess.run(["sha256sum", "--check", "--strict", manifest.name], cwd=directory, check=True, capture_output=True)
    assert named(directory, "manifest", manifest).status is Status.OK
    manifest.unlink()
    names = sorted(path.name for path in directory.iterdir())
    theirs = subprocess.run(["sha256sum", "--", *names], cwd=directory, check=True, capture_output=True).stdout
    manifest.write_bytes(theirs)
    assert named(directory, "manifest", manifest).status is Status.OK


def test_a_byte_that_no_other_check_notices_breaks_the_manifest(tmp_path: Path) -> None:
    directory, manifest = made.checkpoint(tmp_path / "glm-4-made"), tmp_path / "sums"
    named(directory, "manifest", manifest)
    held = made.tensors()
    held[PACKED][0, 0] ^= 1
    made.save(directory / "model.safetensors", held, {"format": "pt"})
    result = named(directory, "manifest", manifest)
    assert result.status is Status.FAIL and "'model.safetensors' differs" in result.observed
    (directory / "new.txt").touch()
    (directory / "LICENSE").unlink()
    assert "'LICENSE' is missing" in named(directory, "manifest", manifest).observed


def test_no_manifest_is_written_for_a_damaged_checkpoint(tmp_path: Path) -> None:
    directory, held = made.checkpoint(tmp_path / "glm-4-made"), made.tensors()
    nan_weight(held)
    made.save(directory / "model.safetensors", held)
    assert named(directory, "manifest", tmp_path / "sums").observed == "not written"
    assert not (tmp_path / "sums").exists()


def test_a_file_that_is_not_a_manifest(tmp_path: Path) -> None:
    directory = made.checkpoint(tmp_path / "glm-4-made")
    assert named(directory, "manifest", directory / "README.md").status is Status.FAIL


def test_the_quick_verify_does_without_numpy() -> None:
    """Loading NumPy takes longer than the verification itself."""
    code = f"""
import sys
from pathlib import Path
from glm4_deploy.checkpoint.verify import verify_checkpoint
assert verify_checkpoint(Path({str(made.DATA)!r})).results
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
