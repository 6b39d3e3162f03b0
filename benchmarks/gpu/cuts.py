"""`guard --mode cut` in front of an engine whose model loops: what is cut, after how much, and whether its slot is
free for the next request."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from engines import Record, clock, end, fork, free_port, read, seen, serve, wait_for
from verdicts import NAME, READY

SLOTS, STREAMS, MAX_TOKENS = 16, 48, 3000
FLAGS: dict[str, object] = {
    "enforce-eager": None,
    "gpu-memory-utilization": 0.05,
    "kv-cache-memory-bytes": 2**30,
    "max-model-len": 4096,
    "max-num-seqs": SLOTS,
}
ASKED = ("Tell me of a lighthouse", "写一个故事", "Count the stars", "Why is the sky blue?", "List ten rivers")


def cuts_stage(record: Record, models: Path, seconds: float) -> None:
    """Three requests for each slot, through the guard and then directly: with no cut each takes all its tokens."""
    log, port, front, metrics = record.logs / "cuts.log", free_port(), free_port(), free_port()
    pid = fork(log, serve(models / "twin-loops", NAME, FLAGS, port))
    how = wait_for(log, pid, (READY, r"Engine core initialization failed"), max(10, min(120, seconds - clock() - 60)))
    record.add("cuts", "engine", how=how, **seen(read(log)))
    words = ["guard", "--engine", f"http://127.0.0.1:{port}", "--port", str(front), "--metrics-port", str(metrics)]
    with (record.logs / "cuts-guard.jsonl").open("w") as output:
        guard = subprocess.Popen(
            [sys.executable, "-m", "glm4_deploy", *words, "--mode", "cut"], stdout=output, stderr=output
        )
    try:
        if how == READY and _answers(front):
            for way, address in (("guard", front), ("directly", port)):
                if clock() < seconds - 60:
                    record.add("cuts", way, **_send(address, port))
            with contextlib.suppress(OSError):
                page = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5).read().decode()
                lines = [line for line in page.splitlines() if line.startswith("glm4_guard_") and "bucket" not in line]
                record.add("cuts", "the guard's metrics", lines=[line for line in lines if not line.endswith(" 0.0")])
    finally:
        guard.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(10)
        end(pid)


def _answers(port: int) -> bool:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=3).read()
            return True
        time.sleep(0.2)
    return False


def _send(address: int, engine: int) -> dict[str, Any]:
    before, began = _counter(engine, "vllm:generation_tokens_total"), time.monotonic()
    found: list[dict[str, Any]] = []
    threads = [threading.Thread(target=_stream, args=(address, number, found)) for number in range(STREAMS)]
    running: list[float] = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        running.append(_counter(engine, "vllm:num_requests_running"))
        time.sleep(0.2)
    took = time.monotonic() - began
    while _counter(engine, "vllm:num_requests_running") and time.monotonic() - began < took + 30:
        time.sleep(0.05)
    freed = time.monotonic() - began - took
    cut = [row["cut"] for row in found if row["cut"]]
    characters = sorted(one["characters"] for one in cut)
    return {
        "streams": len(found),
        "cut": len(cut),
        "verdicts": sorted({one["verdict"] for one in cut}),
        "characters_median": statistics.median(characters) if characters else None,
        "characters_range": [characters[0], characters[-1]] if characters else None,
        "finish": {
            str(reason): [row["finish"] for row in found].count(reason) for reason in {r["finish"] for r in found}
        },
        "seconds": round(took, 1),
        "engine_tokens": _counter(engine, "vllm:generation_tokens_total") - before,
        "most_running": max(running, default=0),
        "free_after_last_s": round(freed, 2),
        "seconds_each_median": round(statistics.median(row["seconds"] for row in found), 2) if found else None,
        "not_cut": [row["text"] for row in found if not row["cut"]][:3],
    }


def _counter(port: int, name: str) -> float:
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(f"{name}{{"))


def _stream(address: int, number: int, found: list[dict[str, Any]]) -> None:
    content = f"{ASKED[number % len(ASKED)]} ({number})"
    body = {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS, "stream": True}
    data = json.dumps({**body, "temperature": 0 if number % 2 else 0.7, "seed": number}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{address}/v1/chat/completions", data, {"Content-Type": "application/json"}
    )
    began, cut, finish, text = time.monotonic(), None, None, ""
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=200) as answer:  # noqa: S310
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            cut = chunk.get("glm4_guard") or cut
            for choice in chunk.get("choices", ()):
                finish = choice.get("finish_reason") or finish
                text += choice.get("delta", {}).get("content") or ""
    seconds = round(time.monotonic() - began, 2)
    found.append({"cut": cut, "finish": finish, "seconds": seconds, "text": text[-150:]})
