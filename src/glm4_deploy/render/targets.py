"""Deployment → the files of a target: Docker Compose, Kubernetes, the production stack's chart, Podman Quadlet.

A target is a row of TARGETS: its files, and the wishes that it cannot express. Such a wish is refused by name: a
rendered file never drops one silently.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4_deploy.catalog.profiles import Profile
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.deployment import CACHE, CONTAINER_PORT, Deployment
from glm4_deploy.render.compose import rendered
from glm4_deploy.render.quadlet import quadlet
from glm4_deploy.render.templates import source
from glm4_deploy.render.words import render_template
from glm4_deploy.settings import Settings

CHART = "0.1.12"  # vllm-stack, the chart of github.com/vllm-project/production-stack, whose values these are
QUEUE = "5"  # requests waiting an engine, above which KEDA adds one
Files = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """render: deployment and settings → path → text, the main file first. refuses: setting → what to do instead."""

    render: Callable[[Deployment, Settings], Files]
    refuses: Mapping[str, str] = field(default_factory=dict)


def render_target(name: str, deployment: Deployment, settings: Settings, profile: Profile) -> Files:
    """The files of a target.

    Raises:
        UsageError: an unknown target, or a wish that it cannot express.
    """
    if name not in TARGETS:
        raise UsageError(f"unknown target {name[:40]!r}", hint=f"known: {', '.join(TARGETS)}")
    target = TARGETS[name]
    for key, why in target.refuses.items():
        value = getattr(settings, key)
        if value not in (Settings.model_fields[key].get_default(call_default_factory=True), profile.settings.get(key)):
            shown = f"{key} {value}" if isinstance(value, str | int) else key
            raise UsageError(f"{shown} cannot be expressed in the target {name}", hint=why)
    return target.render(deployment, settings)


def _kubernetes_values(deployment: Deployment, settings: Settings) -> dict[str, Any]:
    wish = settings.kubernetes
    model = json.dumps(settings.served_model_name, ensure_ascii=False)
    return {
        "d": deployment,
        "k": wish,
        "name": _dns_name(deployment.project),
        "replicas": settings.replicas,
        "scaled": wish.max_replicas is not None,
        "query": f"sum(vllm:num_requests_waiting{{model_name={model}}})",
        "queue": QUEUE,
        "shm": re.sub(r"(?i)([kmg])b?$", lambda unit: f"{unit[1].upper()}i", settings.shm_size.removesuffix("b")),
        "cache": CACHE,
        "container_port": CONTAINER_PORT,
        "chart": CHART,
        "architecture": {"gb10": "arm64", "jetson-thor": "arm64"}.get(deployment.profile),
    }


def _smoke(base_url: str, deployment: Deployment, settings: Settings) -> tuple[str, ...]:
    key = ("--api-key-file", "/run/secrets/api-key") if settings.kubernetes.api_key_secret else ()
    return ("smoke", "--base-url", base_url, "--model", deployment.served_model_name, "--suite", "quick", *key)


def _kubernetes(deployment: Deployment, settings: Settings) -> Files:
    values = _kubernetes_values(deployment, settings)
    probe = source("targets/liveness.py")
    smoke = _smoke(f"http://{values['name']}:{deployment.port}", deployment, settings)
    return {
        "kubernetes.yaml": render_template("kubernetes.yaml.j2", liveness=probe, **values),
        "smoke-job.yaml": render_template("smoke-job.yaml.j2", smoke=smoke, **values),
    }


def _helm(deployment: Deployment, settings: Settings) -> Files:
    if settings.kubernetes.max_replicas is not None:
        # Its schema wants `triggers` to be one object, and KEDA a list; its default asks for a label that vLLM lacks.
        raise UsageError(
            f"kubernetes.max_replicas cannot be expressed in the target helm-values (chart {CHART})",
            hint="its schema refuses the triggers that KEDA needs: use --target kubernetes, or add a ScaledObject",
        )
    # What the chart writes from fields of its own.
    own = {"model", "port", "max-model-len", "tensor-parallel-size"}
    extra = [word for flag in deployment.flags if flag.name not in own for word in flag.words]
    # extraObjects pass through Helm's own templates.
    smoke = _smoke("http://{{ .Release.Name }}-router-service", deployment, settings)
    values = _kubernetes_values(deployment, settings) | {"tensor_parallel_size": settings.tensor_parallel_size}
    return {"values.yaml": render_template("helm-values.yaml.j2", extra_args=extra, smoke=smoke, **values)}


def _dns_name(text: str) -> str:
    """A Kubernetes name (RFC 1123 label) as near to the text as one can be."""
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-") or "glm4"


def _compose(deployment: Deployment, _settings: Settings) -> Files:
    return rendered(deployment)


_NO_EXTRAS = "render it for Compose, or use what the target's own world has (ingress, its monitoring)"
_LIMITS = {
    "pids_limit": "set it on the node or in the unit",
    "mem_limit": "set it on the node or in the unit",
    "user": "render it for Compose",
}
_POD = _LIMITS | {
    "devices": "the cluster's device plugin chooses the GPUs",
    "api_key_file": "name a Secret instead: kubernetes.api_key_secret",
    "no_new_privileges": "a pod of ours never gains privileges",
}
_KUBERNETES_ALONE = "it is for the targets kubernetes and helm-values"
TARGETS: dict[str, Target] = {
    "compose": Target(
        render=_compose,
        refuses={
            "kubernetes": _KUBERNETES_ALONE,
        },
    ),
    "kubernetes": Target(
        render=_kubernetes,
        refuses={
            "bind": "the Service is ClusterIP; publish it through an ingress",
            "restart": "a Deployment restarts its pods always",
            "ipc": "the pod has a /dev/shm of shm_size; nothing here needs the host's",
            "extras": _NO_EXTRAS,
            **_POD,
        },
    ),
    "helm-values": Target(
        render=_helm,
        refuses={
            "bind": "the chart's Service is ClusterIP; publish it through the chart's ingress",
            "port": "the chart's router listens on its own servicePort",
            "restart": "a Deployment restarts its pods always",
            "ipc": "the chart gives the pod a /dev/shm of shm_size",
            "extras": _NO_EXTRAS,
            "read_only": "the chart's container keeps its root writable",
            **_POD,
        },
    ),
    "quadlet": Target(
        render=quadlet,
        refuses={
            "replicas": "one unit runs one engine: render one unit a GPU",
            "devices": "name them in the unit (AddDevice=nvidia.com/gpu=0)",
            "kubernetes": _KUBERNETES_ALONE,
            "extras": _NO_EXTRAS,
        },
    ),
}
