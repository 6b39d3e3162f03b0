"""What is deployed: where it serves, what it is called, what it was started from.

An `Endpoint` is made once, from the plan. The candidate, the record of what runs (`up.json`), the release
(`release.json`) and the status report all carry it unchanged, so a new fact about a deployment is added only here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import FiniteFloat

from glm4_deploy.catalog.rows import Version
from glm4_deploy.plan.spec import DeploymentSpec

# With any of these flags vLLM does not log requests, so a start cannot be recognized by a request in its log.
QUIET_FLAGS = frozenset({"disable-uvicorn-access-log", "disable-access-log-for-endpoints", "uvicorn-log-level"})


class EngineKind(StrEnum):
    """What runs the engine: Docker Compose, or a plain process of this user."""

    COMPOSE = "compose"
    PROCESS = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One deployment, as its clients and files know it."""

    runner: EngineKind
    project: str
    service: str
    """The engine's Compose service; with replicas, the prefix of theirs."""
    profile: str
    base_url: str
    """How this host reaches it, without /v1."""
    bind: str
    port: int
    """On the host."""
    model: str
    """The served name."""
    model_dir: str
    max_model_len: int
    """Tokens."""
    start_period: int
    """Seconds that a start may take unless --timeout is given."""
    logs_requests: bool = True
    """Whether the engine logs each request, as vLLM does by default."""
    vllm: Version | None = None
    """None if the image is not in the catalog."""
    api_key_file: str | None = None
    replicas: tuple[str, ...] = ()
    """The services of the engines behind a router; () for a single engine."""
    tools: bool = False
    """Whether the engine looks for tool calls in its answers."""
    host_reserve_gib: FiniteFloat | None = None
    """GiB of memory that stay available to the host; None where the GPU has its own memory."""

    @classmethod
    def of(cls, spec: DeploymentSpec, runner: EngineKind) -> "Endpoint":
        return cls(
            runner=runner,
            project=spec.project,
            service=spec.service,
            profile=spec.profile,
            base_url=spec.base_url,
            bind=spec.bind,
            port=spec.port,
            model=spec.served_model_name,
            model_dir=str(Path.cwd() / spec.model_dir),
            max_model_len=spec.max_model_len,
            start_period=spec.start_period,
            logs_requests=QUIET_FLAGS.isdisjoint(flag.name for flag in spec.flags),
            vllm=spec.vllm,
            api_key_file=absolute(spec).hardening.api_key_file,
            replicas=tuple(one.service for one in spec.replicas) if spec.router else (),
            host_reserve_gib=spec.host_reserve_gib,
            tools=any(flag.name == "enable-auto-tool-choice" for flag in spec.flags),
        )

    @property
    def engines(self) -> tuple[str, ...]:
        """The Compose services that are engines."""
        return self.replicas or (self.service,)

    @property
    def in_container(self) -> bool:
        return self.runner is EngineKind.COMPOSE

    def same_engines(self, other: "Endpoint") -> bool:
        """Whether both name the same containers (or the one process), whatever those were started from."""
        return (self.runner, self.project, self.engines) == (other.runner, other.project, other.engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One start of an engine."""

    id: str
    """The container's id, or `pid:start-ticks` of a process: unique to this start."""
    started_at: FiniteFloat
    """Seconds since the epoch."""


def absolute(spec: DeploymentSpec) -> DeploymentSpec:
    """Make relative paths absolute, since the file is in another directory; no .env may change what is recorded."""
    key = spec.hardening.api_key_file
    hardening = replace(spec.hardening, api_key_file=key and str(Path.cwd() / key))
    notify = spec.notify_file and str(Path.cwd() / spec.notify_file)
    source = str(Path.cwd() / spec.model_source)
    return replace(spec, model_source=source, hardening=hardening, notify_file=notify, overridable=False)


# Files of schema 1 (before the release of 0.1.0) held these facts one by one.

_UNKNOWN = {"bind": "127.0.0.1", "port": 0, "model_dir": "", "start_period": 900}  # not in an up.json of schema 1
_OF_RECORD = ("verdict", "ready_seconds", "release")


def record_of_schema_1(old: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an up.json of schema 1. Raises KeyError or ValueError if it is not one."""
    names = ("runner", "project", "service", "profile", "base_url", "model", "max_model_len")
    endpoint = {name: old[name] for name in names}
    address = urlsplit(str(old["base_url"]))
    endpoint |= _UNKNOWN | {"bind": address.hostname or "127.0.0.1", "port": address.port or 0}
    endpoint |= {"api_key_file": old.get("api_key_file"), "replicas": old.get("replicas", ())}
    started = {"id": old["id"], "started_at": old["started_at"]} if old["id"] else None
    kept = {name: old[name] for name in _OF_RECORD if name in old}
    return {"schema": 2, "endpoint": endpoint, "files": old["files"], "started": started, **kept}


def release_of_schema_1(old: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a release.json of schema 1. Raises KeyError if it is not one."""
    unchanged = {name: value for name, value in old.items() if name not in ("schema", "service")}
    return {"schema": 2, "endpoint": old["service"], **unchanged}
