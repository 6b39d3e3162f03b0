"""`glm4-deploy image build`."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The kit's own image, for the services that `--with` adds.")


def register(parent: typer.Typer) -> None:
    """Add the group image."""
    parent.add_typer(app, name="image")


@app.callback()
def image() -> None:
    """Keep `build` a command of its own: a group of one would swallow its name."""


@app.command()
def build(
    base: Annotated[str, typer.Option(help="Image to build on: Python 3.11 or newer with pip.")] = "python:3.12-slim",
    tag: Annotated[str | None, typer.Option("--tag", help="Name of the image. [glm4-deploy/kit:VERSION]")] = None,
    network: Annotated[str | None, typer.Option(help="Network of the build, as docker build --network.")] = None,
) -> None:
    """Build the image that `--with watch` runs: this installation, a non-root user, no shell scripts.

    Example: glm4-deploy image build
    """
    from glm4_deploy.engine.image import build as make
    from glm4_deploy.engine.image import tag as default

    name = default() if tag is None else tag
    make(base=base, name=name, network=network)
    typer.echo(name)
