"""Everything that an offline host needs, in one directory of plain files: images, wheels, Compose files, checkpoint.

SHA256SUMS is in coreutils' format and bundle.json describes the files, so a bundle can also be checked and loaded
without this kit (`sha256sum -c SHA256SUMS`, `docker load -i images/…`). A file counts once its line is in
SHA256SUMS.part: an interrupted `create` continues where it stopped, file by file.
"""

import hashlib
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from posixpath import normpath
from typing import Any

from docker.errors import DockerException, ImageNotFound
from pydantic import TypeAdapter

from glm4_deploy import __version__
from glm4_deploy.deploy.compose_cli import mounts_beside
from glm4_deploy.deploy.docker import connect
from glm4_deploy.deploy.signing import check_signed, sign_text
from glm4_deploy.errors import ExtraMissing, ImageMissing, Judged, StorageError, UsageError
from glm4_deploy.files import read_text, write_text
from glm4_deploy.run import run_program

SCHEMA = 1
SUMS, META, SIGNATURE = "SHA256SUMS", "bundle.json", "SHA256SUMS.sig"
PART = f"{SUMS}.part"
NAMESPACE = "glm4-deploy-bundle"  # what `ssh-keygen -Y` binds a signature to
CHUNK = 4 << 20
WHEELS_SECONDS = 3600  # a slow index; some wheels are built from source
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledImage:
    """An image in a bundle. id: the engine's digest of it, which must be the same after `docker load`."""

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
    """Write a bundle, or complete one that was interrupted.

    Args:
        files: Compose files; the files beside them that they mount are taken along, but no keys.
        images: references of images in the local Docker engine.
        checkpoint: a directory to copy; hard-linked if it is on the same disk.
        wheels: include this kit and its dependencies, for this Python and processor.
        key: an SSH private key to sign SHA256SUMS with.

    Raises:
        UsageError: the directory contains a complete bundle already, or something else; two files of one name; a
            link that leads out of the checkpoint.
        ImageMissing, StorageError, ExtraMissing
    """
    _fresh(directory)
    compose = _with_mounted(files, note)
    weights = _without_links_out(checkpoint) if checkpoint is not None else {}
    with _storage(directory):
        writer = _Writer(directory, note)
        for name, file in compose.items():
            writer.copy(file, f"compose/{name}")
        bundled = [writer.image(reference) for reference in images]
        if wheels:
            writer.wheels()
        for name, file in weights.items():
            writer.copy(file, f"checkpoint/{name}")
        meta = {"schema": SCHEMA, "glm4_deploy": __version__, "images": [asdict(image) for image in bundled]}
        write_text(directory / META, json.dumps(meta, indent=2) + "\n")
        writer.add(META)
        writer.finish()
        if key is not None:
            _sign(directory, key)


def _with_mounted(files: Iterable[Path], note: Note) -> Mapping[str, Path]:
    """Name in the bundle → file: the Compose files, and the files beside each that it mounts.

    Raises:
        UsageError: two files with one name.
    """
    found: dict[str, Path] = {}
    for file in files:
        names = {file.name: file}
        for source in mounts_beside(file):
            if source.is_file():
                names[str(source.relative_to(file.parent))] = source
            else:
                note(f"not included: {source} (a directory beside {file.name}: keys are made on the other host)")
        for name, path in names.items():
            if name in found and found[name].resolve() != path.resolve():
                raise UsageError(
                    f"{found[name]} and {path} would both be compose/{name}",
                    hint="make a bundle for each, or rename one",
                )
            found[name] = path
    return found


def _without_links_out(checkpoint: Path) -> Mapping[str, Path]:
    """Name in the bundle → file of the checkpoint. Raises UsageError for a link that leads out of it."""
    home = checkpoint.resolve()
    homes = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    paths = sorted(path for path in checkpoint.rglob("*") if not path.is_dir())
    for path in paths:
        if not any(path.resolve().is_relative_to(one) for one in homes):
            raise UsageError(
                f"{path} is a link out of the checkpoint, to {str(path.readlink())[:200]!r}",
                hint="replace it with the file itself (cp -rL DIR DIR2), or remove it",
            )
        if not path.is_file():
            raise UsageError(f"{path} is not a file", hint="remove it from the checkpoint")
    return {f"{home.name}/{path.relative_to(checkpoint)}": path for path in paths}


def verify_bundle(directory: Path, *, signers: Path | None, note: Note) -> tuple[BundledImage, ...]:
    """Compare all files with SHA256SUMS: none missing, none extra. With `signers`, check the signature too.

    Args:
        signers: an allowed_signers file of OpenSSH.

    Raises:
        UsageError: no complete bundle there.
        Judged: a file that differs, is missing or is not listed; a signature that is missing or not by a signer.
    """
    if not directory.is_dir():
        raise UsageError(f"directory {directory} does not exist", hint="check the path")
    if not (directory / PART).exists() and not (directory / SUMS).exists():
        raise UsageError(
            f"{directory} does not contain a bundle: it has no {SUMS}", hint="check the path, or copy it again"
        )
    if (directory / PART).exists() or not (directory / SUMS).is_file():
        raise UsageError(f"the bundle in {directory} is not complete", hint="run `bundle create` again: it continues")
    if signers is not None:
        _check_signature(directory, signers)
    listed = dict(_lines(read_text(directory / SUMS)))
    present = {
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    wrong = [f"{name}: missing" for name in sorted(listed.keys() - present)]
    wrong += [f"{name}: not listed" for name in sorted(present - listed.keys() - {SUMS, SIGNATURE})]
    for name in sorted(listed.keys() & present):
        note(f"checking {name}")
        if (
            (directory / name).is_symlink()
            or not (directory / name).is_file()
            or _digest(directory / name) != listed[name]
        ):
            wrong.append(f"{name}: differs from {SUMS}")
    if wrong:
        raise Judged(f"{len(wrong)} file(s) of the bundle are not as created", details=wrong[:8], hint="copy it again")
    return _images(directory, frozenset(listed))


def load_bundle(directory: Path, *, signers: Path | None, note: Note) -> tuple[BundledImage, ...]:
    """Verify, then load the images that this Docker engine lacks, without any network.

    Raises:
        as `verify_bundle`; Judged: an image has another id after loading, or its file would name others.
    """
    images = verify_bundle(directory, signers=signers, note=note)
    client = connect(timeout=3600)
    for image in images:
        if _present(client, image):
            note(f"{image.reference} is here already")
            continue
        check_tags(directory / image.file, image)
        note(f"loading {image.reference}")
        with (directory / image.file).open("rb") as stream:
            try:
                client.images.load(stream)
            except DockerException as error:
                raise Judged(f"{image.file} cannot be loaded: {error}", hint="copy the bundle again") from error
        if not _present(client, image):
            raise Judged(f"{image.reference} does not have the id {image.id[:19]} after loading", hint="copy it again")
    return images


# How an archive says which names its images get: in `docker save`'s file, and in an OCI layout's index.
_NAMING = ("manifest.json", "index.json")
_OCI_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_LARGEST_INDEX = 1 << 20  # bytes


def check_tags(file: Path, image: BundledImage) -> None:
    """Raises Judged if loading the file would give another image's name to what is in it."""
    try:
        name = _short(image.reference.partition("@")[0])
        others = sorted(set(map(_short, _names_in(file))) - {name, name.rpartition(":")[2]})
    except (tarfile.TarError, EOFError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Judged(f"{image.file} is not an archive of an image", hint="do not load it; copy it again") from None
    if others:
        raise Judged(
            f"{image.file} would also name an image {others[0][:80]!r}, which the bundle does not list",
            hint="do not load it; ask who created it",
        )


def _short(name: str) -> str:
    """An image's name as Docker shows it: `caddy:2` for `docker.io/library/caddy:2`."""
    return name.removeprefix("docker.io/").removeprefix("library/")


def _names_in(file: Path) -> frozenset[str]:
    """The image names in an archive. Raises an error of `tarfile` or `json`, or KeyError if it has no list of them."""
    found: dict[str, Any] = {}
    with tarfile.open(file, "r:") as archive:
        for member in archive:
            name = normpath(member.name)
            if name in _NAMING and member.isfile() and member.size <= _LARGEST_INDEX:
                stream = archive.extractfile(member)
                found[name] = json.loads(stream.read() if stream else b"")
    tags = (tag for one in found["manifest.json"] for tag in one["RepoTags"] or ())
    rows = found.get("index.json", {}).get("manifests", ())
    named = ((row.get("annotations") or {}).get(key) for row in rows for key in _OCI_NAMES)
    return frozenset(map(str, (*tags, *filter(None, named))))


class _Writer:
    """Writes the files of a bundle, each completely or not at all, and records which are done."""

    def __init__(self, directory: Path, note: Note) -> None:
        self._directory = directory
        self._note = note
        directory.mkdir(parents=True, exist_ok=True)
        part = directory / PART
        self._done = dict(_lines(read_text(part))) if part.exists() else {}
        self._part = part.open("a", encoding="utf-8")

    def copy(self, source: Path, name: str) -> None:
        if self._is_done(name):
            return
        self._note(f"copying {name}")
        target = self._temporary(name)
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)
        self._publish(target, name)

    def image(self, reference: str) -> BundledImage:
        client = connect(timeout=3600)
        try:
            saved = client.images.get(reference)
        except ImageNotFound:
            raise ImageMissing(f"the image {reference} is not here", hint=f"docker pull {reference}") from None
        name = f"images/{''.join(c if c.isalnum() or c in '.-' else '_' for c in reference)}.tar"
        image = BundledImage(reference=reference, id=str(saved.id), file=name)
        if not self._is_done(name):
            self._note(f"saving {reference}")
            target = self._temporary(name)
            with target.open("wb") as stream:
                for chunk in saved.save(chunk_size=CHUNK, named=reference):
                    stream.write(chunk)
            self._publish(target, name)
        return image

    def wheels(self) -> None:
        """The wheels of this kit and of its dependencies."""
        if any(name.startswith("wheels/") for name in self._done):
            return
        self._note("collecting wheels")
        folder = self._temporary("wheels")
        shutil.rmtree(folder, ignore_errors=True)
        root = Path(__file__).parents[3]
        kit = str(root) if (root / "pyproject.toml").is_file() else f"glm4-deploy=={__version__}"
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--wheel-dir"]
        done = run_program(*command, str(folder), kit, timeout=WHEELS_SECONDS)
        if not done.ok:
            raise ExtraMissing(
                f"cannot collect the wheels: {done.last_line or 'pip failed'}",
                hint="pip and a package index are needed; --no-wheels leaves the wheels out",
            )
        for wheel in sorted(folder.iterdir()):
            target = self._directory / "wheels" / wheel.name
            target.parent.mkdir(exist_ok=True)
            wheel.replace(target)
        folder.rmdir()
        for wheel in sorted((self._directory / "wheels").iterdir()):
            self.add(f"wheels/{wheel.name}")

    def add(self, name: str) -> None:
        """Record a file as done."""
        self._done[name] = _digest(self._directory / name)
        self._part.write(f"{self._done[name]}  {name}\n")
        self._part.flush()
        os.fsync(self._part.fileno())

    def finish(self) -> None:
        self._part.close()
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(self._done.items()))
        write_text(self._directory / SUMS, text)
        (self._directory / PART).unlink()

    def _is_done(self, name: str) -> bool:
        return name in self._done and (self._directory / name).is_file()

    def _temporary(self, name: str) -> Path:
        """An unused path beside the target, for a file that is not complete yet."""
        target = self._directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.unlink(missing_ok=True) if not temporary.is_dir() else shutil.rmtree(temporary)
        return temporary

    def _publish(self, temporary: Path, name: str) -> None:
        temporary.replace(self._directory / name)
        self.add(name)


def _fresh(directory: Path) -> None:
    """Raises UsageError if a bundle cannot be created or completed in `directory`."""
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file", hint="name a directory with --output")
    if (directory / SUMS).exists():
        raise UsageError(
            f"{directory} contains a complete bundle already", hint="choose another --output, or remove it"
        )
    if directory.exists() and any(directory.iterdir()) and not (directory / PART).exists():
        raise UsageError(
            f"{directory} is not empty and does not contain a bundle", hint="choose a new directory with --output"
        )


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(name, digest) of each line. Raises UsageError for a name that would leave the directory."""
    for line in text.splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or name.startswith("/") or ".." in Path(name).parts:
            raise UsageError(f"{SUMS} contains an invalid line: {line[:60]!r}", hint="copy the bundle again")
        yield name, digest


def _images(directory: Path, listed: Set[str]) -> tuple[BundledImage, ...]:
    """The images of a verified bundle. Raises UsageError: an image whose file is not one of the bundle's."""
    try:
        meta: dict[str, Any] = json.loads(read_text(directory / META))
        if meta["schema"] > SCHEMA:
            raise UsageError(f"{META} was written by a newer glm4-deploy", hint="upgrade this one")
        images = TypeAdapter(tuple[BundledImage, ...]).validate_python(meta["images"], strict=False)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UsageError(f"{META} is damaged", hint="copy the bundle again") from None
    for image in images:
        if image.file not in listed:
            raise UsageError(f"{META} names {image.file[:60]!r}, which is not in the bundle", hint="do not load it")
    return images


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _present(client: Any, image: BundledImage) -> bool:
    with suppress(ImageNotFound):
        return bool(client.images.get(image.reference).id == image.id)
    return False


def _sign(directory: Path, key: Path) -> None:
    (directory / SIGNATURE).unlink(missing_ok=True)
    write_text(directory / SIGNATURE, sign_text(read_text(directory / SUMS), key, NAMESPACE))


def _check_signature(directory: Path, signers: Path) -> None:
    signature = directory / SIGNATURE
    if not signature.is_file():
        raise Judged("the bundle is not signed", hint="create it with `bundle create --sign KEY`")
    check_signed(f"the bundle's {SUMS}", read_text(directory / SUMS), read_text(signature), signers, NAMESPACE)


@contextmanager
def _storage(directory: Path) -> Iterator[None]:
    """Turn OSError into StorageError. What was written stays, and `create` continues from it."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {directory}: {error.strerror or error}",
            hint="free space and run it again: it continues where it stopped",
        ) from error
