"""`glm4-deploy fleet smoke | status`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glm4_deploy.probe.fleet import Answer

File = Annotated[Path, typer.Option("-i", "--inventory", help="The inventory (docs/how-to/fleet.md).")]
AtOnce = Annotated[int, typer.Option(min=1, max=256, help="Hosts asked at the same time.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]
INVENTORY = Path("fleet.yaml")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    group = typer.Typer(no_args_is_help=True, help="Ask many engines at once, by address or through SSH.")
    group.command()(smoke)
    group.command()(status)
    app.add_typer(group, name="fleet")


def smoke(
    inventory: File = INVENTORY,
    suite: Annotated[str, typer.Option(help="gate, quick or full.")] = "quick",
    at_once: AtOnce = 8,
    json_: Json = False,
) -> None:
    """Run the smoke suite against every host of an inventory; one table. Exit 1 unless all pass.

    Example: glm4-deploy fleet smoke -i fleet.yaml --suite full
    """
    from glm4_deploy.errors import UsageError

    if suite not in ("gate", "quick", "full"):
        raise UsageError(f"--suite {suite!r} is not known", hint="gate, quick or full")
    _ask(inventory, suite, (), at_once, json_)


def status(inventory: File = INVENTORY, at_once: AtOnce = 8, json_: Json = False) -> None:
    """Say for every host of an inventory whether the engine and model expected answer. Exit 1 unless all do.

    Example: glm4-deploy fleet status -i fleet.yaml
    """
    _ask(inventory, "gate", ("alive", "identity"), at_once, json_)


def _ask(inventory: Path, suite: str, only: tuple[str, ...], at_once: int, json_: bool) -> None:
    import asyncio

    from glm4_deploy.probe import Suite
    from glm4_deploy.probe.fleet import ask_fleet, read_inventory
    from glm4_deploy.report.terminal import print_results
    from glm4_deploy.report.wire import dumps
    from glm4_deploy.result import Status, verdict

    def told(answer: "Answer") -> None:
        typer.echo(f"{answer.row.status:8}{answer.host}", err=True)

    answers = asyncio.run(
        ask_fleet(
            read_inventory(inventory),
            suite=Suite(suite),
            only=only,
            keys_from=inventory.parent,
            at_once=at_once,
            on_answer=told,
        )
    )
    rows = [answer.row for answer in answers]
    if json_:
        typer.echo(dumps({"verdict": verdict(rows), "hosts": answers}))
    else:
        print_results(rows)
    good = sum(row.status in {Status.OK, Status.WARN} for row in rows)
    if not json_:
        typer.echo(f"{good} of {len(rows)} hosts: no failure seen")
    if good < len(rows):
        raise typer.Exit(1)
