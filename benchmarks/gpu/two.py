"""Two GPUs: one engine on both (TP 2, DP 2) against two engines behind vLLM's router, and a router that loses one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from engines import Record, clock, end, fork, free_port, read, seen, serve, wait_for
from users import NAME, READY, ROOT, bench

USERS = "64,256"
FAILED = r"Engine core initialization failed"
FLAGS: dict[str, object] = {
    "load-format": "dummy",
    "quantization": "compressed-tensors",
    "kv-cache-dtype": "fp8",
    "max-model-len": 4096,
    "max-num-seqs": 256,
    "gpu-memory-utilization": 0.75,
    "no-enable-prefix-caching": None,
}


def two_stage(record: Record, models: Path, seconds: float) -> None:
    model = models / "9b-nvfp4"
    both = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    replicas(record, models, model, both, seconds)
    for name, flag in (("dp2", "data-parallel-size"), ("tp2", "tensor-parallel-size")):
        if clock() > seconds - 110:
            record.add("two", name, skipped="no time left")
            continue
        port, log = free_port(), record.logs / f"two-{name}.log"
        pid = fork(log, serve(model, NAME, {**FLAGS, flag: 2}, port))
        how = wait_for(log, pid, (READY, FAILED), max(10, seconds - clock() - 40))
        record.add("two", name, how=how, **seen(read(log)))
        if how == READY:
            bench(record, models, f"two-{name}", port, "128", "128", USERS, seconds)
        end(pid)
        record.pack()


def on(gpu: str, work: Callable[[], object]) -> Callable[[], object]:
    def pinned() -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        work()

    return pinned


def replicas(record: Record, models: Path, model: Path, gpus: list[str], seconds: float) -> None:
    ports, logs = [free_port() for _ in gpus], [record.logs / f"two-replica-{gpu}.log" for gpu in gpus]
    pids = [
        fork(log, on(gpu, serve(model, NAME, FLAGS, port))) for gpu, log, port in zip(gpus, logs, ports, strict=True)
    ]
    try:
        hows = [wait_for(log, pid, (READY, FAILED), 150) for log, pid in zip(logs, pids, strict=True)]
        record.add("two", "replicas", how=hows, **seen(read(logs[0])))
        if hows != [READY] * len(hows):
            return
        bench(record, models, "two-one-engine", ports[0], "128", "128", USERS, seconds)
        front = free_port()
        router = start_router(record, front, ports)
        try:
            if not answers(f"http://127.0.0.1:{front}/readiness", 60):
                record.add("two", "router", how="never ready", said=read(record.logs / "router.log")[-800:])
                return
            bench(record, models, "two-replicas", front, "128", "128", USERS, seconds)
            record.add("two", "hung", **lose(front, lambda: freeze(pids[1], signal.SIGSTOP), 25))
            freeze(pids[1], signal.SIGCONT)
            time.sleep(5)
            record.add("two", "killed", **lose(front, lambda: os.killpg(pids[1], signal.SIGKILL), 20))
        finally:
            router.kill()
            router.wait()
    finally:
        for pid in pids:
            end(pid)


def start_router(record: Record, port: int, engines: list[int]) -> subprocess.Popen[bytes]:
    """With the options that the kit renders."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.router import rendered

    words = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), *rendered()]
    words += ["--worker-startup-check-interval", "1", "--worker-urls", *(f"http://127.0.0.1:{one}" for one in engines)]
    with (record.logs / "router.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "vllm_router.launch_router", *words], stdout=log, stderr=subprocess.STDOUT
        )


def answers(url: str, patience: float) -> bool:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=3) as answer:  # noqa: S310 (loopback)
            if answer.status == 200:
                return True
        time.sleep(0.3)
    return False


def freeze(pid: int, sign: signal.Signals) -> None:
    """The engine core, not the server in front of it, whose /health goes on answering 200."""
    with contextlib.suppress(ProcessLookupError):
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid and "Engine" in (path / "comm").read_text():
                    os.kill(int(path.name), sign)


def lose(front: int, harm: Callable[[], object], after: float) -> dict[str, object]:
    """32 clients for 8 s, then the harm, then `after` more seconds: requests sent, lost, and how long answers took."""
    rows: list[tuple[float, bool, float]] = []
    going = threading.Event()
    going.set()

    def client(number: int) -> None:
        body = {"model": NAME, "prompt": f"w{number} " * 60, "max_tokens": 64, "ignore_eos": True}
        while going.is_set():
            began, good = time.monotonic(), False
            request = urllib.request.Request(
                f"http://127.0.0.1:{front}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                good = answer.status == 200 and bool(answer.read())
            rows.append((began, good, time.monotonic() - began))
            if not good:
                time.sleep(0.2)

    clients = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(32)]
    for one in clients:
        one.start()
    time.sleep(8)
    harmed = time.monotonic()
    harm()
    time.sleep(after)
    going.clear()
    for one in clients:
        one.join(32)
    before = [row for row in rows if row[0] + row[2] < harmed]
    since = [row for row in rows if row[0] + row[2] >= harmed]
    lost = [row for row in since if not row[1]]
    return {
        "before": len(before),
        "lost_before": sum(not row[1] for row in before),
        "since": len(since),
        "lost": len(lost),
        "last_loss_s": round(max((row[0] + row[2] - harmed for row in lost), default=0.0), 1),
        "slowest_s": round(max((row[2] for row in since), default=0.0), 1),
    }
