"""The kit's own image: `docker build` with a context made from the installed package."""

import re
import shutil
import tempfile
from importlib.metadata import requires
from pathlib import Path

import glm4_deploy
from glm4_deploy import __version__
from glm4_deploy.deploy.docker import connect
from glm4_deploy.errors import DockerMissing, ImageMissing, StorageError, UsageError
from glm4_deploy.files import TEMPLATES
from glm4_deploy.run import run_program
from glm4_deploy.settings import REPOSITORY, TAG

BASE = "python:3.12-slim"
NAME = "glm4-deploy/kit"
BUILD_SECONDS = 3600  # it pulls a base image and installs packages
REFERENCE = re.compile(rf"{REPOSITORY}(:{TAG})?(@sha256:[0-9a-f]{{64}})?")


def kit_tag() -> str:
    """The reference of the kit's image in rendered files."""
    return f"{NAME}:{__version__}"


def requirements() -> tuple[str, ...]:
    """The kit's dependencies, with what its services need, from the metadata of the installed package."""
    lines = requires("glm4-deploy") or ()
    plain = [line for line in lines if "extra ==" not in line]
    return (*plain, *(line.partition(";")[0] for line in lines if re.search(r"extra == .(guard|notify)", line)))


def write_context(directory: Path) -> None:
    """Write the build context: the Dockerfile, the requirements, and the package with its templates. Nothing else.

    Raises:
        StorageError: the disk is full or not writable.
    """
    package = Path(glm4_deploy.__file__).parent
    templates = next(path for path in TEMPLATES if (path / "image/Dockerfile").is_file())
    try:
        for name in ("Dockerfile", "requirements.txt"):
            shutil.copy(templates / "image" / name, directory / name)
        (directory / "requirements.in").write_text("\n".join(requirements()) + "\n")
        shutil.copytree(package, directory / "glm4_deploy", ignore=_not_ours)
        shutil.copytree(templates, directory / "glm4_deploy/templates", ignore=_not_ours, dirs_exist_ok=True)
        for path in directory.rglob("*"):  # the container runs as uid 65532, which must be able to read it
            path.chmod(0o755 if path.is_dir() else 0o644)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}", hint="check free space") from error


SUFFIXES = {".bin", ".py", ".yaml", ".yml", ".json", ".j2", ".typed"}


def _not_ours(directory: str, names: list[str]) -> set[str]:
    """Whatever else lies about in a working tree: notes, `.env`, keys, and what links lead to."""
    paths = [Path(directory, name) for name in names]
    ours = {path.name for path in paths if path.is_dir() and path.name != "__pycache__"}
    ours |= {path.name for path in paths if path.suffix in SUFFIXES or path.name == "Dockerfile"}
    return {path.name for path in paths if path.is_symlink() or path.name.startswith(".") or path.name not in ours}


def build_kit_image(*, base: str, name: str, network: str | None = None) -> None:
    """Build the image; docker's output goes to stderr.

    Raises:
        UsageError: not a valid image reference.
        DockerMissing, DockerDenied: no client or engine.
        ImageMissing: the build failed.
    """
    for option, given in (("--base", base), ("--tag", name)):
        if not REFERENCE.fullmatch(given):
            raise UsageError(
                f"{option} {given[:80]!r} is not a valid image reference", hint="for example python:3.12-slim"
            )
    if shutil.which("docker") is None:
        raise DockerMissing("no `docker` is on PATH", hint="install Docker: docs.docker.com/engine/install")
    connect()
    with tempfile.TemporaryDirectory(prefix="glm4-image-") as directory:
        write_context(Path(directory))
        argv = ["docker", "build", "--build-arg", f"BASE={base}", "--tag", name]
        argv += ["--network", network] if network else []
        done = run_program(*argv, directory, timeout=BUILD_SECONDS, show=True)
    if not done.ok:
        raise ImageMissing(
            f"docker build of {name} from {base} failed ({done.trouble or f'exit code {done.code}'})",
            hint="see docker's output above: the base must be pullable or local, and pip must reach a package index",
        )
