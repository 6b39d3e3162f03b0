"""What the guard adds: time to first token, time between tokens, processor time, memory of idle streams.

    python -m benchmarks.guard.delay [--streams 64] [--rate 100] [--seconds 8] [--rounds 3] [--idle 1000]

Under four minutes with the defaults, on an idle machine; it prints the tables of docs/lab/guard.md.

One server replays streams at a fixed rate and writes into each token when it sent it; one client reads them directly,
through a bare pass-through (Starlette's ASGI server uvicorn with httpx), through Caddy (the one beside this Python, or
on PATH), and through the guard, in turns. Each is a separate process; a delay is from the server's write to the
client's read, on one clock. Server and client cost as little as they can, since they share the cores with what is
measured.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import uvloop

PAGES = sorted((Path(__file__).parents[2] / "docs/explanation").glob("*.md"))
WORDS = " ".join(page.read_text(encoding="utf-8") for page in PAGES).split()
EVENTS = [
    (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
        b'"delta":{"content":' + json.dumps(word + " ").encode() + b'},"logprobs":null,"finish_reason":null}],'
    ).replace(b"%", b"%%")
    + b'"sent":%.6f}\n\n'
    for word in WORDS
]
TURNS = count()
RID_S = 5.0
_BESIDE = Path(sys.executable).parent / "caddy"
CADDY = str(_BESIDE) if _BESIDE.exists() else shutil.which("caddy")
BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Tell me something."}]}


# The server that replays, and the bare pass-through.


_OPEN: set[asyncio.StreamWriter] = set()


async def replay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request: `x-rate` tokens a second for `x-seconds`; a rate of 0: one token, then silence.

    A GET is answered with the number of other requests that are open.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if head.startswith("get "):
        body = str(len(_OPEN)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()
        return
    _OPEN.add(writer)
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    await reader.readexactly(int(fields.get("content-length", 0)))
    rate, seconds = float(fields["x-rate"]), float(fields["x-seconds"])
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    begin, skipped = time.monotonic(), next(TURNS) * 1009
    try:
        for number in range(max(int(rate * seconds), 1)):
            await asyncio.sleep(begin + number / rate - time.monotonic() if rate else 0)
            data = EVENTS[(skipped + number) % len(EVENTS)] % time.monotonic()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
        if not rate:
            await reader.read()  # until the other side leaves
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
    except ConnectionError:
        pass
    finally:
        _OPEN.discard(writer)
        writer.close()


async def serve_replay(port: int) -> None:
    server = await asyncio.start_server(replay, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def serve_bare(port: int, engine: str) -> None:
    import uvicorn

    client = httpx.AsyncClient(base_url=engine, timeout=600, trust_env=False, limits=httpx.Limits(max_connections=None))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        async with client.stream("POST", scope["path"], content=body, headers=scope["headers"]) as answer:
            kept = [pair for pair in answer.headers.raw if pair[0].lower() != b"transfer-encoding"]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, lifespan="off", access_log=False, backlog=2048)


# The client.


async def read_one(port: int, rate: float, seconds: float, first: list[float], later: list[float]) -> None:
    raw = json.dumps(BODY).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}"
    asked = time.monotonic()
    writer.write(f"{head}\r\nX-Rate: {rate}\r\nX-Seconds: {seconds}\r\n\r\n".encode() + raw)
    began = False
    try:
        while True:
            line = await reader.readline()
            if line.startswith(b"data: {"):
                now = time.monotonic()
                if began:
                    later.append(now - float(line[line.rindex(b":") + 1 : line.rindex(b"}")]))
                else:
                    first.append(now - asked)
                    began = True
            elif not line or line.startswith(b"data: [DONE]"):
                break
    finally:
        writer.close()


async def load(port: int, streams: int, rate: float, seconds: float) -> tuple[list[float], list[float]]:
    first: list[float] = []
    later: list[float] = []

    async def one(number: int) -> None:
        await asyncio.sleep(number / streams / 2)  # not all at the same moment
        await read_one(port, rate, seconds, first, later)

    await asyncio.gather(*(one(number) for number in range(streams)))
    return first, later


async def idle(port: int, engine: int, streams: int, pid: int) -> tuple[int, str]:
    """Resident bytes that so many streams add, each with one token passed; when the engine is rid of them all."""
    before = resident(pid)
    first: list[float] = []
    tasks = [asyncio.create_task(read_one(port, 0, 0, first, [])) for _ in range(streams)]
    while len(first) < streams:
        await asyncio.sleep(0.1)
    after = resident(pid)
    for task in tasks:
        task.cancel()
    left = time.monotonic()
    await asyncio.gather(*tasks, return_exceptions=True)
    while (still := await open_at(engine)) and time.monotonic() - left < RID_S:
        await asyncio.sleep(0.01)
    gone = f"{still} still run after {RID_S:.0f} s" if still else f"the last ends after {time.monotonic() - left:.2f} s"
    return after - before, gone


async def open_at(engine: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", engine)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return int(answer.rpartition(b"\n")[2])


# Processes.


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def processor_s(pid: int) -> tuple[float, float]:
    """Seconds in the process's own code, and in the kernel for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK"), int(fields[12]) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def process(*words: str, port: int) -> Iterator[int]:
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert child.poll() is None and time.monotonic() < limit, words
            time.sleep(0.1)
        yield child.pid
    finally:
        child.kill()
        child.wait()


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def at(values: list[float], share: float) -> str:
    return f"{1000 * quantile(values, share):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("serve", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, port, *engine = options.serve
        uvloop.run(serve_replay(int(port))) if kind == "replay" else serve_bare(int(port), engine[0])
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    measure(options)


def measure(options: argparse.Namespace) -> None:
    ways = ("directly", "httpx", *(["Caddy"] if CADDY else []), "guard, off", "guard, observe", "guard, cut")
    ports = {way: free_port() for way in ways}
    python, url = (sys.executable, "-m"), f"http://127.0.0.1:{ports['directly']}"
    me, guard = (*python, "benchmarks.guard.delay"), (*python, "glm4_deploy", "guard", "--engine", url)
    before_all = os.getloadavg()[0]
    with ExitStack() as running:
        pids = {}
        for way, port in ports.items():
            words: dict[str, tuple[str, ...]] = {
                "directly": (*me, "replay", str(port)),
                "httpx": (*me, "bare", str(port), url),
                "Caddy": (CADDY or "", "reverse-proxy", "--from", f"http://:{port}", "--to", url),
            }
            mode = ("--mode", way.rpartition(" ")[2], "--port", str(port), "--metrics-port", str(free_port()))
            pids[way] = running.enter_context(process(*words.get(way, (*guard, *mode)), port=port))
        firsts: dict[str, list[float]] = {way: [] for way in ports}
        laters: dict[str, list[float]] = {way: [] for way in ports}
        own, kernel = dict.fromkeys(ports, 0.0), dict.fromkeys(ports, 0.0)
        tokens = dict.fromkeys(ports, 0)
        for _ in range(options.rounds):
            for way, port in ports.items():
                before = processor_s(pids[way])
                first, later = uvloop.run(load(port, options.streams, options.rate, options.seconds))
                after = processor_s(pids[way])
                own[way] += after[0] - before[0]
                kernel[way] += after[1] - before[1]
                tokens[way] += len(first) + len(later)
                firsts[way] += first
                laters[way] += later
        print("| way | TTFT p50, ms | p99 | write to read p50, ms | p99 | own CPU, µs a token | kernel, µs a token |")
        print("|---|---|---|---|---|---|---|")
        for way in ports:
            cells = [at(firsts[way], 0.5), at(firsts[way], 0.99), at(laters[way], 0.5), at(laters[way], 0.99)]
            cells += [f"{1e6 * seconds[way] / tokens[way]:.0f}" for seconds in (own, kernel)]
            print(f"| {way} | {' | '.join(cells)} |")
        print()
        goals(options, firsts, laters, {way: (own[way] + kernel[way]) / tokens[way] for way in ports})
        for way in ("guard, observe", "httpx"):
            more, gone = uvloop.run(idle(ports[way], ports["directly"], options.idle, pids[way]))
            print(f"- {options.idle} idle streams, {way}: {more / 2**20:.0f} MiB more;")
            print(f"  all clients leave at once: of the engine's requests {gone}")
        print(f"- load average: {before_all:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")


def goals(
    options: argparse.Namespace, firsts: dict[str, list[float]], laters: dict[str, list[float]], each: dict[str, float]
) -> None:
    """Print what the guard adds, against what it should: differences of quantiles within this run."""
    rate = options.streams * options.rate

    def added(values: dict[str, list[float]], share: float) -> float:
        return 1000 * (quantile(values["guard, observe"], share) - quantile(values["directly"], share))

    rows = [
        ("TTFT p50", f"{added(firsts, 0.5):.2f} ms", "1 ms"),
        ("TTFT p99", f"{added(firsts, 0.99):.2f} ms", "5 ms"),
        ("write to read p99", f"{added(laters, 0.99):.2f} ms", "2 ms"),
        (f"CPU at {rate:.0f} tokens/s", f"{100 * rate * each['guard, observe']:.0f} % of a core", "25 %"),
    ]
    print(f"| observing adds, at {options.streams} streams of {options.rate:.0f} tokens a second | measured | goal |")
    print("|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    ratios = [
        f"{each['guard, observe'] / each[way]:.2f} of {way}"
        for way in each
        if way not in ("directly", "guard, observe")
    ]
    print(f"\n- CPU a token, observing: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
