"""Caches of compiled kernels: whose they are, which ones a deployment has, and which ones no release needs.

A cache that another image, GPU or driver filled can corrupt answers, and survives a return to the image before it
(vllm#41871, #42859). The rendered file names its volume by the image's reference, all that a file can know. `up` knows
more: it lays a second file over it (`HOST_FILE`) that names the volume by the image's id, the GPU and the driver.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container

from glm4_deploy.deploy.docker import PROJECT_LABEL, answering, connect
from glm4_deploy.deploy.releases import CacheUse, Release, ReleaseImage
from glm4_deploy.errors import DockerMissing
from glm4_deploy.host.gpu import GpuReport
from glm4_deploy.plan.services import cache_key
from glm4_deploy.plan.spec import CACHE
from glm4_deploy.text import one_line

ID_DIGITS = 12
SIZE_SECONDS = 120  # Docker walks every volume and image to measure them
VOLUME_LABEL = "com.docker.compose.volume"
ENGINE_VOLUME = re.compile(r"cache(-\d+)?")  # the Compose key of a cache, alone or of one replica


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMaker:
    """What fills a cache. gpu, driver: '' where there is none, or where it is unknown."""

    image: str
    """Docker's id of the image, its first digits."""
    gpu: str = ""
    driver: str = ""

    @classmethod
    def of(cls, image: ReleaseImage, gpus: GpuReport | None) -> "CacheMaker":
        """gpus: None for an engine that uses none."""
        gpu, driver = _gpu_of(gpus) if gpus else ("", "")
        return cls(image=image.id.removeprefix("sha256:")[:ID_DIGITS], gpu=gpu, driver=driver)

    @property
    def key(self) -> str:
        """For the name of a volume."""
        return "-".join(filter(None, (self.image, _slug(self.gpu), _slug(self.driver))))


def _gpu_of(gpus: GpuReport) -> tuple[str, str]:
    """The products of a host and its driver, as texts; ('', '') if it has none."""
    names = sorted({facts.name for facts in gpus.gpus})
    return one_line(", ".join(names), 200), one_line(gpus.driver or "", 40) if names else ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:60]


def own_names(project: str, volumes: Mapping[str, str], maker: CacheMaker) -> dict[str, str]:
    """Compose key → name of the volume that belongs to `maker`; a name that the user chose stays as it is, left out.

    volumes: Compose key → name in the merged files.
    """
    ours = (key for key, name in volumes.items() if name == f"{project}_{key}" or name.startswith(f"{project}_{key}-"))
    return {key: f"{project}_{key}-{maker.key}" for key in ours}


def host_file(names: Mapping[str, str], maker: CacheMaker, image: ReleaseImage, fingerprint: str | None) -> str:
    """The file that names the volumes, and what else only this host knows. JSON is YAML; a `$` would be a variable."""
    facts = {
        "image_id": image.id,
        "digest": image.digest,
        "checkpoint": fingerprint,
        "gpu": maker.gpu or None,
        "driver": maker.driver or None,
    }
    rows = [f"  {name}: {_yaml(value)}" for name, value in facts.items() if value]
    caches = [f"  {key}: {{name: {_yaml(name)}}}" for key, name in names.items()]
    head = "# Written by glm4-deploy for this host: what the rendered file cannot know."
    return "\n".join((head, "x-glm4-deploy:", *rows, *(("volumes:", *caches) if caches else ()), ""))


def _yaml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("$", "$$")


def missing_volumes(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the volumes that do not exist yet.

    Raises:
        DockerMissing
    """
    wanted = tuple(names)
    client = connect() if wanted else None
    return tuple(name for name in wanted if client and not _exists(client, name))


def unnamed_caches(project: str) -> tuple["Volume", ...]:
    """Caches of earlier kits, whose names contain no image: no engine that this kit starts reads them.

    Raises:
        DockerMissing
    """
    client = connect(timeout=SIZE_SECONDS)
    with answering():
        found = client.volumes.list(filters={"label": f"{PROJECT_LABEL}={project}"})
    names = sorted(
        str(one.name) for one in found if re.fullmatch(rf"{re.escape(project)}_cache(-\d{{1,4}})?", str(one.name))
    )
    sizes = _sizes(client) if names else {}
    return tuple(Volume(name=name, cache=True, size_bytes=sizes.get(name)) for name in names)


def _exists(client: docker.DockerClient, name: str) -> bool:
    with answering():
        try:
            client.volumes.get(name)
        except NotFound:
            return False
    return True


def mounted_cache(container: Container) -> str:
    """The volume that a container has its cache on; '' for none."""
    mounts = container.attrs.get("Mounts") or ()
    return next((str(one.get("Name") or "") for one in mounts if one.get("Destination") == CACHE), "")


def doubt(container: Container) -> str:
    """Why the cache of a container may be another image's; '' if its name is that of its own image, or the user's."""
    volume, labels = mounted_cache(container), container.attrs["Config"].get("Labels") or {}
    name = re.fullmatch(rf"{re.escape(labels.get(PROJECT_LABEL, ''))}_cache(-\d{{1,4}})?(?:-(.+))?", volume)
    image = str(container.attrs["Image"]).removeprefix("sha256:")[:ID_DIGITS]
    if name is None or (name[2] or "").startswith((image, cache_key(str(container.attrs["Config"]["Image"])))):
        return ""
    return (
        f"its cache volume {volume} is not named by its image: compiled kernels that another image, GPU or driver left "
        "there can corrupt answers (vllm#41871); `glm4-deploy up` gives it its own"
    )


# What is there, and what may go.


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume of the deployment's Compose project. size_bytes: None if Docker did not report it."""

    name: str
    cache: bool
    """Whether an engine's compiled kernels are on it."""
    size_bytes: int | None = None

    @property
    def size(self) -> str:
        if self.size_bytes is None:
            return "size unknown"
        return (
            f"{self.size_bytes / 2**30:.1f} GiB" if self.size_bytes >= 2**29 else f"{self.size_bytes / 2**20:.1f} MiB"
        )


def project_volumes(project: str) -> tuple[Volume, ...]:
    """Every volume that Compose has made for a project, by name, with sizes.

    Raises:
        DockerMissing, DockerDenied
    """
    client = connect(timeout=SIZE_SECONDS)
    with answering():
        found = client.volumes.list(filters={"label": f"{PROJECT_LABEL}={project}"})
    sizes = _sizes(client) if found else {}
    rows = (
        Volume(
            name=str(one.name),
            cache=ENGINE_VOLUME.fullmatch(str((one.attrs.get("Labels") or {}).get(VOLUME_LABEL, ""))) is not None,
            size_bytes=sizes.get(str(one.name)),
        )
        for one in found
    )
    return tuple(sorted(rows, key=lambda volume: volume.name))


def _sizes(client: docker.DockerClient) -> dict[str, int]:
    with suppress(DockerException, requests.RequestException, OSError, KeyError, TypeError):
        rows = client.df().get("Volumes") or ()
        return {row["Name"]: row["UsageData"]["Size"] for row in rows if row["UsageData"]["Size"] >= 0}
    return {}


def needed_volumes(releases: Sequence[Release], gpus: GpuReport) -> frozenset[str]:
    """The caches that a return to one of these releases would use again: those of this GPU and this driver."""
    uses = (release.cache for release in releases if release.cache is not None)
    return frozenset(name for use in uses if _fits(use, gpus) for name in use.volumes)


def _fits(use: CacheUse, gpus: GpuReport) -> bool:
    now = _gpu_of(gpus)
    return not use.gpu or not now[0] or (use.gpu, use.driver) == now


def remove_volumes(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Remove volumes; returns the names that are gone, and sentences about those that are not.

    Raises:
        DockerMissing, DockerDenied
    """
    gone: list[str] = []
    kept: list[str] = []
    for name in names:
        client = connect()
        try:
            client.volumes.get(name).remove()
        except NotFound:
            gone.append(name)
        except APIError as error:
            kept.append(f"{name}: {one_line(str(error.explanation or error), 200)}")
        except (DockerException, requests.RequestException, OSError) as error:
            raise DockerMissing(f"{name} could not be removed: {error}", hint="start Docker, then try again") from error
        else:
            gone.append(name)
    return tuple(gone), tuple(kept)
