"""Engines as forks of one process that has imported vLLM: start, follow the log, stop, keep the results."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

BEGAN = time.monotonic()
SCRATCH = Path(tempfile.gettempdir())
SEEN = {
    "kv_cache_gib": r"Available KV cache memory: (-?[\d.]+) GiB",
    "tokens": r"GPU KV cache size: ([\d,]+) tokens",
    "concurrency": r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x",
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "torch_peak_gib": r"torch peak memory increase: ([\d.]+)GiB",
    "non_torch_gib": r"non-torch forward increase memory: ([\d.]+)GiB",
    "graph_estimate_gib": r"Estimated CUDA graph memory: ([\d.]+) GiB",
    "graph_gib": r"Graph capturing finished in \d+ secs, took ([\d.]+) GiB",
    "kernel": r"Using (\S+) for NVFP4 GEMM",
    "refusal": r"(?:ValueError|RuntimeError|AssertionError|AttributeError|TypeError): (.{0,300})",
}


def clock() -> float:
    return time.monotonic() - BEGAN


def say(*words: object) -> None:
    print(f"[{clock():6.1f}]", *words, flush=True)


class Record:
    """The results, written as they come, so that a run that is cut off leaves what it had."""

    def __init__(self, out: Path, logs: Path) -> None:
        self.out, self.logs = out, logs

    def add(self, stage: str, name: str, **seen: object) -> None:
        row = {"stage": stage, "name": name, "at_s": round(clock(), 1), **seen}
        with (self.out / "summary.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        say(json.dumps(row)[:700])

    def pack(self) -> None:
        part = self.out / "logs.part"
        with tarfile.open(part, "w:xz", preset=1) as tar:
            tar.add(self.logs, arcname="logs")
        part.rename(self.out / "logs.tar.xz")


class State:
    """What holds for all engines of this run."""

    forks = True
    """Whether a fork of this process can use the GPU; if not, each engine imports everything again."""


def fork(log: Path, work: Callable[[], object]) -> int:
    """Run `work` in a child with its own process group, which writes to `log`; returns its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    log.unlink(missing_ok=True)  # or an earlier log would be taken for this start's
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if not State.forks and hasattr(work, "argv"):
            words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *work.argv]
            os.execv(sys.executable, words)  # noqa: S606 (our own interpreter)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (a child of fork must never return)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for _ in range(100):
        if ended(pid):
            return
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def used_mib() -> float:
    import pynvml

    pynvml.nvmlInit()
    return (
        float(
            pynvml.nvmlDeviceGetMemoryInfo(
                pynvml.nvmlDeviceGetHandleByIndex(int(os.environ["CUDA_VISIBLE_DEVICES"][0]))
            ).used
        )
        / 2**20
    )


def settle(idle: float, patience: float = 15) -> float:
    """Wait until the GPU is as empty as before; returns MiB used."""
    until = clock() + patience
    while (used := used_mib()) > idle + 20 and clock() < until:
        time.sleep(0.1)
    return used


def serve(model: Path, name: str, flags: dict[str, object], port: int) -> Callable[[], object]:
    argv = ["--host", "127.0.0.1", "--port", str(port), "--model", str(model), "--served-model-name", name]
    for flag, value in flags.items():
        argv += [f"--{flag}"] if value is None else [f"--{flag}", str(value)]

    def work() -> None:
        import runpy

        sys.argv = ["api_server", *argv]
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)

    work.argv = argv  # type: ignore[attr-defined]
    return work


def read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def seen(text: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, pattern in SEEN.items():
        if key == "refusal":
            all_ = re.findall(pattern, text)
            causes = [cause for cause in all_ if "Engine core init" not in cause]
            if causes:
                found[key] = causes[0]
        elif match := re.search(pattern, text):
            raw = match[1].replace(",", "").rstrip(".")
            found[key] = raw if key == "kernel" else float(raw)
    return found


def wait_for(log: Path, pid: int, patterns: tuple[str, ...], patience: float) -> str:
    """The pattern that came first, `ended`, or `timeout`."""
    until = clock() + patience
    while clock() < until:
        text = read(log)
        for pattern in patterns:
            if re.search(pattern, text):
                return pattern
        if ended(pid):
            return "ended"
        time.sleep(0.1)
    return "timeout"
