"""`glm4-deploy deploy`."""

import typer


def register(app: typer.Typer) -> None:
    """Add this group's commands."""

    @app.command()
    def version() -> None:
        """Show this kit's version."""
        from glm4_deploy import __version__

        typer.echo(__version__)
