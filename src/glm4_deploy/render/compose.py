"""The Compose file, and the files next to it. The same spec gives the same bytes."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from glm4_deploy import __version__
from glm4_deploy.errors import UsageError
from glm4_deploy.files import parse_yaml
from glm4_deploy.plan.services import GAVE_UP
from glm4_deploy.plan.spec import CACHE, CONTAINER_PORT, MODELS, TOOLS, DeploymentSpec
from glm4_deploy.render.quoting import environment, scalar, source
from glm4_deploy.text import redact

# Services that run next to the engine. To add one, add a file `templates/services/NAME.yaml.j2` and nothing else:
#
# - its text goes under `services:` in the Compose file (indented by two); `d` is the deployment spec;
# - `{% set volumes = ["data"] %}` in it declares named volumes, `{% set secrets = {"name": "./file"} %}` secrets;
# - files under `templates/services/NAME/` are rendered to `NAME/…` next to the Compose file (without `.j2`), which
#   mounts them as `./NAME/…`.

FOLDER, SUFFIX = "services/", ".yaml.j2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """One service next to the engine. secrets: name → file; files: path → text; both relative to the Compose file."""

    service: str
    volumes: tuple[str, ...]
    secrets: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]


def known() -> tuple[str, ...]:
    """The names that `--with` accepts."""
    names = (name.removeprefix(FOLDER) for name in environment().list_templates() if name.startswith(FOLDER))
    return tuple(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX) and "/" not in name)


def extras(deployment: DeploymentSpec) -> Iterator[Extra]:
    """Render each requested service, in the requested order.

    Raises:
        UsageError: a name without a template.
    """
    for name in deployment.extras:
        if name not in known():
            raise UsageError(f"extras: unknown service {redact(name)!r}", hint=f"known: {', '.join(known()) or 'none'}")
        variables = {
            "d": deployment,
            "container_port": CONTAINER_PORT,
            "kit_version": __version__,
            "own_port": _published(deployment, deployment.port) if deployment.through_gateway else "",
        }
        module = environment().get_template(f"{FOLDER}{name}{SUFFIX}").make_module(variables)
        inside = f"{FOLDER}{name}/"
        files = (file for file in environment().list_templates() if file.startswith(inside))
        yield Extra(
            service=str(module).strip("\n"),
            volumes=tuple(getattr(module, "volumes", ())),
            secrets=tuple(getattr(module, "secrets", {}).items()),
            files=tuple(
                (file.removeprefix(FOLDER).removesuffix(".j2"), environment().get_template(file).render(variables))
                for file in files
            ),
        )


COMPOSE = "compose.yaml"
HEALTH_INTERVAL = 5  # seconds between the router's health checks of an engine
# What the wheel's own command does, without the imports of its debugging mode.
ROUTER = (
    "import argparse; from vllm_router.router import Router; from vllm_router.router_args import RouterArgs as Args; "
    "words = argparse.ArgumentParser('vllm-router'); Args.add_cli_args(words); "
    "Router.from_args(Args.from_cli_args(words.parse_args())).start()"
)


def health_command(python: Iterable[str], port: int = CONTAINER_PORT, path: str = "/health") -> tuple[str, ...]:
    """Exits 0 if the path answers 200 on the container's loopback. python: what runs Python 3 there."""
    code = (
        "import http.client as h, sys; "
        f"c = h.HTTPConnection('127.0.0.1', {port}, timeout=8); c.request('GET', '{path}'); "
        "sys.exit(c.getresponse().status != 200)"
    )
    return ("CMD", *python, "-c", code)


def compose_file(deployment: DeploymentSpec) -> str:
    """The Compose file, with comments that say why each line is there."""
    return rendered(deployment)[COMPOSE]


def rendered(deployment: DeploymentSpec) -> Mapping[str, str]:
    """Path relative to the Compose file → text: the Compose file (COMPOSE) first, then the files that it mounts.

    Raises:
        UsageError: an extra without a template; two services with one name, or on one port.
    """
    beside = tuple(extras(deployment))
    _refuse_collisions(deployment, beside)
    if deployment.overridable and deployment.model_target == MODELS:
        raise UsageError(
            "overridable: the parent of model_dir is mounted, so another directory would not fit the command",
            hint="mount the checkpoint alone: --set mount=model",
        )
    text = (
        environment()
        .get_template("compose.yaml.j2")
        .render(
            d=deployment,
            kit_version=__version__,
            published=_published(deployment, CONTAINER_PORT),
            source=_or_variable(deployment, "GLM4_MODEL_DIR", deployment.model_source),
            key_file=_or_variable(deployment, "GLM4_API_KEY_FILE", deployment.hardening.api_key_file or ""),
            short_mount=deployment.model_target == MODELS and ":" not in deployment.model_source,
            cache=CACHE,
            tools=TOOLS,
            container_port=CONTAINER_PORT,
            health=health_command(deployment.python),
            ready=health_command(("python3",), path="/readiness"),
            launcher=ROUTER,
            counted=_counted(deployment).replace("$", "$$"),
            interval=HEALTH_INTERVAL,
            services=[extra.service for extra in beside],
            volumes=[name for extra in beside for name in extra.volumes],
            secrets=[secret for extra in beside for secret in extra.secrets],
        )
    )
    return {COMPOSE: text, **tool_files(deployment)} | dict(file for extra in beside for file in extra.files)


def _counted(deployment: DeploymentSpec) -> str:
    """The script that starts the engine under `on-failure`: see `plan.services.Restart`."""
    restart = deployment.restart
    script = environment().get_template("restart.sh.j2")
    return script.render(cache=CACHE, ceiling=restart.ceiling, window=restart.window_s, gave_up=GAVE_UP).rstrip()


def tool_files(deployment: DeploymentSpec) -> Mapping[str, str]:
    """Path relative to the rendered file → text, of what an engine needs for tool calls; empty without them."""
    return {f"tools/{name}": source(f"tools/{name}") for name in deployment.tool_files}


def _published(deployment: DeploymentSpec, inside: int) -> str:
    """The published port, as a YAML scalar. inside: the port in the container that publishes it."""
    host = f"[{deployment.bind}]" if ":" in deployment.bind else deployment.bind
    if not deployment.overridable:
        return scalar(f"{host}:{deployment.port}:{inside}")
    return json.dumps(f"${{GLM4_BIND:-{host}}}:${{GLM4_PORT:-{deployment.port}}}:{inside}")


def _or_variable(deployment: DeploymentSpec, name: str, value: str) -> str:
    """A YAML scalar: the value, or a variable of Compose with the value as its default.

    Raises:
        UsageError: Compose cannot read the value as a default.
    """
    if not deployment.overridable:
        return scalar(value)
    if "$" in value or "}" in value:
        raise UsageError(
            f"overridable: {value[:60]!r} cannot be the default of ${name}: it has a $ or a }} in it",
            hint="choose another path, or leave overridable out",
        )
    return json.dumps(f"${{{name}:-{value}}}", ensure_ascii=False)


def _refuse_collisions(deployment: DeploymentSpec, beside: Iterable[Extra]) -> None:
    """Raises UsageError if two services share a name, in which container names count, or publish the same port."""
    services: list[tuple[str, set[str], list[str]]] = []
    for engine in deployment.replicas:
        names = {f"the name {engine.service}", f"the name {engine.container_name}"}
        own = not (deployment.router or deployment.through_gateway)
        services.append(("the engine", names, [f"port {deployment.port}"] if own else []))
    if deployment.router:
        names = {"the name router", f"the name {deployment.router.container_name}"}
        services.append(("the router", names, [f"port {deployment.port}"]))
    for extra in beside:
        for name, body in (parse_yaml(extra.service, "an extra's template") or {}).items():
            # Without `container_name`, Compose calls a container PROJECT-SERVICE-1.
            container = body.get("container_name", f"{deployment.project}-{name}-1")
            names = {f"the name {name}", f"the name {container}"}
            services.append((name, names, [f"port {port}" for port in _host_ports(body.get("ports", ()))]))
    taken: dict[str, str] = {}
    for owner, names, ports in services:
        for what in (*sorted(names), *ports):
            if what in taken:
                raise UsageError(
                    f"{what} is wanted twice: by {taken[what]} and by {owner}",
                    hint="change one of them: docs/reference/settings.md lists the names and ports",
                )
            taken[what] = owner


def _host_ports(ports: Iterable[object]) -> Iterator[str]:
    """Of Compose's short form, ADDRESS:HOST:CONTAINER[/PROTOCOL]."""
    for port in ports:
        words = str(port).rpartition("/")[0] or str(port)
        if ":" in words:
            yield words.split(":")[-2]
