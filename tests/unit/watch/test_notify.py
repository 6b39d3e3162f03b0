"""Delivery to real HTTP and SMTP servers: once each, again after a failure or a kill, and no secret in the open."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from prometheus_client import CollectorRegistry

from glm4_deploy.errors import Locked, UsageError
from glm4_deploy.watch.incident import Damping
from glm4_deploy.watch.judge import State, WatchVerdict
from glm4_deploy.watch.notify import FILE, AppriseService, Notifier, read_services
from servers.broken import Hangs
from servers.reference import Reference
from servers.serve import serving

SECRET = "T0kenOfTheWebhook4711"
HUNG, OK = State.HUNG, State.OK


def wait_for(seen: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Inbox:
    """An HTTP server that keeps what it gets. status: what it answers; hold: it answers only once that is set."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], str]] = []
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                inbox.hold.wait(30)
                inbox.got.append((self.path, dict(self.headers), body))
                self.send_response(inbox.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def titles(self) -> list[str]:
        return [json.loads(body)["title"] for _, _, body in self.got]


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    one = Inbox()
    yield one
    one.hold.set()
    one.server.shutdown()
    one.server.server_close()


@contextmanager
def notifier(
    directory: Path, *addresses: str, **options: Any
) -> Iterator[tuple[Notifier, CollectorRegistry, list[Any]]]:
    registry, events = CollectorRegistry(), []
    services = tuple(AppriseService(line, address) for line, address in enumerate(addresses, 1))
    one = Notifier(
        services, name="glm4", directory=directory, registry=registry, damping=Damping(settle_s=0.0),
        emit=lambda event, /, **fields: events.append((event, fields)), **({"retry_s": 0.05} | options),
    )  # fmt: skip
    try:
        yield one, registry, events
    finally:
        one.end()


def verdict(state: State) -> WatchVerdict:
    return WatchVerdict(state=state, why="3 requests in the engine and no counter moved for 60 s", since=0.0)


def count(registry: CollectorRegistry, outcome: str) -> float | None:
    return registry.get_sample_value("glm4_watch_notifications_total", {"outcome": outcome})


def test_a_webhook_gets_json_with_the_diagnosis_and_the_next_command(inbox: Inbox, tmp_path: Path) -> None:
    with notifier(tmp_path, f"json://{inbox.address}/hooks/{SECRET}") as (one, registry, _):
        one.see(verdict(HUNG), 0.0)
        one.see(verdict(HUNG), 10.0)
        one.see(verdict(OK), 20.0)
    assert [path for path, _, _ in inbox.got] == [f"/hooks/{SECRET}"] * 2
    first, last = (json.loads(body) for _, _, body in inbox.got)
    assert (first["title"], first["type"]) == ("glm4 is hung", "failure")
    assert "no counter moved for 60 s" in first["message"]
    assert "next: glm4-deploy diagnose" in first["message"]
    assert (last["title"], last["type"]) == ("glm4 is well again", "success")
    assert count(registry, "sent") == 2
    assert registry.get_sample_value("glm4_watch_notifications_pending") == 0


def test_ntfy_slack_shaped_and_matrix_shaped_services_get_theirs(inbox: Inbox, tmp_path: Path) -> None:
    host = inbox.address
    addresses = (
        f"ntfy://{host}/glm4-alerts",
        f"mmost://{host}/{'a' * 24}",
        f"matrix://hook:{'b' * 64}@{host}?mode=slack",
    )
    with notifier(tmp_path, *addresses) as (one, _, events):
        one.see(verdict(HUNG), 0.0)
        wait_for(lambda: len(inbox.got) == 3 or any(event == "notify-failed" for event, _ in events))
        assert [fields for event, fields in events if event == "notify-failed"] == []
    bodies = {path.strip("/").partition("/")[0]: body for path, _, body in inbox.got}
    assert len(bodies) == 3
    assert all("no counter moved for 60 s" in body for body in bodies.values())


class Mails:
    """A mail server's handler that keeps each message."""

    def __init__(self) -> None:
        self.got: list[tuple[list[str], str]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 (aiosmtpd's name)
        self.got.append((envelope.rcpt_tos, envelope.content.decode()))
        return "250 OK"


def test_a_mail_server_gets_a_mail(port: int, tmp_path: Path) -> None:
    mails = Mails()
    server = Controller(mails, hostname="127.0.0.1", port=port)
    server.start()
    try:
        with notifier(tmp_path, f"mailto://127.0.0.1:{port}?from=watch@example.org&to=oncall@example.org") as (
            one,
            _,
            _,
        ):
            one.see(verdict(HUNG), 0.0)
    finally:
        server.stop()
    [(to, text)] = mails.got
    assert to == ["oncall@example.org"]
    assert "Subject: " in text
    assert "glm4 is hung" in text


def test_one_that_refuses_gets_it_later_and_keeps_nobody_waiting(inbox: Inbox, tmp_path: Path) -> None:
    other = Inbox()
    inbox.status = 503
    addresses = (f"json://{inbox.address}/{SECRET}", f"json://{other.address}/")
    with notifier(tmp_path, *addresses) as (one, registry, events):
        one.see(verdict(HUNG), 0.0)
        one.see(verdict(OK), 10.0)
        wait_for(lambda: len(other.got) == 2)
        wait_for(lambda: (count(registry, "failed") or 0) >= 2)
        inbox.status, refused = 200, len(inbox.got)
        wait_for(lambda: registry.get_sample_value("glm4_watch_notifications_pending") == 0)
        assert inbox.titles[refused:] == ["glm4 is hung", "glm4 is well again"]
        assert other.titles == ["glm4 is hung", "glm4 is well again"]
        failures = [fields for event, fields in events if event == "notify-failed"]
        assert failures == [{"to": "json (line 1)", "why": "HTTP 503"}], "reported once, with its status"
    other.server.shutdown()
    other.server.server_close()


def test_a_service_that_does_not_answer_does_not_hold_up_the_watch(inbox: Inbox, tmp_path: Path) -> None:
    inbox.hold.clear()
    with notifier(tmp_path, f"json://{inbox.address}/") as (one, registry, _):
        for second in range(0, 400, 10):
            one.see(verdict(HUNG if second % 20 else OK), float(second))
        assert count(registry, "sent") == 0, "all verdicts were taken while the first message is not"
        assert (registry.get_sample_value("glm4_watch_notifications_pending") or 0) >= 2
        inbox.hold.set()


def test_what_could_not_be_sent_is_sent_by_the_next_watch_once(inbox: Inbox, tmp_path: Path) -> None:
    address = f"json://{inbox.address}/{SECRET}"
    inbox.status = 500
    with notifier(tmp_path, address, retry_s=1000.0) as (one, registry, _):
        one.see(verdict(HUNG), 0.0)
        wait_for(lambda: count(registry, "failed"))
    stored = (tmp_path / FILE).read_text()
    assert SECRET not in stored
    assert (tmp_path / FILE).stat().st_mode & 0o77 == 0
    inbox.status, refused = 200, len(inbox.got)
    for _ in range(2):
        with notifier(tmp_path, address) as (one, registry, _):
            wait_for(lambda: registry.get_sample_value("glm4_watch_notifications_pending") in (0, None))
            one.see(verdict(HUNG), 0.0)
    assert inbox.titles[refused:] == ["glm4 is hung"]


def test_what_was_done_last_is_kept_at_once_however_much_was_done_before(inbox: Inbox, tmp_path: Path) -> None:
    with notifier(tmp_path, f"json://{inbox.address}/") as (one, _, _):
        for replica in map(str, range(12)):
            one.event("put-back", {"replica": replica})
            assert json.loads((tmp_path / FILE).read_bytes())["done"][-1].startswith(f"put-back {replica} ")


def test_two_watches_do_not_both_notify_from_one_directory(inbox: Inbox, tmp_path: Path) -> None:
    address = f"json://{inbox.address}/"
    with notifier(tmp_path, address), pytest.raises(Locked, match="another watch"), notifier(tmp_path, address):
        pass


def test_an_unreadable_memory_is_forgotten(inbox: Inbox, tmp_path: Path) -> None:
    for text in ("", "{", '{"outbox": 7}', '{"told": "nonsense"}', "\x00" * 100):
        (tmp_path / FILE).parent.mkdir(exist_ok=True)
        (tmp_path / FILE).write_text(text)
        with notifier(tmp_path, f"json://{inbox.address}/") as (one, _, _):
            one.see(verdict(HUNG), 0.0)
    assert inbox.titles == ["glm4 is hung"] * 5


@pytest.mark.parametrize("line", [f"nonsense://u:{SECRET}@host/x", f"json://u:{SECRET}@[::1/x", f"{SECRET}", "json://"])
def test_a_wrong_address_is_refused_without_showing_it(line: str, tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "notify"
    file.write_text(f"# who is told\n\n{line}\n")
    with pytest.raises(UsageError, match="line 3") as caught:
        read_services(file)
    shown = capfd.readouterr()
    assert SECRET not in "".join((str(caught.value), *caught.value.hints, shown.out, shown.err))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notify"
    file.write_text("# nobody\n")
    with pytest.raises(UsageError, match="0 addresses"):
        read_services(file)
    with pytest.raises(UsageError, match="cannot read"):
        read_services(tmp_path / "missing")


# The command, against an engine that falls ill.


class Engine:
    """A server that can be made to hang, and to be well again, as an ASGI app."""

    def __init__(self) -> None:
        self.hangs = False
        self.well, self.sick = Reference(), Hangs()
        self.sick.started = self.well.started

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await (self.sick if self.hangs else self.well)(scope, receive, send)


@pytest.fixture
def engine() -> Iterator[tuple[Engine, str]]:
    app = Engine()
    with serving(app) as url:
        yield app, url


class Command:
    """A running `glm4-deploy watch` that notifies."""

    def __init__(self, directory: Path, url: str, file: Path, port: int, stdout: Any = subprocess.PIPE) -> None:
        words = ["watch", "--json", "--base-url", url, "--interval", "0.5", "--stall", "2", "--canary-every", "1"]
        words += ["--grace", "0", "--port", str(port), "--notify-file", str(file), "--notify-settle", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glm4_deploy", *words], cwd=directory, stdout=stdout, stderr=subprocess.STDOUT
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_killed_watch_tells_each_change_once(
    engine: tuple[Engine, str], inbox: Inbox, port: int, tmp_path: Path
) -> None:
    app, url = engine
    file = tmp_path / "notify"
    file.write_text(f"json://{inbox.address}/{SECRET}\n")
    told = tmp_path / ".glm4" / FILE

    def quiet() -> bool:
        return bool(inbox.got) and json.loads(told.read_text())["outbox"] == []

    app.hangs = True
    watch = Command(tmp_path, url, file, port)
    try:
        wait_for(quiet)
        assert "is hung" in inbox.titles[-1]
        watch.kill()
        inbox.status = 503  # and the service is down when the next one starts
        watch = Command(tmp_path, url, file, port)
        app.hangs = False
        wait_for(lambda: len(inbox.got) > 1)
        watch.kill()
        inbox.status, refused = 200, len(inbox.got)
        watch = Command(tmp_path, url, file, port)
        wait_for(lambda: len(inbox.got) > refused and quiet())
        assert SECRET not in Path(f"/proc/{watch.process.pid}/cmdline").read_text()
        watch.process.terminate()
        out, _ = watch.process.communicate(timeout=30)
        assert SECRET not in out.decode()
        assert watch.process.returncode == 0
    finally:
        watch.kill()
    assert [title.rpartition(" is ")[2] for title in (inbox.titles[0], *inbox.titles[refused:])] == [
        "hung",
        "well again",
    ]
    assert SECRET not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path != file)


def test_the_test_message_says_which_address_took_it(inbox: Inbox, tmp_path: Path) -> None:
    file = tmp_path / "notify"
    file.write_text(f"json://{inbox.address}/{SECRET}\njson://127.0.0.1:1/{SECRET}\n")
    words = [sys.executable, "-m", "glm4_deploy", "watch", "--notify-file", str(file), "--test-notification"]
    done = subprocess.run([*words, "--notify-name", "lab"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["json (line 1): sent", "json (line 2): failed: no answer, or refused"]
    assert inbox.titles == ["lab: test message"]
    assert SECRET not in done.stdout + done.stderr
    alone = subprocess.run(
        [*words[:4], "--test-notification"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert alone.returncode == 2
    assert "--notify-file" in alone.stderr
