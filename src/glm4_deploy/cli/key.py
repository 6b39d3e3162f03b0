"""`glm4-deploy key add | list | revoke`."""

from pathlib import Path
from typing import Annotated

import typer

Directory = Annotated[
    Path, typer.Option("--dir", help="The `keys` directory beside the rendered file. [.glm4/keys, which `up` uses]")
]
KEYS = Path(".glm4/keys")
keys = typer.Typer(no_args_is_help=True, help="The gateway's named keys; they are stored hashed.")


def register(app: typer.Typer) -> None:
    """Add key."""
    app.add_typer(keys, name="key")


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Whom it is for.")],
    rate: Annotated[int, typer.Option(min=1, max=1_000_000, help="Requests a minute.")] = 120,
    directory: Directory = KEYS,
) -> None:
    """Make a key and print it, once: only its hash is kept. A running gateway knows it at once.

    Example: glm4-deploy key add ada --rate 60 >ada.key
    """
    from glm4_deploy.engine.keys import add as make

    token = make(directory, name, rate=rate)
    typer.echo(f"key {name}: shown this once, {rate} requests a minute", err=True)
    typer.echo(token)


@keys.command("list")
def list_(
    directory: Directory = KEYS,
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """List names, rates and dates."""
    from glm4_deploy.engine.keys import load

    rows = load(directory)
    if json_:
        from glm4_deploy.report.wire import dumps

        typer.echo(dumps([{"name": row.name, "rate": row.rate, "created": row.created} for row in rows]))
        return
    for row in rows:
        typer.echo(f"{row.name:24} {row.rate:>7}/min  {row.created}")


@keys.command()
def revoke(name: Annotated[str, typer.Argument()], directory: Directory = KEYS) -> None:
    """End a key. A running gateway refuses it at once."""
    from glm4_deploy.engine.keys import revoke as end

    end(directory, name)
    typer.echo(f"key {name}: revoked", err=True)
