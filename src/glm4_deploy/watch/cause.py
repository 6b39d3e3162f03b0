"""The root cause of an incident, from the end of the engine's log. Read in a thread: no verdict waits for it."""

import os
import struct
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from docker.errors import DockerException
from docker.models.containers import Container
from docker.types import CancellableStream

from glm4_deploy.deploy.docker import connect, find_container
from glm4_deploy.deploy.endpoint import EngineKind
from glm4_deploy.deploy.engines import PROCESS_LOG
from glm4_deploy.deploy.state import load_record
from glm4_deploy.logs.finding import UNKNOWN_ERROR
from glm4_deploy.logs.reader import LogReader
from glm4_deploy.logs.source import scan_log
from glm4_deploy.result import Status
from glm4_deploy.text import one_line, redact
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.incident import READS
from glm4_deploy.watch.judge import State, WatchVerdict

TAIL_LINES, TAIL_BYTES = 5000, 4 << 20
READ_S = 10.0  # for Docker's answer; the notifier waits half of it
WAIT_S = 5.0
# Before the last good verdict: a hang is noticed a minute after its cause was logged.
MARGIN_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What the log says, without secrets. finding: the id of its signature. fix: the first line of the remedy."""

    finding: str
    why: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """The end of a log. old: what was written before the incident, which says what engine it is, and is not a cause."""

    old: bytes = b""
    new: bytes = b""


def find_cause(tail: LogEnd) -> Cause | None:
    """What `diagnose` calls the root cause, if it was logged in this incident; errors that nobody knows are none."""
    reader = scan_log(LogReader(), (tail.old,))
    before = reader.lines
    scan_log(reader, (tail.new,))
    for row in reader.findings:
        known = row.status is Status.FAIL and not row.wrapper and row.id != UNKNOWN_ERROR
        if known and max(row.number, row.last) > before:
            fix = next(iter(row.fix.splitlines()), "")
            return Cause(finding=row.id, why=one_line(redact(row.cause), 300), fix=one_line(redact(fix), 300))
    return None


class EngineLog:
    """The log of what `up` started from a state directory, or of a named container; looked up each time.

    service: which of several engines.
    """

    def __init__(self, directory: Path, container: str | None = None, *, service: str = "") -> None:
        self._directory, self._container, self._service = directory, container, service

    def tail(self, since: float | None) -> LogEnd:
        """Its end. since: when the incident began, in epoch seconds, if known; a process has only the log of its start.

        Raises DeployError, DockerException, OSError: it cannot be read.
        """
        record = None if self._container else load_record(self._directory)
        if record is not None and record.endpoint.runner is EngineKind.PROCESS:
            return LogEnd(new=_end_of(self._directory / PROCESS_LOG))
        if record is None and self._container is None:
            return LogEnd()
        client = connect(timeout=READ_S)
        try:
            found = (
                client.containers.get(str(self._container))
                if record is None
                else find_container(client, record.endpoint.project, self._service or record.endpoint.service)
            )
            return _split(_last_bytes(found), since) if found else LogEnd()
        finally:
            client.close()


def _last_bytes(container: Container) -> bytes:
    """The last TAIL_BYTES of its last lines; less, if Docker breaks off or takes too long."""
    held: deque[bytes] = deque()
    size, deadline = 0, time.monotonic() + READ_S
    with suppress(DockerException, OSError, ValueError, struct.error):  # what was read before that may say enough
        stream = container.logs(stream=True, follow=False, timestamps=True, tail=TAIL_LINES)
        with _closed_after(stream, READ_S):
            for chunk in stream:
                held.append(chunk)
                size += len(chunk)
                while size - len(held[0]) >= TAIL_BYTES:
                    size -= len(held.popleft())
                if time.monotonic() > deadline:
                    break
    return b"".join(held)


@contextmanager
def _closed_after(stream: "CancellableStream[bytes]", limit_s: float) -> Iterator[None]:
    """Docker's client reads a stream without a limit: one that stalls would hold its thread for good."""

    def close() -> None:
        with suppress(Exception):  # it may just have ended
            stream.close()

    timer = threading.Timer(limit_s, close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end_of(path: Path) -> bytes:
    """The last TAIL_BYTES of a file, which may be cut or replaced meanwhile."""
    if not path.is_file():  # a pipe would never end
        return b""
    with path.open("rb") as file:
        begin = max(os.fstat(file.fileno()).st_size - TAIL_BYTES, 0)
        file.seek(begin)
        text = file.read(TAIL_BYTES)
    return text.partition(b"\n")[2] if begin else text


def _split(log: bytes, since: float | None) -> LogEnd:
    """By Docker's timestamps, which begin each line."""
    if since is None:
        return LogEnd(new=log)
    begin = datetime.fromtimestamp(max(since, 0.0), UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
    lines = log.split(b"\n")
    old = sum(line[: len(begin)] < begin for line in lines[:-1])
    return LogEnd(old=b"\n".join(lines[:old]), new=b"\n".join(lines[old:]))


class CauseFinder:
    """Reads the log when the engine falls ill, and again when the fault becomes another one.

    What it finds is an event `cause`, in /healthz while the engine is ill, and in messages.
    """

    def __init__(self, tail: Callable[[float | None], LogEnd], exporter: Exporter, emit: Callable[..., None]) -> None:
        self._tail, self._exporter, self._emit = tail, exporter, emit
        self._good_at: float | None = None
        self._asked: State | None = None
        self._incident = 0
        self._lock = threading.Lock()  # guards `found`: a thread may end after its incident
        self._thread: threading.Thread | None = None
        self.found: Cause | None = None

    async def following(self, verdicts: AsyncIterator[WatchVerdict]) -> AsyncIterator[WatchVerdict]:
        """The same verdicts, each of them seen."""
        async for verdict in verdicts:
            self.see(verdict, time.monotonic())
            yield verdict

    def see(self, verdict: WatchVerdict, at: float) -> None:
        """Begin to read, if this is the beginning of something. at: monotonic seconds."""
        if verdict.state.good:
            self._good_at = at
            if self._asked is not None or self.found is not None:
                with self._lock:
                    self._asked, self.found, self._exporter.cause = None, None, None
                    self._incident += 1
            return
        busy = self._thread is not None and self._thread.is_alive()
        if verdict.state not in READS or verdict.state is self._asked or busy:
            return
        self._asked = verdict.state
        since = None if self._good_at is None else time.time() - (at - self._good_at) - MARGIN_S
        thread = threading.Thread(target=self._read, args=(since, self._incident), daemon=True, name="cause")
        with suppress(RuntimeError):  # a host without room for one more
            thread.start()
            self._thread = thread

    def wait(self, wait_s: float | None = None) -> Cause | None:
        """What was found, if that is known within wait_s; None: WAIT_S."""
        if self._thread is not None:
            self._thread.join(WAIT_S if wait_s is None else wait_s)
        return self.found

    def _read(self, since: float | None, incident: int) -> None:
        with suppress(Exception):  # no log may end the watch: without a cause the message has its advice
            try:
                tail = self._tail(since)
            except Exception:
                with self._lock:
                    if incident == self._incident:
                        self._asked = None  # the next verdict asks again
                raise
            cause = find_cause(tail)
            with self._lock:
                if cause is None or cause == self.found or incident != self._incident:
                    return
                self.found, self._exporter.cause = cause, {"finding": cause.finding, "why": cause.why, "fix": cause.fix}
            self._emit("cause", finding=cause.finding, why=cause.why, hint=cause.fix)
