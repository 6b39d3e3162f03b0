"""A memory plan as text: a table, a bar and advice. Without Rich, whose import takes longer than `plan` itself."""

from collections.abc import Iterable

from glm4_deploy.plan.kernels import KernelPath
from glm4_deploy.plan.memory import MemoryPlan, MemoryRequest
from glm4_deploy.text import paint

WIDTH = 60
PARTS = (("weights", "█"), ("activations", "▓"), ("overhead", "▒"), ("graphs", "◆"), ("KV cache", "░"), ("free", "·"))


def plan_text(
    request: MemoryRequest,
    plan: MemoryPlan,
    *,
    kernel: KernelPath,
    advice: Iterable[str],
    solved: str = "",
    color: bool = False,
) -> str:
    """The complete text, ending in a newline. `solved` explains the fraction if the planner chose it."""
    version = ".".join(map(str, request.vllm))
    gpus = f"{request.tensor_parallel_size} x " if request.tensor_parallel_size > 1 else ""
    lines = [
        f"{request.model.name} ({request.model.weights}) on {gpus}{request.gpu.label} with vLLM {version}",
        f"  max_model_len {request.max_model_len}, max_num_seqs {request.max_num_seqs},"
        f" kv_cache_dtype {request.kv_cache_dtype}, max_num_batched_tokens {plan.max_num_batched_tokens}",
        f"  gpu_memory_utilization {request.gpu_memory_utilization:g}{f': {solved}' if solved else ''}",
        f"  arithmetic: {kernel.name} ({kernel.why}{f'; {kernel.flaw}' if kernel.flaw else ''})",
        "",
        *_table(plan),
        "",
        *_bar(plan),
        "",
        paint(_verdict(plan), plan.fits, color),
    ]
    lines += [f"  → {line}" for line in advice]
    lines += ["", "where the figures come from:", *(f"  · {reason}" for reason in plan.reasons)]
    return "\n".join(lines) + "\n"


def _table(plan: MemoryPlan) -> list[str]:
    rows = [
        ("total", plan.total_gib, ""),
        ("requested by the engine", plan.requested_gib, ""),
        ("weights", plan.weights_gib, ""),
        ("activations", plan.activation_gib, "peak of the profiling run"),
        ("overhead", plan.overhead_gib, "libraries, NCCL; the engine's own processes on unified memory"),
        (
            "CUDA graphs",
            plan.graph_gib,
            f"{plan.graph_counted_gib:.2f} GiB of graphs and workspace come out of the KV cache",
        ),
        ("attention workspace", plan.workspace_gib, ""),
        ("KV cache", plan.kv_cache_gib, f"± {plan.error_range_gib:.2f} GiB"),
        ("outside of the request", plan.outside_gib, ""),
    ]
    return [f"  {name:<26}{gib:9.2f} GiB{'   ' + note if note else ''}" for name, gib, note in rows]


def _bar(plan: MemoryPlan) -> list[str]:
    """Shares of the GPU's memory in WIDTH cells; every part that is not empty has at least one cell."""
    kv = max(0.0, plan.kv_cache_gib)
    taken = plan.weights_gib + plan.activation_gib + plan.overhead_gib + plan.graph_counted_gib + kv
    sizes = [
        plan.weights_gib,
        plan.activation_gib,
        plan.overhead_gib,
        max(plan.graph_counted_gib, plan.outside_gib),
        kv,
        max(0.0, plan.total_gib - taken - plan.outside_gib),
    ]
    cells = [max(1, round(WIDTH * size / max(sum(sizes), 1e-9))) if size > 0.01 else 0 for size in sizes]
    cells[cells.index(max(cells))] += WIDTH - sum(cells)
    bar = "".join(mark * count for (_, mark), count in zip(PARTS, cells, strict=True))
    key = "  ".join(f"{mark} {name}" for (name, mark), count in zip(PARTS, cells, strict=True) if count)
    return [f"  [{bar}] {plan.total_gib:.1f} GiB", f"   {key}"]


def _verdict(plan: MemoryPlan) -> str:
    if not plan.fits:
        return f"DOES NOT START: {plan.refusal}"
    tokens = f"{plan.kv_cache_tokens:,} tokens of KV cache"
    return f"STARTS: {tokens}, {plan.max_concurrency:.2f} requests of full length at once"
