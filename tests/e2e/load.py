"""A continuous load: how many requests were sent, which were lost, and how long the slowest took."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from e2e.engine import NAME

PAUSE_S = 0.5  # between two requests of a client: an engine that starts meanwhile needs the cores too


@dataclass(kw_only=True)
class Load:
    """What became of the requests."""

    sent: int = 0
    lost: list[str] = field(default_factory=list)
    """One line each, with what came instead of an answer."""
    worst: float = 0.0
    """Seconds of the slowest request."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, took: float, lost: str) -> None:
        with self.lock:
            self.sent += 1
            self.worst = max(self.worst, took)
            self.lost += [lost] if lost else []

    def __str__(self) -> str:
        return f"{self.sent} sent, {len(self.lost)} lost, the slowest took {self.worst:.1f} s"


@contextmanager
def load(base_url: str, key: str, *, clients: int = 2, stream: bool = False) -> Iterator[Load]:
    """`clients` threads that send one request after another; at the end each waits for its last answer."""
    result, stop = Load(), threading.Event()
    threads = [
        threading.Thread(target=_ask, args=(base_url, key, number, stream, result, stop)) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask(base_url: str, key: str, number: int, stream: bool, result: Load, stop: threading.Event) -> None:
    with httpx.Client(
        base_url=base_url, timeout=180, trust_env=False, headers={"authorization": f"Bearer {key}"}
    ) as client:
        turn = 0
        while not stop.is_set():
            turn += 1
            began = time.monotonic()
            lost = _lost(client, f"{number} {turn} Count from 1 to 30", stream)
            result.count(time.monotonic() - began, lost)
            stop.wait(PAUSE_S)


def _lost(client: httpx.Client, words: str, stream: bool) -> str:
    """What came instead of a whole answer; '' if that came."""
    body: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": words}], "max_tokens": 40}
    try:
        answer = client.post(
            "/v1/chat/completions", json=body | {"temperature": 0, "ignore_eos": True, "stream": stream}
        )
        if stream:
            whole = answer.text.endswith("data: [DONE]\n\n")
        else:
            whole = answer.status_code == 200 and bool(answer.json()["choices"][0]["message"]["content"])
        return "" if whole else f"HTTP {answer.status_code}: {answer.text[-200:]}"
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        return repr(error)[:200]
