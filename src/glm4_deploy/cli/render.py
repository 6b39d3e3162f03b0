"""`glm4-deploy render | profiles | version`."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy import __version__
from glm4_deploy.catalog.images import default_image
from glm4_deploy.catalog.rows import profiles as rows
from glm4_deploy.cli.params import NO_GPU, Json, Requested, host_profile, with_settings
from glm4_deploy.errors import Judged, UsageError
from glm4_deploy.files import hub_id_of, read_text, write_text
from glm4_deploy.render.targets import TARGETS, render_target

# In a rendered file: `kit: "0.1.0"`, `glm4-deploy/kit:0.1.0`, `org.glm4-deploy.kit=0.1.0`.
KIT_VERSION = re.compile(r"(^  kit: |glm4-deploy[./]kit[:=] ?)\"?[0-9][\w.+!-]*\"?", re.MULTILINE)


@with_settings(profile=f"that of this host's GPU, else {NO_GPU}")
def render(
    requested: Requested,
    target: Annotated[str, typer.Option(help=f"Format: {', '.join(TARGETS)}.")] = "compose",
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="Write to this file or directory; - is stdout.",
            show_default="stdout",
        ),
    ] = None,
    diff: Annotated[Path | None, typer.Option("--diff", help="Show what would change in this file.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit 1 if the file of -o or --diff has drifted, ignoring the kit's version."),
    ] = False,
    for_this_host: Annotated[
        bool,
        typer.Option("--for-this-host", help="Solve for this host's GPU and its free memory, as `up` does."),
    ] = False,
) -> None:
    """Print the Compose file, or another target's.

    With a profile, the same input gives the same bytes, unless --for-this-host reads the host. The file runs without
    this tool.

    Example: glm4-deploy render --profile gb10 --port 9000 -o compose.yaml
    """
    plan = requested.plan_here() if for_this_host else requested.plan(host_profile)
    files = render_target(target, plan.deployment, plan.settings, plan.profile)
    router_warnings = plan.deployment.router_warnings if target == "compose" else ()
    for warning in (*plan.deployment.warnings, *router_warnings):
        typer.echo(f"warning: {warning}", err=True)
    if (found := hub_id_of(Path(plan.settings.model_dir))) is not None:
        typer.echo(
            f"warning: model_dir {found} is a model's id on a hub: glm4-deploy pull {found} fetches it", err=True
        )
    if diff is not None or check:
        _compare(_placed(files, str(diff) if diff else output), check=check)
    elif output not in (None, "-"):
        for path, text in _placed(files, output).items():
            write_text(path, text)
            typer.echo(f"wrote {path}", err=True)
    else:
        main, *others = files
        typer.echo(files[main], nl=False)
        for name in others:
            typer.echo(f"{name} belongs beside {main}: -o DIRECTORY writes both", err=True)


def _placed(files: Mapping[str, str], where: str | None) -> dict[Path, str]:
    """The path of each file: the first at `where`, or in it if it is a directory; the others beside the first.

    A `/` at its end means a directory; so does, for several files, a new name without a suffix.

    Raises:
        UsageError: no path was given, or several files would go to a link, a device or a pipe.
    """
    if where is None:
        raise UsageError("--check has no file to compare with", hint="name it: --check -o compose.yaml")
    path, first = Path(where), next(iter(files))
    new = not path.exists() and not path.is_symlink()
    if path.is_dir() or where.endswith("/") or (len(files) > 1 and new and not path.suffix):
        return {path / name: text for name, text in files.items()}
    if len(files) > 1 and not new and (path.is_symlink() or not path.is_file()):
        raise UsageError(f"{len(files)} files cannot go to {where}", hint="name a directory: -o DIRECTORY")
    return {path if name == first else path.parent / name: text for name, text in files.items()}


def _compare(files: Mapping[Path, str], *, check: bool) -> None:
    """Show what differs. With `check`, a different kit version alone is not drift: CI may have another version.

    Raises:
        Judged: with `check`, a file differs.
    """
    drifted = []
    for path, text in files.items():
        there, here = (KIT_VERSION.sub(r"\1", one) if check else one for one in (read_text(path), text))
        lines = list(difflib.unified_diff(_lines(there), _lines(here), str(path), "rendered"))
        typer.echo("".join(lines), nl=False)
        drifted += [path] if lines else []
    if drifted and check:
        first = next(iter(files))
        shown = ", ".join(map(str, drifted))
        raise Judged(f"{shown} has drifted from what these settings render", hint=f"render again with -o {first}")


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def profiles(json_: Json = False) -> None:
    """List the host profiles and what each one is for."""
    if json_:
        table: list[Any] = list(rows().values())
        _echo_json(table)
        return
    for row in rows().values():
        typer.echo(f"{row.name:14} {row.summary}")


def version(json_: Json = False) -> None:
    """Show this kit's version and the image that it deploys by default."""
    if json_:
        _echo_json({"version": __version__, "default_image": default_image().reference})
    else:
        typer.echo(__version__)


def _echo_json(value: Any) -> None:
    # Imported late: it loads the model of every report, a tenth of the time that `render` takes.
    from glm4_deploy.report.wire import dumps

    typer.echo(dumps(value))
