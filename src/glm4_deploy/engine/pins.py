"""Digests of images as the local Docker engine knows them, and the place in the settings file where they are kept."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from glm4_deploy.engine.docker import connect
from glm4_deploy.files import read_text, write_text
from glm4_deploy.settings import load_settings

BLOCK = re.compile(r"^digests:.*\n(?:[ \t#].*\n|\n(?=[ \t]))*", re.MULTILINE)


def digests(references: Iterable[str]) -> dict[str, str | None]:
    """`repository:tag` → `sha256:…`; "" for an image that no registry gave (built here), None where it is not here.

    Raises:
        DockerMissing, DockerDenied
    """
    client = connect()
    return {reference: _digest(client, reference) for reference in references}


def _digest(client: docker.DockerClient, reference: str) -> str | None:
    repository = reference.rpartition(":")[0]
    try:
        found = client.images.get(reference).attrs.get("RepoDigests") or []
    except ImageNotFound:
        return None
    mine = [item.rpartition("@")[2] for item in found if item.rpartition("@")[0] == repository]
    return mine[0] if mine else ""


def keep(file: Path, found: Mapping[str, str]) -> None:
    """Write the block `digests:` into the settings file; every other line stays as it is.

    Raises:
        UsageError, StorageError: nothing is written where the result would not be read back.
    """
    before = read_text(file) if file.exists() else ""
    lines = [f"  {json.dumps(reference)}: {digest}\n" for reference, digest in found.items()]
    block = "digests: # by `glm4-deploy lock`\n" + "".join(lines)
    if BLOCK.search(before):
        text = BLOCK.sub(lambda _: block, before, count=1)
    else:
        text = before + ("" if before.endswith("\n") or not before else "\n") + block
    checked = file.with_name(f".{file.name}.checked")
    try:
        write_text(checked, text)
        load_settings(file=checked)
    finally:
        checked.unlink(missing_ok=True)
    write_text(file, text)
