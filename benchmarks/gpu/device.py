"""Run vLLM on an NVIDIA GPU and collect its logs, its answers and its timings, stage by stage.

    python benchmarks/gpu/models.py --models DIR      # once: make the models that need not be copied to the machine
    python benchmarks/gpu/device.py --models DIR --out DIR --stages plan,tiny,verdicts,users [--gpu 0] [--seconds 560]

Everything heavy is imported once; each engine is then a fork of this process in its own process group, so a start takes
seconds. A stage that no longer fits into --seconds is skipped and reported. For two GPUs, run two processes, each with
its own --out. Logs go to OUT/logs.tar.xz, one line per result to OUT/summary.jsonl.
"""

from __future__ import annotations

import argparse
import os
import traceback
from pathlib import Path

from engines import SCRATCH, Record, State, clock, end, fork, read, say, used_mib, wait_for

ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


def check_cuda(record: Record, logs: Path) -> bool:
    """Whether a fork of this process can use the GPU; records the memory that it sees."""
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


def prepare() -> None:
    """Import all that an engine needs, without touching the GPU, and cache vLLM's inspection of the model class."""
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
        "vllm.benchmarks.serve",
    ):
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 (reported here, and in more detail by the engines)
            say("import", module, repr(error)[:300])
    try:
        from vllm.model_executor.models import registry

        lazy = registry.ModelRegistry.models["GlmForCausalLM"]
        source = Path(registry.__file__).with_name("glm.py").read_bytes()
        digest = registry.safe_hash(source, usedforsecurity=False).hexdigest()
        lazy._save_modelinfo_to_cache(registry._ModelInfo.from_model_cls(lazy.load_model_cls()), digest)
    except Exception as error:  # noqa: BLE001 (each engine then takes seconds longer)
        say("model info not cached:", repr(error)[:300])


def run(args: argparse.Namespace, record: Record) -> None:
    from cuts import cuts_stage
    from guarded import guarded_stage
    from hangs import hangs_stage
    from plan import FORECASTS, PLAN_CASES, TWO_CARDS, forecast, plan_case
    from printed import added_stage, printed_stage
    from tiny import TINY, tiny_stage
    from tuned import tuned_stage
    from two import two_stage
    from users import users_stage
    from verdicts import verdicts_stage

    def chosen(names: str, default: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.split(",")) if names else default

    def one(stage: str) -> None:
        if stage == "tiny":
            tiny_stage(record, args.models, chosen(args.tiny, TINY), args.attention_backend)
        elif stage == "verdicts":
            served = chosen(args.served, ("nvfp4-for-0.24", "nvfp4-damaged", "nvfp4-damaged-all", "twin-nan"))
            verdicts_stage(record, args.models, served, args.attention_backend, args.seconds)
        elif stage == "guarded":
            guarded_stage(record, args.models, args.seconds)
        elif stage == "users":
            order = chosen(args.settings, ("model-card", "plan-64x32k", "plan-256x2k"))
            users_stage(record, args.models, args.card, order, idle, args.seconds)
        elif stage in ("tuned", "tuned-gated"):
            for load in args.load:
                gated = stage == "tuned-gated"
                tuned_stage(record, args.models, args.card, load, idle, args.seconds, gated=gated)
        elif stage in ("sound", "damaged"):
            printed_stage(record, args.models, stage, args.seconds)
        elif stage == "added":
            added_stage(record, args.models, args.seconds)
        elif stage == "hangs":
            hangs_stage(record, args.models, args.seconds)
        elif stage == "cuts":
            cuts_stage(record, args.models, args.seconds)
        elif stage == "two":
            two_stage(record, args.models, args.seconds)
        elif stage in ("forecast", "forecast-two"):
            cases = TWO_CARDS if stage == "forecast-two" else FORECASTS
            for case in cases:
                forecast(record, args.card, case)
            for case in cases:
                if clock() > args.seconds - 30:
                    record.add("plan", case[0], skipped="no time left")
                else:
                    plan_case(record, args.models, case, idle, min(120, args.seconds - clock() - 5))
        elif stage == "plan":
            names = chosen(args.cases, tuple(case[0] for case in PLAN_CASES))
            for case in (case for case in PLAN_CASES if case[0] in names):
                if clock() > args.seconds - 20:
                    record.add("plan", case[0], skipped="no time left")
                else:
                    plan_case(record, args.models, case, idle, min(90, args.seconds - clock() - 5))

    idle = used_mib()
    for stage in args.stages.split(","):
        try:
            one(stage)
        except Exception:  # noqa: BLE001 (the next stage may work)
            record.add(stage, "failed", said=traceback.format_exc()[-1500:])
        record.pack()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="what models.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the directory for logs and results")
    parser.add_argument(
        "--stages",
        required=True,
        help="plan, forecast, forecast-two, tuned, tuned-gated, two, tiny, verdicts, users, guarded, cuts, hangs, "
        "sound, damaged, added; by commas, in order",
    )
    parser.add_argument("--seconds", type=float, default=560, help="time for all of it (560)")
    parser.add_argument("--load", action="append", default=[], help="for both `tuned`: 64 users, 512 in, 128 out")
    parser.add_argument("--gpu", default="0", help="which GPUs: 0, or 0,1")
    parser.add_argument("--card", default="h100", help="the planner's name for the GPU (h100)")
    parser.add_argument("--attention-backend", help="for example TRITON_ATTN, if FlashAttention is not installed")
    for name, stage in (("tiny", "tiny"), ("served", "verdicts"), ("settings", "users"), ("cases", "plan")):
        parser.add_argument(f"--{name}", default="", help=f"names for the stage `{stage}`, in order; by default all")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = args.gpu
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    os.environ.setdefault("VLLM_CACHE_ROOT", str(SCRATCH / f"vllm-cache-{args.out.name}"))
    logs = SCRATCH / f"gpu-logs-{args.out.name}"
    logs.mkdir(exist_ok=True)
    args.out.mkdir(exist_ok=True)
    record = Record(args.out, logs)
    try:
        prepare()
        say("imported")
        if not check_cuda(record, logs):
            say("a fork cannot use the GPU here: every engine imports everything again")
            State.forks = False
        run(args, record)
    except BaseException:  # noqa: BLE001 (the results so far must be packed)
        say(traceback.format_exc()[-1500:])
    finally:
        record.pack()
        say("done")


if __name__ == "__main__":
    main()
