"""Deployment → the text of a compose file, and of what lies beside it. Same plan, same bytes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from glm4_deploy import __version__
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.spec import CACHE, CONTAINER_PORT, MODELS, DeploymentSpec
from glm4_deploy.render.quoting import environment

# Services beside the engine. One is a file, `templates/services/NAME.yaml.j2`, and nothing else:
#
# - its text stands under `services:` of the compose file (indented by two), with `d`, the deployment, at hand;
# - `{% set volumes = ["data"] %}` in it asks for named volumes;
# - files under `templates/services/NAME/` are rendered to `NAME/…` beside the compose file (without `.j2`), which
#   mounts them as `./NAME/…`.

FOLDER, SUFFIX = "services/", ".yaml.j2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """One service beside the engine. files: (path relative to the compose file, text)."""

    service: str
    volumes: tuple[str, ...]
    files: tuple[tuple[str, str], ...]


def known() -> tuple[str, ...]:
    """The names that `--with` takes."""
    names = (name.removeprefix(FOLDER) for name in environment().list_templates() if name.startswith(FOLDER))
    return tuple(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX) and "/" not in name)


def extras(deployment: DeploymentSpec) -> Iterator[Extra]:
    """Render each service that was asked for, in that order.

    Raises:
        UsageError: a name that has no template.
    """
    for name in deployment.extras:
        if name not in known():
            raise UsageError(f"extras: no service is named {name!r}", hint=f"known: {', '.join(known()) or 'none'}")
        variables = {"d": deployment, "container_port": CONTAINER_PORT, "kit_version": __version__}
        module = environment().get_template(f"{FOLDER}{name}{SUFFIX}").make_module(variables)
        inside = f"{FOLDER}{name}/"
        files = (file for file in environment().list_templates() if file.startswith(inside))
        yield Extra(
            service=str(module).strip("\n"),
            volumes=tuple(getattr(module, "volumes", ())),
            files=tuple(
                (file.removeprefix(FOLDER).removesuffix(".j2"), environment().get_template(file).render(variables))
                for file in files
            ),
        )


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


def compose_file(deployment: DeploymentSpec) -> str:
    """The compose file, with comments that say why each line is there."""
    return rendered(deployment)[COMPOSE]


def rendered(deployment: DeploymentSpec) -> Mapping[str, str]:
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
