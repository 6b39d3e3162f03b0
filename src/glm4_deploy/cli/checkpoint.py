"""`glm4-deploy checkpoint verify | repair | quantize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glm4_deploy.catalog.images import Version
    from glm4_deploy.checkpoint.verify import Report

Directory = Annotated[Path, typer.Argument(help="The checkpoint: the directory that has config.json.")]
ImageTag = Annotated[str | None, typer.Option("--image-tag", help="Judge for this image of nvcr.io/nvidia/vllm.")]
VllmVersion = Annotated[str | None, typer.Option("--vllm", help="Judge for this vLLM, for example 0.24.0.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    group = typer.Typer(no_args_is_help=True, help="Verify a checkpoint for an engine, repair it, or make one.")
    group.command()(verify)
    app.add_typer(group, name="checkpoint")


def verify(
    directory: Directory,
    image_tag: ImageTag = None,
    vllm: VllmVersion = None,
    full: Annotated[bool, typer.Option("--full", help="Read every tensor, not only headers and small files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what in a checkpoint would not load, or would load and answer garbage, on the engine that is to run it.

    Exit code 0: nothing failed; 1: a finding failed; 9: no checkpoint there.

    Example: glm4-deploy checkpoint verify /models/glm-4-9b-chat-hf-nvfp4 --image-tag 26.01-py3
    """
    from glm4_deploy.checkpoint.verify import verify as judge
    from glm4_deploy.report.wire import dumps

    report = judge(directory, vllm=_engine(image_tag, vllm), full=full)
    if as_json:
        typer.echo(dumps(report))
    else:
        _show(report)
    if report.failures:
        raise typer.Exit(1)


def _engine(image_tag: str | None, vllm: str | None) -> "Version | None":
    from glm4_deploy.catalog.images import parse_version, resolve_version
    from glm4_deploy.errors import UsageError

    if image_tag and vllm:
        raise UsageError("--image-tag and --vllm both name an engine", hint="give one of them")
    if vllm:
        return parse_version(vllm)
    return resolve_version(image_tag) if image_tag else None


def _show(report: "Report") -> None:
    for result in report.results:
        typer.echo(f"{result.status:8} {result.check:18} {result.observed}")
