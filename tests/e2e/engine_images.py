"""Images around CPU engines of several versions, without a registry: one override mounts the files of all of them."""

import io
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

NAME = "glm4-deploy/vllm-cpu"
LINKS = ("bin", "sbin", "lib", "lib64")
DIRECTORIES = ("usr", "etc", "tmp", "cache", "mnt/models", "proc", "sys", "dev", "run", "root")


def build(image: str, environment: Mapping[str, str], label: str = "") -> None:
    """An image of directories and links with these variables. label: makes it another image with the same content."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in LINKS:
            if Path("/", name).is_symlink():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
                archive.addfile(entry)
        passwd = b"root:x:0:0:root:/root:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        archive.addfile(entry, io.BytesIO(passwd))
    changes = [word for name, value in environment.items() for word in ("--change", f"ENV {name}={value}")]
    changes += ["--change", f"LABEL org.glm4-deploy.test={label or image}"]
    subprocess.run(
        ["docker", "import", *changes, "-", image], input=tar.getvalue(), check=True, capture_output=True
    )  # fmt: skip


def engine_environment(python: str) -> dict[str, str]:
    """What an image needs so that `python3` is the engine's."""
    return {"PATH": f"{Path(python).parent}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}


def override(pythons: tuple[str, ...], *more: Path, service: str = "glm4-9b-nvfp4") -> str:
    """A Compose file that mounts the engines' files into whichever image runs."""
    prefixes = [_prefix(python) for python in pythons]
    wanted = ("/usr", *(str(Path(python).parents[1]) for python in pythons), *prefixes, *map(str, more))
    paths = dict.fromkeys((*wanted, "/etc/ld.so.cache", "/etc/alternatives"))
    inside = [path for path in paths if Path(path).exists() and not path.startswith("/usr/")]
    rows = "".join(f'      - {{type: bind, source: "{path}", target: "{path}", read_only: true}}\n' for path in inside)
    return f"services:\n  {service}:\n    volumes:\n{rows}"


def _prefix(python: str) -> str:
    words = [python, "-c", "import sys; print(sys.base_prefix)"]
    return os.path.normpath(subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip())
