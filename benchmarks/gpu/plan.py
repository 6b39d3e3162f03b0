"""The engine's memory use, setting by setting: GLM-4-9B's shape with dummy weights."""

from __future__ import annotations

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
