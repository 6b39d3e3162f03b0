"""Images in which the journeys' stand-in for vLLM runs: no registry, an override mounts its files from this host."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEASE = "/run/lease"  # while the test holds it locked, the stand-in runs
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
    subprocess.run(["docker", "import", *changes, "-", image], input=tar.getvalue(), check=True, capture_output=True)


def build_foreign(image: str, architecture: str) -> None:
    """An image for another processor, with one empty layer; `docker import` makes them for this one only."""
    layer = io.BytesIO()
    tarfile.open(fileobj=layer, mode="w").close()
    diff = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    config = {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff]}}
    manifest = [{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    subprocess.run(["docker", "load"], input=whole.getvalue(), check=True, capture_output=True)


def environment(version: str, behaviour: str = "") -> dict[str, str]:
    """What an image needs so that `python3 -m vllm…` is the stand-in, as this version, with this behaviour."""
    paths = (ROOT / "src", ROOT / "tests", ROOT / "tests/journeys/stand_in")
    return {
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
        "PYTHONPATH": ":".join(map(str, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "STAND_IN": behaviour,
        "STAND_IN_VERSION": version,
        "STAND_IN_LEASE": LEASE,
    }


def override(lease: Path, service: str = "glm4-9b-nvfp4") -> str:
    """A Compose file that mounts Python, this repository and the lease into whichever image runs."""
    places = (Path("/usr"), ROOT, Path(sys.prefix).resolve(), Path(sys.prefix), Path(sys.base_prefix))
    paths = {str(path): str(path) for path in places if path == Path("/usr") or not path.is_relative_to("/usr")}
    paths |= {path: path for path in ("/etc/ld.so.cache", "/etc/alternatives") if Path(path).exists()}
    rows = "".join(
        f'      - {{type: bind, source: "{source}", target: "{target}", read_only: true}}\n'
        for target, source in (paths | {LEASE: str(lease)}).items()
    )
    return f"services:\n  {service}:\n    volumes:\n{rows}"
