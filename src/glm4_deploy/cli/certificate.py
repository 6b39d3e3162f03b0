"""`glm4-deploy certificate [verify | diff]`."""

from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.cli.params import STATE, Json, StateDir
from glm4_deploy.deploy.certificate import compare, envelope, keep, read_certificate, serving_release, statement
from glm4_deploy.errors import Judged, StorageError
from glm4_deploy.files import ensure_writable, write_text
from glm4_deploy.report.wire import dumps
from glm4_deploy.text import one_line

File = Annotated[Path, typer.Argument(help="A certificate.")]
Signers = Annotated[
    Path | None, typer.Option(help="An OpenSSH allowed_signers file: one of its signers must have signed.")
]


def write(
    context: typer.Context,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to this file.")] = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="An SSH private key that signs it.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certify the results of this `smoke --json`, not the gate's.")
    ] = None,
    state_dir: StateDir = STATE,
) -> None:
    """Write what was proved of the release in service, as one signed document.

    Digests of files, image, checkpoint and tokenizer, engine and kernel from the log, settings without secrets, and
    every check with its figures: an in-toto statement in a DSSE envelope. It says what was true when the release was
    gated; `status` says what runs now. A copy stays with the release, and `smoke --html` shows it.

    Example: glm4-deploy certificate --sign ~/.ssh/id_ed25519 -o glm4.cert.json
    """
    if context.invoked_subcommand is not None:
        return
    if output is not None:
        ensure_writable(output)
    release = serving_release(state_dir)
    text = envelope(statement(release, state_dir, report), sign)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        typer.echo(f"{output}: release {release.id}, {'signed' if sign else 'not signed'}", err=True)
    try:
        keep(text, release, state_dir)
    except StorageError as error:
        typer.echo(one_line(f"warning: no copy was kept with the release: {error}", 1000), err=True)


def verify(file: File, signers: Signers = None, json_: Json = False) -> None:
    """Show a certificate; with --signers, check who signed it. No network is used.

    Exit 1 if it is not signed by anyone in --signers.

    Example: glm4-deploy certificate verify glm4.cert.json --signers allowed_signers
    """
    found = read_certificate(file, signers)
    if json_:
        typer.echo(dumps({"signer": found.signer, "statement": found.statement}))
        return
    for line in found.lines():
        typer.echo(one_line(line, 1000))
    typer.echo(f"signed by {one_line(found.signer, 200)}" if found.signer else "signature not checked: give --signers")


def diff(
    a: Annotated[Path, typer.Argument(help="A certificate.")],
    b: Annotated[Path, typer.Argument(help="The one to compare with.")],
    json_: Json = False,
) -> None:
    """Show what differs between two certificates. Exit 1 if a check got worse.

    Example: glm4-deploy certificate diff old.cert.json new.cert.json
    """
    changes, worse = compare(read_certificate(a, None), read_certificate(b, None))
    if json_:
        typer.echo(dumps({"changes": changes, "worse": worse}))
    else:
        for change in changes:
            typer.echo(one_line(f"{change.name}: {change.a} → {change.b}", 1000))
        if not changes:
            typer.echo("they certify the same")
    if worse:
        raise Judged(f"worse: {', '.join(worse)}"[:300], hint="glm4-deploy certificate verify shows each side")


certificate = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="Write, check or compare signed certificates of releases.\n\nExample: glm4-deploy certificate -o cert.json",
)
certificate.callback()(write)
certificate.command("verify")(verify)
certificate.command("diff")(diff)
