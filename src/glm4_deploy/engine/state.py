"""What this directory last brought up: one small JSON file beside the rendered one."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from glm4_deploy.errors import UsageError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.plan.deployment import Deployment
from glm4_deploy.report.wire import dumps

DIRECTORY = Path(".glm4")
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The deployment that `status`, `logs`, `smoke` and `down` mean when they are told nothing else.

    release: the id of what runs, once it was judged and recorded.
    """

    schema: int = SCHEMA
    runner: str
    project: str
    service: str
    profile: str
    base_url: str
    model: str
    max_model_len: int
    files: tuple[str, ...]
    id: str
    started_at: float
    verdict: str = "unknown"
    ready_seconds: float | None = None
    release: str = ""
    api_key_file: str | None = None
    replicas: tuple[str, ...] = ()

    @property
    def engines(self) -> tuple[str, ...]:
        """The Compose services that are engines: several stand behind a router."""
        return self.replicas or (self.service,)


def save(record: Record, directory: Path = DIRECTORY) -> None:
    write_text(directory / "up.json", dumps(record) + "\n")


def load(directory: Path = DIRECTORY) -> Record | None:
    """The record, or None where nothing was brought up from here.

    Raises:
        UsageError: the file is not one of ours, or of a newer kit.
    """
    path = directory / "up.json"
    if not path.exists():
        return None
    try:
        content = json.loads(read_text(path))
        known = {field.name for field in fields(Record)}
        if content["schema"] > SCHEMA:
            raise UsageError(f"{path} was written by a newer glm4-deploy", hint="upgrade this one")
        lists = {"files": tuple(content["files"]), "replicas": tuple(content.get("replicas", ()))}
        return Record(**{**{key: content[key] for key in content if key in known}, **lists})
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint="remove it; `glm4-deploy up` writes it anew") from None


def expected(deployment: Deployment) -> Record:
    """What the settings name where nothing is on record: a container that somebody started with plain Compose."""
    return Record(
        runner="compose",
        project=deployment.project,
        service=deployment.service,
        profile=deployment.profile,
        base_url=deployment.base_url,
        model=deployment.served_model_name,
        max_model_len=deployment.max_model_len,
        files=(),
        id="",
        started_at=0.0,
        api_key_file=deployment.hardening.api_key_file,
        replicas=replica_names(deployment),
    )


def replica_names(deployment: Deployment) -> tuple[str, ...]:
    """The services behind a router; () for one engine."""
    return tuple(one.service for one in deployment.replicas) if deployment.router else ()
