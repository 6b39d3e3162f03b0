"""The model card's settings against the planner's, measured by the kit's own bench: tokens per second, memory used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from engines import Record, clock, end, fork, free_port, read, seen, serve, settle, used_mib, wait_for
from verdicts import kit

ROOT = Path(__file__).parents[2]
NAME = "glm-4-9b-chat"
READY = r"Application startup complete"
CARD: dict[str, object] = {
    "kv-cache-dtype": "fp8",
    "max-model-len": 32768,
    "max-num-seqs": 64,
    "gpu-memory-utilization": 0.75,
}
"""From the publisher's compose example."""
LOADS = {"plan-64x32k": "64 users, 32k context", "plan-256x2k": "256 users, 2k context"}
"""What the planner plans for: the model card's own load, and 256 users whose requests are short."""
OTHER_LENGTHS = (("128", "256", "1,16,64"), ("1536", "64", "1,16,64"))
"""Tokens in, tokens out, users: further measurements to fit a model of the engine's speed to."""


def planned(record: Record, gpu: str, load: str) -> dict[str, object]:
    """What the planner chooses on this GPU."""
    words = ["plan", "--gpu", gpu, "--vllm", "0.24.0", "--for", load, "--json"]
    done = subprocess.run([sys.executable, "-m", "glm4_deploy", *words], capture_output=True, text=True, check=True)
    plan = json.loads(done.stdout)
    record.add("planned", load, **{key: value for key, value in plan.items() if not isinstance(value, list | dict)})
    keys = ("kv_cache_dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization")
    return {key.replace("_", "-"): plan[key] for key in keys}


def users_stage(record: Record, models: Path, gpu: str, names: tuple[str, ...], idle: float, seconds: float) -> None:
    """Each setting by itself on the empty GPU, in the order of `names`."""
    settings = {"model-card": CARD, **{name: planned(record, gpu, load) for name, load in LOADS.items()}}
    for name in names:
        if clock() > seconds - 100:
            record.add("users", name, skipped="no time left")
            continue
        one_setting(record, models, name, settings[name], idle, seconds)
        record.pack()


def one_setting(record: Record, models: Path, name: str, flags: dict[str, object], idle: float, seconds: float) -> None:
    log, port, before, began = record.logs / f"users-{name}.log", free_port(), settle(idle), clock()
    shape = {"load-format": "dummy", "quantization": "compressed-tensors"}
    pid = fork(log, serve(models / "9b-nvfp4", NAME, {**shape, **flags}, port))
    how = wait_for(log, pid, (READY, r"Engine core initialization failed"), max(10, seconds - clock() - 20))
    record.add(
        "users",
        name,
        flags=flags,
        how=how,
        start_s=round(clock() - began, 1),
        used_before_mib=before,
        used_mib=used_mib(),
        **seen(read(log)),
    )
    if how == READY:
        bench(record, models, name, port, "512", "128", "1,16,64,256", seconds)
        if name == "plan-256x2k":
            for tokens_in, tokens_out, users in OTHER_LENGTHS:
                bench(record, models, name, port, tokens_in, tokens_out, users, seconds)
        if name == "plan-64x32k":
            client(record, port, seconds)
        record.add("memory", name, used_after_load_mib=used_mib())
    end(pid)


def bench(
    record: Record, models: Path, name: str, port: int, tokens_in: str, tokens_out: str, users: str, seconds: float
) -> None:
    if clock() > seconds - 45:
        record.add("bench", name, tokens_in=tokens_in, skipped="no time left")
        return
    result = record.out / f"bench-{name}-{tokens_in}-{tokens_out}.json"
    words = ["--base-url", f"http://127.0.0.1:{port}", "--model", NAME, "--concurrency", users]
    words += ["--input-len", tokens_in, "--output-len", tokens_out]
    words += ["--python", sys.executable, "--tokenizer", str(models / "9b-nvfp4"), "--json", str(result)]
    log = record.logs / f"{result.stem}.txt"
    code, took = kit("bench", *words, log=log, patience=max(5, seconds - clock() - 8))
    record.add("bench", name, tokens_in=tokens_in, exit=code, seconds=round(took, 1), said=read(log)[-1200:])


def client(record: Record, port: int, seconds: float) -> None:
    """What the smoke client costs compared with a bare httpx loop, with this engine."""
    if clock() > seconds - 70:
        record.add("client", "64 streams", skipped="no time left")
        return
    words = ["--base-url", f"http://127.0.0.1:{port}", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.smoke_client", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=max(5, seconds - clock() - 5),
        check=False,
    )
    record.add("client", "64 streams", exit=done.returncode, said=done.stdout[-900:] or done.stderr[-900:])
