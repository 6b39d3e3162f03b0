"""`glm4-deploy bundle create | verify | load`."""

from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.deploy.bundle import create_bundle, load_bundle, verify_bundle
from glm4_deploy.deploy.compose_cli import images_of
from glm4_deploy.errors import UsageError

Directory = Annotated[Path, typer.Argument(help="The bundle.")]
Signers = Annotated[
    Path | None, typer.Option(help="An OpenSSH allowed_signers file: one of its signers must have signed.")
]


def create(
    files: Annotated[list[Path], typer.Argument(help="Rendered Compose files; their images are included.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory to create, or to continue.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint directory to include.")] = None,
    wheels: Annotated[bool, typer.Option(help="Include this kit and its dependencies, for this Python.")] = True,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="An SSH private key that signs it.")] = None,
) -> None:
    """Put a deployment into one directory, with checksums.

    It holds images, wheels, Compose files and the checkpoint.

    A run that was interrupted continues where it stopped.

    Example: glm4-deploy bundle create compose.yaml --checkpoint /models/glm-4-9b-chat-hf-nvfp4 -o bundle
    """
    for path in (*files, *((sign,) if sign else ())):
        _require(path.is_file(), path, "file")
    if checkpoint is not None:
        _require(checkpoint.is_dir(), checkpoint, "directory")
    create_bundle(
        output,
        files=files,
        images=images_of(files),
        checkpoint=checkpoint,
        wheels=wheels,
        key=sign,
        note=_note,
    )
    typer.echo(
        f"{output}: complete. On the other host: glm4-deploy bundle load {output.name}, or docker load -i each image"
    )


def verify(directory: Directory, signers: Signers = None) -> None:
    """Compare every file with its checksum.

    With --signers, the signature is checked too. Exit 1 if anything differs.

    Example: glm4-deploy bundle verify bundle --signers allowed_signers
    """
    images = verify_bundle(directory, signers=signers, note=_note)
    typer.echo(f"{directory}: complete, {len(images)} image(s){', signed' if signers else ', signature not checked'}")


def load(directory: Directory, signers: Signers = None) -> None:
    """Verify, then load the images into this host's Docker engine. No network is used.

    Example: glm4-deploy bundle load bundle --signers allowed_signers
    """
    for image in load_bundle(directory, signers=signers, note=_note):
        typer.echo(f"{image.reference} {image.id[:19]}")
    typer.echo(f"next: put {directory}/checkpoint where the compose file mounts it; docker compose -f … up -d")


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _require(exists: bool, path: Path, kind: str) -> None:
    if not exists:
        raise UsageError(f"{path} is not a {kind}", hint="check the path")


bundle = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Carry a deployment to a host without a network."
)
bundle.command("create")(create)
bundle.command("verify")(verify)
bundle.command("load")(load)
