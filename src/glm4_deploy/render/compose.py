"""Deployment → the text of a compose file, and of what lies beside it. Same plan, same bytes."""

from collections.abc import Mapping

from glm4_deploy.plan.deployment import CACHE, CONTAINER_PORT, MODELS, Deployment
from glm4_deploy.render.extras import extras
from glm4_deploy.render.templates import environment, scalar

__all__ = ["COMPOSE", "compose_file", "health_command", "rendered", "scalar"]

COMPOSE = "compose.yaml"
HEALTH_INTERVAL = 5  # seconds between the router's looks at an engine
# What the wheel's own command does, less the imports of its debugging mode.
ROUTER = (
    "import argparse; from vllm_router.router import Router; from vllm_router.router_args import RouterArgs as Args; "
    "words = argparse.ArgumentParser('vllm-router'); Args.add_cli_args(words); "
    "Router.from_args(Args.from_cli_args(words.parse_args())).start()"
)


def health_command(port: int = CONTAINER_PORT, path: str = "/health") -> tuple[str, ...]:
    """Exit 0 when the path answers 200 on the container's loopback."""
    code = (
        "import http.client as h, sys; "
        f"c = h.HTTPConnection('127.0.0.1', {port}, timeout=8); c.request('GET', '{path}'); "
        "sys.exit(c.getresponse().status != 200)"
    )
    return ("CMD", "python3", "-c", code)


def compose_file(deployment: Deployment) -> str:
    """The compose file, with comments that say why each line is there."""
    return rendered(deployment)[COMPOSE]


def rendered(deployment: Deployment) -> Mapping[str, str]:
    """Path relative to the compose file → text: the compose file (COMPOSE) first, then what its extras mount.

    Raises:
        UsageError: an extra that there is no template of.
    """
    host = f"[{deployment.bind}]" if ":" in deployment.bind else deployment.bind
    beside = tuple(extras(deployment))
    text = (
        environment()
        .get_template("compose.yaml.j2")
        .render(
            d=deployment,
            published=f"{host}:{deployment.port}:{CONTAINER_PORT}",
            short_mount=deployment.model_target == MODELS and ":" not in deployment.model_source,
            cache=CACHE,
            container_port=CONTAINER_PORT,
            health=health_command(),
            ready=health_command(path="/readiness"),
            launcher=ROUTER,
            interval=HEALTH_INTERVAL,
            services=[extra.service for extra in beside],
            volumes=[name for extra in beside for name in extra.volumes],
        )
    )
    return {COMPOSE: text} | dict(file for extra in beside for file in extra.files)
