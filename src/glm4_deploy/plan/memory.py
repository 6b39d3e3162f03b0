"""How an engine will divide a GPU's memory at startup, and whether it will start.

    KV cache = requested − weights − activations − overhead − CUDA graphs and workspace, where the version counts them

`requested`, the block arithmetic and what counts are vLLM's own (engine_rules.py). Weights, activations, overhead and
graphs are formulas with constants fitted to logs (footprint.py); each `Term` says what it rests on.
"""

from dataclasses import dataclass

from glm4_deploy.plan.engine_rules import (
    BLOCK_TOKENS,
    GIB,
    NEWEST,
    OLDEST,
    capacity_tokens,
    concurrency,
)
from glm4_deploy.plan.footprint import (
    Basis,
    MemoryRequest,
    activation_bytes,
    actual_graph_bytes,
    attention_workspace,
    basis,
    compiling_kept_bytes,
    error_range_bytes,
    graph_bytes,
    overhead_bytes,
    page_cache_bytes,
    weights_bytes,
)
from glm4_deploy.plan.refusal import refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One part of the request. source: what the figure rests on."""

    name: str
    gib: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The prediction for one GPU. GiB are 2^30 bytes.

    requested_gib: total × fraction.
    activation_gib: the profiling run's peak.
    overhead_gib: libraries, NCCL, and on unified memory the host processes.
    graph_gib: actual size of the CUDA graphs; graph_counted_gib: how much comes out of the KV cache.
    workspace_gib: FlashInfer's buffer; part of graph_counted_gib where the version counts it.
    outside_gib: what the engine takes beyond its request.
    kv_cache_tokens, max_concurrency: as the engine will log them; 0 if it will not start.
    longest_context: tokens of one request that fit, at most the model's own limit; the engine names the same figure
        when it refuses a longer one.
    error_range_gib: the KV cache is expected within kv_cache_gib ± this.
    terms: the parts of the request with what each rests on; reasons: what else there is to know.
    """

    requested_gib: float
    total_gib: float
    weights_gib: float
    activation_gib: float
    overhead_gib: float
    graph_gib: float
    graph_counted_gib: float
    workspace_gib: float
    outside_gib: float
    kv_cache_gib: float
    kv_cache_tokens: int
    kv_cache_blocks: int
    max_concurrency: float
    longest_context: int
    error_range_gib: float
    max_num_batched_tokens: int
    fits: bool
    refusal: str
    remedy: str
    basis: Basis
    terms: tuple[Term, ...]
    reasons: tuple[str, ...]


def estimate(request: MemoryRequest) -> MemoryPlan:
    """Predict one start."""
    requested = request.requested_bytes
    graphs = graph_bytes(request)
    workspace = attention_workspace(request)
    counted = graphs + workspace if request.counts_graphs else 0.0
    rest = requested - weights_bytes(request) - activation_bytes(request) - overhead_bytes(request) - counted
    asked = request.kv_cache_memory_bytes
    available = rest if asked is None else float(asked)
    blocks = max(0, int(available // request.block_bytes))
    actual = actual_graph_bytes(request)
    outside = max(0.0, actual + workspace - counted, available - rest if asked is not None else 0.0)
    refused = refusal(request, available, outside)
    started = refused is None
    return MemoryPlan(
        requested_gib=requested / GIB,
        total_gib=request.gpu.total_bytes / GIB,
        weights_gib=weights_bytes(request) / GIB,
        activation_gib=activation_bytes(request) / GIB,
        overhead_gib=overhead_bytes(request) / GIB,
        graph_gib=actual / GIB,
        graph_counted_gib=counted / GIB,
        workspace_gib=workspace / GIB,
        outside_gib=outside / GIB,
        kv_cache_gib=available / GIB,
        kv_cache_tokens=capacity_tokens(request.vllm, blocks, request.max_model_len) if started else 0,
        kv_cache_blocks=blocks,
        max_concurrency=concurrency(blocks, request.max_model_len) if started else 0.0,
        longest_context=min(blocks * BLOCK_TOKENS, request.model.shape.max_position),
        error_range_gib=0.0 if asked is not None else error_range_bytes(request) / GIB,
        max_num_batched_tokens=request.batched_tokens,
        fits=started,
        refusal=refused.message if refused else "",
        remedy=refused.remedy if refused else "",
        basis=basis(request),
        terms=tuple(terms(request, counted)),
        reasons=tuple(reasons(request)),
    )


# Where each figure comes from.


def terms(request: MemoryRequest, counted: float) -> list[Term]:
    """The parts of the request, in the order in which they are subtracted."""
    version = ".".join(map(str, request.vllm))
    batch = f"{request.batched_tokens} batched tokens and {request.max_num_seqs} sequences"
    return [
        Term(name="weights", gib=weights_bytes(request) / GIB, source=_weights_source(request)),
        Term(
            name="activations",
            gib=activation_bytes(request) / GIB,
            source=f"formula for {batch}{'' if request.max_num_batched_tokens else ' (vLLM chooses the batch)'}"
            f"{', compiling' if request.first_start and not request.enforce_eager else ''}",
        ),
        Term(name="overhead", gib=overhead_bytes(request) / GIB, source=_overhead_source(request)),
        Term(
            name="CUDA graphs, workspace",
            gib=counted / GIB,
            source=f"{request.attention} on model runner {'V2' if request.v2 else 'V1'}: "
            + ("counted" if request.counts_graphs else f"outside of the request with {version}")
            + " (vLLM's sources)",
        ),
    ]


def _weights_source(request: MemoryRequest) -> str:
    stored = f"{request.model.checkpoint_bytes / GIB:.2f} GiB stored, rotary table"
    if not request.model.weights.four_bit:
        return stored
    return f"{stored}, {'native' if request.native_fp4 else 'Marlin'} layout (logs)"


def _overhead_source(request: MemoryRequest) -> str:
    if request.overhead_bytes is not None:
        return "measured by an earlier start on this host"
    parts = ["kernel code and libraries (logs)"]
    if request.gpu.unified:
        parts = ["the host's other work too: two logs, 0.8 and 2.0 GiB"]
    if page_cache_bytes(request):
        parts.append("page cache, which this version counts as used")
    if compiling_kept_bytes(request):
        parts.append("the compiler's copy of the embedding (all public first starts of 0.28 and 0.29 on 12.0)")
    return ", ".join(parts)


def reasons(request: MemoryRequest) -> list[str]:
    """What else there is to know, one line each."""
    total = f"total {request.gpu.total_bytes / GIB:.2f} GiB: "
    total += ("seen in logs" if request.gpu.exact else "an estimate") + (
        ", all of it on WSL2" if request.gpu.wsl else ""
    )
    lines = [total, f"KV cache: {request.token_bytes:,} bytes per token, exact"]
    if not request.enforce_eager:
        lines.append("a first start compiles, which takes memory; later starts find the compiled code")
    if request.kv_cache_memory_bytes is not None:
        lines.append("kv_cache_memory_bytes: the engine does not profile, so the KV cache is exact")
    if request.vllm < OLDEST or request.vllm[:2] > NEWEST:
        lines.append("the sources of this vLLM version were not read: the closest known rules are used")
    return lines
