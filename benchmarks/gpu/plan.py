"""The engine's memory use, setting by setting: GLM-4-9B's shape with dummy weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from engines import Record, clock, end, fork, free_port, read, seen, serve, settle, wait_for

EAGER = {"enforce-eager": None}
FP8 = {"kv-cache-dtype": "fp8"}
# Name, weights, flags, whether a refusal is expected. All are eager: a compiled start takes a minute.
PLAN_CASES: tuple[tuple[str, str, dict[str, object], bool], ...] = (
    (
        "eager-seed-0.5",
        "nvfp4",
        {**FP8, **EAGER, "max-model-len": 32768, "max-num-seqs": 64, "gpu-memory-utilization": 0.5},
        False,
    ),
    (
        "eager-small-batch-0.2",
        "nvfp4",
        {
            **FP8,
            **EAGER,
            "max-model-len": 8192,
            "max-num-seqs": 16,
            "max-num-batched-tokens": 2048,
            "gpu-memory-utilization": 0.2,
        },
        False,
    ),
    (
        "eager-many-sequences-0.5",
        "nvfp4",
        {**FP8, **EAGER, "max-model-len": 4096, "max-num-seqs": 1024, "gpu-memory-utilization": 0.5},
        False,
    ),
    (
        "refused-too-long-0.12",
        "nvfp4",
        {**FP8, **EAGER, "max-model-len": 131072, "max-num-seqs": 64, "gpu-memory-utilization": 0.12},
        True,
    ),
    (
        "eager-bf16-auto-0.35",
        "bf16",
        {**EAGER, "max-model-len": 16384, "max-num-seqs": 32, "gpu-memory-utilization": 0.35},
        False,
    ),
    (
        "refused-no-room-bf16-0.2",
        "bf16",
        {**FP8, **EAGER, "max-model-len": 32768, "max-num-seqs": 64, "gpu-memory-utilization": 0.2},
        True,
    ),
    (
        "eager-auto-0.9",
        "nvfp4",
        {**EAGER, "max-model-len": 131072, "max-num-seqs": 256, "gpu-memory-utilization": 0.9},
        False,
    ),
    (
        "eager-large-batch-0.6",
        "nvfp4",
        {
            **FP8,
            **EAGER,
            "max-model-len": 131072,
            "max-num-seqs": 128,
            "max-num-batched-tokens": 16384,
            "gpu-memory-utilization": 0.6,
        },
        False,
    ),
)


def plan_case(
    record: Record, models: Path, case: tuple[str, str, dict[str, object], bool], idle: float, patience: float
) -> None:
    name, weights, flags, refused = case
    log = record.logs / f"{name}.log"
    used = settle(idle)
    began = clock()
    quantization = {"quantization": "compressed-tensors"} if weights == "nvfp4" else {}
    work = serve(
        models / f"9b-{weights}", "glm-4-9b-chat", {"load-format": "dummy", **quantization, **flags}, free_port()
    )
    pid = fork(log, work)
    how = wait_for(log, pid, (r"Maximum concurrency for", r"Engine core initialization failed"), patience)
    end(pid)
    record.add(
        "plan",
        name,
        flags=flags,
        weights=weights,
        refusal_expected=refused,
        how=how,
        seconds=round(clock() - began, 1),
        used_before_mib=used,
        **seen(read(log)),
    )
    record.pack()


# Settings that no start had before. The forecast is written down before the engine starts.
FORECASTS: tuple[tuple[str, str, dict[str, object], bool], ...] = tuple(
    (
        name,
        weights,
        {**more, "max-model-len": context, "max-num-seqs": sequences, "gpu-memory-utilization": fraction},
        False,
    )
    for name, weights, context, sequences, fraction, more in (
        ("f-eager-auto-0.4", "nvfp4", 16384, 48, 0.4, {**EAGER, "max-num-batched-tokens": 4096}),
        ("f-eager-fp8-0.85", "nvfp4", 65536, 512, 0.85, {**EAGER, **FP8}),
        ("f-eager-fp8-0.15", "nvfp4", 2048, 8, 0.15, {**EAGER, **FP8, "max-num-batched-tokens": 1024}),
        ("f-eager-bf16-0.7", "bf16", 131072, 96, 0.7, {**EAGER, **FP8, "max-num-batched-tokens": 12288}),
        ("f-compiled-fp8-0.45", "nvfp4", 8192, 128, 0.45, {**FP8}),
        ("f-compiled-bf16-0.6", "bf16", 32768, 32, 0.6, {"max-num-batched-tokens": 4096}),
        ("f-compiled-auto-0.9", "nvfp4", 131072, 384, 0.9, {"max-num-batched-tokens": 16384}),
    )
)
TWO_CARDS: tuple[tuple[str, str, dict[str, object], bool], ...] = tuple(
    (f"f-tp2-{name}", weights, {**flags, "tensor-parallel-size": 2}, refused)
    for name, weights, flags, refused in (FORECASTS[1], FORECASTS[3], FORECASTS[4])
)


def forecast(record: Record, card: str, case: tuple[str, str, dict[str, object], bool]) -> None:
    """What `plan` says of these settings on this card, before they are tried."""
    name, weights, flags, _ = case
    words = ["plan", "--gpu", card, "--vllm", "0.24.0", "--weights", weights, "--json"]
    for flag, value in flags.items():
        words += ["--set", f"{flag.replace('-', '_')}={'true' if value is None else value}"]
    if "kv-cache-dtype" not in flags:
        words += ["--set", "kv_cache_dtype=auto"]
    done = subprocess.run([sys.executable, "-m", "glm4_deploy", *words], capture_output=True, text=True, check=False)
    plan = json.loads(done.stdout) if done.stdout.startswith("{") else {"said": done.stderr[-300:]}
    record.add("forecast", name, **{key: value for key, value in plan.items() if not isinstance(value, list | dict)})
