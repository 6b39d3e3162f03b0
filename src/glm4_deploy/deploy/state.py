"""The state directory: its lock, the journal of a running deployment, and the record of what was brought up last."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from glm4_deploy.deploy.endpoint import Endpoint, EngineKind, Started, record_of_schema_1
from glm4_deploy.errors import DeployError, Locked, StorageError, UsageError
from glm4_deploy.files import read_bytes, read_text, remove_leftovers, write_text
from glm4_deploy.plan.spec import DeploymentSpec
from glm4_deploy.report.wire import dumps
from glm4_deploy.result import Status
from glm4_deploy.settings import STATE_DIR
from glm4_deploy.text import one_line

# The lock: one command at a time. It is advisory, and the kernel drops it when its holder dies.

LOCK_FILE = "lock"


@contextmanager
def hold_lock(directory: Path, what: str) -> Iterator[None]:
    """Hold the directory's lock while the body runs.

    Its files may hold secrets: a new directory is for its owner only. What a killed command left half-written is
    removed.

    Raises:
        Locked: another process holds it; the message says which one, and what it does.
        StorageError: the directory cannot be created or written, or a file in it is a link.
    """
    path = directory / LOCK_FILE
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_links(directory)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "a+")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="check the directory's owner") from error
    with file:
        if not _take(file):
            file.seek(0)
            holder = file.read(200).strip() or "another glm4-deploy"
            raise Locked(f"{holder} is already running in {directory}", hint="wait until it ends, or stop it")
        remove_leftovers(directory)
        # On a full disk the lock holds without its label. Not through the file's buffer: closing would write it again.
        with suppress(OSError):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"`glm4-deploy {what}` (pid {os.getpid()})".encode())
        yield
        with suppress(OSError):
            os.ftruncate(file.fileno(), 0)


def _refuse_links(directory: Path) -> None:
    """A directory that came with a cloned repository may contain links that would make us overwrite other files."""
    for path in directory.iterdir():
        if path.is_symlink() and not path.is_dir():
            raise StorageError(
                f"{path} is a link to {str(path.readlink())[:200]!r}: this kit never makes one here",
                hint="remove it, unless someone here created it on purpose",
            )


def _take(file: TextIO) -> bool:
    """Retry briefly: `is_locked` takes the lock for a moment."""
    for _ in range(4):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def is_locked(directory: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        with (directory / LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# The journal names on disk what a deployment is doing; a killed one leaves it behind for the next command.

JOURNAL_FILE = "deploying.json"
JOURNAL_SCHEMA = 1


class JournalStage(StrEnum):
    """In order. Up to PULL nothing has been touched; in RESTORE the last good release is being put back."""

    PREPARE = "prepare"
    PULL = "pull"
    STOP = "stop"
    START = "start"
    GATE = "gate"
    RECORD = "record"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One deployment, and the stage it entered last."""

    schema: int = JOURNAL_SCHEMA
    what: str
    """`up` or `rollback`."""
    stage: JournalStage = JournalStage.PREPARE
    pid: int
    at: str
    """When it began: UTC, for people."""
    good: str = ""
    """The release to go back to; '' for none."""
    unjudged: bool = False
    """Whether what ran when it began had been left behind by a deployment that was cut off."""

    @property
    def touched(self) -> bool:
        """Whether what runs now may never have been judged."""
        return self.unjudged or self.stage not in (JournalStage.PREPARE, JournalStage.PULL)


class Journal:
    """The journal of one deployment. The first entry must be written; later ones may fail on a full disk."""

    def __init__(self, directory: Path, what: str, good: str) -> None:
        self._path = directory / JOURNAL_FILE
        self._earlier = interrupted_entry(directory)
        self._entry = JournalEntry(
            what=what,
            pid=os.getpid(),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            good=good,
            unjudged=self._earlier is not None and self._earlier.touched,
        )
        write_text(self._path, dumps(self._entry) + "\n")

    def stage(self, stage: JournalStage, *, must: bool = False) -> None:
        """Enter a stage. With `must`, raises StorageError if it cannot be written: before anything is touched."""
        self._entry = replace(self._entry, stage=stage)
        if must:
            write_text(self._path, dumps(self._entry) + "\n")
        else:
            self._write(self._entry)

    def abandon(self) -> None:
        """End without having touched anything: what an earlier deployment left is still the current state."""
        if self._earlier is not None and self._earlier.touched:
            self._write(self._earlier)
        else:
            self.end()

    def _write(self, entry: JournalEntry) -> None:
        with suppress(DeployError):  # a full disk: the earlier entry stays on record
            write_text(self._path, dumps(entry) + "\n")

    def end(self) -> None:
        """The deployment has ended, well or badly."""
        forget_journal(self._path.parent)


def forget_journal(directory: Path) -> None:
    with suppress(OSError):
        (directory / JOURNAL_FILE).unlink(missing_ok=True)


def interrupted_entry(directory: Path) -> JournalEntry | None:
    """The deployment in the journal, cut off or still at work; None for none."""
    try:
        if not (directory / JOURNAL_FILE).exists():
            return None
        return TypeAdapter(JournalEntry).validate_json(read_bytes(directory / JOURNAL_FILE))
    except (DeployError, ValidationError):
        # A damaged journal is read as the worst case: something was started and never judged.
        return JournalEntry(what="up", stage=JournalStage.START, pid=0, at="an unknown time")


def describe_journal(directory: Path, *, at_work: bool | None = None) -> tuple[str, bool]:
    """One sentence about a deployment at work or cut off ('' for none), and whether what runs was left unjudged.

    at_work: whether it is still at work; None: ask the lock.
    """
    entry = interrupted_entry(directory)
    if entry is None:
        return "", False
    entry = replace(entry, what=one_line(entry.what, 60), at=one_line(entry.at, 60), good=one_line(entry.good, 60))
    if is_locked(directory) if at_work is None else at_work:
        return f"{entry.what} is running in the stage `{entry.stage}` (pid {entry.pid}, since {entry.at})", False
    if not entry.touched:
        return f"{entry.what} was cut off in the stage `{entry.stage}` (since {entry.at}): nothing was changed", False
    back = f"; the last good release is {entry.good}: glm4-deploy rollback {entry.good}" if entry.good else ""
    sentence = f"{entry.what} was cut off in the stage `{entry.stage}` (since {entry.at}): the engine was not judged"
    return sentence + back, True


# The record, up.json: what this directory brought up last.

RECORD_SCHEMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The deployment that `status`, `logs`, `smoke` and `down` mean unless another is named."""

    schema: int = RECORD_SCHEMA
    endpoint: Endpoint
    files: tuple[str, ...] = ()
    """For `docker compose -f`, in order; none for a process."""
    started: Started | None = None
    """None until it has been started."""
    verdict: Status = Status.UNKNOWN
    ready_seconds: FiniteFloat | None = None
    release: str = ""
    """The id of what runs, once judged and recorded; '' after a failure."""


def save_record(record: Record, directory: Path = STATE_DIR) -> None:
    write_text(directory / "up.json", dumps(record) + "\n")


def load_record(directory: Path = STATE_DIR) -> Record | None:
    """The record; None if nothing was brought up from this directory. Reads schema 1 too.

    Raises:
        UsageError: the file is damaged, or a newer kit wrote it.
    """
    path = directory / "up.json"
    if not path.exists():
        return None
    try:
        content = json.loads(read_text(path))
        if content["schema"] > RECORD_SCHEMA:
            raise UsageError(f"{path} was written by a newer glm4-deploy", hint="upgrade this one")
        if content["schema"] == 1:
            content = record_of_schema_1(content)
        return TypeAdapter(Record).validate_python(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # Pydantic's are ValueErrors
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is damaged: {why}", hint="remove it: `glm4-deploy up` writes it again") from None


def expected_record(spec: DeploymentSpec) -> Record:
    """A record made from the settings, for containers that were started with plain Compose."""
    return Record(endpoint=Endpoint.of(spec, EngineKind.COMPOSE))


# A stop by the watch, because memory was running out: why, until something starts again.

STOP_FILE = "watch/stopped.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStop:
    """What the watch stopped, and why.

    Attributes:
        at: epoch seconds; of the last one, if several engines were stopped.
        what: the names of all that are down for it, the last one at the end.
        log: the file with the end of the last one's log.
    """

    schema: int = 1
    at: FiniteFloat
    what: tuple[str, ...]
    why: str
    remedy: str
    log: str


def save_stop(stop: MemoryStop, directory: Path) -> None:
    write_text(directory / STOP_FILE, dumps(stop) + "\n")


def load_stop(directory: Path, *, since: float, of: str = "") -> MemoryStop | None:
    """The stop that what was started at `since` (epoch seconds) ended with; None if there was none.

    of: the engine's name, where there may be several; '': whichever it was.
    """
    try:
        stop = TypeAdapter(MemoryStop).validate_json(read_bytes(directory / STOP_FILE))
    except (DeployError, ValidationError):
        return None
    return stop if stop.at >= since and (not of or of in stop.what) else None


def forget_stop(stop: MemoryStop | None, directory: Path) -> None:
    """Remove the note of that stop; one of a later stop stays."""
    found = load_stop(directory, since=0.0)  # the watch adds the log's path when the engine has ended
    if stop is not None and found is not None and (found.at, found.what) == (stop.at, stop.what):
        with suppress(OSError):
            (directory / STOP_FILE).unlink(missing_ok=True)


# What the watch on this host asked the engine last.

CANARY_FILE = "watch/canary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastCanary:
    """A canary and its outcome. at: UTC, for people."""

    schema: int = 1
    at: str
    name: str
    outcome: str
    why: str

    def __str__(self) -> str:
        said = self.outcome if self.why in ("", self.outcome) else f"{self.outcome} ({one_line(self.why, 120)})"
        return f"{said}: {one_line(self.name, 60)}, at {one_line(self.at, 40)}"


def save_canary(canary: LastCanary, directory: Path) -> None:
    with suppress(DeployError):  # a full disk, or no directory: the watch goes on
        write_text(directory / CANARY_FILE, dumps(canary) + "\n")


def load_canary(directory: Path) -> LastCanary | None:
    try:
        return TypeAdapter(LastCanary).validate_json(read_bytes(directory / CANARY_FILE))
    except (DeployError, ValidationError):
        return None
