"""`glm4-deploy config show`."""

import os
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from glm4_deploy.cli.params import Json, Requested, host_profile, with_settings
from glm4_deploy.report.wire import dumps
from glm4_deploy.settings import FILE, MergedSettings, user_file
from glm4_deploy.text import one_line, without_secrets

DEFAULT = "default"
Row = tuple[str, Any, str]
"""A setting, its value, and the layer that it came from."""


@with_settings(profile="that of this host's GPU, else gb10")
def show(
    requested: Requested,
    everything: Annotated[bool, typer.Option("--all", help="Include settings that have their default.")] = False,
    json_: Json = False,
) -> None:
    """Show the settings, and the layer that each value comes from. Secrets are masked.

    Later layers win: default, profile, the user's file, glm4.yaml, .env beside it, GLM4_* variables, flags, --set.

    Example: glm4-deploy config show --all
    """
    merged = requested.merge(host_profile)
    rows = [row for row in settings_rows(merged) if everything or row[2] != DEFAULT or row[0] == "profile"]
    if json_:
        typer.echo(dumps({"settings": [{"key": key, "value": value, "layer": layer} for key, value, layer in rows]}))
        return
    for key, value, layer in rows:
        typer.echo(f"{key:24} {one_line(dumps(value, indent=None), 200):48} {layer}")
    user = user_file(os.environ)
    typer.echo(f"files: {user or 'no home, so no user file'}, {requested.config or FILE}, .env beside it", err=True)


def settings_rows(merged: MergedSettings) -> Iterator[Row]:
    values = without_secrets(merged.settings.model_dump(mode="json"))
    for key, value in values.items():
        yield key, value, merged.origin.get(key, DEFAULT)


def _group() -> None:
    """Keep `show` a subcommand: Typer omits the name of a group's only command."""


config = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show the settings, and where each value comes from.\n\nExample: glm4-deploy config show",
)
config.command("show")(show)
config.callback()(_group)
