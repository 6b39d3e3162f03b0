"""An upgrade on a real Docker engine: repair, gate, rollback, and caches kept apart.

The images hold the journeys' stand-in for vLLM, so that each start takes seconds; the checkpoint, its repair, Docker
and the volumes are real. The tests run in order on one deployment.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.kit import KIT, ROOT, Done, Kit
from e2e.stand_in_images import NAME, build, build_foreign, environment, override
from e2e.test_up import containers, inspect

pytestmark = pytest.mark.e2e

OLD, NEW = "0.13.0", "0.32.0"
BROKEN, DIES, SICK = "0.31.0", "0.27.1", "0.24.0"
FOREIGN = "0.22.1"
CUDA_13 = "localhost:9/nvidia/vllm:26.10-py3"  # a mirror of it, which is not asked


@dataclass(frozen=True, kw_only=True)
class Upgraded:
    """A deployment of OLD, and images to move it to."""

    kit: Kit
    model: Path

    def tag(self, version: str) -> str:
        return f"{version}-{self.kit.project}"

    def upgrade(self, version: str, *words: str) -> Done:
        return self.kit.run("upgrade", self.tag(version), *words)

    def serves(self) -> tuple[str, str]:
        """The image of the engine that is up, and the volume of its cache."""
        status = self.kit.run("status", "--json")
        assert status.code == 0, status.out + status.err
        container = inspect(self.kit.project)
        (cache,) = (mount["Name"] for mount in container["Mounts"] if mount["Destination"] == "/cache")
        assert status.json["state"]["cache"] == cache
        assert status.json["state"]["cache_doubt"] == ""
        return str(container["Config"]["Image"]).partition(":")[2], str(cache)

    @property
    def releases(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.kit.run("releases", "--json").json["releases"]
        return rows


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker engine answers")
    directory = tmp_path_factory.mktemp("upgrade")
    kit = Kit(directory=directory, project=f"glm4-upgrade-{os.getpid()}")
    original, model = directory / "glm-4-tiny", directory / f"glm-4-tiny-{OLD}"
    without = shutil.ignore_patterns("fingerprint.json")  # the stand-in's tokenizer is another one
    shutil.copytree(ROOT / "demo/glm-4-tiny-chat-nvfp4", original, ignore=without)
    made = Upgraded(kit=kit, model=model)
    for version, behaviour in ((OLD, ""), (NEW, ""), (DIES, "dies"), (SICK, "LoopsGreedy")):
        build(f"{NAME}:{made.tag(version)}", environment(version, behaviour))
    build(f"{NAME}:{made.tag(BROKEN)}", {"PATH": "/usr/bin:/bin"})  # its Python has no vLLM
    lease = directory / "lease"
    mounts = directory / "mounts.yaml"
    mounts.write_text(override(lease))
    done = kit.run("checkpoint", "repair", original, "--for", OLD, "--output", model)
    assert done.code == 0, done.out + done.err
    shutil.rmtree(original)
    locked = lease.open("w")
    fcntl.flock(locked, fcntl.LOCK_EX)
    try:
        image = ("--image", f"{NAME}:{made.tag(OLD)}", "--set", "quantization=compressed-tensors")
        up = kit.up("--override", mounts, *image, model=model)
        assert up.code == 0, up.err
        assert "first start with the cache of image" in up.err
        yield made
    finally:
        kit.run("down", "--volumes", "--yes")
        locked.close()
        tags = [f"{NAME}:{made.tag(version)}" for version in (OLD, NEW, BROKEN, DIES, SICK, FOREIGN)]
        subprocess.run(["docker", "image", "rm", "--force", *tags], capture_output=True, check=False)


def test_what_can_be_refused_is_refused_and_a_dry_run_changes_nothing(upgraded: Upgraded) -> None:
    before, known = inspect(upgraded.kit.project)["Id"], upgraded.releases
    same = upgraded.upgrade(OLD)
    assert (same.code, "already runs" in same.err) == (2, True), same.err
    nowhere = upgraded.kit.run("upgrade", f"localhost:9/vllm/vllm-openai:v{BROKEN}")  # nothing listens there
    assert (nowhere.code, "could not be pulled" in nowhere.err) == (19, True), nowhere.err
    unnamed = upgraded.kit.run("upgrade", "localhost:9/some/engine:1", "--dry-run")  # not here, so not asked either
    assert (unnamed.code, "its vLLM is not known" in unnamed.err) == (2, True), unnamed.err
    unasked = upgraded.kit.run("upgrade", "localhost:9/some/engine:1")
    assert (unasked.code, "so it is queried" in unasked.err) == (19, True), unasked.err
    plan = upgraded.upgrade(NEW, "--dry-run", "--json")
    assert plan.code == 0, plan.err
    assert {"image", "vLLM"} <= {change["name"] for change in plan.json["changes"]}
    assert plan.json["repair"]["output"] == f"{upgraded.model.parent}/glm-4-tiny-{NEW}"
    assert not Path(plan.json["repair"]["output"]).exists()
    assert inspect(upgraded.kit.project)["Id"] == before
    assert upgraded.releases == known


GEFORCE = """#!/bin/sh
# Answers as nvidia-smi on a GeForce with an old driver.
case $1 in
  *memory.total*) echo "index, name, driver_version, memory.total [MiB], compute_cap"
    echo "0, NVIDIA GeForce RTX 5090, 570.86.10, 32607, 12.0" ;;
  *) echo "gpu_uuid, pid, process_name, used_gpu_memory [MiB]" ;;
esac
"""


def test_what_this_host_cannot_run_is_refused_while_the_old_one_serves(upgraded: Upgraded, tmp_path: Path) -> None:
    before, known = inspect(upgraded.kit.project)["Id"], upgraded.releases

    smi = tmp_path / "nvidia-smi"
    smi.write_text(GEFORCE)
    smi.chmod(0o755)
    words = ["env", f"PATH={tmp_path}:{os.environ['PATH']}", *KIT, "upgrade", CUDA_13]
    driver = _run(words, upgraded)
    for _ in range(3):  # on a machine that others load, nvidia-smi may not answer in time
        if driver.returncode == 13:
            break
        driver = _run(words, upgraded)
    assert (driver.returncode, "driver 570.86.10 is too old" in driver.stderr) == (13, True), driver.stderr

    foreign = {"x86_64": "arm64", "aarch64": "amd64"}[os.uname().machine]
    build_foreign(f"{NAME}:{upgraded.tag(FOREIGN)}", foreign)
    processor = upgraded.upgrade(FOREIGN)
    assert (processor.code, f"built for {foreign}" in processor.err) == (13, True), processor.err

    # The kernel's limit on the size of a file stands in for a full disk: writes fail in the same way.
    full = _run(["prlimit", "--fsize=100000", *KIT, "upgrade", upgraded.tag(NEW)], upgraded)
    assert (full.returncode, "cannot write" in full.stderr) == (18, True), full.stderr
    assert not (upgraded.model.parent / f"glm-4-tiny-{NEW}").exists()

    assert inspect(upgraded.kit.project)["Id"] == before, "the engine was not touched"
    assert upgraded.releases == known


def _run(words: list[str], upgraded: Upgraded) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, cwd=upgraded.kit.directory, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("version", "reason"), [(BROKEN, "vllm"), (DIES, "No available memory"), (SICK, "did not pass")]
)
def test_a_bad_upgrade_ends_with_the_old_release_serving_and_the_reason_said(
    upgraded: Upgraded, version: str, reason: str
) -> None:
    before = upgraded.serves()
    done = upgraded.upgrade(version)
    assert done.code == 15, done.err
    assert reason in done.err
    assert "runs again, gated" in done.err
    assert upgraded.serves() == before
    failed, back = upgraded.releases[-2:]
    assert not failed["good"]
    assert failed["reason"]
    assert back["restores"]
    assert back["content"] == upgraded.releases[0]["content"]


def test_an_upgrade_repairs_the_checkpoint_and_does_not_read_the_old_cache(upgraded: Upgraded) -> None:
    _, old_cache = upgraded.serves()
    mountpoint = _mountpoint(old_cache)
    (mountpoint / "poison").write_text("of another image")
    done = upgraded.upgrade(NEW, "--json")
    assert done.code == 0, done.err
    image, cache = upgraded.serves()
    assert image == upgraded.tag(NEW)
    assert cache != old_cache
    assert not (_mountpoint(cache) / "poison").exists()
    latest = upgraded.releases[-1]
    assert latest["good"]
    assert latest["engine"]["version"].startswith(NEW)
    assert latest["endpoint"]["model_dir"] == f"{upgraded.model.parent}/glm-4-tiny-{NEW}"
    assert latest["cache"]["volumes"] == [cache]


def test_a_rollback_uses_the_old_cache_and_prune_keeps_what_releases_need(upgraded: Upgraded) -> None:
    # As an earlier kit named it.
    stray = f"{upgraded.kit.project}_cache"
    labels = (f"com.docker.compose.project={upgraded.kit.project}", "com.docker.compose.volume=cache")
    words = [word for label in labels for word in ("--label", label)]
    subprocess.run(["docker", "volume", "create", *words, stray], check=True, capture_output=True)
    done = upgraded.kit.run("rollback", "1")
    assert done.code == 0, done.err
    assert f"volume {stray} (" in done.err
    image, cache = upgraded.serves()
    assert image == upgraded.tag(OLD)
    assert (_mountpoint(cache) / "poison").exists(), "it is the cache that this image filled"
    pruned = upgraded.kit.run("releases", "prune", "--yes", "--json")
    assert pruned.code == 0, pruned.err
    assert f"volume {stray}, compiled kernels" in pruned.err
    assert stray in pruned.json["volumes"]
    assert cache not in pruned.json["volumes"]
    assert {cache, *upgraded.releases[-2]["cache"]["volumes"]} <= _volumes()


def test_down_says_what_goes_and_leaves_no_volume(upgraded: Upgraded) -> None:
    down = upgraded.kit.run("down", "--volumes", "--yes")
    assert down.code == 0, down.err
    assert "to remove: volume" in down.err
    assert containers(upgraded.kit.project) == []
    assert not [name for name in _volumes() if name.startswith(f"{upgraded.kit.project}_")]
    stopped = upgraded.upgrade(NEW)
    assert (stopped.code, "does not run" in stopped.err) == (2, True), stopped.err


def _mountpoint(volume: str) -> Path:
    done = subprocess.run(
        ["docker", "volume", "inspect", "--format", "{{.Mountpoint}}", volume],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return Path(done.stdout.strip())


def _volumes() -> set[str]:
    words = ["docker", "volume", "ls", "--quiet"]
    return set(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())
