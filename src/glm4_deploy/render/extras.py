"""Services beside the engine. One is a file, `templates/services/NAME.yaml.j2`, and nothing else:

- its text stands under `services:` of the compose file (indented by two), with `d`, the deployment, at hand;
- `{% set volumes = ["data"] %}` in it asks for named volumes;
- files under `templates/services/NAME/` are rendered to `NAME/…` beside the compose file (without `.j2`), which mounts
  them as `./NAME/…`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from glm4_deploy import __version__
from glm4_deploy.errors import UsageError
from glm4_deploy.plan.deployment import CONTAINER_PORT, Deployment
from glm4_deploy.render.templates import environment

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


def extras(deployment: Deployment) -> Iterator[Extra]:
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
