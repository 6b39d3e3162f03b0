"""What a deployment is doing right now, on disk: a kit that was killed in the middle leaves it behind for the next."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from glm4_deploy.engine.lock import held
from glm4_deploy.errors import DeployError
from glm4_deploy.files import write_text
from glm4_deploy.report.wire import dumps

NAME = "deploying.json"
SCHEMA = 1


class Stage(StrEnum):
    """In order. Up to PULL nothing has been touched; from RESTORE on the last good release is being put back."""

    PREPARE = "prepare"
    PULL = "pull"
    STOP = "stop"
    START = "start"
    GATE = "gate"
    RECORD = "record"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """what: `up` or `rollback`. at: UTC, for people. good: the release to go back to, or ''.

    unjudged: what ran when it began was itself left behind by a deployment that was cut off.
    """

    schema: int = SCHEMA
    what: str
    stage: Stage = Stage.PREPARE
    pid: int
    at: str
    good: str = ""
    unjudged: bool = False

    @property
    def touched(self) -> bool:
        """Whether what runs may be something that was never judged."""
        return self.unjudged or self.stage not in (Stage.PREPARE, Stage.PULL)


class Journal:
    """The journal of one deployment. The first entry must be written; later ones are kept as well as the disk lets."""

    def __init__(self, directory: Path, what: str, good: str) -> None:
        self._path = directory / NAME
        self._earlier = cut_off(directory)
        self._entry = Entry(
            what=what,
            pid=os.getpid(),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            good=good,
            unjudged=self._earlier is not None and self._earlier.touched,
        )
        write_text(self._path, dumps(self._entry) + "\n")

    def stage(self, stage: Stage, *, must: bool = False) -> None:
        """Enter a stage. Raises StorageError where it `must` be on disk: before the first thing is touched."""
        self._entry = replace(self._entry, stage=stage)
        if must:
            write_text(self._path, dumps(self._entry) + "\n")
        else:
            self._write(self._entry)

    def abandon(self) -> None:
        """Nothing was touched: what an earlier deployment left is still what is so."""
        if self._earlier is not None and self._earlier.touched:
            self._write(self._earlier)
        else:
            self.end()

    def _write(self, entry: Entry) -> None:
        with suppress(DeployError):  # a full disk: the earlier entry stays on record
            write_text(self._path, dumps(entry) + "\n")

    def end(self) -> None:
        """What the journal was for is settled."""
        forget(self._path.parent)


def forget(directory: Path) -> None:
    with suppress(OSError):
        (directory / NAME).unlink(missing_ok=True)


def cut_off(directory: Path) -> Entry | None:
    """The deployment that was cut off here, or None. Does not look whether one is still at work."""
    try:
        return TypeAdapter(Entry).validate_json((directory / NAME).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return Entry(what="up", stage=Stage.START, pid=0, at="an unknown time")  # damaged: the safe reading


def in_words(directory: Path, *, at_work: bool | None = None) -> tuple[str, bool]:
    """One sentence on a deployment under way or cut off ('' for none), and whether what runs was left unjudged.

    at_work: whether it still is at work; by default the lock tells.
    """
    entry = cut_off(directory)
    if entry is None:
        return "", False
    if held(directory) if at_work is None else at_work:
        return f"{entry.what} is at work in the stage `{entry.stage}` (pid {entry.pid}, since {entry.at})", False
    if not entry.touched:
        return f"{entry.what} was cut off in the stage `{entry.stage}` (since {entry.at}): nothing was changed", False
    back = f"; the last good release is {entry.good}: glm4-deploy rollback {entry.good}" if entry.good else ""
    words = f"{entry.what} was cut off in the stage `{entry.stage}` (since {entry.at}): what runs is not judged"
    return words + back, True
