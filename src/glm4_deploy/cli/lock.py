"""`glm4-deploy lock`."""

from pathlib import Path

import typer

from glm4_deploy.cli.options import Config, ProfileName, SetOptions, With


def register(app: typer.Typer) -> None:
    """Add lock."""
    app.command()(lock)


def lock(profile: ProfileName = None, extras: With = None, sets: SetOptions = None, config: Config = None) -> None:
    """Pin the images by the digests that this Docker engine pulled: into glm4.yaml, and so into what is rendered.

    Another tag is another entry: a pin never holds an image back that you asked for. Exit 1 where one has no digest.

    Example: docker compose -f compose.yaml pull && glm4-deploy lock
    """
    from glm4_deploy.cli.options import make_deployment
    from glm4_deploy.engine.pins import digests, keep
    from glm4_deploy.errors import ImageMissing, Judged
    from glm4_deploy.plan.beside import references
    from glm4_deploy.settings import FILE

    deployment = make_deployment({"profile": profile, "extras": extras}, sets=sets or (), config=config)
    found = digests(references(deployment.image, deployment.extras))
    missing = [reference for reference, digest in found.items() if digest is None]
    if missing:
        raise ImageMissing(f"not here: {', '.join(missing)}", hint="pull first: docker compose -f FILE pull")
    pins = {reference: digest for reference, digest in found.items() if digest}
    file = config or Path(FILE)
    if pins:
        keep(file, pins)
        for reference, digest in pins.items():
            typer.echo(f"{reference}@{digest}")
        typer.echo(f"wrote {file}", err=True)
    bare = [reference for reference, digest in found.items() if not digest]
    if bare:
        raise Judged(
            f"no registry gave {', '.join(bare)}: built here, so there is no digest", hint="push it, then pull it"
        )
