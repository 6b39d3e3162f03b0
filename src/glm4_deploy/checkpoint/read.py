"""Read a checkpoint directory: its files, its JSON documents, the headers of its shards.

Nothing here judges: what cannot be read becomes a `Fault` with its reason, and the rules decide what it means. No
tensor is loaded; a checkpoint of 6.6 GiB takes milliseconds.
"""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from io import BufferedReader
from pathlib import Path
from typing import Any

from glm4_deploy.checkpoint.header import (
    LFS_MAGIC,
    Header,
    HeaderFault,
    LfsPointer,
    MalformedJsonError,
    Tensor,
    parse_object,
    parse_tokenizer,
    read_header,
)
from glm4_deploy.errors import ModelMissing
from glm4_deploy.files import hub_id_of

INDEX = "model.safetensors.index.json"
# name -> largest plausible size. GLM-4's tokenizer.json has 20 MB.
DOCUMENTS: Mapping[str, int] = {
    "config.json": 4 << 20,
    "generation_config.json": 1 << 20,
    "tokenizer_config.json": 16 << 20,
    "tokenizer.json": 128 << 20,
    INDEX: 16 << 20,
}
MAX_TEXT_BYTES = 1 << 20
MAX_FILES = 10_000
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
PARTIAL_SUFFIXES = (".incomplete", ".partial", ".part", ".tmp", ".aria2", ".crdownload")
HUB_DOWNLOADS = Path(".cache/huggingface/download")  # unfinished files of `hf download --local-dir`


class Link(StrEnum):
    """Where a symlink leads; NONE for a plain file."""

    NONE = "none"
    INSIDE = "inside"
    HUB = "hub"  # the Hugging Face cache: snapshots/REV/file -> ../../blobs/HASH
    OUTSIDE = "outside"
    DANGLING = "dangling"


class FaultKind(StrEnum):
    LFS_POINTER = "lfs-pointer"
    UNREADABLE = "unreadable"
    MALFORMED = "malformed"
    TOO_LARGE = "too-large"
    LINK = "link"
    HEADER = "header"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A file that could not be read, and why, in one phrase."""

    file: str
    kind: FaultKind
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A regular file of the directory.

    Attributes:
        size: length in bytes.
        allocated: bytes on disk, fewer if the file is sparse.
        mtime: modification time, in nanoseconds since 1970.
        mode: permission bits.
    """

    name: str
    path: Path
    size: int
    allocated: int
    mtime: int
    mode: int
    link: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A safetensors file with a valid header."""

    file: File
    header: Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint directory.

    Attributes:
        unfinished: files that exist only while a download is in progress.
        shards: those that the engine loads: the ones that the index names, or all without an index.
        spare_shards: the others.
        documents: valid JSON objects by file name; of tokenizer.json only added_tokens.
        chat_template: from chat_template.jinja or tokenizer_config.json.
    """

    directory: Path
    files: tuple[File, ...]
    subdirectories: tuple[str, ...]
    unfinished: tuple[str, ...]
    shards: tuple[Shard, ...]
    spare_shards: tuple[Shard, ...]
    documents: Mapping[str, Mapping[str, Any]]
    chat_template: str | None
    readme: str | None
    faults: tuple[Fault, ...]

    @property
    def config(self) -> Mapping[str, Any] | None:
        return self.documents.get("config.json")

    @property
    def complete(self) -> bool:
        """Every shard that is present or that the index names has a valid header."""
        named = _named_shards(self.documents.get(INDEX)) or frozenset()
        valid = {shard.file.name for shard in self.shards}
        broken = any(fault.file.endswith(".safetensors") for fault in self.faults)
        return bool(valid) and named <= valid and not broken

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for shard in self.shards for tensor in shard.header.tensors)

    def file(self, name: str) -> File | None:
        return next((file for file in self.files if file.name == name), None)

    @property
    def fingerprint(self) -> str | None:
        """12 hex digits that change with config.json, a header or a size; None without a valid shard.

        It identifies the checkpoint, but does not prove that its bytes are intact: that takes a manifest.
        """
        if not self.shards:
            return None
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.file.name}\0{shard.file.size}\0{shard.header.digest}\n".encode(errors="replace"))
        config = self.file("config.json")
        if config and self.config is not None:
            with open_file(config.path) as file:
                digest.update(file.read(DOCUMENTS["config.json"]))
        return digest.hexdigest()[:12]


def no_checkpoint(directory: Path, what: str = "checkpoint") -> ModelMissing:
    """The error for a directory that does not exist: a hub's id in its place is recognised."""
    found = hub_id_of(directory)
    if found is None:
        return ModelMissing(f"no {what} at {directory}", hint=("check the path", "to fetch one: glm4-deploy pull"))
    return ModelMissing(
        f"no {what} at {directory}: {found} is a model's id on a hub, and a directory is needed",
        hint=f"fetch it: glm4-deploy pull {found}; then give the directory that it names",
    )


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint directory. Symlinks out of it are not followed, except into the blobs of a hub cache.

    Raises:
        ModelMissing: the directory does not exist, is empty or cannot be listed.
    """
    reader = _Reader(directory)
    files, subdirectories = reader.list_files()
    shards = tuple(
        shard for file in files if file.name.endswith(".safetensors") if (shard := reader.shard(file)) is not None
    )
    documents = {
        file.name: document
        for file in files
        if file.name in DOCUMENTS
        if (document := reader.document(file)) is not None
    }
    by_name = {file.name: file for file in files}
    named = _named_shards(documents.get(INDEX))
    return Checkpoint(
        directory=directory,
        files=files,
        subdirectories=subdirectories,
        unfinished=tuple(file.name for file in files if file.name.endswith(PARTIAL_SUFFIXES)) + reader.hub_downloads(),
        shards=tuple(shard for shard in shards if named is None or shard.file.name in named),
        spare_shards=tuple(shard for shard in shards if named is not None and shard.file.name not in named),
        documents=documents,
        chat_template=reader.text(by_name.get("chat_template.jinja"))
        or _template(documents.get("tokenizer_config.json", {})),
        readme=reader.text(by_name.get("README.md")),
        faults=tuple(reader.faults),
    )


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading, without hanging on a pipe or device. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return os.fdopen(descriptor, "rb")


def _named_shards(index: Mapping[str, Any] | None) -> frozenset[str] | None:
    """The shards that the index names; None without a valid index."""
    weight_map = (index or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        return None
    return frozenset(str(shard) for shard in weight_map.values())


def _template(tokenizer_config: Mapping[str, Any]) -> str | None:
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # Transformers' several named templates
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


class _Reader:
    """Reads one directory and collects its faults."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.faults: list[Fault] = []

    def fault(self, file: str, kind: FaultKind, reason: str) -> None:
        self.faults.append(Fault(file=file, kind=kind, reason=reason))

    def list_files(self) -> tuple[tuple[File, ...], tuple[str, ...]]:
        try:
            names = sorted(entry.name for entry in self.directory.iterdir())
        except FileNotFoundError:
            raise no_checkpoint(self.directory) from None
        except NotADirectoryError:
            raise ModelMissing(
                f"{self.directory} is a file, not a directory", hint="give the directory that has config.json"
            ) from None
        except OSError as error:
            raise ModelMissing(
                f"cannot list {self.directory}: {error.strerror or error}", hint="check its permissions"
            ) from None
        if not names:
            raise ModelMissing(f"{self.directory} is empty", hint="download the checkpoint into it")
        if len(names) > MAX_FILES:
            raise ModelMissing(
                f"{self.directory} has {len(names)} entries: not a checkpoint", hint="give the model's own directory"
            )
        entries = [self.entry(name) for name in names]
        files = tuple(entry for entry in entries if isinstance(entry, File))
        return files, tuple(entry for entry in entries if isinstance(entry, str))

    def entry(self, name: str) -> File | str | None:
        """A File, the name of a subdirectory, or None after recording a fault."""
        path = self.directory / name
        try:
            link = self.link(path)
            if link in (Link.OUTSIDE, Link.DANGLING):
                where = "to nothing" if link is Link.DANGLING else "out of the directory"
                self.fault(name, FaultKind.LINK, f"a symlink {where}: {str(path.readlink())!r}")
                return None
            status = path.stat()
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symlinks
            self.fault(name, FaultKind.UNREADABLE, f"unreadable: {getattr(error, 'strerror', None) or error}")
            return None
        if stat.S_ISDIR(status.st_mode):
            return name
        if not stat.S_ISREG(status.st_mode):
            self.fault(name, FaultKind.UNREADABLE, "neither a file nor a directory")
            return None
        return File(
            name=name,
            path=path,
            size=status.st_size,
            allocated=status.st_blocks * 512,
            mtime=status.st_mtime_ns,
            mode=stat.S_IMODE(status.st_mode),
            link=link,
        )

    def hub_downloads(self) -> tuple[str, ...]:
        """Unfinished downloads of `hf download --local-dir`."""
        try:
            paths = sorted((self.directory / HUB_DOWNLOADS).glob("*.incomplete"))
        except OSError:
            return ()
        return tuple(str(path.relative_to(self.directory)) for path in paths)

    def link(self, path: Path) -> Link:
        if not path.is_symlink():
            return Link.NONE
        target, home = path.resolve(), self.directory.resolve()
        if not target.exists():
            return Link.DANGLING
        if target.is_relative_to(home):
            return Link.INSIDE
        if home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs":
            return Link.HUB
        return Link.OUTSIDE

    def read(self, file: File, limit: int) -> bytes | None:
        """The bytes of a small file, or None after recording a fault."""
        if file.size > limit:
            self.fault(file.name, FaultKind.TOO_LARGE, f"{file.size} bytes (limit {limit})")
            return None
        try:
            with open_file(file.path) as stream:
                data = stream.read(limit + 1)
        except OSError as error:
            self.fault(file.name, FaultKind.UNREADABLE, f"unreadable: {error.strerror or error}")
            return None
        if data.startswith(LFS_MAGIC):
            self.fault(file.name, FaultKind.LFS_POINTER, f"a Git LFS pointer of {len(data)} bytes")
            return None
        return data

    def document(self, file: File) -> Mapping[str, Any] | None:
        data = self.read(file, DOCUMENTS[file.name])
        if data is None:
            return None
        try:
            return parse_tokenizer(data) if file.name == "tokenizer.json" else parse_object(data)
        except MalformedJsonError as error:
            self.fault(file.name, FaultKind.MALFORMED, str(error))
            return None

    def text(self, file: File | None) -> str | None:
        data = self.read(file, MAX_TEXT_BYTES) if file else None
        return data.decode("utf-8", errors="replace") if data else None

    def shard(self, file: File) -> Shard | None:
        try:
            with open_file(file.path) as stream:
                return Shard(file=file, header=read_header(stream, size=file.size, shard=file.name))
        except LfsPointer as error:
            self.fault(file.name, FaultKind.LFS_POINTER, str(error))
        except HeaderFault as error:
            self.fault(file.name, FaultKind.HEADER, str(error))
        except OSError as error:
            self.fault(file.name, FaultKind.UNREADABLE, f"unreadable: {error.strerror or error}")
        return None
