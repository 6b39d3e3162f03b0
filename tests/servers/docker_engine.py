"""What the watch asks of Docker's engine, on its own socket: one container, its log, its restart; and its keeper."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glm4_deploy.deploy.docker import ContainerState

# What `docker inspect` says of a container, as far as this kit reads it.
STATE = {
    "Status": "running", "Running": True, "Paused": False, "Restarting": False, "OOMKilled": False, "Dead": False,
    "Pid": 4711, "ExitCode": 0, "Error": "", "StartedAt": "2026-11-28T20:00:00.123456789Z", "FinishedAt": "",
}  # fmt: skip
INSPECT = {
    "Id": "f00d", "Name": "/glm4", "Image": "sha256:1", "RestartCount": 0, "State": STATE,
    "Config": {"Image": "vllm", "Labels": {}, "Tty": False}, "HostConfig": {},
    "NetworkSettings": {"Ports": {}, "Networks": {}},
}  # fmt: skip


class DockerServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers as Docker's engine does, for one container. others: id → what inspects say, listed before it."""

    daemon_threads = True
    others: Mapping[str, Any] = MappingProxyType({})
    answer: Any = INSPECT
    log = b""  # one chunk, as Docker frames it
    cut = False  # the connection ends within the log
    stall: threading.Event | None = None  # where it ends so, it waits for this first
    on_log: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, path: Path) -> None:
        self.asked: list[str] = []
        super().__init__(str(path), Handler)

    def handle_error(self, *_: object) -> None: ...


class Handler(BaseHTTPRequestHandler):
    server: DockerServer

    def do(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if path.endswith("/version"):
            body: Any = {"ApiVersion": "1.43", "MinAPIVersion": "1.24", "Version": "24.0"}
        elif path.endswith("/containers/json"):
            body = [{"Id": name} for name in (*self.server.others, "f00d")]
        elif path.endswith("/json"):
            body = self.server.others.get(path.split("/")[-2], self.server.answer)
        else:
            body = {}
        if path.endswith("/logs"):
            self.server.on_log()
        data = b"" if path.endswith(("/restart", "/stop")) else json.dumps(body).encode()
        if path.endswith("/logs"):
            data = b"\1\0\0\0" + len(self.server.log).to_bytes(4) + self.server.log if self.server.log else b""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        cut = self.server.cut and path.endswith("/logs")
        self.send_header("Content-Length", str(len(data) + cut))
        self.end_headers()
        self.wfile.write(data)
        if cut and self.server.stall is not None:
            self.wfile.flush()
            self.server.stall.wait(60)
        self.close_connection = cut

    do_GET = do_HEAD = do_POST = do  # noqa: N815 (its names)

    def log_message(self, *_: object) -> None: ...

    def address_string(self) -> str:
        return "a socket"


class RunningKeeper:
    """Stands for the keeper of a container that runs: its restarts succeed, once they are counted."""

    def __init__(self) -> None:
        self.restarts: list[str] = []  # why

    def state(self) -> ContainerState:
        return ContainerState(
            id="x", name="x", image="x", image_id="x", status="running", started_at=0.0, restarts=0,
            exit_code=None, oom_killed=False, health=None, ports=(), restart_policy="no",
        )  # fmt: skip

    def restart(self, why: str, begin: Callable[[], None]) -> Path:
        begin()
        self.restarts.append(why)
        return Path("log")

    def roll_back(self, why: str) -> str:
        raise AssertionError("nothing rolls back here")


@contextmanager
def running(path: Path) -> Iterator[DockerServer]:
    """A server at that socket, which is gone afterwards."""
    with DockerServer(path) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
            path.unlink()
