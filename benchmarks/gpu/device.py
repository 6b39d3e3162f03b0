"""Run vLLM on a borrowed NVIDIA GPU and bring back what it logged: memory plans, NVFP4 checkpoints, smoke, bench.

    python benchmarks/gpu/device.py --models DIR --out DIR [--seconds 240]

Everything heavy is imported once; each engine is then a fork of this process, in a process group of its own, so a start
costs seconds. A stage that no longer fits into --seconds is left out and named. One engine is measured at a time; the
tiny ones of the checkpoint stage run beside each other. Logs go to OUT/logs.tar.xz, a line a case to OUT/summary.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from engines import (
    SCRATCH,
    Record,
    State,
    clock,
    end,
    ended,
    fork,
    free_port,
    read,
    say,
    seen,
    serve,
    settle,
    used_mib,
    wait_for,
)
from load import bench_stage, warm_up
from models import make_models

ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CACHE_ROOT": str(SCRATCH / "vllm-cache"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
EAGER = {"enforce-eager": None}
FP8 = {"kv-cache-dtype": "fp8"}
# name, weights, flags, whether a refusal is expected. Eager starts first: they cost seconds, compiled ones a minute.
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
COMPILED = (
    "compiled-2048-0.5",
    "nvfp4",
    {**FP8, "max-model-len": 32768, "max-num-seqs": 64, "max-num-batched-tokens": 2048, "gpu-memory-utilization": 0.5},
    False,
)
TINY = ("nvfp4-raw", "nvfp4-for-0.13", "nvfp4-for-0.24", "nvfp4-damaged", "bf16")
SERVED = ("nvfp4-for-0.24", "nvfp4-damaged", "twin-nan")


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


def check_cuda(record: Record, logs: Path) -> bool:
    """Whether a fork of this process can use the GPU, and what it sees of its memory."""
    log = logs / "cuda.log"

    def work() -> None:
        import torch

        total = torch.cuda.get_device_properties(0).total_memory
        print("MEM", *torch.cuda.mem_get_info(), total, torch.cuda.get_device_name(0), torch.version.cuda)
        print("SUM", torch.ones(8, device="cuda").sum().item())

    pid = fork(log, work)
    how = wait_for(log, pid, (r"SUM 8",), 40)
    end(pid)
    record.add("cuda", "fork", how=how, seen=read(log)[-300:])
    return "SUM 8" in read(log)


PROMPTS = Path(__file__).with_name("texts.json")


def tiny_work(model: Path, result: Path) -> Callable[[], object]:
    """Greedy answers and the log-probability of every token of known texts, from vLLM itself."""

    def work() -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM, SamplingParams

        began = time.monotonic()
        llm = LLM(
            model=str(model),
            enforce_eager=True,
            gpu_memory_utilization=0.08,
            kv_cache_memory_bytes=2**28,
            max_model_len=2048,
            max_num_seqs=16,
        )
        loaded = time.monotonic() - began
        texts = json.loads(PROMPTS.read_text())
        tokenizer = llm.get_tokenizer()
        scored = [{"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)} for text in texts["score"]]
        outputs = llm.generate(scored, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0), use_tqdm=False)
        logprobs = [
            [
                next(iter(p.values())).logprob if len(p) == 1 else p[t].logprob
                for t, p in zip(o.prompt_token_ids[1:], o.prompt_logprobs[1:], strict=True)
            ]
            for o in outputs
        ]
        asked = [{"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)} for text in texts["ask"]]
        answers = llm.generate(asked, SamplingParams(max_tokens=48, temperature=0), use_tqdm=False)
        result.write_text(
            json.dumps({"loaded_s": loaded, "logprobs": logprobs, "answers": [a.outputs[0].text for a in answers]})
        )

    return work


def tiny_stage(record: Record, models: Path) -> None:
    import math

    results = {name: SCRATCH / f"tiny-{name}.json" for name in TINY}
    pids = {name: fork(record.logs / f"tiny-{name}.log", tiny_work(models / name, results[name])) for name in TINY}
    until = clock() + 60
    while clock() < until and not all(ended(pid) for pid in pids.values()):
        time.sleep(0.2)
    for pid in pids.values():
        end(pid)
    read_ = {name: json.loads(path.read_text()) for name, path in results.items() if path.exists()}
    base = read_.get("nvfp4-raw")
    for name in TINY:
        got = read_.get(name)
        if got is None:
            record.add(
                "tiny",
                name,
                failed=seen(read(record.logs / f"tiny-{name}.log")),
                tail=read(record.logs / f"tiny-{name}.log")[-600:],
            )
            continue
        flat = [x for row in got["logprobs"] for x in row]
        versus = None
        if base:
            pairs = [
                (a, b)
                for r, s in zip(got["logprobs"], base["logprobs"], strict=True)
                for a, b in zip(r, s, strict=True)
            ]
            versus = max(abs(a - b) for a, b in pairs)
        record.add(
            "tiny",
            name,
            loaded_s=round(got["loaded_s"], 1),
            scored_tokens=len(flat),
            perplexity=math.exp(-sum(flat) / len(flat)),
            largest_logprob_difference_to_raw=versus,
            answers=got["answers"],
            **seen(read(record.logs / f"tiny-{name}.log")),
        )


def kit(*arguments: str, log: Path, patience: float) -> tuple[int, float]:
    began = clock()
    with log.open("w") as file:
        try:
            code = subprocess.run(
                [sys.executable, "-m", "glm4_deploy", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=patience,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    return code, clock() - began


def smoke_one(record: Record, name: str, port: int, pid: int, patience: float) -> None:
    log = record.logs / f"serve-{name}.log"
    how = wait_for(log, pid, (r"Application startup complete",), patience)
    code, seconds = (None, 0.0)
    if "startup" in how:
        code, seconds = kit(
            "smoke",
            "--base-url",
            f"http://127.0.0.1:{port}",
            "--suite",
            "quick",
            "--timeout",
            "20",
            "--json",
            str(record.logs / f"smoke-{name}.json"),
            log=record.logs / f"smoke-{name}.txt",
            patience=75,
        )
    lines = [line.strip() for line in read(record.logs / f"smoke-{name}.txt").splitlines() if line.strip()]
    record.add("smoke", name, how=how, exit=code, seconds=round(seconds, 1), last=lines[-4:])


def serve_tiny(record: Record, models: Path) -> list[tuple[str, int, int]]:
    flags = {
        "enforce-eager": None,
        "gpu-memory-utilization": 0.05,
        "kv-cache-memory-bytes": 2**28,
        "max-model-len": 4096,
        "max-num-seqs": 32,
    }
    started = []
    for name in SERVED:
        port = free_port()
        started.append(
            (name, port, fork(record.logs / f"serve-{name}.log", serve(models / name, "glm-4-tiny-chat", flags, port)))
        )
    return started


def compiled_stage(record: Record, models: Path, seconds: float) -> None:
    """One compiled start, measured while the tiny engines stand still in memory; smoke runs beside it; then bench."""
    name, weights, flags, _ = COMPILED
    tiny = serve_tiny(record, models)
    log, port = record.logs / f"{name}.log", free_port()
    until = min(clock() + 45, seconds - 60)
    for one, tiny_port, tiny_pid in tiny:
        wait_for(
            record.logs / f"serve-{one}.log", tiny_pid, (r"Application startup complete",), max(1, until - clock())
        )
        warm_up(tiny_port)
    used = used_mib()
    pid = fork(
        log,
        serve(
            models / f"9b-{weights}",
            "glm-4-9b-chat",
            {"load-format": "dummy", "quantization": "compressed-tensors", **flags},
            port,
        ),
    )
    threads = [threading.Thread(target=smoke_one, args=(record, *row, 5), daemon=True) for row in tiny]
    for thread in threads:
        thread.start()
    how = wait_for(
        log,
        pid,
        (r"Application startup complete", r"Engine core initialization failed"),
        max(10, seconds - clock() - 8),
    )
    record.add(
        "plan",
        name,
        flags=flags,
        weights=weights,
        how=how,
        used_before_mib=used,
        beside="three tiny engines",
        **seen(read(log)),
    )
    record.pack()
    if "startup" in how:
        bench_stage(record, port, seconds - 10)
    for thread in threads:
        thread.join(max(0.1, seconds - clock() - 5))
    for _, _, tiny_pid in tiny:
        end(tiny_pid)
    end(pid)


def prepare() -> None:
    """Import all that an engine needs, without touching the GPU, and note the model class as known."""
    import importlib

    for module in (
        "torch",
        "transformers",
        "vllm",
        "vllm.entrypoints.openai.api_server",
        "vllm.entrypoints.llm",
        "vllm.v1.engine.core",
        "vllm.v1.engine.async_llm",
        "vllm.v1.worker.gpu_worker",
        "vllm.model_executor.models.glm",
        "vllm.v1.attention.backends.flash_attn",
        "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
        "vllm.v1.structured_output",
        "vllm.v1.executor.uniproc_executor",
    ):
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 (told, and the engines tell more)
            say("import", module, repr(error)[:300])
    try:
        from vllm.model_executor.models import registry

        lazy = registry.ModelRegistry.models["GlmForCausalLM"]
        source = Path(registry.__file__).with_name("glm.py").read_bytes()
        digest = registry.safe_hash(source, usedforsecurity=False).hexdigest()
        lazy._save_modelinfo_to_cache(registry._ModelInfo.from_model_cls(lazy.load_model_cls()), digest)
    except Exception as error:  # noqa: BLE001 (it only costs seconds)
        say("model info not cached:", repr(error)[:300])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--stages", default="plan,tiny,compiled")
    args = parser.parse_args()
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    logs = SCRATCH / "gpu-logs"
    logs.mkdir(exist_ok=True)
    record = Record(args.out, logs)
    try:
        make_models(args.models)
        prepare()
        say("imported")
        idle = used_mib()
        forks = check_cuda(record, logs)
        if not forks:
            say("a fork cannot use the GPU here: every engine imports anew")
            State.forks = False
        stages = args.stages.split(",")
        first, later = PLAN_CASES[:5], PLAN_CASES[5:]
        for group, name in ((first, "plan"), (None, "tiny"), (later, "plan")):
            if name not in stages:
                continue
            if group is None:
                if clock() < args.seconds - 40:
                    tiny_stage(record, args.models)
            else:
                for case in group:
                    # ---- a case needs about 15 s
                    if clock() > args.seconds - 20:
                        record.add("plan", case[0], skipped="no time left")
                        continue
                    plan_case(record, args.models, case, idle, min(60, args.seconds - clock() - 5))
            record.pack()
        if "compiled" in stages and clock() < args.seconds - 60:
            compiled_stage(record, args.models, args.seconds)
        if "compiled" in stages and clock() < args.seconds - 25:  # the compile cache is filled now
            name, weights, flags, _ = COMPILED
            plan_case(
                record,
                args.models,
                (f"{name}-later", weights, {**flags, "gpu-memory-utilization": 0.9}, False),
                idle,
                args.seconds - clock() - 5,
            )
    except BaseException:  # noqa: BLE001 (what was seen so far must come back)
        say(traceback.format_exc()[-1500:])
    finally:
        record.pack()
        say("done")


if __name__ == "__main__":
    main()
