"""The guard in front of an engine under load: what it adds to TTFT and TPOT, and the CPU that it takes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import urllib.request
from pathlib import Path

from engines import Record, clock, end, fork, free_port, read, seen, serve, wait_for
from users import CARD, NAME, READY, bench

ROUNDS = 2
USERS = "64,256"
FLAGS = {**CARD, "max-num-seqs": 256, "max-model-len": 4096, "no-enable-prefix-caching": None}
"""Without the prefix cache, because every run sends the same prompts."""


def guarded_stage(record: Record, models: Path, seconds: float) -> None:
    """The same load directly and through the guard, in turns. The words are those of random weights."""
    log, port, front, metrics = record.logs / "guarded.log", free_port(), free_port(), free_port()
    shape = {"load-format": "dummy", "quantization": "compressed-tensors"}
    pid = fork(log, serve(models / "9b-nvfp4", NAME, {**shape, **FLAGS}, port))
    how = wait_for(log, pid, (READY, r"Engine core initialization failed"), max(10, seconds - clock() - 60))
    record.add("guarded", "engine", how=how, **seen(read(log)))
    words = ["guard", "--engine", f"http://127.0.0.1:{port}", "--port", str(front), "--metrics-port", str(metrics)]
    with (record.logs / "guard.jsonl").open("w") as output:
        guard = subprocess.Popen(
            [sys.executable, "-m", "glm4_deploy", *words, "--mode", "observe"], stdout=output, stderr=output
        )
        try:
            if how == READY:
                for number in range(ROUNDS):
                    bench(record, models, f"direct-{number}", port, "128", "128", USERS, seconds)
                    before = cpu_seconds(metrics)
                    bench(record, models, f"guarded-{number}", front, "128", "128", USERS, seconds)
                    record.add("guarded", f"cpu-{number}", seconds=cpu_seconds(metrics) - before)
        finally:
            guard.terminate()
            guard.wait(10)
            end(pid)


def cpu_seconds(port: int) -> float:
    """CPU seconds of the guard's process so far; not a number if it does not answer."""
    address = f"http://127.0.0.1:{port}/metrics"
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("process_cpu_seconds_total "):
                return float(line.split()[1])
    return float("nan")
