"""The command table, the Typer application, and the only place that exits.

A command's module is imported when the command runs, so its imports stand at its top and `--help` stays instant.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from glm4_deploy import __version__
from glm4_deploy.errors import DeployError, StorageError

# Typer may bundle its own Click; this is the base class of usage errors in whichever Click it uses.
ClickException: Any = typer.BadParameter.__mro__[2]
# No Pydantic plugins are used; searching for them would read the metadata of every installed package (30 ms).
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

INTERRUPTED = 130
READER_GONE = 141  # as a shell reports SIGPIPE
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}

# Section → command → (module in this package, first sentence of its help). The module has a function or a Typer group
# of the command's name (`_` for `-`); a test compares the sentence with the docstring. To add a command, add a row.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Render and start": {
        "init": ("init", "Inspect this host, ask a few questions, and write glm4.yaml."),
        "render": ("render", "Print the Compose file, or another target's."),
        "profiles": ("render", "List the host profiles and what each one is for."),
        "up": ("deploy", "Start the engine and gate it: green only if it answers sanely."),
        "down": ("deploy", "Stop the engine and remove its container and network."),
        "status": ("deploy", "Show what runs, since when, and how healthy it is."),
        "logs": ("deploy", "Show the engine's log."),
        "compose": ("compose", "Manage a gated engine as a service of any Compose project."),
    },
    "Releases": {
        "releases": ("releases", "List the recorded releases, or remove old ones."),
        "upgrade": (
            "upgrade",
            "Move the running deployment to another image, and roll back automatically if it fails.",
        ),
        "rollback": ("releases", "Restore a recorded release and gate it."),
        "diff": ("releases", "Show what differs between two releases."),
        "certificate": ("certificate", "Write, check or compare signed certificates of releases."),
        "lock": ("releases", "Pin the images to the digests that were pulled."),
        "key": ("releases", "Manage the gateway's named keys."),
        "image": ("releases", "Build the kit's own image, for the services that `--with` adds."),
        "bundle": ("bundle", "Carry a deployment to a host without a network."),
    },
    "Prove and watch": {
        "smoke": ("smoke", "Ask a running engine and judge its answers."),
        "bench": ("smoke", "Measure a running engine under load: TTFT, TPOT, throughput, goodput."),
        "tune": ("tune", "Find the settings that serve a load fastest on this host."),
        "detect": ("detect", "Find loops and garbage in generated text."),
        "diagnose": ("diagnose", "Find what went wrong in an engine's log, and how to fix it."),
        "support-bundle": (
            "support",
            "Write one archive for a forum or an issue; secrets, names and addresses are masked.",
        ),
        "watch": ("watch", "Watch a running engine and publish its verdict."),
        "guard": ("guard", "Proxy an engine, judge its answers as they stream, and cut off those that loop."),
        "fleet": ("watch", "Check many engines at once, by address or through SSH."),
    },
    "Before you start": {
        "pull": ("pull", "Fetch the checkpoint from a model hub, and check every byte of it."),
        "plan": ("plan", "Show what a GPU's memory will hold."),
        "doctor": ("host", "Check whether this host can run the deployment."),
        "audit": ("host", "Find risks in a vLLM Compose file, with severity and fix."),
        "scale": ("scale", "Estimate how many GPUs a number of users needs."),
        "checkpoint": ("checkpoint", "Verify, repair, quantize or fingerprint a checkpoint."),
        "images": ("images", "List the images that contain vLLM, judged for this card and this checkpoint."),
        "config": ("config", "Show the settings, and where each value comes from."),
        "explain": (
            "explain",
            "Explain a name: an exit code, check, setting, profile or known failure.",
        ),
        "completion": ("completion", "Print the script that completes commands, options and values in a shell."),
        "version": ("render", "Show this kit's version and the image that it deploys by default."),
    },
}


class _Commands(Mapping[str, Any]):
    """Click's commands by name; looking one up imports its module."""

    def __getitem__(self, name: str) -> Any:
        module = next((rows[name][0] for rows in COMMANDS.values() if name in rows), None)
        if module is None:
            raise KeyError(name)
        command = getattr(import_module(f"glm4_deploy.cli.{module}"), name.replace("-", "_"))
        if isinstance(command, typer.Typer):
            command._add_completion = False  # as for the root: Typer would add two options to each group
            return get_command(command)
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)
        alone.command(name)(command)
        return get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return (name for rows in COMMANDS.values() for name in rows)

    def __len__(self) -> int:
        return sum(map(len, COMMANDS.values()))


class _LazyGroup(TyperGroup):
    """The root command: lists its commands from the table and imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]  # read-only: commands come from the table

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for section, rows in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name, summary) for name, (_, summary) in rows.items()])


CONTEXT = {"help_option_names": ["-h", "--help"]}
# No markup: `[…]` in a help text is printed literally.
app = typer.Typer(
    name="glm4-deploy",
    cls=_LazyGroup,
    no_args_is_help=True,
    # Off unless a shell asks: Typer would add two options to --help; `completion` prints the scripts.
    add_completion="_GLM4_DEPLOY_COMPLETE" in os.environ,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
    help="Deploy GLM-4-9B-chat in NVFP4 with Docker Compose, and prove that it answers sanely.",
)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["GLM4_DEBUG"] = "1"


def main() -> None:
    """Run the command line. Any error prints its message and hints on stderr and gives a documented exit code."""
    _open_closed_streams()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 (the last handler)
        code = _ended_by(error)
    sys.exit(code if isinstance(code, int) else 0)


def _open_closed_streams() -> None:
    """Put /dev/null in place of a stream closed by `1>&-`: else the next file opened would become stdout.

    What an open one cannot encode (a Latin-1 locale) is escaped, as JSON does it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _ended_by(error: BaseException) -> int:
    """Report the error on stderr; returns the exit code."""
    # Typer and Rich turn a broken pipe into a SystemExit.
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
    from glm4_deploy.text import clean_text  # imported late: `--help` needs no regular expressions

    failure = error if isinstance(error, DeployError) else _unexpected(error)
    with suppress(OSError):
        print(clean_text(f"glm4-deploy: {failure.message}"), file=sys.stderr)  # noqa: T201
        for line in failure.details:
            print(clean_text(f"  | {line}"), file=sys.stderr)  # noqa: T201
        for hint in failure.hints:
            print(clean_text(f"  → {hint}"), file=sys.stderr)  # noqa: T201
    return failure.exit_code


def _unexpected(error: BaseException) -> DeployError:
    """A DeployError for an exception that nothing has handled."""
    if isinstance(error, OSError) and error.errno in DISK:
        _drop_output()
        return StorageError(f"cannot write {error.filename or 'the output'}: {error.strerror}", hint="make room")
    message = " ".join(str(error).split())[:200]
    name = type(error).__name__
    return DeployError(
        f"a defect: {name}: {message}" if message else f"a defect: {name}", hint="run again as `glm4-deploy --debug …`"
    )


def _drop_output() -> None:
    """Discard what stdout still buffers: Python would try to flush it at exit, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
