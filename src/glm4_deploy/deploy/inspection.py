"""Query an unknown image: which vLLM it contains, and how the server is started in it.

`docker image inspect` says what its author declared. The rest is tried in a throw-away container without a network, a
GPU, capabilities or a writable disk: whether its entrypoint runs a given command, and the version of the vLLM package,
which is read from its metadata because importing vLLM takes long and may need a GPU.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import requests
from docker.errors import APIError, DockerException

from glm4_deploy.catalog.images import CommandShape, EngineImage
from glm4_deploy.catalog.rows import parse_version
from glm4_deploy.deploy.docker import PullState, answering, check_processor, connect, find_image, pull
from glm4_deploy.errors import ImageMissing, UsageError
from glm4_deploy.plan.engine_rules import OLDEST
from glm4_deploy.plan.image import FIND_PYTHON
from glm4_deploy.text import one_line

ASK_SECONDS = 120  # a slow disk, and an entrypoint that imports vLLM before it refuses the command
LONGEST_ANSWER = 200  # characters
MOST_OUTPUT = 1 << 20  # bytes of what it prints that are read
MARK = "glm4-deploy-answer:"
ASK = f"""
import importlib.metadata as m, json, shutil
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
vllm = version("vllm") or next(map(version, m.packages_distributions().get("vllm", ())), None)
print("{MARK}" + json.dumps([vllm, bool(shutil.which("vllm"))]))
"""
ANSWERS = "--set image_vllm=VERSION --set image_command=program|vllm-serve|python-module"


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedImage:
    """What an image is.

    Attributes:
        passes: whether its entrypoint, or Docker if it has none, runs the command that it is given.
        vllm: the version of its vLLM package.
        has_program: whether `vllm` is on its PATH.
    """

    entrypoint: tuple[str, ...]
    user: str
    architecture: str
    passes: bool
    vllm: str
    has_program: bool

    @property
    def runs_as_another(self) -> bool:
        """Whether its processes run as a user other than root."""
        return self.user.partition(":")[0] not in ("", "0", "root")

    @property
    def command(self) -> CommandShape:
        """How the server is started: an entrypoint that runs commands stays, any other is replaced."""
        if self.entrypoint and self.passes:
            return CommandShape.PROGRAM
        return CommandShape.SERVE if self.has_program else CommandShape.MODULE


def ask_image(image: EngineImage, reference: str, on_pull: Callable[[PullState], None]) -> InspectedImage:
    """Inspect an image, pulled if this host does not have it.

    Raises:
        UsageError: it holds no vLLM, or cannot be asked; the hint names the settings that answer instead.
        PlanRefused: it is built for another processor.
        ImageMissing, StorageError, DockerMissing, DockerDenied
    """
    client = connect(timeout=ASK_SECONDS)
    if find_image(client, reference) is None:
        pull(reference, on_pull)
    with answering():
        try:
            attributes: Mapping[str, Any] = client.images.get(reference).attrs
        except APIError:
            raise ImageMissing(f"the image {reference} is not here", hint=f"docker pull {reference}") from None
    declared = attributes.get("Config") or {}
    entrypoint = tuple(declared.get("Entrypoint") or ())
    check_processor(client, reference)
    passes, (vllm, has_program) = _answer(client, reference, entrypoint)
    if vllm is None:
        raise UsageError(
            f"the image {reference} holds no Python package vllm", hint="choose one that does: glm4-deploy images"
        )
    found = InspectedImage(
        entrypoint=entrypoint,
        user=str(declared.get("User") or ""),
        architecture=str(attributes.get("Architecture", "")),
        passes=passes,
        vllm=vllm,
        has_program=has_program,
    )
    if image.vllm is None and parse_version(vllm) < OLDEST:
        raise UsageError(
            f"the vLLM in {reference} calls itself {vllm[:60]}, which does not identify a release",
            hint="name the release that it is closest to: --set image_vllm=VERSION",
        )
    return found


def starts_server(entrypoint: Sequence[str]) -> bool:
    """Whether an entrypoint names the server itself, so that it cannot run another command."""
    return any("vllm" in word for word in entrypoint)


def _answer(client: Any, reference: str, entrypoint: tuple[str, ...]) -> tuple[bool, tuple[str | None, bool]]:
    """Whether the entrypoint runs a command, and what the command said: the version, and whether `vllm` is on PATH."""
    command = ["/bin/sh", "-c", FIND_PYTHON, "python", "-c", ASK]
    said = ""
    for passes in (False,) if starts_server(entrypoint) else (True, False):
        said = _run(client, reference, command, keeps_entrypoint=passes)
        answer = read_answer(said)
        if answer is not None:
            return passes, answer
    raise UsageError(
        f"the image {reference} cannot be queried for its vLLM version",
        details=[one_line(line, 200) for line in said.splitlines()[-3:]],
        hint=f"set it yourself: {ANSWERS}",
    )


def read_answer(said: str) -> tuple[str | None, bool] | None:
    """The version of vLLM (None: not installed) and whether `vllm` is on PATH, from what a container printed.

    None if it printed no such thing: an image's own programs may write anything.
    """
    for line in said.splitlines():
        if line.startswith(MARK):
            with suppress(ValueError, RecursionError):
                match json.loads(line[len(MARK) : len(MARK) + LONGEST_ANSWER]):
                    case [None | str() as vllm, bool() as has_program]:
                        return (one_line(vllm) if vllm else None), has_program
    return None


def _run(client: Any, reference: str, command: Sequence[str], *, keeps_entrypoint: bool) -> str:
    """The output of a command in a throw-away container; why there is none, if it did not run to its end."""
    how = {} if keeps_entrypoint else {"entrypoint": [command[0]]}
    words = list(command) if keeps_entrypoint else list(command[1:])
    container = None
    with answering():
        try:
            container = client.containers.create(
                reference, words, **how, network_mode="none", read_only=True, tmpfs={"/tmp": ""},  # noqa: S108
                cap_drop=["ALL"], security_opt=["no-new-privileges"], pids_limit=1024, mem_limit="4g",
                healthcheck={"test": ["NONE"]},
            )  # fmt: skip
            container.start()
            container.wait(timeout=ASK_SECONDS)
            return _beginning(container.logs(stream=True, tail=200))
        except APIError as error:  # no shell in it
            return str(error.explanation or error)
        except requests.RequestException:
            if container is None:
                raise
            return f"no answer within {ASK_SECONDS} s"
        finally:
            if container is not None:
                with suppress(DockerException, requests.RequestException):
                    container.remove(force=True)


def _beginning(chunks: Iterable[bytes]) -> str:
    """At most MOST_OUTPUT bytes of a container's output, as text."""
    read = bytearray()
    for chunk in chunks:
        read += chunk[: MOST_OUTPUT - len(read)]
        if len(read) >= MOST_OUTPUT:
            break
    return read.decode("utf-8", errors="replace")
