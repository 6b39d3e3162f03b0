"""How far the memory plan is from real engine logs, and how long `plan` and `doctor` take.

    .venv/bin/python -m benchmarks.planner LOG_OR_DIRECTORY… [--markdown] [--no-timing]

The settings of each log (version, flags) are planned, and the plan is compared with what the engine then printed. Logs
of models other than GLM-4-9B are used for the block arithmetic only: tokens from the printed KV cache size.
"""

import argparse
import ast
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from glm4_deploy.catalog.rows import gpu_by_name, gpu_by_size, parse_capability, parse_version
from glm4_deploy.plan.engine_rules import (
    GIB,
    ModelShape,
    StoredModel,
    WeightFormat,
    default_fraction,
    default_num_seqs,
    glm4_9b,
)
from glm4_deploy.plan.footprint import MemoryRequest
from glm4_deploy.plan.memory import MemoryPlan, estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One log: the memory request in its settings, and what the engine printed. None: not printed."""

    name: str
    request: MemoryRequest
    weights_gib: float | None
    kv_cache_gib: float | None
    tokens: int | None
    concurrency: float | None
    refused: str


def read_case(path: Path, gpu: str) -> Case | None:
    """The case in a log; None unless it is a log of GLM-4-9B that got as far as its KV cache."""
    text = path.read_text(encoding="utf-8", errors="replace")
    args = _last(r"non-default args: (\{.*\})", text)
    version = _last(r"(?:Initializing a V1 LLM engine \(|API server version |version )v?(\d+\.\d+\.\d+)", text)
    if args is None or version is None or "Available KV cache memory" not in text:
        return None
    flags = ast.literal_eval(args)
    if not re.search(r"glm-4-9b", str(flags.get("model", "")), re.IGNORECASE):
        return None
    device, vllm = gpu_by_name(gpu), parse_version(version)
    quantized = "quantization=compressed-tensors" in text or "NVFP4" in text
    request = MemoryRequest(
        gpu=device,
        model=glm4_9b(WeightFormat.NVFP4 if quantized else WeightFormat.BF16),
        vllm=vllm,
        gpu_memory_utilization=flags.get("gpu_memory_utilization", default_fraction(vllm)),
        max_model_len=flags.get("max_model_len", 131072),
        max_num_seqs=flags.get("max_num_seqs", default_num_seqs(vllm, device)),
        max_num_batched_tokens=flags.get("max_num_batched_tokens"),
        kv_cache_dtype=flags.get("kv_cache_dtype", "auto"),
        enforce_eager=bool(flags.get("enforce_eager", False)),
        tensor_parallel_size=flags.get("tensor_parallel_size", 1),
        first_start="Directly load the compiled graph" not in text,
    )
    return Case(
        name=f"{path.parent.name}/{path.stem}",
        request=request,
        weights_gib=_number(r"Model loading took ([\d.]+) GiB", text),
        kv_cache_gib=_number(r"Available KV cache memory: (-?[\d.]+) GiB", text),
        tokens=_whole(r"GPU KV cache size: ([\d,]+) tokens", text),
        concurrency=_number(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x", text),
        refused=_last(r"ValueError: (No available memory|To serve at least one request|Free memory on device)", text)
        or "",
    )


def public_request(row: dict[str, Any]) -> MemoryRequest:
    """The memory request of a row of tests/data/hosts/public-starts.yaml."""
    gpu, model = row["gpu"], row["model"]
    return MemoryRequest(
        gpu=gpu_by_size(
            gpu["total_mib"], parse_capability(gpu["capability"]), wsl=gpu["wsl"], from_cuda=gpu["from_cuda"]
        ),
        model=StoredModel(
            name=row["name"],
            weights=WeightFormat(model["weights"]),
            checkpoint_bytes=round(model["stored_gib"] * GIB),
            shape=ModelShape(**model["shape"]),
            architecture=model["architecture"],
        ),
        vllm=parse_version(row["vllm"]),
        **{key: row[key] for key in STARTED},
    )


STARTED = (
    "gpu_memory_utilization", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype",
    "enforce_eager", "first_start",
)  # fmt: skip


def public_rows(path: Path) -> Iterator[tuple[str, ...]]:
    """Public starts, the plan of each, and how far off it is. kept: not used for any formula."""
    yield ("start", "kept", "KV GiB", "planned", "range", "off")
    for row in yaml.safe_load(path.read_text(encoding="utf-8")):
        request, logged = public_request(row), row["logged"]
        plan = estimate(request)
        seen = logged["tokens"] * request.token_bytes / GIB if "tokens" in logged else logged["kv_gib"]
        yield (
            row["name"],
            "yes" if row["kept"] else "",
            f"{seen:.2f}",
            f"{plan.kv_cache_gib:.2f}",
            f"± {plan.error_range_gib:.2f}",
            _off(plan.kv_cache_gib, seen),
        )


def rows(cases: list[Case]) -> Iterator[tuple[str, ...]]:
    yield (
        "log",
        "vLLM",
        "util",
        "start",
        "KV GiB",
        "planned",
        "off",
        "tokens",
        "planned",
        "off",
        "requests",
        "planned",
    )
    for case in cases:
        plan = estimate(case.request)
        yield (
            case.name,
            ".".join(map(str, case.request.vllm)),
            f"{case.request.gpu_memory_utilization:g}",
            "first" if case.request.first_start else "second",
            f"{case.kv_cache_gib:.2f}",
            f"{plan.kv_cache_gib:.2f}",
            _off(plan.kv_cache_gib, case.kv_cache_gib) if case.tokens else _refusal(case, plan),
            f"{case.tokens or 0:,}",
            f"{plan.kv_cache_tokens:,}",
            _off(plan.kv_cache_tokens, case.tokens) if case.tokens else "",
            f"{case.concurrency or 0:.2f}",
            f"{plan.max_concurrency:.2f}",
        )


def _refusal(case: Case, plan: MemoryPlan) -> str:
    return "refused, as planned" if not plan.fits and case.refused else "REFUSED, NOT PLANNED"


def _off(planned: float, seen: float | None) -> str:
    return f"{100 * (planned - seen) / seen:+.2f} %" if seen else ""


def block_rows(paths: list[Path]) -> Iterator[tuple[str, ...]]:
    """Bytes per token with which the engine turned GiB into tokens: a range, since it prints rounded GiB."""
    yield ("log", "KV GiB", "tokens", "bytes per token")
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        gib, tokens = (
            _number(r"Available KV cache memory: ([\d.]+) GiB", text),
            _whole(r"KV cache size: ([\d,]+) tokens", text),
        )
        if gib and tokens:
            low, high = (gib - 0.005) * 2**30 / tokens, (gib + 0.005) * 2**30 / tokens
            yield (f"{path.parent.name}/{path.stem}", f"{gib:.2f}", f"{tokens:,}", f"{low:,.1f} to {high:,.1f}")


def timing() -> Iterator[tuple[str, ...]]:
    """Median wall time of whole processes, and of an empty Python for comparison."""
    program = [sys.executable, "-m", "glm4_deploy"]
    yield ("command", "median of 5, s", "limit, s")
    for name, words, limit in (
        ("python -c pass", [sys.executable, "-c", "pass"], ""),
        ("plan", [*program, "plan", "--gpu", "gb10", "--json"], "0.3"),
        ("doctor", [*program, "doctor", "--json"], "3"),
    ):
        taken = []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run(words, capture_output=True, check=False)
            taken.append(time.perf_counter() - begin)
        yield (name, f"{statistics.median(taken):.2f}", limit)


def show(table: list[tuple[str, ...]], *, markdown: bool) -> None:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for number, row in enumerate(table):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells))
        if markdown and number == 0:
            print(f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    print()


def _last(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text)
    return found[-1] if found else None


def _number(pattern: str, text: str) -> float | None:
    found = _last(pattern, text)
    return float(found) if found else None


def _whole(pattern: str, text: str) -> int | None:
    found = _last(pattern, text)
    return int(found.replace(",", "")) if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="*", type=Path, help="engine logs, or directories of them")
    parser.add_argument("--public", type=Path, help="public starts: tests/data/hosts/public-starts.yaml")
    parser.add_argument("--gpu", help="the GPU that wrote the logs; by default gb10 if the path says so, else h100")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--no-timing", action="store_true", help="do not time `plan` and `doctor`")
    options = parser.parse_args()
    paths = [log for given in options.logs for log in (sorted(given.rglob("*.log")) if given.is_dir() else [given])]
    cases = [
        case
        for path in paths
        if (case := read_case(path, options.gpu or ("gb10" if "gb10" in str(path) else "h100"))) is not None
    ]
    if paths:
        show(list(rows(cases)), markdown=options.markdown)
        show(list(block_rows(paths)), markdown=options.markdown)
    if options.public:
        show(list(public_rows(options.public)), markdown=options.markdown)
    if not options.no_timing:
        show(list(timing()), markdown=options.markdown)


if __name__ == "__main__":
    main()
