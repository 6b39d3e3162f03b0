"""The files of a target: Docker Compose, Kubernetes, Podman Quadlet.

A target is a row of TARGETS: its files, and the settings that it cannot express. Such a setting is refused by name; a
rendered file never drops one silently.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from glm4_deploy.catalog.rows import Profile
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.spec import DeploymentSpec
from glm4_deploy.render.compose import rendered
from glm4_deploy.render.kubernetes import kubernetes
from glm4_deploy.render.quadlet import quadlet
from glm4_deploy.settings import Settings

Files = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderTarget:
    """render: returns path → text, the main file first. refuses: setting → what to do instead."""

    render: Callable[[DeploymentSpec, Settings], Files]
    refuses: Mapping[str, str] = field(default_factory=dict)


def render_target(name: str, deployment: DeploymentSpec, settings: Settings, profile: Profile) -> Files:
    """The files of a target.

    Raises:
        UsageError: an unknown target, or a setting that it cannot express.
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


def _compose(deployment: DeploymentSpec, _settings: Settings) -> Files:
    return rendered(deployment)


_NO_EXTRAS = "render it for Compose, or use the target's own means (its ingress, its monitoring)"
_NO_ENV = "a .env beside the file is Compose's own: set the values themselves"
_KUBERNETES_ONLY = "it only applies to the target kubernetes"
TARGETS: dict[str, RenderTarget] = {
    "compose": RenderTarget(
        render=_compose,
        refuses={
            "kubernetes": _KUBERNETES_ONLY,
        },
    ),
    "kubernetes": RenderTarget(
        render=kubernetes,
        refuses={
            "bind": "the Service is a ClusterIP; publish it through an ingress",
            "restart": "a Deployment always restarts its pods",
            "ipc": "the pod has its own /dev/shm of shm_size and does not need the host's",
            "extras": _NO_EXTRAS,
            "devices": "the cluster's device plugin chooses the GPUs",
            "pids_limit": "the kubelet sets it (podPidsLimit)",
            "api_key_file": "name a Secret instead: kubernetes.api_key_secret",
            "notify_file": _NO_EXTRAS,
            "overridable": _NO_ENV,
            "no_new_privileges": "the rendered pods never gain privileges",
        },
    ),
    "quadlet": RenderTarget(
        render=quadlet,
        refuses={
            "replicas": "one unit runs one engine: render one unit per GPU",
            "kubernetes": _KUBERNETES_ONLY,
            "extras": _NO_EXTRAS,
            "notify_file": _NO_EXTRAS,
            "overridable": _NO_ENV,
        },
    ),
}
