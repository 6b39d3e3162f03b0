"""The Typer application and the only place that exits."""

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from glm4_deploy.errors import DeployError

# Typer carries its own Click; this is the base of its usage errors, whichever Click that is.
ClickException: Any = typer.BadParameter.__mro__[2]
# Nothing here uses Pydantic plugins; looking for them reads the metadata of every installed package (30 ms).
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

# Each module has register(app) and imports nothing heavy at its top. Add a command group by adding its name.
GROUPS = (
    "render",
    "deploy",
    "releases",
    "smoke",
    "plan",
    "diagnose",
    "checkpoint",
    "detect",
    "fleet",
    "bundle",
    "autostart",
    "watch",
    "image",
    "audit",
    "key",
    "lock",
)

app = typer.Typer(
    name="glm4-deploy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deploy GLM-4-9B-chat in NVFP4 with Docker Compose, and prove that it answers sanely.",
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["GLM4_DEBUG"] = "1"


for group in GROUPS:
    import_module(f"glm4_deploy.cli.{group}").register(app)


def main() -> None:
    """Run the command line; turn every DeployError into one line, a hint and its exit code."""
    try:
        code = app(standalone_mode=False)
    except DeployError as error:
        if os.environ.get("GLM4_DEBUG"):
            raise
        print(f"glm4-deploy: {error.message}", file=sys.stderr)  # noqa: T201
        for line in error.details:
            print(f"  | {line}", file=sys.stderr)  # noqa: T201
        if error.hint:
            print(f"  → {error.hint}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader (head, less) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
