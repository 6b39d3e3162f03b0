"""A memory plan as text: a table, a bar and advice. Without Rich, whose import takes longer than `plan` itself."""

from collections.abc import Iterable
from dataclasses import replace

from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.plan.kernels import KernelPath
from glm4_deploy.plan.memory import MemoryPlan, estimate
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
    first, later = (estimate(replace(request, first_start=start)) for start in (True, False))
    lines = [
        f"{request.model.name} ({request.model.weights}) on {gpus}{request.gpu.label} with vLLM {version}",
        f"  rests on: {plan.basis}",
        f"  max_model_len {request.max_model_len}, max_num_seqs {request.max_num_seqs},"
        f" kv_cache_dtype {request.kv_cache_dtype}, max_num_batched_tokens {plan.max_num_batched_tokens}",
        f"  gpu_memory_utilization {request.gpu_memory_utilization:g}{f': {solved}' if solved else ''}",
        f"  arithmetic: {kernel.name} ({kernel.why}{f'; {kernel.flaw}' if kernel.flaw else ''})",
        "",
        *_table(first, later),
        "",
        *_bar(plan),
        "",
        paint(_verdict(plan), plan.fits, color),
    ]
    lines += [f"  → {line}" for line in advice]
    lines += ["", "also:", *(f"  · {reason}" for reason in plan.reasons)]
    return "\n".join(lines) + "\n"


def _table(first: MemoryPlan, later: MemoryPlan) -> list[str]:
    """First and later starts side by side, each part of the request with its source."""
    rows = [("requested by the engine", first.requested_gib, later.requested_gib, f"of {first.total_gib:.2f} GiB")]
    rows += [(one.name, one.gib, other.gib, one.source) for one, other in zip(first.terms, later.terms, strict=True)]
    lines = [f"  {'GiB':<26}{'first start':>14}{'later starts':>14}"]
    lines += [f"  {name:<26}{one:14.2f}{other:14.2f}   {source}" for name, one, other, source in rows]
    kv = [f"{plan.kv_cache_gib:.2f} ± {plan.error_range_gib:.2f}" for plan in (first, later)]
    lines.append(f"  {'KV cache':<26}{kv[0]:>14}{kv[1]:>14}")
    tokens = [f"{plan.kv_cache_tokens:,}" if plan.fits else "no start" for plan in (first, later)]
    lines.append(f"  {'  tokens':<26}{tokens[0]:>14}{tokens[1]:>14}")
    served = [f"{plan.max_concurrency:.2f}" if plan.fits else "" for plan in (first, later)]
    lines.append(f"  {'  requests of full length':<26}{served[0]:>14}{served[1]:>14}")
    lines.append(
        f"  {'outside of the request':<26}{first.outside_gib:14.2f}{later.outside_gib:14.2f}"
        f"   of {first.graph_gib:.2f} GiB graphs and {first.workspace_gib:.2f} GiB attention workspace"
    )
    return lines


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
