"""The kit's own image: a build context made of this very installation, handed to `docker build`."""

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

import glm4_deploy
from glm4_deploy import __version__
from glm4_deploy.engine.docker import connect
from glm4_deploy.errors import DockerMissing, ImageMissing, StorageError, UsageError
from glm4_deploy.render.templates import TEMPLATES
from glm4_deploy.settings import REPOSITORY, TAG

BASE = "python:3.12-slim"
NAME = "glm4-deploy/kit"
REFERENCE = re.compile(rf"{REPOSITORY}(:{TAG})?(@sha256:[0-9a-f]{{64}})?")


def tag() -> str:
    """The tag that rendered files ask for."""
    return f"{NAME}:{__version__}"


def requirements() -> tuple[str, ...]:
    """What the kit needs beside Python, as installed here: its own metadata, without extras."""
    return tuple(line for line in requires("glm4-deploy") or () if "extra ==" not in line)


def context(directory: Path) -> None:
    """Write the build context: the Dockerfile, the requirements, and the package with its templates.

    Raises:
        StorageError: the disk is full or not writable.
    """
    package = Path(glm4_deploy.__file__).parent
    templates = next(path for path in TEMPLATES if (path / "image/Dockerfile").is_file())
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    try:
        shutil.copy(templates / "image/Dockerfile", directory / "Dockerfile")
        (directory / "requirements.txt").write_text("\n".join(requirements()) + "\n")
        shutil.copytree(package, directory / "glm4_deploy", ignore=unwanted)
        shutil.copytree(templates, directory / "glm4_deploy/templates", ignore=unwanted, dirs_exist_ok=True)
        for path in directory.rglob("*"):  # whoever built it, uid 65532 must be able to read it
            path.chmod(0o755 if path.is_dir() else 0o644)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}", hint="check free space") from error


def build(*, base: str, name: str, network: str | None = None) -> None:
    """Build the image; docker's own words go to stderr.

    Raises:
        UsageError: no name of an image. DockerMissing, DockerDenied: no client or engine.
        ImageMissing: the build failed.
    """
    for option, given in (("--base", base), ("--tag", name)):
        if not REFERENCE.fullmatch(given):
            raise UsageError(f"{option} {given[:80]!r} names no image", hint="for example python:3.12-slim")
    if shutil.which("docker") is None:
        raise DockerMissing("no `docker` is on PATH", hint="install Docker: docs.docker.com/engine/install")
    connect()
    with tempfile.TemporaryDirectory(prefix="glm4-image-") as made:
        context(Path(made))
        argv = ["docker", "build", "--build-arg", f"BASE={base}", "--tag", name]
        argv += ["--network", network] if network else []
        done = subprocess.run([*argv, made], stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise ImageMissing(
            f"docker build of {name} from {base} failed (exit code {done.returncode})",
            hint="see docker's own words above: the base must be pullable or here, and pip must reach a package index",
        )
