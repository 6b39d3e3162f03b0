"""The Typer application and the only place that exits."""

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy import __version__
from glm4_deploy.errors import DeployError, StorageError

# Typer carries its own Click; this is the base of its usage errors, whichever Click that is.
ClickException: Any = typer.BadParameter.__mro__[2]
# Nothing here uses Pydantic plugins; looking for them reads the metadata of every installed package (30 ms).
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

INTERRUPTED = 130
READER_GONE = 141  # as a shell tells of SIGPIPE
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}

# Each module has register(app) and imports nothing heavy at its top. Add a command group by adding its name.
GROUPS = (
    "render",
    "deploy",
    "releases",
    "smoke",
    "plan",
    "scale",
    "diagnose",
    "checkpoint",
    "detect",
    "fleet",
    "bundle",
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
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Deploy GLM-4-9B-chat in NVFP4 with Docker Compose, and prove that it answers sanely.",
)


def _tell_version(wished: bool) -> None:
    if wished:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["GLM4_DEBUG"] = "1"


for group in GROUPS:
    import_module(f"glm4_deploy.cli.{group}").register(app)


def main() -> None:
    """Run the command line. Whatever ends it: one line and a hint on stderr, and a documented exit code."""
    _open_closed_streams()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 (this is where everything ends)
        code = _ended_by(error)
    sys.exit(code if isinstance(code, int) else 0)


def _open_closed_streams() -> None:
    """`1>&-` leaves no stream at all, and the next file opened would become stdout: /dev/null takes its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _ended_by(error: BaseException) -> int:
    """What is said on stderr, and the exit code."""
    # Typer and Rich turn a lost reader into an exit of their own.
    cause = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(cause, BrokenPipeError):
        _drop_output()
        return READER_GONE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, ClickException):
        error.show()
        return int(error.exit_code)
    if os.environ.get("GLM4_DEBUG"):
        import traceback

        traceback.print_exception(error)
    told = error if isinstance(error, DeployError) else _unforeseen(error)
    with suppress(OSError):
        print(f"glm4-deploy: {told.message}", file=sys.stderr)  # noqa: T201
        for line in told.details:
            print(f"  | {line}", file=sys.stderr)  # noqa: T201
        if told.hint:
            print(f"  → {told.hint}", file=sys.stderr)  # noqa: T201
    return told.exit_code


def _unforeseen(error: BaseException) -> DeployError:
    """An error that no room has turned into one of ours."""
    if isinstance(error, OSError) and error.errno in DISK:
        _drop_output()
        return StorageError(f"cannot write {error.filename or 'the output'}: {error.strerror}", hint="make room")
    said = " ".join(str(error).split())[:200]
    name = type(error).__name__
    return DeployError(
        f"a defect: {name}: {said}" if said else f"a defect: {name}", hint="run again as `glm4-deploy --debug …`"
    )


def _drop_output() -> None:
    """What stdout still holds has nowhere to go: Python would try once more at its end, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
