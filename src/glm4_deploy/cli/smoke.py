"""`glm4-deploy smoke`."""

import typer


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
