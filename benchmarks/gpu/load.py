"""A plain load on a running engine: many streams in threads, the standard library alone."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request

from engines import Record, clock, used_mib


def warm_up(port: int) -> None:
    """One request, after which a tiny engine has all the memory that it will take."""
    body = {"model": "glm-4-tiny-chat", "prompt": "Count to ten.", "max_tokens": 8}
    with contextlib.suppress(OSError):
        urllib.request.urlopen(_request(port, body), timeout=15).read()  # noqa: S310 (http to loopback)


def one_stream(port: int, index: int, answers: list[tuple[float, int]]) -> None:
    """512 tokens in, 128 out: seconds to the first token, and how many came."""
    body = {
        "model": "glm-4-9b-chat",
        "prompt": [(index * 7 + i) % 150000 for i in range(512)],
        "max_tokens": 128,
        "ignore_eos": True,
        "stream": True,
        "temperature": 0.8,
    }
    began, first, chunks = time.monotonic(), -1.0, 0
    with urllib.request.urlopen(_request(port, body), timeout=60) as answer:  # noqa: S310 (http to loopback)
        for line in answer:
            if line.startswith(b"data: {"):
                first = first if chunks else time.monotonic() - began
                chunks += 1
    answers.append((first, chunks))


def bench_stage(record: Record, port: int, patience: float) -> None:
    """Tokens a second and the first token's time for 1, 16 and 64 users at once, each round once unrecorded first."""
    for users in (1, 16, 64):
        if clock() > patience:
            record.add("bench", f"users-{users}", skipped="no time left")
            return
        _round(port, users)
        answers, took = _round(port, users)
        first = sorted(seconds for seconds, _ in answers)
        record.add(
            "bench",
            f"users-{users}",
            requests=len(first),
            tokens_per_s=round(128 * len(first) / took, 1),
            ttft_ms_p50=round(1000 * first[len(first) // 2], 1) if first else None,
            chunks=sum(chunks for _, chunks in answers),
            used_mib=used_mib(),
        )


def _round(port: int, users: int) -> tuple[list[tuple[float, int]], float]:
    answers: list[tuple[float, int]] = []
    began = time.monotonic()
    threads = [threading.Thread(target=one_stream, args=(port, i, answers), daemon=True) for i in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers, time.monotonic() - began


def _request(port: int, body: dict[str, object]) -> urllib.request.Request:
    url = f"http://127.0.0.1:{port}/v1/completions"
    return urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
