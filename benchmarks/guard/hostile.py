"""What hostile sides cost the guard: its peak memory and the time until each is over.

    python -m benchmarks.guard.hostile

A separate guard in the mode `cut`, for each side in turn, over real sockets; under two minutes on an idle machine.
"""

import argparse
import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.guard.delay import free_port, process

MiB = 1 << 20
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nconnection: close\r\n%s\r\n"
STREAM, JSON = HEAD % (b"text/event-stream", b""), HEAD % (b"application/json", b"")
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
BODY = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}).encode()
ASK = CHAT + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


class Engine:
    """Answers every request with the pieces that `answer` yields, as far as the other side takes them."""

    def __init__(self) -> None:
        self.answer: Callable[[], Iterator[bytes]] = lambda: iter(())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            for piece in self.answer():
                connection.sendall(piece)


def peak(pid: int) -> float:
    """The highest resident size so far, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def read_all(port: int, request: bytes) -> int:
    """Bytes of the answer to one request."""
    size = 0
    with socket.create_connection(("127.0.0.1", port)) as client, suppress(OSError):
        client.settimeout(120)
        client.sendall(request)
        while more := client.recv(MiB):
            size += len(more)
    return size


def hold(port: int, number: int, begun: bytes) -> int:
    """So many clients that begin a request and never end it; how many the guard let go on."""
    with ExitStack() as clients:
        begin = 0
        for _ in range(number):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.settimeout(5)
            with suppress(OSError):
                client.sendall(begun)
                begin += 1
        time.sleep(2)
        return begin


def endless(line: bytes) -> Callable[[], Iterator[bytes]]:
    def answer() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        while True:
            yield line

    return answer


def long_line() -> Iterator[bytes]:
    yield STREAM + b"data: "
    for _ in range(2 << 10):
        yield b"x" * MiB


def bomb() -> Iterator[bytes]:
    yield HEAD % (b"application/json", b"content-encoding: gzip\r\n")
    yield gzip.compress(bytes(256 * MiB)) * 4


def many_events() -> Iterator[bytes]:
    yield STREAM
    event = b'data: {"choices":[%s]}\n\n' % b",".join([b"{}"] * 300_000)
    for _ in range(20):
        yield event


SIDES: dict[str, tuple[Callable[[], Iterator[bytes]], Callable[[int], object]]] = {
    "an engine's line of 2 GiB": (long_line, lambda port: read_all(port, ASK)),
    "an engine's head of endless lines": (endless(b"x-more: 1\r\n"), lambda port: read_all(port, ASK)),
    "an engine's head of one endless line": (endless(b"x" * 4096), lambda port: read_all(port, ASK)),
    "an engine's answer that would unpack to 1 GiB": (bomb, lambda port: read_all(port, ASK)),
    "an engine's whole answer that is [[[[…": (
        lambda: iter((JSON, b"[" * (4 * MiB))),
        lambda port: read_all(port, ASK),
    ),
    "an engine's events of 300,000 choices each": (many_events, lambda port: read_all(port, ASK)),
    "100 clients with 0.9 MB of a head": (
        lambda: iter(()),
        lambda port: hold(port, 100, CHAT + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 15_000) for n in range(60))),
    ),
    "2,000 clients with half a line": (lambda: iter(()), lambda port: hold(port, 2000, CHAT + b"X-More: ")),
    "200 clients with 3 MB of a body of 4 MB": (
        lambda: iter(()),
        lambda port: hold(port, 200, CHAT + b"Content-Length: 4000000\r\n\r\n" + b" " * 3_000_000),
    ),
    "a client's request of {},{},{},… (4 MB)": (
        lambda: iter((JSON, b"{}")),
        lambda port: read_all(
            port, CHAT + b"Content-Length: 4000002\r\nConnection: close\r\n\r\n[{}" + b",{}" * 1_333_332 + b" ]x"
        ),
    ),
}


@contextmanager
def guard(engine: int) -> Iterator[tuple[int, int]]:
    """Its port and its process."""
    port = free_port()
    words = ("--engine", f"http://127.0.0.1:{engine}", "--port", str(port), "--metrics-port", str(free_port()))
    with process(sys.executable, "-m", "glm4_deploy", "guard", *words, "--mode", "cut", port=port) as pid:
        yield port, pid


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    engine = Engine()
    print("| side | MiB more at the peak | seconds | the guard answers after it |")
    print("|---|---|---|---|")
    for name, (answer, ask) in SIDES.items():
        with guard(engine.port) as (port, pid):
            engine.answer = lambda: iter((STREAM, b"data: [DONE]\n\n"))
            read_all(port, ASK)
            before, began, engine.answer = peak(pid), time.monotonic(), answer
            ask(port)
            seconds = time.monotonic() - began
            engine.answer = lambda: iter((STREAM, b"data: [DONE]\n\n"))
            alive = "yes" if read_all(port, ASK) > 100 else "no"
            print(f"| {name} | {peak(pid) - before:.0f} | {seconds:.1f} | {alive} |", flush=True)


if __name__ == "__main__":
    main()
