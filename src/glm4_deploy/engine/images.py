"""Images: what a reference means on this host now, and fetching it with progress by layer."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils import parse_repository_tag

from glm4_deploy.engine.docker import answering, connect
from glm4_deploy.engine.release import Image
from glm4_deploy.errors import ImageMissing, StorageError

SILENT_SECONDS = 600  # unpacking one large layer says nothing for minutes
DONE = frozenset({"Pull complete", "Already exists"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer on its way. Sizes are compressed bytes, 0 while unknown."""

    id: str
    status: str
    current: int = 0
    total: int = 0

    @property
    def done(self) -> bool:
        return self.status in DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class PullState:
    """The whole of a pull, as far as it is known: totals grow as the registry tells of more layers."""

    layers: tuple[Layer, ...]
    seconds: float

    @property
    def fetched(self) -> int:
        return sum(layer.current for layer in self.layers)

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers)

    @property
    def done(self) -> int:
        return sum(layer.done for layer in self.layers)


def find_image(client: docker.DockerClient, reference: str) -> Image | None:
    """The image that a reference (name, id or digest) means here; None where it is not here.

    Raises:
        DockerMissing
    """
    with answering():
        try:
            found = client.images.get(reference)
        except ImageNotFound:
            return None
        except APIError as error:
            if error.is_client_error():
                return None  # a reference that names nothing, as the engine reads it
            raise
    return Image(reference=reference, id=str(found.id), digest=next(iter(found.attrs.get("RepoDigests") or ()), None))


def pull(reference: str, on_progress: Callable[[PullState], None]) -> None:
    """Fetch an image from its registry.

    Raises:
        ImageMissing: refused, not found, or the line broke; the registry's own words.
        StorageError: no room for it.
        DockerMissing, DockerDenied
    """
    client = connect(timeout=SILENT_SECONDS)
    repository, tag = parse_repository_tag(reference)
    layers: dict[str, Layer] = {}
    begin = time.monotonic()
    try:
        for event in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in event:
                raise _refused(reference, str(event["error"]))
            if _take(layers, event):
                on_progress(PullState(layers=tuple(layers.values()), seconds=time.monotonic() - begin))
    except (DockerException, requests.RequestException, OSError) as error:
        raise _refused(reference, getattr(error, "explanation", None) or str(error)) from None


def pulled(events: Iterator[Mapping[str, Any]]) -> PullState:
    """What a whole stream of events comes to."""
    layers: dict[str, Layer] = {}
    for event in events:
        _take(layers, event)
    return PullState(layers=tuple(layers.values()), seconds=0.0)


def _take(layers: dict[str, Layer], event: Mapping[str, Any]) -> bool:
    """One event of the engine's stream into the layers; False where it tells nothing of a layer."""
    name, status = str(event.get("id", "")), str(event.get("status", ""))
    if not name or status.startswith("Pulling from"):
        return False
    before = layers.get(name, Layer(id=name, status=status))
    current, total = before.current, before.total
    detail = event.get("progressDetail") or {}
    if status == "Downloading":
        current, total = int(detail.get("current") or current), int(detail.get("total") or total)
    elif status in ("Download complete", "Extracting", "Pull complete"):
        current = total
    layers[name] = Layer(id=name, status=status, current=current, total=total)
    return True


def _refused(reference: str, why: str) -> ImageMissing | StorageError:
    words = " ".join(why.split())[:300]
    if "no space left" in words:
        return StorageError(
            f"no room for the image {reference}: {words}", hint="see `docker system df`, free some disk"
        )
    return ImageMissing(
        f"the image {reference} is not here and could not be pulled: {words}",
        hint="check the tag, the network and `docker login`",
    )
