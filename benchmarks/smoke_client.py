"""What the smoke client costs compared with a bare httpx loop, on one machine in one run.

    python -m benchmarks.smoke_client [--base-url URL]

A server in a separate process sends tokens in vLLM's format, with logprobs and token ids. `bare` is httpx alone, `ours`
is Client.ask_stream. TTFT: 300 single streams of each client, in turn, so that other load on the machine affects both
alike; the median of each, and of the differences of the pairs. CPU time per token: 64 concurrent streams of 100 tokens
per second, each client in a separate process; medians over the rounds.

With --base-url the server is a real engine that serves glm-4-9b-chat.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx

Ask = Callable[[int], Awaitable[float]]  # tokens → TTFT in seconds
STREAMS = 64
SINGLE = 300  # pairs of single streams
TOKENS = 500
TOKEN_S = 0.01
BODY = {"model": "glm-4-9b-chat", "messages": [{"role": "user", "content": "go"}], "ignore_eos": True}


def event(number: int) -> bytes:
    """One chunk as vLLM 0.32 sends it, logprobs and token ids included."""
    logprob = {"token": " word", "logprob": -0.123456789, "bytes": [32, 119, 111, 114, 100]}
    choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": None, "token_ids": [number % 9000 + 10]}
    choice["logprobs"] = {"content": [logprob | {"top_logprobs": [logprob]}]}
    head = {"id": "chatcmpl-ae3de005cfbd7293", "object": "chat.completion.chunk", "created": 1, "model": BODY["model"]}
    return b"data: " + json.dumps(head | {"choices": [choice]}).encode() + b"\n\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A bare server, so that the client is the bottleneck: many requests per connection."""
    while head := await _head(reader):
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        tokens = json.loads(await reader.readexactly(length))["max_tokens"]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        begin = time.perf_counter()
        for number in range(tokens):
            chunk = event(number)
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await asyncio.sleep(max(0.0, begin + TOKEN_S * (number + 1) - time.perf_counter()))
        done = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(done), done))
        await writer.drain()
    writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).lower()
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


def serve(port: "multiprocessing.Queue[int]") -> None:
    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@asynccontextmanager
async def bare(url: str) -> AsyncIterator[Ask]:
    """httpx alone: raw bytes, nothing parsed."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False, verify=False) as client:  # noqa: S501

        async def ask(tokens: int) -> float:
            begin = time.perf_counter()
            first = 0.0
            body = {**BODY, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                async for _ in response.aiter_raw():
                    first = first or time.perf_counter() - begin
            return first

        yield ask


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Ask]:
    """The smoke client: chunks timed, split into events, parsed, assembled."""
    from glm4_deploy.probe.client import Client, ProbeTarget

    async with Client(ProbeTarget(base_url=url)) as client:

        async def ask(tokens: int) -> float:
            begin = time.perf_counter()
            sent = client.ask_stream("/v1/chat/completions", {**BODY, "max_tokens": tokens}, limit_s=60)
            answer = await sent
            assert 0 < len(answer.timing.arrivals) <= tokens  # an engine may send two tokens at once
            # The answer's clock starts inside the client; the time before that counts too.
            return time.perf_counter() - begin - (answer.timing.total - (answer.timing.ttft or 0.0))

        yield ask


async def pairs(url: str) -> tuple[float, float, float]:
    """Median TTFT of single streams, in seconds: bare, ours, and what ours adds."""
    async with bare(url) as ask_bare, ours(url) as ask_ours:
        await ask_bare(2), await ask_ours(2)
        times = [(await ask_bare(2), await ask_ours(2)) for _ in range(SINGLE)]
    added = statistics.median(mine - theirs for theirs, mine in times)
    return statistics.median(theirs for theirs, _ in times), statistics.median(mine for _, mine in times), added


async def cost(kind: str, url: str) -> float:
    """CPU seconds per token over many concurrent streams."""
    async with {"bare": bare, "ours": ours}[kind](url) as ask:
        await ask(2)
        before = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.gather(*(ask(TOKENS) for _ in range(STREAMS)))
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu / (STREAMS * TOKENS)


def child(kind: str, url: str, out: "multiprocessing.Queue[float]") -> None:
    out.put(asyncio.run(cost(kind, url)))


def run(kind: str, url: str) -> float:
    """In a separate process, so that neither client pays for the other's garbage."""
    out: multiprocessing.Queue[float] = multiprocessing.Queue()
    process = multiprocessing.Process(target=child, args=(kind, url, out))
    process.start()
    seconds = out.get(timeout=180)
    process.join()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of the CPU measurement (3)")
    parser.add_argument("--base-url", help="a real engine instead of the bare server")
    args = parser.parse_args()
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    if not args.base_url:
        server.start()
    url = args.base_url or f"http://127.0.0.1:{port.get(timeout=10)}"
    ttft = asyncio.run(pairs(url))
    costs: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(args.rounds):
        for kind, values in costs.items():
            values.append(run(kind, url))
    tokens = [statistics.median(values) for values in costs.values()]
    tokens.append(tokens[1] - tokens[0])
    print("| client | TTFT, ms | CPU per token, us | share of one core at 64 x 100 tokens/s |\n|---|---|---|---|")
    for kind, first, token in zip(("bare httpx", "smoke", "added"), ttft, tokens, strict=True):
        print(f"| {kind} | {1e3 * first:.2f} | {1e6 * token:.1f} | {100 * token * STREAMS / TOKEN_S:.1f} % |")
    if server.is_alive():
        server.terminate()


if __name__ == "__main__":
    main()
