"""`glm4-deploy autostart install | remove`."""

from pathlib import Path
from typing import Annotated

import typer

StateDir = Annotated[Path, typer.Option("--state-dir", help="Where `up` keeps its record.")]
Units = Annotated[Path, typer.Option("--units", help="Where systemd looks for units.")]
STATE, UNITS = Path(".glm4"), Path("/etc/systemd/system")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    group = typer.Typer(no_args_is_help=True, help="Bring the deployment up with its host, by systemd.")
    group.command()(install)
    group.command()(remove)
    app.add_typer(group, name="autostart")


def install(
    state_dir: StateDir = STATE,
    units: Units = UNITS,
    print_: Annotated[bool, typer.Option("--print", help="Show the unit and write nothing.")] = False,
) -> None:
    """Write and enable a systemd unit around the Compose project that `up` started from here.

    Example: glm4-deploy autostart install --print
    """
    from glm4_deploy.engine import autostart, state
    from glm4_deploy.errors import UsageError

    record = state.load(state_dir)
    if record is None:
        raise UsageError(f"nothing was brought up from {state_dir}", hint="run `glm4-deploy up` first")
    if print_:
        typer.echo(autostart.unit_of(record), nl=False)
        return
    typer.echo(f"{autostart.install(record, units)}: enabled; it starts with this host")


def remove(state_dir: StateDir = STATE, units: Units = UNITS) -> None:
    """Disable and delete that unit. What runs goes on running.

    Example: glm4-deploy autostart remove
    """
    from glm4_deploy.cli.options import make_deployment
    from glm4_deploy.engine import autostart, state

    record = state.load(state_dir) or state.expected(make_deployment({}))
    gone = autostart.remove(record.project, units)
    typer.echo(f"{gone}: disabled and removed" if gone else "no unit was there")
