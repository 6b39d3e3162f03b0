"""Fetch a checkpoint from a model hub: one revision, resumed, each file checked against the hub's own hash.

The protocol is that of huggingface.co and its mirrors: `/api/models/ID/revision/REVISION` lists files with sizes and
hashes, `/ID/resolve/COMMIT/FILE` redirects to the bytes. Not done with huggingface_hub: since version 1 it deletes an
unfinished file when the process ends, so 6 GB would start again (huggingface_hub#4228), and it adds 20 MB.
"""

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx

from glm4_deploy import __version__
from glm4_deploy.errors import CheckpointRefused, ModelMissing, StorageError, Unreachable, UsageError
from glm4_deploy.files import HUB_ID
from glm4_deploy.text import one_line, strip_controls

PUBLISHED = "GizzmoShifu/glm-4-9b-chat-hf-nvfp4"  # the checkpoint whose model card this kit began with
ENDPOINT = "https://huggingface.co"
# Weights in formats that vLLM does not load where safetensors are beside them, and what is not part of a model.
LEFT_OUT = re.compile(r"(.*\.(bin|pth?|gguf|onnx|h5|msgpack|ckpt))|(\.gitattributes)|((original|onnx|\.cache)/.*)")
RETRIED = (408, 429, 500, 502, 503, 504)
UNFINISHED = ".incomplete"  # `checkpoint verify` knows it as an unfinished download
AT_ONCE = 4  # files
TRIES = 5  # in a row without a byte
CHUNK = 1 << 20
SPARE = 64 << 20  # bytes left free on the disk
MAX_LISTING = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a model.

    Attributes:
        size: bytes.
        sha256: of the bytes, for a large file (Git LFS).
        blob: Git's SHA-1 of a small file.
    """

    name: str
    size: int
    sha256: str | None
    blob: str | None

    def hasher(self) -> Any:
        """The hash that `expected` is of, before the first byte."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    @property
    def expected(self) -> str:
        return self.sha256 or self.blob or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model at one commit, and what of it will be fetched."""

    id: str
    commit: str
    licence: str | None
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.size for file in self.files)


def parse_id(text: str) -> tuple[str, str | None]:
    """`OWNER/NAME[@REVISION]`, also as an address of the hub → id and revision.

    Raises:
        UsageError: it is neither.
    """
    plain = re.sub(r"^(https?://[^/]+/|hf://(models/)?)", "", text).removesuffix("/")
    plain = re.sub(r"/(?:tree|resolve|blob)/([^/]+)(/.*)?$", r"@\1", plain)
    match = HUB_ID.fullmatch(plain)
    if match is None:
        raise UsageError(
            f"{text[:80]!r} is not a model's id", hint=f"write OWNER/NAME or OWNER/NAME@REVISION: {PUBLISHED}"
        )
    return match[1], match[2]


class Hub:
    """A model hub: that of HF_ENDPOINT, else huggingface.co. The token is HF_TOKEN, else what `hf auth login` stored.

    Args:
        pause: seconds before a second try; each further one waits as much longer.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *, pause: float = 1.0) -> None:
        environ = os.environ if environ is None else environ
        self.endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT
        self._pause = pause
        if environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            raise UsageError("HF_HUB_OFFLINE is set, so nothing may be fetched", hint="unset it, or use a bundle")
        if not re.fullmatch(r"https?://[!-~]+", self.endpoint):
            raise UsageError(f"HF_ENDPOINT {self.endpoint[:80]!r} is not an address", hint=f"for example {ENDPOINT}")
        token = _token(environ)
        self._client = httpx.Client(
            headers={"user-agent": f"glm4-deploy/{__version__}", "accept-encoding": "identity"}
            | ({"authorization": f"Bearer {token}"} if token else {}),  # httpx does not send it to another host
            follow_redirects=True,
            timeout=httpx.Timeout(30, connect=10),
            limits=httpx.Limits(max_connections=AT_ONCE + 1),
        )

    def close(self) -> None:
        self._client.close()

    def model(self, text: str) -> HubModel:
        """Look a model up; its revision becomes a commit.

        Raises:
            UsageError: not an id.
            ModelMissing: no such model or revision, or it is not open to this token.
            Unreachable: the hub does not answer.
        """
        name, revision = parse_id(text)
        path = f"/api/models/{name}/revision/{(revision or 'main').replace('/', '%2F')}"
        try:
            answer = self._client.get(f"{self.endpoint}{path}", params={"blobs": "true"})
        except httpx.HTTPError as error:
            raise self._silent(error) from None
        self._judge(answer, name, revision)
        try:
            found = _model(name, answer.json() if len(answer.content) <= MAX_LISTING else None)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Unreachable(
                f"{self.endpoint} answers, but not as a model hub does", hint="check HF_ENDPOINT, and any proxy"
            ) from None
        if not any(file.name == "config.json" for file in found.files):
            raise ModelMissing(f"{name} has no config.json, so it is not a checkpoint", hint=f"try {PUBLISHED}")
        return found

    def missing(self, model: HubModel, directory: Path, progress: Callable[[int, int], None]) -> tuple[HubFile, ...]:
        """The files that are not there, or differ from the hub's. Reads what is there.

        progress: bytes compared, and of how many.
        """
        there = [file for file in model.files if _size(directory / file.name) == file.size]
        total, done, sound = sum(file.size for file in there), 0, set()
        for file in there:
            if _digest(file, directory / file.name) == file.expected:
                sound.add(file.name)
            done += file.size
            progress(done, total)
        return tuple(file for file in model.files if file.name not in sound)

    def fetch(
        self, model: HubModel, wanted: tuple[HubFile, ...], directory: Path, progress: Callable[[int, int], None]
    ) -> None:
        """Fetch files into the directory. What an earlier call left unfinished is continued.

        Args:
            progress: bytes of `wanted` that are there, and of how many.

        Raises:
            StorageError: no room, or not writable.
            ModelMissing, Unreachable: as for `model`, or the connection was lost; what was fetched stays.
            CheckpointRefused: a file differs from the hub's hash twice.
        """
        check_room(wanted, directory)
        counter = _Counter(sum(file.size for file in wanted), progress)
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            jobs = [pool.submit(self._file, model, file, directory, counter) for file in wanted]
            for job in jobs:
                job.result()
        finally:
            counter.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _file(self, model: HubModel, file: HubFile, directory: Path, counter: "_Counter") -> None:
        target = directory / file.name
        part = target.with_name(target.name + UNFINISHED)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for last in (False, True):
                self._complete(model, file, part, counter)
                if _digest(file, part) == file.expected:
                    part.replace(target)
                    return
                part.unlink()
                if last:
                    raise CheckpointRefused(
                        f"{file.name} differs from the hash that the hub records ({file.expected})",
                        hint="the hub, a mirror or a proxy sends other bytes: try without HF_ENDPOINT or the proxy",
                    )
        except OSError as error:
            raise StorageError(
                f"cannot write {target}: {error.strerror or error}",
                hint="check free space and permissions, or --output",
            ) from None

    def _complete(self, model: HubModel, file: HubFile, part: Path, counter: "_Counter") -> None:
        """Append to the part until it is as long as the file. A try that brings the file no further is counted."""
        tries, best, trouble = 0, 0, ""
        part.touch()
        while (have := part.stat().st_size) != file.size:
            if have > file.size:
                os.truncate(part, 0)
                have = 0
            if have > best:
                tries, best = 0, have
            if tries == TRIES:
                raise Unreachable(f"{file.name}: {trouble}, {TRIES} times in a row", hint=AGAIN)
            if tries and counter.stopped.wait(self._pause * tries):
                raise Unreachable(f"{file.name}: stopped", hint=AGAIN)
            counter.at(file, have)
            tries += 1
            try:
                self._append(model, file, part, have, counter)
                trouble = "the connection was cut"
            except httpx.HTTPError as error:
                trouble = one_line(f"{type(error).__name__} {error}", 120)
        counter.at(file, file.size)

    def _append(self, model: HubModel, file: HubFile, part: Path, have: int, counter: "_Counter") -> None:
        """Ask for what is missing, and write what comes: at most the file's size.

        Raises:
            httpx.HTTPError, OSError, ModelMissing, Unreachable
        """
        url = f"{self.endpoint}/{model.id}/resolve/{model.commit}/{quote(file.name)}"
        headers = {"range": f"bytes={have}-"} if have else {}
        with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code in RETRIED:
                raise httpx.RemoteProtocolError(f"HTTP {answer.status_code}")
            if answer.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._judge(answer, model.id, model.commit)
            begins = _begins_at(answer)
            if begins != have:  # ranges are ignored, or another one came: from the start, if this is it
                os.truncate(part, 0)
                if begins != 0:
                    return
            with part.open("r+b") as stream:
                stream.seek(begins)
                for chunk in answer.iter_raw():
                    stream.write(chunk)
                    counter.at(file, stream.tell())
                    if counter.stopped.is_set() or stream.tell() > file.size:
                        return

    def _judge(self, answer: httpx.Response, name: str, revision: str | None) -> None:
        """Raises ModelMissing or Unreachable for anything but success."""
        if answer.is_success:
            return
        why, code = one_line(answer.headers.get("x-error-message", ""), 200), answer.headers.get("x-error-code", "")
        page = f"{self.endpoint}/{name}"
        if code == "RevisionNotFound":
            raise ModelMissing(f"{name} has no revision {revision!r}", hint=f"see {page}/commits/main")
        if code == "GatedRepo":
            raise ModelMissing(
                f"{name} is gated: {why or 'its terms must be accepted first'}",
                hint=(f"accept its terms at {page}, then set HF_TOKEN to a token of that account",),
            )
        if answer.status_code in (401, 403, 404):  # the hub answers 401 for what does not exist, too
            raise ModelMissing(
                f"{self.endpoint} has no model {name} that this token may read (HTTP {answer.status_code})",
                hint=("check the id", "for a private model set HF_TOKEN"),
            )
        raise Unreachable(f"{self.endpoint} answers HTTP {answer.status_code} for {name}", hint="try again later")

    def _silent(self, error: httpx.HTTPError) -> Unreachable:
        return Unreachable(
            f"{self.endpoint} does not answer: {one_line(str(error) or type(error).__name__, 160)}",
            hint=("check the network and any proxy", "for a mirror set HF_ENDPOINT"),
        )


AGAIN = "run it again: it continues where it stopped"


class _Counter:
    """Bytes of each file; reports the sum at most ten times a second. Its methods are called by several threads."""

    def __init__(self, total: int, progress: Callable[[int, int], None]) -> None:
        self._total, self._progress = total, progress
        self._at: dict[str, int] = {}
        self._lock, self._told = threading.Lock(), 0.0
        self.stopped = threading.Event()

    def at(self, file: HubFile, size: int) -> None:
        with self._lock:
            self._at[file.name] = size
            done, now = sum(self._at.values()), time.monotonic()
            if now - self._told >= 0.1 or done == self._total:
                self._told = now
                self._progress(done, self._total)


def check_room(wanted: tuple[HubFile, ...], directory: Path) -> None:
    """Raises StorageError if the disk has no room for what is still to come."""
    need = sum(file.size - min(_size(directory / (file.name + UNFINISHED)) or 0, file.size) for file in wanted)
    place = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if need and need + SPARE > free:
        raise StorageError(
            f"{need / 1e9:.2f} GB are to come, and {place} has {free / 1e9:.2f} GB free",
            hint="make room, or give another directory with --output",
        )


def _token(environ: Mapping[str, str]) -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := environ.get(name, "").strip():
            return token
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    with suppress(OSError, UnicodeDecodeError):
        return Path(environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser().read_text("ascii").strip() or None
    return None


def _model(name: str, found: Any) -> HubModel:
    """Raises ValueError, KeyError, TypeError or AttributeError for anything but a hub's description of a model."""
    commit = found["sha"]
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ValueError(commit)
    card = found.get("cardData") or {}
    licence = card.get("license_name") or card.get("license")
    files = tuple(_files(found["siblings"]))
    return HubModel(id=name, commit=commit, licence=str(licence) if licence else None, files=files)


def _files(siblings: Any) -> Iterator[HubFile]:
    rows = [row for row in siblings if not LEFT_OUT.fullmatch(row["rfilename"])]
    if not any(row["rfilename"].endswith(".safetensors") for row in rows):
        rows = [row for row in siblings if row["rfilename"] != ".gitattributes"]
    for row in rows:
        name, large = PurePosixPath(row["rfilename"]), row.get("lfs") or {}
        odd = "\\" in str(name) or len(str(name)) > 512 or strip_controls(str(name)) != str(name)
        if name.is_absolute() or ".." in name.parts or odd:
            raise ValueError(f"a file name leads out of the directory: {name}")
        sha256, blob = large.get("sha256"), row.get("blobId")
        if not isinstance(row["size"], int) or row["size"] < 0 or not (sha256 or blob):
            raise ValueError(str(name))
        yield HubFile(name=str(name), size=row["size"], sha256=sha256, blob=blob)


def _begins_at(answer: httpx.Response) -> int | None:
    """The first byte that comes; None: none that is of use."""
    if answer.status_code == httpx.codes.OK:
        return 0
    match = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
    return int(match[1]) if match and answer.status_code == httpx.codes.PARTIAL_CONTENT else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _digest(file: HubFile, path: Path) -> str:
    """In hex. Raises OSError."""
    hasher = file.hasher()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            hasher.update(chunk)
    return str(hasher.hexdigest())
