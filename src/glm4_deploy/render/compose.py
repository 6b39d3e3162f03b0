"""Deployment → the text of a compose file. Same plan, same bytes."""

import json
import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from glm4_deploy.plan.deployment import CACHE, CONTAINER_PORT, MODELS, Deployment

# The wheel carries the templates inside the package; a source tree keeps them at its top.
TEMPLATES = (Path(__file__).parents[1] / "templates", Path(__file__).parents[3] / "templates")
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
# Plain words that YAML 1.1 or 1.2 would read as something else than text.
NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def scalar(value: object) -> str:
    """A YAML scalar that no value can break: plain where that is safe, else a JSON string.

    A literal `$` is doubled: Compose would take it for a variable.
    """
    text = str(value).replace("$", "$$")
    if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT:
        return text
    return json.dumps(text, ensure_ascii=False)


def health_command(port: int = CONTAINER_PORT) -> tuple[str, ...]:
    """Exit 0 when /health answers 200 on the container's loopback."""
    code = (
        "import http.client as h, sys; "
        f"c = h.HTTPConnection('127.0.0.1', {port}, timeout=8); c.request('GET', '/health'); "
        "sys.exit(c.getresponse().status != 200)"
    )
    return ("CMD", "python3", "-c", code)


def compose_file(deployment: Deployment) -> str:
    """The compose file, with comments that say why each line is there."""
    host = f"[{deployment.bind}]" if ":" in deployment.bind else deployment.bind
    short_mount = deployment.model_target == MODELS and ":" not in deployment.model_source
    return (
        _environment()
        .get_template("compose.yaml.j2")
        .render(
            d=deployment,
            published=f"{host}:{deployment.port}:{CONTAINER_PORT}",
            short_mount=short_mount,
            cache=CACHE,
            health=health_command(),
        )
    )


@cache
def _environment() -> Environment:
    # YAML, not HTML: every scalar goes through `y`, which is the escaping that this format needs.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["y"] = scalar
    return environment
