"""Plain Kubernetes manifests, and the smoke suite as a Job."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from glm4_deploy import __version__
from glm4_deploy.catalog.rows import gpus, profiles
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.engine_rules import LIVENESS_SECONDS
from glm4_deploy.plan.services import cache_key
from glm4_deploy.plan.spec import CACHE, CONTAINER_PORT, TOOLS, DeploymentSpec
from glm4_deploy.render.quoting import kubernetes_literal, render_template, source, text_scalar
from glm4_deploy.settings import Settings

QUEUE = "5"  # waiting requests per engine above which KEDA adds one
DRAIN = 100  # seconds that running requests get before their engine is stopped
PROPAGATION = 5  # the first of these seconds, until no Service sends requests there any more
UNITS = {"": 1, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


def kubernetes(deployment: DeploymentSpec, settings: Settings) -> Mapping[str, str]:
    """The manifests, and the smoke suite as a Job.

    Raises:
        UsageError: a setting that contradicts another, or that these manifests cannot express.
    """
    section = settings.kubernetes
    if section.storage_class is not None and not _cache_claim(settings):
        raise UsageError(
            f"kubernetes.storage_class {section.storage_class} cannot be expressed for several engines (replicas, "
            "max_replicas)",
            hint="each engine keeps its cache on its node: leave storage_class out",
        )
    if section.max_replicas is not None and section.max_replicas < settings.replicas:
        raise UsageError(
            f"kubernetes.max_replicas {section.max_replicas} is below replicas {settings.replicas}: KEDA refuses this",
            hint="raise max_replicas, or lower replicas (KEDA's minimum)",
        )
    values = _values(deployment, settings)
    tools = {name: source(f"tools/{name}") for name in deployment.tool_files}
    probes = {name: source(f"targets/{name}") for name in ("liveness.py", "drain.py")}
    smoke = _smoke(f"http://{values['name']}:{deployment.port}", deployment, settings)
    return {
        "kubernetes.yaml": render_template("kubernetes.yaml.j2", probes=probes, tools=tools, **values),
        "smoke-job.yaml": render_template("smoke-job.yaml.j2", smoke=smoke, **values),
    }


def _values(deployment: DeploymentSpec, settings: Settings) -> dict[str, Any]:
    section = settings.kubernetes
    model = json.dumps(settings.served_model_name, ensure_ascii=False)
    limit = _quantity(settings.mem_limit) if settings.mem_limit else None
    return {
        "d": deployment,
        "k": section,
        "name": _dns_name(deployment.project),
        "replicas": settings.replicas,
        "scaled": section.max_replicas is not None,
        "cache_claim": _cache_claim(settings),
        "query": f"sum(vllm:num_requests_waiting{{model_name={model}}})",
        "queue": QUEUE,
        "shm": _quantity(settings.shm_size),
        "memory_limit": limit,
        "memory_request": min(section.memory, limit, key=_size) if limit else section.memory,
        # Kubernetes counts CPU in thousandths.
        "cpu_limit": None if settings.cpus is None else f"{settings.cpus * 1000:.0f}m",
        "cpu_request": section.cpu if settings.cpus is None else f"{min(section.cpu, settings.cpus) * 1000:.0f}m",
        "cache": CACHE,
        "tools_path": TOOLS,
        "claim": f"{_dns_name(deployment.project, 40)}-cache-{_digits(deployment.image)}",
        "egress": settings.egress,
        "kit_version": __version__,
        "container_port": CONTAINER_PORT,
        "drain": DRAIN,
        "liveness": int(LIVENESS_SECONDS),
        "propagation": PROPAGATION,
        "python": ", ".join(text_scalar(kubernetes_literal(word)) for word in deployment.python),
        "identity": dict(_identity(settings.user)),
        "nodes": _architecture(deployment.profile) | section.node_selector,
    }


def _digits(image: str) -> str:
    """12 digits for an image: of its digest where the reference has one, else of the reference itself."""
    key = cache_key(image)
    return key if re.fullmatch("[0-9a-f]{12}", key) else hashlib.sha256(image.encode()).hexdigest()[:12]


def _cache_claim(settings: Settings) -> bool:
    """Only a single engine can write to a claim; several engines keep their caches on their nodes."""
    return settings.replicas == 1 and settings.kubernetes.max_replicas is None


def _architecture(profile: str) -> dict[str, str]:
    """The nodes' processor where it is not the usual one. The profile `seed` is for any host."""
    gpu = profiles()[profile].gpu
    arch = gpus()[gpu].arch if gpu and profile != "seed" else "amd64"
    return {} if arch == "amd64" else {"kubernetes.io/arch": arch}


def _identity(user: str | None) -> Iterator[tuple[str, object]]:
    """The pod's securityContext for UID or UID:GID; the group owns its volumes."""
    if user is None:
        return
    uid, _, gid = user.partition(":")
    yield "runAsUser", int(uid)
    yield "runAsNonRoot", int(uid) != 0
    if gid:
        yield "runAsGroup", int(gid)
    yield "fsGroup", int(gid or uid)
    yield "fsGroupChangePolicy", "OnRootMismatch"  # not every file of the model at every start


def _smoke(base_url: str, deployment: DeploymentSpec, settings: Settings) -> tuple[str, ...]:
    key = ("--api-key-file", "/run/secrets/api-key") if settings.kubernetes.api_key_secret else ()
    return ("smoke", "--base-url", base_url, "--model", deployment.served_model_name, "--suite", "quick", *key)


def _quantity(size: str) -> str:
    """Docker's `8gb`, which counts by 1024, in Kubernetes' form: `8Gi`."""
    number, unit = re.fullmatch(r"([0-9]+)([kmg]?)b?", size).groups()  # type: ignore[union-attr]  # settings.Size
    return f"{number}{unit.upper()}i" if unit else number


def _size(quantity: str) -> int:
    unit = quantity.lstrip("0123456789")
    return int(quantity.removesuffix(unit)) * UNITS[unit]


def _dns_name(text: str, longest: int = 50) -> str:
    """The closest RFC 1035 label (as a Service requires), with room for the suffix `-smoke`."""
    name = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-") or "glm4"
    return (name if name[0].isalpha() else f"glm4-{name}")[:longest].rstrip("-")
