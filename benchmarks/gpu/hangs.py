"""Hangs that only NVML tells apart: what the watch says while an engine core is stopped, or its GPU spins or works.

The engine has the 9B shape. Its worker's `execute_model` is wrapped: a file tells it to launch a kernel of one thread
that only counts cycles (it spins: 100 % busy), or one matrix product after the other (it works), for so many seconds;
no token comes meanwhile, and /health stays 200.
"""

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
from typing import Any

from engines import Record, clock, end, fork, free_port, read, seen, serve, wait_for
from users import NAME, READY
from verdicts import _cores, _states

from glm4_deploy.host.gpu import read_gpus
from glm4_deploy.host.gpu_health import read_gpu_health

STREAMS = 32
LEARN_S = 45.0  # the watch reads the GPU every 10 s, and needs three readings at work
STOPPED_S, SPIN_S, WORK_S = 26.0, 45.0, 50.0
CYCLES_PER_S = 1.98e9  # the highest SM clock of an H200
SMI = "power.draw,utilization.gpu,clocks.sm,temperature.gpu,memory.used"
FLAGS: dict[str, object] = {
    "load-format": "dummy",
    "quantization": "compressed-tensors",
    "enforce-eager": None,
    "gpu-memory-utilization": 0.5,
    "max-model-len": 8192,
    "max-num-seqs": 64,
}
WATCH = ("--interval", "1", "--stall", "10", "--canary-every", "0")


def rogue(work: Callable[[], object], order: Path) -> Callable[[], object]:
    """An engine whose core obeys `order`: `spin SECONDS` or `work SECONDS`."""

    def patched() -> None:
        from vllm.v1.worker.gpu_worker import Worker

        before = Worker.execute_model

        def execute_model(self: Any, *arguments: Any, **named: Any) -> Any:
            if order.exists():
                kind, seconds = order.read_text().split()
                order.unlink()
                print("ORDER", kind, seconds, flush=True)
                _spin(float(seconds)) if kind == "spin" else _work(float(seconds))
            return before(self, *arguments, **named)

        Worker.execute_model = execute_model
        work()

    return patched


def _spin(seconds: float) -> None:
    import torch

    torch.cuda._sleep(int(seconds * CYCLES_PER_S))


def _work(seconds: float) -> None:
    import torch

    one = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(50):
            torch.mm(one, one)
        torch.cuda.synchronize()


def figures(port: int) -> dict[str, Any]:
    """What nvidia-smi, the kit's own reading and the watch's metrics say within the same second."""
    words = ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader,nounits"]
    smi = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    (health, *_), (gpu, *_) = read_gpu_health(), read_gpus().gpus
    own = [health.power_w, health.utilization, health.sm_clock_mhz, gpu.temperature_c, gpu.used_mib]
    page = ""
    with contextlib.suppress(OSError):
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    series = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("glm4_watch_gpu_"))
    return {"nvidia-smi": smi, "kit": own, "watch": series}


class Look:
    """Follows /healthz of a watch: each state and reason, with the seconds since a moment."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/healthz"
        self._since = time.monotonic()
        self.rows: list[tuple[float, str, str]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def mark(self) -> None:
        self.rows, self._since = [], time.monotonic()

    def _run(self) -> None:
        while True:
            body: dict[str, Any] = {}
            try:
                body = json.load(urllib.request.urlopen(self._url, timeout=3))  # noqa: S310 (loopback)
            except urllib.error.HTTPError as error:
                with contextlib.suppress(ValueError):
                    body = json.loads(error.read())
            except OSError:
                pass
            state, why = str(body.get("state", "")), str(body.get("why", ""))
            if state and (not self.rows or (state, why[-70:]) != (self.rows[-1][1], self.rows[-1][2][-70:])):
                self.rows.append((round(time.monotonic() - self._since, 1), state, why[:220]))
            time.sleep(0.25)

    def first(self, state: str) -> float | None:
        return next((at for at, seen_, _ in self.rows if seen_ == state), None)


def hangs_stage(record: Record, models: Path, seconds: float) -> None:
    log, port, front = record.logs / "hangs.log", free_port(), free_port()
    order = record.logs / "order"
    order.unlink(missing_ok=True)
    pid = fork(log, rogue(serve(models / "9b-nvfp4", NAME, FLAGS, port), order))
    how = wait_for(log, pid, (READY, r"Engine core initialization failed"), max(10, min(150, seconds - clock() - 60)))
    record.add("hangs", "engine", how=how, **seen(read(log)))
    if how != READY:
        end(pid)
        return
    base, events = f"http://127.0.0.1:{port}", record.logs / "hangs-watch.jsonl"
    words = [sys.executable, "-m", "glm4_deploy", "watch", "--json", "--base-url", base, *WATCH, "--port", str(front)]
    going = threading.Event()
    going.set()
    with events.open("w") as file:
        watch = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=record.logs)
    try:
        record.add("figures", "idle", **figures(front))
        for number in range(STREAMS):
            threading.Thread(target=_stream, args=(base, number, going), daemon=True).start()
        time.sleep(LEARN_S)
        look = Look(front)
        for number in range(3):
            record.add("figures", f"at work {number}", **figures(front))
            time.sleep(2)
        _doctor(record)
        cores = _cores(pid)
        for name, lasts, begin, finish in (
            ("engine core stopped (SIGSTOP)", STOPPED_S, lambda: _signal(cores, signal.SIGSTOP), signal.SIGCONT),
            ("a kernel of one thread that spins", SPIN_S, lambda: order.write_text(f"spin {SPIN_S}"), None),
            ("matrix products without end", WORK_S, lambda: order.write_text(f"work {WORK_S}"), None),
        ):
            if clock() > seconds - lasts - 20:
                record.add("hangs", name, skipped="no time left")
                continue
            _one(record, look, front, base, name, lasts, begin, lambda how=finish: how and _signal(cores, how))
            time.sleep(20)  # work again, so that the watch sees that too
    finally:
        going.clear()
        watch.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            watch.wait(10)
        end(pid)
    record.add("hangs", "states of the watch", states=_states(events))


def _one(
    record: Record,
    look: Look,
    front: int,
    base: str,
    name: str,
    lasts: float,
    begin: Callable[[], object],
    finish: Callable[[], object],
) -> None:
    look.mark()
    begin()
    shown = []
    health = None
    until = time.monotonic() + lasts
    for after in (15.0, lasts - 4):
        time.sleep(max(0.0, after - (time.monotonic() - until + lasts)))
        shown.append({"after_s": after, **figures(front)})
        with contextlib.suppress(OSError):
            health = urllib.request.urlopen(f"{base}/health", timeout=3).status  # noqa: S310 (loopback)
    time.sleep(max(0.0, until - time.monotonic()))
    finish()
    hung, rows = look.first("hung"), list(look.rows)
    ended_at = time.monotonic()
    while time.monotonic() - ended_at < 20 and look.rows[-1:] and look.rows[-1][1] not in ("ok", "busy"):
        time.sleep(0.25)
    well = round(time.monotonic() - ended_at, 1)
    record.add("hangs", name, lasts_s=lasts, hung_after_s=hung, health=health, well_again_s=well, said=rows)
    for row in shown:
        record.add("figures", name, **row)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _doctor(record: Record) -> None:
    """What `doctor` and `images` print of this card."""
    for words in (("doctor",), ("plan", "--for", "64 users, 2k context", "--vllm", "0.24.0")):
        done = subprocess.run(
            [sys.executable, "-m", "glm4_deploy", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=record.logs,
        )
        record.add("says", words[0], exit=done.returncode, said=done.stdout[-3500:], errors=done.stderr[-400:])


def _stream(base: str, number: int, going: threading.Event) -> None:
    body = {"model": NAME, "prompt": f"w{number} " + "w7 w8 w9 " * 20, "max_tokens": 2000}
    data = json.dumps({**body, "ignore_eos": True, "temperature": 0.7, "seed": number}).encode()
    while going.is_set():
        request = urllib.request.Request(f"{base}/v1/completions", data, {"Content-Type": "application/json"})  # noqa: S310
        try:
            urllib.request.urlopen(request, timeout=200).read()  # noqa: S310 (loopback)
        except OSError:
            time.sleep(0.5)
