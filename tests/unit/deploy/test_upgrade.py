"""What an upgrade would change, what it refuses beforehand, and how speed is compared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm4_deploy.catalog.images import find_image
from glm4_deploy.catalog.rows import profiles
from glm4_deploy.checkpoint.verify import verify_checkpoint
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.releases import Files, KeptFile, Release, ReleaseImage, Store
from glm4_deploy.deploy.state import Record, save_record
from glm4_deploy.deploy.upgrade import (
    OldSpeed,
    check_image,
    compare_speed,
    keep_bench,
    needed_repair,
    old_speed,
    plan_upgrade,
    repair,
    running_release,
    settings_with,
)
from glm4_deploy.errors import CheckpointRefused, PlanRefused, UsageError
from glm4_deploy.host.gpu import GpuFacts, GpuReport
from glm4_deploy.plan.spec import Card, choose_fraction, plan_deployment
from glm4_deploy.report_model import BenchLevel, BenchReport, Quantiles
from glm4_deploy.result import Status
from glm4_deploy.settings import load_settings
from glm4_deploy.text import MASK

DEMO = Path(__file__).parents[3] / "demo/glm-4-tiny-chat-nvfp4"
NAME = "nvcr.io/nvidia/vllm"
OLD, NEW = find_image(NAME, "26.01-py3"), find_image(NAME, "26.10-py3")


def release(model: Path = DEMO, **values: Any) -> Release:
    values = {"image_tag": OLD.tag} | values
    settings, profile = load_settings({"profile": "rtx-5090", "model_dir": str(model), **values}, environ={})
    spec = plan_deployment(settings, profile, choose_fraction(settings, profile))
    return Release(
        id="0001-20260101T000000Z", created_at="", kit="0", verdict=Status.OK,
        endpoint=Endpoint.of(spec, EngineKind.COMPOSE), fingerprint=None, stamp=None,
        image=ReleaseImage(reference=spec.image, id="sha256:a"), engine={},
        files=(KeptFile(name="compose.yaml", sha256="", compose=0),), settings=settings.model_dump(mode="json"),
    )  # fmt: skip


def served(directory: Path, one: Release) -> Store:
    """A state directory in which this release serves."""
    store = Store(directory)
    store.draft(Files(texts={}, compose=())).publish(one, {})
    save_record(Record(endpoint=one.endpoint, release=one.id, verdict=one.verdict), directory)
    return store


def test_the_release_in_service_is_upgraded_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no good release is in service"):
        running_release(tmp_path, Store(tmp_path))
    good = release()
    assert running_release(tmp_path, served(tmp_path, good)) == good
    for other, why in (
        (replace(good, verdict=Status.FAIL), "no good release"),
        (replace(good, files=()), "runs as a process"),
        (replace(good, settings={**good.settings, "env": {"HF_TOKEN": MASK}}), "secrets"),
    ):
        shutil.rmtree(tmp_path / "releases")
        with pytest.raises(UsageError, match=why):
            running_release(tmp_path, served(tmp_path, other))


def test_a_tag_is_one_of_the_same_repository_and_a_name_is_an_image() -> None:
    pinned = release(image_digest=f"sha256:{'1' * 64}", image_vllm="0.13.0")
    tag = settings_with(pinned, "26.10-py3")
    assert (tag.pinned_image, tag.image_vllm) == (f"{NAME}:26.10-py3", None), "nothing of the old image is left"
    assert settings_with(pinned, "vllm/vllm-openai:v0.31.0").image == "vllm/vllm-openai:v0.31.0"
    assert tag.model_copy(update={"image_tag": "26.01-py3"}).model_dir == str(DEMO)
    for wrong in ("a b", "", "case/UPPER:1", "x:y:z", f"{NAME}@sha256:12"):
        with pytest.raises(UsageError):
            settings_with(pinned, wrong)
    with pytest.raises(UsageError, match="already runs"):
        settings_with(release(), "26.01-py3")


def host(name: str, driver: str | None) -> GpuReport:
    return GpuReport(gpus=(GpuFacts(index=0, name=name, driver=driver),), driver=driver)


def test_an_image_that_this_host_cannot_run_is_refused() -> None:
    with pytest.raises(UsageError, match="its vLLM is not known"):
        check_image(find_image(NAME, "99.99-py3"), GpuReport())
    with pytest.raises(PlanRefused, match="is too old for it"):
        check_image(NEW, host("NVIDIA GeForce RTX 5090", "570.1"))
    for fine in (host("NVIDIA GeForce RTX 5090", "580.1"), host("NVIDIA B200", "570.1"), host("X", None), GpuReport()):
        check_image(NEW, fine)


def test_a_checkpoint_is_repaired_beside_the_old_one_for_the_vllm_that_needs_it(tmp_path: Path) -> None:
    model = tmp_path / "glm-4-tiny"
    shutil.copytree(DEMO, model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    need = needed_repair(model, NEW, OLD)
    assert need is not None
    assert need.output == f"{model}-0.13.0"
    assert any("gate-up" in edit for edit in need.edits)
    assert not Path(need.output).exists()
    repair(need, OLD)
    assert verify_checkpoint(Path(need.output), vllm=OLD.vllm).failures == ()
    again = needed_repair(model, NEW, OLD)
    assert again is not None
    assert again.made
    repair(again, OLD)
    back = needed_repair(Path(need.output), OLD, find_image("vllm/vllm-openai", "v0.32.0"))
    assert back is not None
    assert back.output == f"{model}-0.32.0", "the name of a copy does not grow"
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert needed_repair(model, OLD, NEW) is None


def test_a_copy_that_is_not_sound_and_a_fault_that_no_repair_mends_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "glm-4-tiny"
    shutil.copytree(DEMO, model)
    shutil.copytree(DEMO, tmp_path / "glm-4-tiny-0.13.0")
    with pytest.raises(CheckpointRefused, match="not a sound copy"):
        needed_repair(model, NEW, OLD)
    shutil.rmtree(tmp_path / "glm-4-tiny-0.13.0")
    (model / "tokenizer.json").unlink()
    with pytest.raises(CheckpointRefused, match="cannot be repaired"):
        needed_repair(model, NEW, OLD)


def test_the_plan_names_what_changes_by_version(tmp_path: Path) -> None:
    from glm4_deploy.catalog.rows import gpus

    model = tmp_path / "glm-4-tiny"
    shutil.copytree(DEMO, model)
    one = release(model)
    store = served(tmp_path / "state", one)
    card = Card(gpu=gpus()["rtx-5090"])
    plan = plan_upgrade(one, store, settings_with(one, "26.10-py3"), card, host("NVIDIA GeForce RTX 5090", "590.1"))
    rows = {row.name: (row.a, row.b) for row in plan.changes}
    assert rows["vLLM"] == ("0.13.0", "0.31.0")
    assert rows["image"] == (f"{NAME}:26.01-py3", f"{NAME}:26.10-py3")
    assert {"CUDA", "KV cache", "NVFP4 kernel"} <= rows.keys()
    assert plan.need is None
    assert json.loads(json.dumps(plan.wire()["image"])) == f"{NAME}:26.10-py3"
    assert any("comes back" in line for line in plan.lines())
    assert profiles()["rtx-5090"].name == one.endpoint.profile


def level(tokens: float, *, concurrency: int = 1, failed: int = 0) -> BenchLevel:
    zero = Quantiles(p50=1, p95=1, p99=1)
    return BenchLevel(
        concurrency=concurrency, requests=8, failed=failed, seconds=1, ttft=zero, tpot=zero,
        output_tokens_per_s=tokens, requests_per_s=1, goodput=None, broken=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "failed", "status"), [(90, 0, "ok"), (79, 0, "warn"), (49, 0, "fail"), (90, 1, "fail"), (500, 0, "ok")]
)
def test_less_than_half_the_speed_fails(tokens: float, failed: int, status: str) -> None:
    old = OldSpeed(release="1", input_len=1, output_len=2, concurrency=1, output_tokens_per_s=100)
    assert compare_speed(old, level(tokens, failed=failed)).status == status


def test_a_measurement_is_kept_with_the_release_that_was_measured(tmp_path: Path) -> None:
    one = release()
    store = served(tmp_path, one)
    report = BenchReport(
        base_url=one.endpoint.base_url, model="m", started="", input_len=512, output_len=128,
        levels=(level(400, concurrency=16), level(50)), verdict=Status.OK, exit_code=0,
    )  # fmt: skip
    assert old_speed(store, one) is None
    assert keep_bench(replace(report, base_url="http://elsewhere:1"), tmp_path) == ""
    assert keep_bench(replace(report, levels=(level(9, failed=1),)), tmp_path) == ""
    assert old_speed(store, one) is None
    assert keep_bench(report, tmp_path) == one.id
    kept = old_speed(store, one)
    assert kept is not None
    assert (kept.concurrency, kept.output_tokens_per_s, kept.input_len) == (1, 50, 512)
    (store.root / one.id / "bench.json").write_text('{"levels": []}')
    assert old_speed(store, one) is None
