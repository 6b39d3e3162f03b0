"""Signatures by SSH keys, made and checked by OpenSSH's own `ssh-keygen -Y`."""

import tempfile
from pathlib import Path

from glm4_deploy.errors import ExtraMissing, Judged, UsageError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.run import Output, RunFailure, run_program

KEYGEN_SECONDS = 300  # it may wait for a passphrase or a touch


def sign_text(text: str, key: Path, namespace: str) -> str:
    """The armored signature of a text.

    Args:
        key: an SSH private key.
        namespace: what the signature is for; it is valid for nothing else.

    Raises:
        UsageError: not a key that can sign.
        ExtraMissing: no ssh-keygen.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "text"
        write_text(file, text)
        done = _ssh_keygen("-Y", "sign", "-n", namespace, "-f", str(key), str(file))
        if not done.ok:
            raise UsageError(
                f"cannot sign with {key}: {done.last_line}", hint="give an SSH private key without a passphrase"
            )
        return read_text(file.with_name("text.sig"))


def check_signed(what: str, text: str, signature: str, signers: Path, namespace: str) -> str:
    """The principal who signed the text.

    Args:
        what: for the messages.
        signers: an allowed_signers file of OpenSSH.

    Raises:
        Judged: none of `signers` has signed this text.
        ExtraMissing: no ssh-keygen.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "signature"
        write_text(file, signature)
        found = _ssh_keygen("-Y", "find-principals", "-s", str(file), "-f", str(signers))
        signer = found.stdout.split("\n")[0].split(",")[0].strip()
        if not found.ok or not signer:
            raise Judged(f"{what}: not signed by anyone in {signers}", hint="do not use it; ask who created it")
        words = ["-Y", "verify", "-n", namespace, "-f", str(signers), "-I", signer, "-s", str(file)]
        done = _ssh_keygen(*words, stdin=text)
    if not done.ok:
        raise Judged(f"{what}: the signature does not match: {done.last_line}", hint="do not use it; copy it again")
    return signer


def _ssh_keygen(*arguments: str, stdin: str = "") -> Output:
    done = run_program("ssh-keygen", *arguments, timeout=KEYGEN_SECONDS, stdin=stdin, terminal=True)
    if done.failure in {RunFailure.MISSING, RunFailure.REFUSED}:
        raise ExtraMissing("ssh-keygen is not installed", hint="install an OpenSSH client, or do not sign")
    return done
