"""A full disk is reported before anything that runs is touched."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeys.kit import Kit


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", directory], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def fill(directory: Path, left: int) -> None:
    """Leave so many bytes free."""
    system = os.statvfs(directory)
    with (directory / "filler").open("ab") as filler:
        filler.write(bytes(system.f_bavail * system.f_frsize - left))


def test_a_full_disk_stops_an_up_before_it_touches_what_runs(kit: Kit, small: Path) -> None:
    state = ("--state-dir", small / "state")
    first = kit.up(*state, "--json")
    assert first.code == 0, first.err
    before = kit.steady(kit.run("status", *state, "--json").json)

    for left in (1 << 20, 0):  # room for the journal alone; none at all
        fill(small, left)
        full = kit.up(*state, "--set", "max_num_seqs=8")
        assert full.code == 18
        assert "No space left on device" in full.err
        assert kit.steady(kit.run("status", *state, "--json").json) == before
    assert len(kit.run("releases", *state, "--json").json["releases"]) == 1

    (small / "filler").unlink()
    again = kit.up(*state, "--set", "max_num_seqs=8")
    assert again.code == 0, again.err
    assert "cut off" not in again.err
