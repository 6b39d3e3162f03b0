"""Serve an ASGI app with uvicorn on a real socket, in a thread, for as long as a `with` block lasts."""

import atexit
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import uvicorn


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """Yields the base URL. port: 0 for any free one."""
    # With an explicit protocol asyncio sets TCP_NODELAY; otherwise each small write would wait 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", timeout_graceful_shutdown=1, http="h11", ws="none", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    limit = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < limit, "the test server did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        listener.close()


# Twins break off answers on purpose; uvicorn's messages about that would hide the failures that matter.
logging.getLogger("uvicorn.error").disabled = True


class _Mounts:
    """Many apps behind one server, each under its own prefix: a server for each test would cost 0.2 s."""

    def __init__(self) -> None:
        self.apps: dict[str, Any] = {}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        _, prefix, path = scope["path"].split("/", 2)
        await self.apps[prefix]({**scope, "path": f"/{path}"}, receive, send)


_mounts = _Mounts()


@cache
def _shared_url() -> str:
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(serving(_mounts))


@contextmanager
def mounted(app: Any) -> Iterator[str]:
    """Like `serving`, on a server that all tests of a run share: the base URL has a path."""
    prefix = f"app{len(_mounts.apps)}"
    _mounts.apps[prefix] = app
    yield f"{_shared_url()}/{prefix}"


@contextmanager
def raw_server(handle: Any) -> Iterator[str]:
    """A plain TCP server: `handle(connection)` runs in its own thread for each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def accept() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_handled, args=(handle, connection), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _handled(handle: Any, connection: socket.socket) -> None:
    with connection:
        try:
            handle(connection)
        except OSError:
            return
