"""Units for Podman's Quadlet generator."""

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from glm4_deploy import __version__
from glm4_deploy.plan.services import SECRET_PATH
from glm4_deploy.plan.spec import CACHE, CONTAINER_PORT, TOOLS, DeploymentSpec
from glm4_deploy.render.compose import health_command, tool_files
from glm4_deploy.render.quoting import csv_field, render_template
from glm4_deploy.settings import Settings

PULL = 1800  # seconds beyond start_period that a first start may take to pull the image


def quadlet(deployment: DeploymentSpec, settings: Settings) -> Mapping[str, str]:
    """NAME.container and its cache volume."""
    name = deployment.project
    key = deployment.hardening.api_key_file
    host = f"[{deployment.bind}]" if ":" in deployment.bind else deployment.bind
    limits = deployment.hardening
    user, _, group = (limits.user or "").partition(":")
    unit = render_template(
        "quadlet.container.j2",
        d=deployment,
        kit_version=__version__,
        name=name,
        cache=CACHE,
        published=f"{host}:{deployment.port}:{CONTAINER_PORT}",
        shm=_podman_size(settings.shm_size),
        devices=settings.devices[: deployment.gpus] or range(deployment.gpus),
        memory=_podman_size(limits.mem_limit) if limits.mem_limit else None,
        user=user,
        group=group,
        mounts=[
            mount
            for mount in (
                _bind(deployment.model_source, deployment.model_target),
                _bind(key, SECRET_PATH) if key else None,
                *(_bind(f"./{path}", f"{TOOLS}/{PurePosixPath(path).name}") for path in tool_files(deployment)),
            )
            if mount
        ],
        health=json.dumps(health_command(deployment.python)[1:]),
        # systemd does not start again what it was asked to stop; vLLM ends with 0 also when its engine has died.
        restart="no" if deployment.restart.policy == "no" else "always",
        start_limit=settings.start_period + PULL,
        entrypoint="" if deployment.keeps_entrypoint else json.dumps([*deployment.launcher, *deployment.program]),
        words=(*deployment.launcher, *deployment.argv) if deployment.keeps_entrypoint else deployment.arguments,
    )
    volume = render_template("quadlet.volume.j2", name=name, volume=deployment.volume_of(deployment.replicas[0]))
    return {f"{name}.container": unit, f"{name}-cache.volume": volume, **tool_files(deployment)}


def _bind(source: str, target: str) -> str:
    """A read-only bind whose source must exist. Podman reads the fields as CSV."""
    fields = ("type=bind", f"source={source}", f"target={target}", "readonly=true")
    return ",".join(csv_field(text) for text in fields)


def _podman_size(size: str) -> str:
    """Docker's `8gb` in Podman's form."""
    return re.sub(r"([kmg])b$", r"\1", size)
