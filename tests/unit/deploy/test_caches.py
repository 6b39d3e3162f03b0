"""A cache of compiled kernels belongs to one image, one GPU and one driver."""

from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
import yaml

from glm4_deploy.catalog.rows import profiles
from glm4_deploy.deploy.caches import CacheMaker, host_file, needed_volumes, own_names
from glm4_deploy.deploy.compose_cli import made_from
from glm4_deploy.deploy.endpoint import Endpoint, EngineKind
from glm4_deploy.deploy.releases import CacheUse, Files, Release, ReleaseImage, Store, content_of
from glm4_deploy.host.gpu import GpuFacts, GpuReport
from glm4_deploy.plan.services import cache_key
from glm4_deploy.plan.spec import choose_fraction, plan_deployment
from glm4_deploy.result import Status
from glm4_deploy.settings import load_settings

Maker: TypeAlias = tuple[ReleaseImage, GpuReport | None]
OLD, NEW = (ReleaseImage(reference="vllm:1", id=f"sha256:{digit * 64}") for digit in "ab")


def host(name: str = "NVIDIA GeForce RTX 5090", driver: str | None = "580.95.05") -> GpuReport:
    return GpuReport(gpus=(GpuFacts(index=0, name=name, driver=driver),), driver=driver)


def release(number: int, cache: CacheUse | None, *, ready: float = 60.0, verdict: Status = Status.OK) -> Release:
    settings, profile = load_settings({"profile": "cpu"}, environ={})
    spec = plan_deployment(settings, profile, choose_fraction(settings, profile))
    return Release(
        id=f"{number:04d}-20260101T000000Z", created_at="", kit="0", verdict=verdict,
        endpoint=Endpoint.of(spec, EngineKind.COMPOSE), image=NEW, fingerprint=str(number), stamp=None, files=(),
        settings={}, engine={}, ready_seconds=ready, cache=cache,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((OLD, host()), (NEW, host())),
        ((NEW, host()), (NEW, host(driver="590.10"))),
        ((NEW, host()), (NEW, host(name="NVIDIA GeForce RTX 5070"))),
        ((NEW, host()), (NEW, None)),
    ],
)
def test_another_image_gpu_or_driver_has_another_cache(
    a: tuple[ReleaseImage, GpuReport], b: tuple[ReleaseImage, GpuReport]
) -> None:
    volumes = {"cache": "glm4_cache"}
    assert own_names("glm4", volumes, CacheMaker.of(*a)) != own_names("glm4", volumes, CacheMaker.of(*b))


def test_the_same_image_gpu_and_driver_use_the_same_cache_whatever_the_tag_says() -> None:
    moved = replace(NEW, reference="vllm:2")
    assert CacheMaker.of(NEW, host()) == CacheMaker.of(moved, host())


def test_an_unknown_driver_is_left_out_and_a_gpu_named_by_an_attacker_stays_a_volume_name() -> None:
    maker = CacheMaker.of(NEW, host(name="../../etc $(x)\n{{y}}", driver=None))
    assert maker.key == "bbbbbbbbbbbb-etc-x-y"


def test_a_volume_that_the_user_named_is_left_alone() -> None:
    volumes = {"cache": "glm4_cache-vllm-1", "cache-2": "fast-disk", "cachet": "other_cachet"}
    assert own_names("glm4", volumes, CacheMaker.of(NEW, None)) == {"cache": "glm4_cache-bbbbbbbbbbbb"}


def test_the_hosts_file_is_yaml_that_compose_cannot_interpolate() -> None:
    image = replace(NEW, digest="registry/vllm@sha256:$HOME")
    text = host_file({"cache": "glm4_cache-x"}, CacheMaker.of(image, host(name='A "B" $C')), image, None)
    content = yaml.safe_load(text)
    assert content["volumes"] == {"cache": {"name": "glm4_cache-x"}}
    assert content["x-glm4-deploy"]["gpu"] == 'A "B" $$C'
    assert "checkpoint" not in content["x-glm4-deploy"]
    assert made_from(["x-glm4-deploy: {kit: a, gpu: b}", text, ": no yaml: ["])["kit"] == "a"
    assert yaml.safe_load(host_file({}, CacheMaker.of(image, None), image, "f"))["x-glm4-deploy"]["checkpoint"] == "f"


def test_the_hosts_file_does_not_make_a_release_another_one() -> None:
    plain = Files(texts={"compose.yaml": "a"}, compose=("compose.yaml",))
    pinned = Files(texts={**plain.texts, "host.yaml": "b"}, compose=("compose.yaml", "host.yaml"))
    assert content_of(plain.kept(), NEW, None, {}) == content_of(pinned.kept(), NEW, None, {})


def test_a_rendered_file_alone_tells_images_apart() -> None:
    keys = {
        cache_key(reference)
        for reference in (
            "nvcr.io/nvidia/vllm:26.01-py3",
            "nvcr.io/nvidia/vllm:26.02-py3",
            "vllm/vllm-openai:v0.31.0",
            f"vllm/vllm-openai:v0.31.0@sha256:{'1' * 64}",
            f"vllm/vllm-openai:v0.31.0@sha256:{'2' * 64}",
            f"{'long/' * 60}a:1",
            f"{'long/' * 60}b:1",
            f"{'other' * 60}/{'long/' * 20}b:1",
        )
    }
    assert len(keys) == 8
    assert all(len(key) <= 80 and key.strip("-.") == key for key in keys)


def test_every_profile_names_its_cache_by_its_image() -> None:
    for name in profiles():
        settings, profile = load_settings({"profile": name, "replicas": 2}, environ={})
        spec = plan_deployment(settings, profile, choose_fraction(settings, profile))
        names = [spec.volume_of(one) for one in spec.replicas]
        assert len(set(names)) == 2
        assert all(settings.image_tag in volume for volume in names)


def test_a_cache_is_needed_as_long_as_a_kept_release_can_use_it() -> None:
    here = CacheUse(volumes=("here",), image="a", gpu="NVIDIA GeForce RTX 5090", driver="580.95.05")
    stale = replace(here, volumes=("stale",), driver="570.1")
    cpu = CacheUse(volumes=("cpu",), image="a")
    kept = [release(1, here), release(2, stale), release(3, cpu), release(4, None)]
    assert needed_volumes(kept, host()) == {"here", "cpu"}
    assert needed_volumes(kept, GpuReport(trouble="no driver answers")) == {"here", "stale", "cpu"}


def test_the_last_cold_start_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cold, warm = (CacheUse(volumes=("v",), image="a", cold=is_cold) for is_cold in (True, False))
    empty = Files(texts={}, compose=())
    rows = [release(1, cold, ready=300), release(2, warm, ready=40), release(3, cold, ready=9, verdict=Status.FAIL)]
    for one in rows:
        store.draft(empty).publish(one, {})
    assert store.last_cold_seconds(rows[0].endpoint.model_dir) == 300
    assert store.last_cold_seconds("/elsewhere") is None
    assert store.releases()[0].cache == cold
