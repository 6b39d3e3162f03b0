"""Tell somebody: the delivery of messages, through Apprise.

A message is written to disk before it is sent, and sent again until the service takes it: a watch that is killed loses
none. Addresses hold passwords and tokens: they are read from a file, and no message, event or error shows more of one
than its scheme.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import TypeAdapter, ValidationError

from glm4_deploy.errors import ExtraMissing, Locked, StorageError, UsageError
from glm4_deploy.files import read_text, remove_leftovers, write_text
from glm4_deploy.watch.cause import Cause
from glm4_deploy.watch.incident import Damper, Damping, Memory, Notification, now
from glm4_deploy.watch.judge import WatchVerdict
from glm4_deploy.watch.kept import boot_id

# Where to send it.

HINT = "one address per line, for example jsons://host/path or ntfys://ntfy.sh/TOPIC: docs/how-to/notify.md"
MAX_ADDRESSES = 20
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20}):/")


class Service(Protocol):
    """One address. send: '' if the service took the message, else why not, without anything secret."""

    key: str
    label: str

    def send(self, message: Notification) -> str: ...


class AppriseService:
    """One address of Apprise. key: a digest of it. label: its line and scheme."""

    def __init__(self, line: int, address: str) -> None:
        """Raises UsageError: Apprise does not know it. ExtraMissing: there is no Apprise."""
        try:
            import apprise
        except ImportError:
            raise ExtraMissing(
                "notifications need Apprise", hint="pip install 'glm4-deploy[notify]', or use the kit's image"
            ) from None
        log = logging.getLogger("apprise")
        log.propagate = False  # its messages contain addresses
        log.addHandler(_REASONS)
        scheme = SCHEME.match(address)
        self.label = f"{scheme[1].lower()} (line {line})" if scheme else f"line {line}"
        self.key = hashlib.sha256(address.encode()).hexdigest()[:16]
        asset = apprise.AppriseAsset(app_id="glm4-deploy", app_desc="glm4-deploy watch", app_url="", async_mode=False)
        service = None
        with suppress(Exception):
            service = apprise.Apprise.instantiate(address, asset=asset)
        if service is None:
            raise UsageError(f"{self.label} of the notification file is no address that Apprise knows", hint=HINT)
        self._notify = service.notify

    def send(self, message: Notification) -> str:
        _REASONS.status.code = None
        try:
            taken = self._notify(title=message.title, body=message.text, notify_type=message.kind)
        except Exception as error:  # noqa: BLE001 (190 services: none may end the watch, or name its address)
            return f"{type(error).__name__} in Apprise"
        code = _REASONS.status.code
        return "" if taken else f"HTTP {code}" if code else "no answer, or refused"


class _Reasons(logging.Handler):
    """Of what Apprise says about a failure, keeps the HTTP status alone: the rest may show an address."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.status = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):
            if match := re.search(r"error=([1-5][0-9]{2})\b", record.getMessage()):
                self.status.code = match[1]


_REASONS = _Reasons()


def read_services(file: Path) -> tuple[AppriseService, ...]:
    """The addresses of a file: one per line, `#` begins a comment line.

    Raises:
        UsageError: it cannot be read, has no address, too many, or one that Apprise does not know.
        ExtraMissing: Apprise is not installed.
    """
    lines = ((number, line.strip()) for number, line in enumerate(read_text(file).splitlines(), 1))
    found = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not 0 < len(found) <= MAX_ADDRESSES:
        raise UsageError(f"{file} has {len(found)} addresses, not 1 to {MAX_ADDRESSES}", hint=HINT)
    return tuple(AppriseService(number, line) for number, line in found)


def send_test(services: Iterable[Service], name: str) -> dict[str, str]:
    """Send a test message to each address. Returns its label → why it failed, '' where it was taken."""
    text = f"This is a test of glm4-deploy watch.\ntime: {now()}"
    message = Notification(id="test", title=f"{name}: test message", text=text, kind="info")
    return {one.label: one.send(message) for one in services}


# The outbox: what is to be sent, on disk, and the thread that sends it.

FILE = "notify/messages.json"
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 300.0
SAVE_AGAIN_S = 30.0  # after a save that the disk refused
KEPT = 100  # messages; beyond them the oldest is dropped, and counted
_CODEC: TypeAdapter[Memory] = TypeAdapter(Memory)


class Notifier:
    """Takes verdicts and events; sends messages from its own thread, so that no service can delay the watch.

    A message is sent at least once: one that a service took in the instant in which the watch was killed is sent again,
    with the same `message: ID`.
    """

    def __init__(
        self,
        services: tuple[Service, ...],
        *,
        name: str,
        directory: Path,
        registry: CollectorRegistry,
        emit: Callable[..., None],
        damping: Damping,
        retry_s: float = FIRST_RETRY_S,
        save_s: float = SAVE_AGAIN_S,
        cause: Callable[..., Cause | None] = lambda _wait_s=None: None,
    ) -> None:
        """cause: what the log says of the present incident; it may take seconds, or those that it is called with.

        Raises Locked: another watch notifies from this directory. StorageError: it cannot be written.
        """
        self._cause = cause
        self._services, self._emit, self._retry_s, self._save_s = services, emit, retry_s, save_s
        self._file = directory / FILE
        self._lock = _only_one(self._file.with_suffix(".lock"))
        self._sent = Counter("glm4_watch_notifications", "Attempts by outcome", ("outcome",), registry=registry)
        self._pending = Gauge("glm4_watch_notifications_pending", "Messages to deliver", registry=registry)
        self._unsaved = Gauge("glm4_watch_notifications_unsaved", "1 if they cannot be saved", registry=registry)
        for outcome in ("sent", "failed", "dropped"):
            self._sent.labels(outcome)
        self.memory = _load(self._file)
        self._damper = Damper(name, self.memory, damping)
        self._changed = threading.Condition()  # guards the memory
        self._ending, self._saved, self._save_at = False, True, 0.0
        self._thread = threading.Thread(target=self._deliver, daemon=True, name="notify")
        self._thread.start()

    def see(self, verdict: WatchVerdict, at: float) -> None:
        with self._changed:
            self._post(self._damper.see(verdict, at))

    def event(self, name: str, fields: dict[str, Any]) -> None:
        with self._changed:
            done = self.memory.done
            self._post(self._damper.event(name, fields, time.monotonic()))
            if self.memory.done is not done:  # each change is a new list; its length has a limit
                self._save()

    async def following(self, verdicts: AsyncIterator[WatchVerdict]) -> AsyncIterator[WatchVerdict]:
        """The same verdicts, each of them seen."""
        async for verdict in verdicts:
            self.see(verdict, time.monotonic())
            yield verdict

    def hearing(self, emit: Callable[..., None]) -> Callable[..., None]:
        """The same writer of events, each of them heard."""

        def both(event: str, /, **fields: Any) -> None:
            emit(event, **fields)
            self.event(event, fields)

        return both

    def end(self, wait_s: float = 10.0) -> None:
        """Try what is left once more; what then remains is sent by the next watch of this directory."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(wait_s)
        with self._changed:
            if not self._saved:
                self._save()
        os.close(self._lock)

    def _post(self, message: Notification | None) -> None:
        if message is None:
            return
        box = self.memory.outbox
        if message.asks:  # what the log says from now on is of this one
            box[:] = [replace(one, asks=False) for one in box]
        box.append(replace(message, to=tuple(one.key for one in self._services)))
        while len(box) > KEPT:
            box.pop(0)
            self._sent.labels("dropped").inc()
        self._save()
        self._changed.notify()

    def _save(self) -> None:
        """Write the memory; on a full disk the messages are sent all the same, and it is written once there is room."""
        self._pending.set(len(self.memory.outbox))
        try:
            write_text(self._file, json.dumps(asdict(self.memory), ensure_ascii=False), mode=0o600)
        except StorageError as error:
            if self._saved:
                self._emit("notify-unsaved", why=error.message)
            self._saved, self._save_at = False, time.monotonic() + self._save_s
        else:
            self._saved = True
        self._unsaved.set(not self._saved)

    def _deliver(self) -> None:
        lines = {one.key: _Line(service=one) for one in self._services}
        while True:
            with self._changed:
                # At once, also where no address is due: later the log may tell of another incident.
                asks = next((one.id for one in self.memory.outbox if one.asks), "")
                job = None if asks else self._next(lines)
                if job is None and not asks:
                    if self._ending:
                        return
                    due = [lines[key].due for one in self.memory.outbox for key in one.to]
                    due += () if self._saved else (self._save_at,)
                    self._changed.wait(max(min(due) - time.monotonic(), 0.0) if due else None)
                    if not self._saved and time.monotonic() >= self._save_at:
                        self._save()
                    continue
            if job is None:
                self._find_cause(asks)
                continue
            message, line = job
            failure = line.service.send(message)
            with self._changed:
                self._note(message, line, failure)

    def _find_cause(self, asks: str) -> None:
        """Of the message with that id."""
        found = self._cause(0.0) if self._ending else self._cause()
        why, fix = (f"{found.finding}: {found.why}", found.fix) if found else ("", "")
        with self._changed:
            box = self.memory.outbox
            box[:] = [one.with_cause(why, fix) if one.asks and one.id == asks else one for one in box]
            self._save()

    def _next(self, lines: dict[str, "_Line"]) -> tuple[Notification, "_Line"] | None:
        """The oldest message of the first address that is due; at the end, those that fail are left to the next watch.

        Addresses that are gone from the file are forgotten.
        """
        if gone := {key for one in self.memory.outbox for key in one.to} - lines.keys():
            self._drop(gone)
        at = time.monotonic()
        for key, line in lines.items():
            first = next((one for one in self.memory.outbox if key in one.to), None)
            if first is not None and line.due <= at and not (self._ending and line.wait_s):
                return first, line
        return None

    def _note(self, message: Notification, line: "_Line", failure: str) -> None:
        self._sent.labels("failed" if failure else "sent").inc()
        if not failure:
            line.wait_s = line.due = 0.0
            self._drop({line.service.key}, message.id)
            self._emit("notified", to=line.service.label, title=message.title, message=message.id)
            return
        if not line.wait_s:
            self._emit("notify-failed", to=line.service.label, why=failure)
        line.wait_s = min(max(2 * line.wait_s, self._retry_s), LAST_RETRY_S)
        line.due = time.monotonic() + line.wait_s

    def _drop(self, keys: set[str], only: str = "") -> None:
        """These addresses no longer lack the message, or any message."""
        box = (
            replace(one, to=tuple(key for key in one.to if key not in keys)) if only in ("", one.id) else one
            for one in self.memory.outbox
        )
        self.memory.outbox[:] = [one for one in box if one.to]
        self._save()


@dataclass(slots=True, kw_only=True)
class _Line:
    """An address and its retries: the pause after its last failure (0: none) and when it is tried again."""

    service: Service
    wait_s: float = 0.0
    due: float = 0.0


def _load(file: Path) -> Memory:
    """The memory of the last watch; an empty one if there is none that can be read."""
    memory = Memory()
    with suppress(OSError, ValidationError):
        memory = _CODEC.validate_json(file.read_bytes())
        memory.outbox = [replace(one, asks=False) for one in memory.outbox]  # the log may tell of another incident now
    if memory.boot != boot_id():
        memory.boot, memory.began, memory.relapses, memory.xids = boot_id(), [], {}, {}
    return memory


def _only_one(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="check the directory's owner") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Locked(
            f"another watch already notifies from {path.parent}", hint="stop it, or give this one another --state-dir"
        ) from None
    remove_leftovers(path.parent)
    return descriptor
