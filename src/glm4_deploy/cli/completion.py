"""`glm4-deploy completion`, and what a shell offers for values. What that takes is imported when a shell asks."""

from collections.abc import Iterator
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # it makes --show-completion

from glm4_deploy.errors import DeployError, UsageError
from glm4_deploy.text import one_line

PROGRAM = "glm4-deploy"
SHOWN = 60  # characters of a description: a longer one would be wrapped, and a shell takes each line for a value
VARIABLE = "_GLM4_DEPLOY_COMPLETE"  # Click's name for it; the shell sets it to ask
SHELLS = ("bash", "zsh", "fish")


def completion(
    shell: Annotated[
        str, typer.Argument(metavar="SHELL", help=f"{', '.join(SHELLS)}.", autocompletion=lambda: list(SHELLS))
    ],
) -> None:
    """Print the script that completes commands, options and values in a shell.

    It completes profiles, releases, checks, settings, and what `explain` knows.

    Example: eval "$(glm4-deploy completion bash)"
    """
    if shell not in SHELLS:
        raise UsageError(f"{shell[:40]!r} is not a supported shell", hint=f"one of {', '.join(SHELLS)}")
    typer.echo(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell))


Offer = tuple[str, str]
"""A value and what it is."""


def _matching(offers: Iterator[Offer], incomplete: str) -> list[Offer]:
    try:
        return [(value, one_line(about, SHOWN)) for value, about in offers if value.startswith(incomplete)]
    except DeployError:
        return []  # a shell has no place for an error


def profile_names(incomplete: str) -> list[Offer]:
    from glm4_deploy.catalog.rows import profiles

    return _matching(((row.name, row.summary) for row in profiles().values()), incomplete)


def release_ids(ctx: typer.Context, incomplete: str) -> list[Offer]:
    from glm4_deploy.deploy.releases import Store
    from glm4_deploy.settings import STATE_DIR

    store = Store(ctx.params.get("state_dir") or STATE_DIR)
    return _matching(((one.id, f"{one.created_at} {one.verdict}") for one in store.releases()), incomplete)


def check_names(incomplete: str) -> list[Offer]:
    from glm4_deploy.probe.suite import checks

    return _matching(((one.id, one.proves) for one in checks().values()), incomplete)


def settings_keys(incomplete: str) -> list[Offer]:
    """For --set."""
    from glm4_deploy.settings import Settings

    fields = Settings.model_fields.items()
    return _matching(((f"{name}=", field.description or "") for name, field in fields), incomplete)


def explained_names(incomplete: str) -> list[Offer]:
    from glm4_deploy.cli.explain import everything

    return _matching(((one.name, f"{one.kind}: {one.summary}") for one in everything()), incomplete)
