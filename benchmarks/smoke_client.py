"""What the smoke client costs beside a bare httpx loop, on one machine in one run.

    python -m benchmarks.smoke_client

A server in a process of its own sends 64 streams of 100 tokens a second, in vLLM's form, with logprobs and token ids.
Two clients in turn read them, each in a process of its own: `bare` (httpx, raw bytes, nothing parsed) and `ours`
(Client.ask_stream: stamped, cut into events, parsed, assembled). Reported: median TTFT, and CPU time a token, also as
a share of one core at the full rate (a share measured directly would stop at 100 %).
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

STREAMS = 64
TOKENS = 1000
TOKEN_S = 0.01
BODY = {
    "model": "glm-4-9b-chat",
    "messages": [{"role": "user", "content": "go"}],
    "max_tokens": TOKENS,
    "stream": True,
    "stream_options": {"include_usage": True},
}


def event(number: int) -> bytes:
    """One chunk as vLLM 0.32 sends it, logprobs and token ids included."""
    logprob = {"token": " word", "logprob": -0.123456789, "bytes": [32, 119, 111, 114, 100]}
    choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": None, "token_ids": [number % 9000 + 10]}
    choice["logprobs"] = {"content": [logprob | {"top_logprobs": [logprob]}]}
    head = {"id": "chatcmpl-ae3de005cfbd7293", "object": "chat.completion.chunk", "created": 1, "model": BODY["model"]}
    return b"data: " + json.dumps(head | {"choices": [choice]}).encode() + b"\n\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A bare server: the load must not be the server's own slowness."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    await reader.readexactly(length)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    begin = time.perf_counter()
    for number in range(TOKENS):
        chunk = event(number)
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        await asyncio.sleep(max(0.0, begin + TOKEN_S * (number + 1) - time.perf_counter()))
    done = b"data: [DONE]\n\n"
    writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(done), done))
    await writer.drain()
    writer.close()


def serve(port: "multiprocessing.Queue[int]") -> None:
    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def bare(url: str, streams: int) -> list[float]:
    """TTFT of each stream, read by httpx alone."""

    async def one(client: httpx.AsyncClient) -> float:
        begin = time.perf_counter()
        first = 0.0
        async with client.stream("POST", f"{url}/v1/chat/completions", json=BODY) as response:
            async for _ in response.aiter_raw():
                first = first or time.perf_counter() - begin
        return first

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False, verify=False) as client:  # noqa: S501
        return await asyncio.gather(*(one(client) for _ in range(streams)))


async def ours(url: str, streams: int) -> list[float]:
    """TTFT of each stream, asked through the smoke client."""
    from glm4_deploy.probe.client import Client
    from glm4_deploy.probe.target import Target

    async with Client(Target(base_url=url)) as client:
        body = {key: value for key, value in BODY.items() if key not in {"stream", "stream_options"}}
        jobs = (client.ask_stream("/v1/chat/completions", body, limit_s=60) for _ in range(streams))
        answers = await asyncio.gather(*jobs)
    assert all(len(answer.timing.arrivals) == TOKENS for answer in answers)
    return [answer.timing.ttft or 0.0 for answer in answers]


def measure(kind: str, url: str, streams: int, out: "multiprocessing.Queue[tuple[float, float]]") -> None:
    client = {"bare": bare, "ours": ours}[kind]
    asyncio.run(client(url, 1))  # imports and first connection
    before = resource.getrusage(resource.RUSAGE_SELF)
    ttft = asyncio.run(client(url, streams))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    out.put((statistics.median(ttft), cpu))


def run(kind: str, url: str, streams: int) -> tuple[float, float]:
    out: multiprocessing.Queue[tuple[float, float]] = multiprocessing.Queue()
    process = multiprocessing.Process(target=measure, args=(kind, url, streams, out))
    process.start()
    found = out.get(timeout=120)
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.get(timeout=10)}"
    print(f"{'':6} {'streams':>7} {'TTFT ms':>8} {'CPU % of a core':>16} {'us a token':>11}")
    for streams in (1, STREAMS):
        found = {kind: [run(kind, url, streams) for _ in range(rounds)] for kind in ("bare", "ours")}
        rows = {}
        for kind, values in found.items():
            ttft, cpu = (statistics.median(column) for column in zip(*values, strict=True))
            token = cpu / (streams * TOKENS)
            rows[kind] = (ttft * 1000, 100 * token * streams / TOKEN_S, 1e6 * token)
            print(f"{kind:6} {streams:7} {rows[kind][0]:8.2f} {rows[kind][1]:16.1f} {rows[kind][2]:11.1f}")
        added = [ours - bare for ours, bare in zip(rows["ours"], rows["bare"], strict=True)]
        print(f"{'added':6} {streams:7} {added[0]:8.2f} {added[1]:16.1f} {added[2]:11.1f}")
    server.terminate()


if __name__ == "__main__":
    main()
