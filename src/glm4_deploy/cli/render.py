"""`glm4-deploy render` and `glm4-deploy profiles`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy.cli.options import (
    Bind,
    Config,
    GpuMemoryUtilization,
    ImageTag,
    KvCacheDtype,
    MaxModelLen,
    MaxNumSeqs,
    ModelDir,
    Port,
    ProfileName,
    ServedModelName,
    SetOptions,
    ShmSize,
    make_deployment,
)


def register(app: typer.Typer) -> None:
    """Add render and profiles."""
    app.command()(render)
    app.command()(profiles)


def render(
    profile: ProfileName = None,
    port: Port = None,
    bind: Bind = None,
    model_dir: ModelDir = None,
    served_model_name: ServedModelName = None,
    gpu_memory_utilization: GpuMemoryUtilization = None,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    kv_cache_dtype: KvCacheDtype = None,
    shm_size: ShmSize = None,
    image_tag: ImageTag = None,
    sets: SetOptions = None,
    config: Config = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write here instead of to stdout.")] = None,
    diff: Annotated[Path | None, typer.Option("--diff", help="Show what would change in this file.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if the file of -o or --diff has drifted.")] = False,
) -> None:
    """Print the Compose file: same input, same bytes. It runs without this tool.

    Example: glm4-deploy render --profile gb10 --port 9000 -o compose.yaml
    """
    flags = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
    from glm4_deploy.render.compose import compose_file

    deployment = make_deployment(flags, sets=sets or (), config=config)
    text = compose_file(deployment)
    for warning in deployment.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if diff is not None or check:
        _compare(text, diff or output, check=check)
    elif output is not None:
        from glm4_deploy.files import write_text

        write_text(output, text)
        typer.echo(f"wrote {output}", err=True)
    else:
        typer.echo(text, nl=False)


_NOT_SETTINGS = frozenset({"sets", "config", "output", "diff", "check"})


def _compare(text: str, file: Path | None, *, check: bool) -> None:
    import difflib

    from glm4_deploy.errors import Judged, UsageError
    from glm4_deploy.files import read_text

    if file is None:
        raise UsageError("--check has no file to compare with", hint="name it: --check -o compose.yaml")
    lines = list(difflib.unified_diff(_lines(read_text(file)), _lines(text), str(file), "rendered"))
    typer.echo("".join(lines), nl=False)
    if lines and check:
        raise Judged(f"{file} has drifted from what these settings render", hint=f"render again with -o {file}")


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def profiles(json_: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """List the host profiles and what each one is for."""
    from glm4_deploy.catalog.profiles import profiles as rows

    if json_:
        from glm4_deploy.report.wire import dumps

        table: list[Any] = list(rows().values())
        typer.echo(dumps(table))
        return
    for row in rows().values():
        typer.echo(f"{row.name:14} {row.summary}")
