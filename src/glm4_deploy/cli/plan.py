"""`glm4-deploy plan`."""

import typer


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
