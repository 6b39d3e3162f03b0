"""All that a host without a network needs, in one directory of plain files: images, wheels, compose files, checkpoint.

SHA256SUMS is coreutils' own format and bundle.json says what the files are, so a bundle can be checked and loaded by
hand (`sha256sum -c SHA256SUMS`, `docker load -i images/…`). A file counts only once its line is in SHA256SUMS.part: a
`create` that was cut off goes on where it stopped, file by file.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.errors import DockerException, ImageNotFound

from glm4_deploy import __version__
from glm4_deploy.deploy.docker import connect
from glm4_deploy.errors import ExtraMissing, ImageMissing, Judged, StorageError, UsageError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.run import Output, RunFailure, run_program

SCHEMA = 1
SUMS, META, SIGNATURE = "SHA256SUMS", "bundle.json", "SHA256SUMS.sig"
PART = f"{SUMS}.part"
NAMESPACE = "glm4-deploy-bundle"  # what `ssh-keygen -Y` binds a signature to
CHUNK = 4 << 20
WHEELS_SECONDS = 3600  # a slow index; some wheels are built from source
KEYGEN_SECONDS = 300  # it may wait for a passphrase or a touch
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledImage:
    """An image of a bundle. id: the engine's own digest of it, which `docker load` must give back."""

    reference: str
    id: str
    file: str


def create_bundle(
    directory: Path,
    *,
    files: Iterable[Path],
    images: Iterable[str],
    checkpoint: Path | None,
    wheels: bool,
    key: Path | None,
    note: Note,
) -> None:
    """Write the bundle, or the rest of one that was begun.

    Args:
        files: compose files and what lies beside them.
        images: references that the local Docker engine has.
        checkpoint: a directory to copy; hard links where both lie on one disk.
        wheels: this kit and all it needs, for this Python and processor.
        key: an SSH private key that signs SHA256SUMS.

    Raises:
        UsageError: the directory holds a whole bundle already, or something else.
        ImageMissing, StorageError, ExtraMissing
    """
    _fresh(directory)
    with _storage(directory):
        writer = _Writer(directory, note)
        for file in files:
            writer.copy(file, f"compose/{file.name}")
        saved = [writer.image(reference) for reference in images]
        if wheels:
            writer.wheels()
        if checkpoint is not None:
            for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
                writer.copy(file, f"checkpoint/{checkpoint.name}/{file.relative_to(checkpoint)}")
        meta = {"schema": SCHEMA, "glm4_deploy": __version__, "images": [_plain(image) for image in saved]}
        write_text(directory / META, json.dumps(meta, indent=2) + "\n")
        writer.add(META)
        writer.finish()
        if key is not None:
            _sign(directory, key)


def verify_bundle(directory: Path, *, signers: Path | None, note: Note) -> tuple[BundledImage, ...]:
    """Every file against SHA256SUMS, nothing missing and nothing more; with `signers` the signature too.

    Args:
        signers: an allowed_signers file of OpenSSH.

    Raises:
        UsageError: no whole bundle there.
        Judged: a file that differs, is missing or is not listed; a signature that is missing or not by a signer.
    """
    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}", hint="check the path")
    if not (directory / PART).exists() and not (directory / SUMS).exists():
        raise UsageError(f"{directory} holds no bundle: it has no {SUMS}", hint="check the path, or copy it again")
    if (directory / PART).exists() or not (directory / SUMS).is_file():
        raise UsageError(f"{directory} holds no whole bundle", hint="run `bundle create` again: it goes on")
    if signers is not None:
        _check_signature(directory, signers)
    told = dict(_lines(read_text(directory / SUMS)))
    here = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file() or path.is_symlink()}
    wrong = [f"{name}: missing" for name in sorted(told.keys() - here)]
    wrong += [f"{name}: not listed" for name in sorted(here - told.keys() - {SUMS, SIGNATURE})]
    for name in sorted(told.keys() & here):
        note(f"checking {name}")
        if (directory / name).is_symlink() or _digest(directory / name) != told[name]:
            wrong.append(f"{name}: differs from {SUMS}")
    if wrong:
        raise Judged(
            f"{len(wrong)} file(s) of the bundle are not as they were made", details=wrong[:8], hint="copy it again"
        )
    return _images(directory)


def load_bundle(directory: Path, *, signers: Path | None, note: Note) -> tuple[BundledImage, ...]:
    """Verify, then load each image that this Docker engine does not have; no network is used.

    Raises:
        as `verify`; Judged: an image came out with another id.
    """
    images = verify_bundle(directory, signers=signers, note=note)
    client = connect(timeout=3600)
    for image in images:
        if _present(client, image):
            note(f"{image.reference} is here already")
            continue
        note(f"loading {image.reference}")
        with (directory / image.file).open("rb") as stream:
            try:
                client.images.load(stream)
            except DockerException as error:
                raise Judged(f"{image.file} cannot be loaded: {error}", hint="copy the bundle again") from error
        if not _present(client, image):
            raise Judged(f"{image.reference} came out with another id than {image.id[:19]}", hint="copy it again")
    return images


class _Writer:
    """Writes files of a bundle, each whole or not at all, and remembers which are done."""

    def __init__(self, directory: Path, note: Note) -> None:
        self._directory = directory
        self._note = note
        directory.mkdir(parents=True, exist_ok=True)
        part = directory / PART
        self._done = dict(_lines(part.read_text())) if part.exists() else {}
        self._part = part.open("a", encoding="utf-8")

    def copy(self, source: Path, name: str) -> None:
        if self._kept(name):
            return
        self._note(f"copying {name}")
        target = self._place(name)
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)
        self._land(target, name)

    def image(self, reference: str) -> BundledImage:
        client = connect(timeout=3600)
        try:
            found = client.images.get(reference)
        except ImageNotFound:
            raise ImageMissing(f"the image {reference} is not here", hint=f"docker pull {reference}") from None
        name = f"images/{''.join(c if c.isalnum() or c in '.-' else '_' for c in reference)}.tar"
        image = BundledImage(reference=reference, id=str(found.id), file=name)
        if not self._kept(name):
            self._note(f"saving {reference}")
            target = self._place(name)
            with target.open("wb") as stream:
                for chunk in found.save(chunk_size=CHUNK, named=reference):
                    stream.write(chunk)
            self._land(target, name)
        return image

    def wheels(self) -> None:
        """This kit as a wheel, and the wheels of all that it depends on."""
        if any(name.startswith("wheels/") for name in self._done):
            return
        self._note("collecting wheels")
        folder = self._place("wheels")
        shutil.rmtree(folder, ignore_errors=True)
        root = Path(__file__).parents[3]
        what = str(root) if (root / "pyproject.toml").is_file() else f"glm4-deploy=={__version__}"
        words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--wheel-dir"]
        done = run_program(*words, str(folder), what, timeout=WHEELS_SECONDS)
        if not done.ok:
            raise ExtraMissing(
                f"the wheels could not be collected: {done.last_line or 'pip failed'}",
                hint="it needs pip and a package index; --no-wheels leaves them out",
            )
        for wheel in sorted(folder.iterdir()):
            target = self._directory / "wheels" / wheel.name
            target.parent.mkdir(exist_ok=True)
            wheel.replace(target)
        folder.rmdir()
        for wheel in sorted((self._directory / "wheels").iterdir()):
            self.add(f"wheels/{wheel.name}")

    def add(self, name: str) -> None:
        """Write the line that makes a file count."""
        self._done[name] = _digest(self._directory / name)
        self._part.write(f"{self._done[name]}  {name}\n")
        self._part.flush()
        os.fsync(self._part.fileno())

    def finish(self) -> None:
        self._part.close()
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(self._done.items()))
        write_text(self._directory / SUMS, text)
        (self._directory / PART).unlink()

    def _kept(self, name: str) -> bool:
        return name in self._done and (self._directory / name).is_file()

    def _place(self, name: str) -> Path:
        """Where a file is made before it gets its name."""
        target = self._directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        place = target.with_name(f".{target.name}.tmp")
        place.unlink(missing_ok=True) if not place.is_dir() else shutil.rmtree(place)
        return place

    def _land(self, place: Path, name: str) -> None:
        place.replace(self._directory / name)
        self.add(name)


def _fresh(directory: Path) -> None:
    if (directory / SUMS).exists():
        raise UsageError(f"{directory} holds a whole bundle already", hint="give another --output, or remove it")
    if directory.exists() and any(directory.iterdir()) and not (directory / PART).exists():
        raise UsageError(f"{directory} is not empty and holds no bundle", hint="give an --output of its own")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(name, digest) of each whole line; names that would leave the directory are refused."""
    for line in text.splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or name.startswith("/") or ".." in Path(name).parts:
            raise UsageError(f"{SUMS} holds a line that is none of ours: {line[:60]!r}", hint="copy the bundle again")
        yield name, digest


def _images(directory: Path) -> tuple[BundledImage, ...]:
    try:
        meta: dict[str, Any] = json.loads(read_text(directory / META))
        if meta["schema"] > SCHEMA:
            raise UsageError(f"{META} was written by a newer glm4-deploy", hint="upgrade this one")
        return tuple(BundledImage(**row) for row in meta["images"])
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{META} is damaged: {error}", hint="copy the bundle again") from None


def _plain(image: BundledImage) -> dict[str, str]:
    return {"reference": image.reference, "id": image.id, "file": image.file}


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _present(client: Any, image: BundledImage) -> bool:
    with suppress(ImageNotFound):
        return bool(client.images.get(image.reference).id == image.id)
    return False


def _sign(directory: Path, key: Path) -> None:
    (directory / SIGNATURE).unlink(missing_ok=True)
    words = ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(directory / SUMS)]
    done = _ssh_keygen(*words)
    if not done.ok:
        raise UsageError(
            f"cannot sign with {key}: {done.last_line}",
            hint="give an SSH private key without a passphrase",
        )


def _check_signature(directory: Path, signers: Path) -> None:
    signature = directory / SIGNATURE
    if not signature.is_file():
        raise Judged("the bundle is not signed", hint="make it with `bundle create --sign KEY`")
    found = _ssh_keygen("ssh-keygen", "-Y", "find-principals", "-s", str(signature), "-f", str(signers))
    who = found.stdout.split("\n")[0].split(",")[0].strip()
    if not found.ok or not who:
        raise Judged(f"the bundle is signed by nobody of {signers}", hint="do not load it; ask who made it")
    words = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-f", str(signers), "-I", who, "-s", str(signature)]
    done = _ssh_keygen(*words, stdin=(directory / SUMS).read_text())
    if not done.ok:
        raise Judged(f"the signature does not fit {SUMS}: {done.last_line}", hint="do not load it; copy it again")


def _ssh_keygen(*words: str, stdin: str = "") -> Output:
    done = run_program(*words, timeout=KEYGEN_SECONDS, stdin=stdin, terminal=True)
    if done.failure in {RunFailure.MISSING, RunFailure.REFUSED}:
        raise ExtraMissing("ssh-keygen is not installed", hint="install an OpenSSH client, or do not sign")
    return done


class _storage:  # noqa: N801 (reads as a statement)
    """Turn the file system's refusals into one error; what was written stays, and `create` goes on from it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            raise StorageError(
                f"cannot write {self._directory}: {error.strerror or error}",
                hint="make room and run it again: it goes on where it stopped",
            ) from error
