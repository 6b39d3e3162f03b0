"""The kit's verdicts on small engines: smoke and verify on healthy and sick ones, the watch on a frozen one."""

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
from pathlib import Path

from engines import Record, clock, end, fork, free_port, read, seen, serve, wait_for

NAME = "glm-4-tiny-chat"
READY = r"Application startup complete"
FLAGS: dict[str, object] = {
    "enforce-eager": None,
    "gpu-memory-utilization": 0.05,
    "kv-cache-memory-bytes": 2**28,
    "max-model-len": 2048,
    "max-num-seqs": 32,
}
WATCH = ("--interval", "1", "--stall", "10", "--canary-every", "15", "--canary-tokens", "128", "--port")


def kit(*arguments: str, log: Path, patience: float) -> tuple[int, float]:
    """Run a command of the kit; its exit code (-1: too slow) and seconds."""
    began = clock()
    words = [sys.executable, "-m", "glm4_deploy", *arguments]
    with log.open("w") as file:
        try:
            done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, timeout=patience, check=False)
        except subprocess.TimeoutExpired:
            return -1, clock() - began
    return done.returncode, clock() - began


def verdicts_stage(record: Record, models: Path, names: tuple[str, ...], backend: str | None, seconds: float) -> None:
    """The first name is the healthy model: it gets the full suite and the watch too. `NAME@BACKEND` as in `tiny`."""
    extra = {"attention-backend": backend} if backend else {}
    engines = {}
    for name in names:
        port = free_port()
        model, _, linear = name.partition("@")
        flags = {**FLAGS, **extra, **({"linear-backend": linear} if linear else {})}
        work = serve(models / model, NAME, flags, port)
        engines[name] = (port, fork(record.logs / f"serve-{name}.log", work))
    for name, (port, pid) in engines.items():
        how = wait_for(record.logs / f"serve-{name}.log", pid, (READY,), max(5, min(150, seconds - clock())))
        record.add("serve", name, how=how, **seen(read(record.logs / f"serve-{name}.log")))
        if how != READY:
            continue
        _smoke(record, name, port, "quick", seconds)
        code, took = kit(
            "checkpoint",
            "verify",
            str(models / name.partition("@")[0]),
            log=record.logs / f"verify-{name}.txt",
            patience=30,
        )
        words = [line for line in read(record.logs / f"verify-{name}.txt").splitlines() if "fail" in line.lower()]
        record.add("verify", name, exit=code, seconds=round(took, 2), failed=words[:5])
    port, pid = engines[names[0]]
    if clock() < seconds - 60:
        _smoke(record, names[0], port, "full", seconds)
    record.pack()
    if clock() < seconds - 75:
        freeze(record, port, pid)
    for _, pid in engines.values():
        end(pid)


def _smoke(record: Record, name: str, port: int, suite: str, seconds: float) -> None:
    text = record.logs / f"smoke-{suite}-{name}.txt"
    words = ["--suite", suite, "--timeout", "20", "--json", str(text.with_suffix(".json"))]
    patience = max(5, min(200, seconds - clock()))
    code, took = kit("smoke", "--base-url", f"http://127.0.0.1:{port}", *words, log=text, patience=patience)
    bad = [line.strip() for line in read(text).splitlines() if "FAIL" in line.upper()]
    record.add("smoke", name, suite=suite, exit=code, seconds=round(took, 1), failed=bad[:8])


def freeze(record: Record, port: int, pid: int) -> None:
    """Stop the engine core under load: seconds until the watch reports it, /health meanwhile, whether it recovers."""
    base, log = f"http://127.0.0.1:{port}", record.logs / "watch.jsonl"
    words = [sys.executable, "-m", "glm4_deploy", "watch", "--json", "--base-url", base, *WATCH, str(free_port())]
    going = threading.Event()
    going.set()
    with log.open("w") as file:
        watch = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
    for number in range(8):
        threading.Thread(target=_load, args=(base, number, going), daemon=True).start()
    time.sleep(18)  # until a canary has been sent and answered
    before, cores = _states(log), _cores(pid)
    stopped = time.monotonic()
    for core in cores:
        os.kill(core, signal.SIGSTOP)
    noticed = _until(log, before, 35, "hung")
    health = urllib.request.urlopen(f"{base}/health", timeout=3).status if cores else None  # noqa: S310 (loopback)
    took = time.monotonic() - stopped
    while_stopped = _states(log)
    for core in cores:
        os.kill(core, signal.SIGCONT)
    recovered = _until(log, while_stopped, 25, "ok")
    going.clear()
    watch.terminate()
    watch.wait(10)
    record.add(
        "watch",
        "engine core stopped",
        cores=len(cores),
        before=before,
        noticed=noticed,
        noticed_s=round(took, 1),
        health_meanwhile=health,
        recovered=recovered,
    )


def _states(log: Path) -> list[str]:
    rows = [json.loads(line) for line in read(log).splitlines() if line.startswith("{")]
    return [row["state"] for row in rows if row.get("event") == "state"]


def _until(log: Path, before: list[str], patience: float, state: str) -> str | None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if state in (states := _states(log)[len(before) :]):
            return " ".join(states)
        time.sleep(0.1)
    return None


def _cores(pid: int) -> list[int]:
    """The engine cores of an API server."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and "Engine" in (path / "comm").read_text():
                found.append(int(path.name))
    return found


def _load(base: str, number: int, going: threading.Event) -> None:
    body = {"model": NAME, "prompt": "Tell of a lighthouse. " + "word " * 40 * number, "max_tokens": 400}
    data = json.dumps({**body, "ignore_eos": True, "temperature": 0.7}).encode()
    while going.is_set():
        request = urllib.request.Request(f"{base}/v1/completions", data, {"Content-Type": "application/json"})  # noqa: S310
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=60).read()  # noqa: S310 (loopback)
