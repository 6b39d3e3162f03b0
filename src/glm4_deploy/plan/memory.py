"""What an engine will do with a GPU's memory at start, before it is started. Pure.

    KV cache = requested − weights − activations − overhead − CUDA graphs (from vLLM 0.20)

`requested` and the block arithmetic are vLLM's own (memory_rules.py). Weights, activations, overhead and graphs are
fitted to logs: each is a named function here, and `MemoryPlan.reasons` says which are measured and which are estimates.
"""

from dataclasses import dataclass, replace

from glm4_deploy.catalog.rows import Gpu, Version
from glm4_deploy.plan.engine_rules import (
    BLOCK_TOKENS,
    FLASHINFER_WORKSPACE,
    GIB,
    MIB,
    NEWEST,
    OLDEST,
    ModelShape,
    WeightFormat,
    capacity_tokens,
    capture_sizes,
    concurrency,
    counted_state_bytes,
    counts_graphs,
    default_batched_tokens,
    graph_counts,
    requested_bytes,
    sampler_bytes_per_logit,
)

# Why an engine would refuse to start, in the order and with the remedy of vLLM's own messages.


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    message: str
    remedy: str


# What is never free: the CUDA context (78.66 of 79.19 GiB are free on an idle H100); on unified memory the system too
# (MemAvailable of an idle DGX Spark: 113 of 121.69 GiB, headless somewhat more).
CONTEXT = 0.5 * GIB
SYSTEM = 5 * GIB


def refusal(wish: "MemoryRequest", available: float, outside: float) -> Refusal | None:
    """None where the engine starts.

    Args:
        available: the KV cache's share in bytes, negative where there is none.
        outside: bytes that the engine takes beyond its request.
    """
    return (
        at_any_fraction(wish)
        or _free_memory(wish)
        or _no_room(available)
        or _too_long(wish, available)
        or _beyond(wish, outside)
    )


def at_any_fraction(wish: "MemoryRequest") -> Refusal | None:
    """What no gpu_memory_utilization mends: the limits of the model and of the batch."""
    return _model_limits(wish) or _batch_limits(wish)


def free_bytes(wish: "MemoryRequest") -> float:
    """What is free: as told, else as on an idle machine."""
    if wish.free_bytes is not None:
        return wish.free_bytes
    return wish.gpu.total_bytes - (SYSTEM if wish.gpu.unified else CONTEXT)


def _model_limits(wish: "MemoryRequest") -> Refusal | None:
    if wish.max_model_len > wish.model.max_position:
        return Refusal(
            message=f"max_model_len {wish.max_model_len:,} is beyond the model's own limit of"
            f" {wish.model.max_position:,} tokens",
            remedy=f"set max_model_len to {wish.model.max_position} or less",
        )
    ranks = wish.tensor_parallel_size
    if wish.model.heads % ranks or (wish.model.kv_heads % ranks and ranks % wish.model.kv_heads):
        return Refusal(
            message=f"{wish.model.heads} heads and {wish.model.kv_heads} KV heads cannot be split over {ranks} GPUs",
            remedy="use 1, 2 or 4; for more GPUs run one engine each (data parallel)",
        )
    per_rank = wish.model.ffn // ranks
    if wish.native_fp4 and wish.model.ffn % ranks == 0 and per_rank % 32:
        return Refusal(
            message=f"{wish.model.ffn} / {ranks} ranks = {per_rank} is not a multiple of 32, as NVFP4 kernels want it",
            remedy="use 1, 2 or 4 ranks; for more GPUs run one engine each (data parallel)",
        )
    return None


def _batch_limits(wish: "MemoryRequest") -> Refusal | None:
    if wish.batched_tokens < wish.max_num_seqs:
        return Refusal(
            message=f"max_num_batched_tokens {wish.batched_tokens} is smaller than max_num_seqs {wish.max_num_seqs}",
            remedy="raise max_num_batched_tokens or lower max_num_seqs",
        )
    return None


def _free_memory(wish: "MemoryRequest") -> Refusal | None:
    wanted, free = requested_bytes(wish.vllm, wish.gpu.total_bytes, wish.gpu_memory_utilization), free_bytes(wish)
    if free >= wanted:
        return None
    known = "only" if wish.free_bytes is not None else "even on an idle machine only about"
    return Refusal(
        message=f"{known} {free / GIB:.2f} of {wish.gpu.total_bytes / GIB:.2f} GiB are free,"
        f" less than the {wanted / GIB:.2f} GiB of gpu_memory_utilization {wish.gpu_memory_utilization:g}",
        remedy="decrease gpu_memory_utilization, or end the other users of this memory",
    )


def _beyond(wish: "MemoryRequest", outside: float) -> Refusal | None:
    """What the request does not cover ends in an out-of-memory error once the KV cache is made."""
    wanted = requested_bytes(wish.vllm, wish.gpu.total_bytes, wish.gpu_memory_utilization) + outside
    if wish.gpu.unified or wanted <= free_bytes(wish):
        return None
    return Refusal(
        message=f"CUDA graphs and workspace need {outside / GIB:.2f} GiB beyond the request, and so much is not free",
        remedy="decrease gpu_memory_utilization or max_num_seqs",
    )


def _no_room(available: float) -> Refusal | None:
    if available > 0:
        return None
    return Refusal(
        message=f"no memory is left for KV cache blocks ({available / GIB:.2f} GiB)",
        remedy="increase gpu_memory_utilization",
    )


def _too_long(wish: "MemoryRequest", available: float) -> Refusal | None:
    needed = -(-wish.max_model_len // BLOCK_TOKENS) * wish.block_bytes
    if needed <= available:
        return None
    longest = int(available // wish.block_bytes) * BLOCK_TOKENS
    return Refusal(
        message=f"one request of {wish.max_model_len:,} tokens needs {needed / GIB:.2f} GiB of KV cache,"
        f" {available / GIB:.2f} GiB are there",
        remedy=f"increase gpu_memory_utilization or decrease max_model_len to {longest} or less",
    )


# Loaded over stored bytes: rotary cache, scales laid out anew, rounding of the allocator. Measured with vLLM 0.24:
# 6.71 of 6.587 GiB (Marlin), 17.56 of 17.509 GiB.
LOADED = {WeightFormat.NVFP4: 6.71 / 6.587, WeightFormat.BF16: 17.56 / 17.509}
# What is neither weights nor activations: kernel code and the libraries. 0.22 GiB in nine starts of 0.24 on an H100
# without compiled code; public logs say 0.02 to 0.07 GiB for 0.10 to 0.13 and 0.16 to 0.30 GiB for 0.27 and later.
OVERHEAD = {(0, 27): 0.26 * GIB, (0, 14): 0.22 * GIB, (0, 0): 0.06 * GIB}
# Compiled code and graphs that were tried while profiling: 0.03 GiB more with 0.24 on an H100.
COMPILED_CODE = 0.03 * GIB
# What cuBLAS takes from PyTorch on its first product (Hopper): once for the layers of a bf16 model, twice for the
# sampler's. 0.85 instead of 0.81 GiB with bf16 weights; 2.21 GiB with 1024 sequences.
CUBLAS_WORKSPACE = 32 * MIB
# On unified memory vLLM takes the fall of MemAvailable for its own: the engine's processes and compile workers count.
# 2.0 GiB fits the one log at hand (GB10, 0.13, another model); it varies with what else the host does.
UNIFIED_OVERHEAD = 2.0 * GIB
# NCCL's buffers of several ranks: 1.38 GiB in all in one public log (two H200, vLLM 0.11).
RANK_OVERHEAD = 1.2 * GIB
# CUDA graphs as the engine estimates them (gpu_model_runner.py profile_cudagraph_memory): the larger of the two first
# captures, then each further piecewise and full graph. NVFP4 on an H100 with 0.24, two logs: 34 MiB first at 128 tokens
# and 98 at 512; full ones 34 at 64 sequences and 132 at 256, where FlashAttention 3 splits the KV cache in 32; 4 MiB
# each piecewise, 1 each full at 64 and 2 at 256. bf16: one log, the growth taken from NVFP4's.
FIRST_GRAPH = {WeightFormat.NVFP4: 12.7 * MIB, WeightFormat.BF16: 50 * MIB}
GRAPH_TOKEN, GRAPH_SEQUENCE = 170.7 * 1024, 0.516 * MIB
PIECEWISE_GRAPH, FULL_GRAPH = 4 * MIB, 1 * MIB
# How much more a graph turns out to take: 0.16 for 0.11 GiB, 0.20 for 0.15, 30 graphs each; 0.51 for 0.39, 86 graphs.
GRAPH_UNDERESTIMATE = 1.7 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRequest:
    """What is asked of one engine on one GPU (or `tensor_parallel_size` of them).

    gpu_memory_utilization: fraction of the GPU's total.
    max_num_batched_tokens: None leaves it to vLLM.
    free_bytes: what is free on the GPU now; None where it is not known.
    first_start: no compiled code is cached yet; compiling raises the profiled peak, later starts have more KV cache. It
        is the default because a plan comes before the first start, and what serves the load there serves it later too.
    overhead_bytes: measured on this host before (engine observations); None takes the table's.
    """

    gpu: Gpu
    model: ModelShape
    vllm: Version
    gpu_memory_utilization: float
    max_model_len: int = 32768
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: str = "fp8"
    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    free_bytes: int | None = None
    first_start: bool = True
    overhead_bytes: float | None = None

    @property
    def batched_tokens(self) -> int:
        return self.max_num_batched_tokens or default_batched_tokens(
            self.vllm, self.gpu, max_num_seqs=self.max_num_seqs, max_model_len=self.max_model_len
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV cache block of 16 tokens on one rank, all layers."""
        return BLOCK_TOKENS * self.model.kv_token_bytes(self.kv_cache_dtype, self.tensor_parallel_size)

    @property
    def native_fp4(self) -> bool:
        return self.gpu.native_fp4 and self.model.weights is WeightFormat.NVFP4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The prediction, one GPU's share. GiB are 2^30 bytes.

    requested_gib: total × fraction.
    activation_gib: the profiling run's peak.
    overhead_gib: libraries, NCCL, and on unified memory the host processes.
    graph_gib: CUDA graphs as they turn out; graph_counted_gib: what comes out of the KV cache (0 before vLLM 0.20).
    workspace_gib: FlashInfer's buffer, outside of the request before 0.20.
    outside_gib: what the engine takes beyond the request.
    kv_cache_tokens, max_concurrency: as the engine will log them; 0 where it will not start.
    longest_context: tokens of one request that fit, at most the model's own limit; below it, the figure that the engine
        names when it refuses.
    error_range_gib: the KV cache is expected within kv_cache_gib ± this.
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
    reasons: tuple[str, ...]


def estimate(wish: MemoryRequest) -> MemoryPlan:
    """Predict one start."""
    requested = requested_bytes(wish.vllm, wish.gpu.total_bytes, wish.gpu_memory_utilization)
    graphs = graph_bytes(wish)
    counted = graphs if counts_graphs(wish.vllm) else 0.0
    workspace = float(FLASHINFER_WORKSPACE) if uses_flashinfer(wish) else 0.0
    if counts_graphs(wish.vllm) and not wish.enforce_eager:
        counted += workspace  # allocated while the first full graph is profiled
    available = requested - weights_bytes(wish) - activation_bytes(wish) - overhead_bytes(wish) - counted
    blocks = max(0, int(available // wish.block_bytes))
    actual = graphs + GRAPH_UNDERESTIMATE * sum(graph_counts(_capture_sizes(wish), wish.max_num_seqs))
    outside = max(0.0, actual + workspace - counted)
    refused = refusal(wish, available, outside)
    started = refused is None
    return MemoryPlan(
        requested_gib=requested / GIB,
        total_gib=wish.gpu.total_bytes / GIB,
        weights_gib=weights_bytes(wish) / GIB,
        activation_gib=activation_bytes(wish) / GIB,
        overhead_gib=overhead_bytes(wish) / GIB,
        graph_gib=actual / GIB,
        graph_counted_gib=counted / GIB,
        workspace_gib=workspace / GIB,
        outside_gib=outside / GIB,
        kv_cache_gib=available / GIB,
        kv_cache_tokens=capacity_tokens(wish.vllm, blocks, wish.max_model_len) if started else 0,
        kv_cache_blocks=blocks,
        max_concurrency=concurrency(blocks, wish.max_model_len) if started else 0.0,
        longest_context=min(blocks * BLOCK_TOKENS, wish.model.max_position),
        error_range_gib=error_range_bytes(wish) / GIB,
        max_num_batched_tokens=wish.batched_tokens,
        fits=started,
        refusal=refused.message if refused else "",
        remedy=refused.remedy if refused else "",
        reasons=tuple(reasons(wish)),
    )


def weights_bytes(wish: MemoryRequest) -> float:
    """Bytes of weights on one rank after loading."""
    return wish.model.checkpoint_bytes * LOADED[wish.model.weights] / wish.tensor_parallel_size


def activation_bytes(wish: MemoryRequest) -> float:
    """Peak of vLLM's profiling run: the largest of the widest moment in a layer, the sampler's and the compiler's.

    In a layer, while SwiGLU runs, for each of T tokens: gate and up (2·ffn), their product (ffn) and three hidden
    states (attention's output, the residual before and after), 2 bytes each. In the sampler: the hidden states twice
    and max_num_seqs rows of logits. Source: v1/worker/gpu_model_runner.py profile_run, _dummy_sampler_run; held against
    starts of 0.24 with 2048, 8192 and 16384 tokens.
    """
    model, tokens = wish.model, wish.batched_tokens
    rows = min(wish.max_num_seqs, tokens)
    ffn = model.ffn / wish.tensor_parallel_size
    layer = tokens * 2 * (3 * ffn + 3 * model.hidden)
    if model.weights is WeightFormat.BF16:
        layer += CUBLAS_WORKSPACE
    logits = rows * model.vocab * sampler_bytes_per_logit(wish.vllm, rows)
    sampler = 2 * tokens * 2 * model.hidden + 2 * CUBLAS_WORKSPACE + logits
    return max(layer, sampler, compiling_bytes(wish) if wish.first_start else 0)


def compiling_bytes(wish: MemoryRequest) -> float:
    """What compiling holds at its peak on a first start; 0 with enforce_eager.

    Kernels are tuned on tensors of the real sizes, the widest of which is the embedding's: its table once more, and two
    hidden states. 1.19 GiB for 2048 tokens, 1.28 for 8192 (0.24).
    """
    if wish.enforce_eager:
        return 0.0
    model = wish.model
    return 2 * model.hidden * (model.vocab / wish.tensor_parallel_size + 2 * wish.batched_tokens)


def first_start_extra(wish: MemoryRequest) -> float:
    """Bytes of KV cache that a first start has less than a later one."""
    first, later = (activation_bytes(replace(wish, first_start=start)) for start in (True, False))
    return first - later


def overhead_bytes(wish: MemoryRequest) -> float:
    if wish.overhead_bytes is not None:
        return wish.overhead_bytes
    of_version = next(size for since, size in OVERHEAD.items() if wish.vllm >= since)
    compiled = 0 if wish.enforce_eager else COMPILED_CODE
    base = UNIFIED_OVERHEAD if wish.gpu.unified else of_version + compiled
    state = counted_state_bytes(wish.vllm, wish.max_num_seqs, wish.model.vocab)
    return base + state + (RANK_OVERHEAD if wish.tensor_parallel_size > 1 else 0)


def graph_bytes(wish: MemoryRequest) -> float:
    """CUDA graphs of one rank as the engine estimates them: they share a pool, which the largest sizes."""
    sizes = _capture_sizes(wish)
    if not sizes:
        return 0.0
    model, (piecewise, full) = wish.model, graph_counts(sizes, wish.max_num_seqs)
    depth, width = max(0.35, model.layers / 40), (model.ffn / wish.tensor_parallel_size + model.hidden) / 17792
    largest = min(max(sizes), wish.max_num_seqs)
    first = FIRST_GRAPH[model.weights] * depth + max(sizes) * GRAPH_TOKEN * width
    if not uses_flashinfer(wish):
        first = max(first, largest * GRAPH_SEQUENCE / wish.tensor_parallel_size)
    return first + (piecewise - 1) * PIECEWISE_GRAPH * depth + max(0, full - 1) * FULL_GRAPH * max(1, largest / 128)


def _capture_sizes(wish: MemoryRequest) -> tuple[int, ...]:
    if wish.enforce_eager:
        return ()
    return capture_sizes(
        wish.vllm, wish.gpu, max_num_seqs=wish.max_num_seqs, max_num_batched_tokens=wish.batched_tokens
    )


def uses_flashinfer(wish: MemoryRequest) -> bool:
    """FlashInfer is vLLM's first choice of attention on Blackwell (platforms/cuda.py), FlashAttention elsewhere."""
    return wish.gpu.compute_capability >= (10, 0)


def error_range_bytes(wish: MemoryRequest) -> float:
    """How far off the KV cache may be; the sum of what is not known."""
    unknown = 0.12 * GIB  # spread of repeated starts, rounding of what the logs print
    if not wish.first_start:
        unknown += first_start_extra(wish)  # this may be a first start after all
    if not wish.gpu.exact:
        unknown += 0.009 * wish.gpu.total_bytes * wish.gpu_memory_utilization
    if wish.gpu.unified and wish.overhead_bytes is None:
        unknown += 1.3 * GIB
    elif not measured(wish) and wish.overhead_bytes is None:
        unknown += 0.35 * GIB + 0.2 * activation_bytes(wish)
    if wish.tensor_parallel_size > 1:
        unknown += 0.5 * GIB
    return unknown


def measured(wish: MemoryRequest) -> bool:
    """Whether logs of this architecture and a near version were at hand: Hopper with vLLM 0.24."""
    return wish.gpu.compute_capability == (9, 0) and (0, 20) <= wish.vllm[:2] <= (0, 24)


def reasons(wish: MemoryRequest) -> list[str]:
    """Where each figure comes from, one line each."""
    counted = (
        "come out of the KV cache in this version (seen with 0.24)"
        if counts_graphs(wish.vllm)
        else "lie outside of the KV cache in this version (read from the sources, not measured)"
    )
    lines = [
        f"total {wish.gpu.total_bytes / GIB:.2f} GiB: {'seen in logs' if wish.gpu.exact else 'an estimate'}",
        f"weights: {wish.model.checkpoint_bytes / GIB:.2f} GiB stored; the growth at loading is measured (vLLM 0.24)",
        f"activations: formula for {wish.batched_tokens} batched tokens and {wish.max_num_seqs} sequences"
        f"{'' if wish.max_num_batched_tokens else ' (vLLM chooses the batch)'}",
        f"KV cache: {wish.model.kv_token_bytes(wish.kv_cache_dtype, wish.tensor_parallel_size):,} bytes a token, exact",
    ]
    if not wish.enforce_eager:
        less = first_start_extra(wish) / GIB
        lines.append(
            f"a first start, which compiles; later ones have about {less:.2f} GiB more (seen with 0.24)"
            if wish.first_start
            else f"a start with a filled compile cache; the first has about {less:.2f} GiB less (seen with 0.24)"
        )
        lines.append(f"CUDA graphs {counted}; their size is an estimate")
    if wish.gpu.unified:
        lines.append("overhead: on unified memory it includes the engine's processes; known from one log only")
    elif not measured(wish):
        lines.append("overhead: measured on Hopper with vLLM 0.24 only, taken over here")
    if not OLDEST <= wish.vllm[:2] <= NEWEST:
        lines.append("this vLLM version was not read: the nearest known rules are used")
    return lines
