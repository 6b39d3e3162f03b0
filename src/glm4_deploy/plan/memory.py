"""How an engine will divide a GPU's memory at startup, and whether it will start.

    KV cache = requested − weights − activations − overhead − CUDA graphs (from vLLM 0.20)

`requested` and the block arithmetic are vLLM's own (engine_rules.py). Weights, activations, overhead and graphs are
fitted to logs: each is a named function here, and `MemoryPlan.reasons` says which are measured and which are estimated.
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
    StoredModel,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRequest:
    """One engine on one GPU (or on `tensor_parallel_size` of them).

    gpu_memory_utilization: fraction of the GPU's total.
    max_num_batched_tokens: None leaves it to vLLM.
    free_bytes: free on the GPU now; None if unknown.
    first_start: no compiled code is cached yet. Compiling raises the profiled peak, so later starts have more KV cache.
        It is the default because a plan precedes the first start, and what fits then fits later too.
    overhead_bytes: measured on this host by an earlier start; None takes the value of the table.
    """

    gpu: Gpu
    model: StoredModel
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
    def token_bytes(self) -> int:
        """Bytes of one token in the KV cache of one rank, all layers."""
        return self.model.shape.kv_token_bytes(self.kv_cache_dtype, self.tensor_parallel_size)

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV cache block of 16 tokens on one rank, all layers."""
        return BLOCK_TOKENS * self.token_bytes

    @property
    def requested_bytes(self) -> int:
        """What vLLM takes for itself: its fraction of the total."""
        return requested_bytes(self.vllm, self.gpu.total_bytes, self.gpu_memory_utilization)

    @property
    def native_fp4(self) -> bool:
        return self.gpu.native_fp4 and self.model.weights is WeightFormat.NVFP4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The prediction for one GPU. GiB are 2^30 bytes.

    requested_gib: total × fraction.
    activation_gib: the profiling run's peak.
    overhead_gib: libraries, NCCL, and on unified memory the host processes.
    graph_gib: actual size of the CUDA graphs; graph_counted_gib: how much comes out of the KV cache (0 before 0.20).
    workspace_gib: FlashInfer's buffer, outside the request before 0.20.
    outside_gib: what the engine takes beyond its request.
    kv_cache_tokens, max_concurrency: as the engine will log them; 0 if it will not start.
    longest_context: tokens of one request that fit, at most the model's own limit; the engine names the same figure
        when it refuses a longer one.
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


def estimate(request: MemoryRequest) -> MemoryPlan:
    """Predict one start."""
    requested = request.requested_bytes
    graphs = graph_bytes(request)
    counted = graphs if counts_graphs(request.vllm) else 0.0
    workspace = float(FLASHINFER_WORKSPACE) if uses_flashinfer(request) else 0.0
    if counts_graphs(request.vllm) and not request.enforce_eager:
        counted += workspace  # allocated while the first full graph is profiled
    available = requested - weights_bytes(request) - activation_bytes(request) - overhead_bytes(request) - counted
    blocks = max(0, int(available // request.block_bytes))
    actual = graphs + GRAPH_UNDERESTIMATE * sum(graph_counts(_capture_sizes(request), request.max_num_seqs))
    outside = max(0.0, actual + workspace - counted)
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
        error_range_gib=error_range_bytes(request) / GIB,
        max_num_batched_tokens=request.batched_tokens,
        fits=started,
        refusal=refused.message if refused else "",
        remedy=refused.remedy if refused else "",
        reasons=tuple(reasons(request)),
    )


# Loaded ÷ stored bytes: rotary cache, rearranged scales, rounding by the allocator. Measured with vLLM 0.24:
# 6.71 for 6.587 GiB (Marlin), 17.56 for 17.509 GiB.
LOADED = {WeightFormat.NVFP4: 6.71 / 6.587, WeightFormat.BF16: 17.56 / 17.509}
# Neither weights nor activations: kernel code and libraries. 0.22 GiB in nine starts of 0.24 on an H100 without
# compiled code; public logs say 0.02 to 0.07 GiB for 0.10 to 0.13 and 0.16 to 0.30 GiB for 0.27 and later.
OVERHEAD = {(0, 27): 0.26 * GIB, (0, 14): 0.22 * GIB, (0, 0): 0.06 * GIB}
# Compiled code, and graphs that profiling tried: 0.03 GiB more with 0.24 on an H100.
COMPILED_CODE = 0.03 * GIB
# What cuBLAS allocates through PyTorch on its first matrix product (Hopper): once for the layers of a bf16 model, twice
# for the sampler. 0.85 instead of 0.81 GiB with bf16 weights; 2.21 GiB with 1024 sequences.
CUBLAS_WORKSPACE = 32 * MIB
# On unified memory vLLM attributes every drop of MemAvailable to itself, including its processes and compile workers.
# 2.0 GiB fits the only available log (GB10, 0.13, another model); it varies with the host's other work.
UNIFIED_OVERHEAD = 2.0 * GIB
# NCCL's buffers for several ranks: 1.38 GiB in total in one public log (two H200, vLLM 0.11).
RANK_OVERHEAD = 1.2 * GIB
# CUDA graphs as the engine estimates them (gpu_model_runner.py profile_cudagraph_memory): the larger of the two first
# captures, plus each further piecewise and full graph. NVFP4 on an H100 with 0.24, two logs: the first piecewise graph
# takes 34 MiB at 128 tokens and 98 at 512, the first full one 34 at 64 sequences and 132 at 256, where FlashAttention 3
# splits the KV cache in 32; each further piecewise graph 4 MiB, each further full one 1 at 64 and 2 at 256. bf16: one
# log, with the growth of NVFP4.
FIRST_GRAPH = {WeightFormat.NVFP4: 12.7 * MIB, WeightFormat.BF16: 50 * MIB}
GRAPH_TOKEN, GRAPH_SEQUENCE = 170.7 * 1024, 0.516 * MIB
PIECEWISE_GRAPH, FULL_GRAPH = 4 * MIB, 1 * MIB
# Actual minus estimated size per graph: 0.16 for 0.11 GiB and 0.20 for 0.15 (30 graphs each), 0.51 for 0.39 (86).
GRAPH_UNDERESTIMATE = 1.7 * MIB


def weights_bytes(request: MemoryRequest) -> float:
    """Bytes of weights on one rank after loading."""
    return request.model.checkpoint_bytes * LOADED[request.model.weights] / request.tensor_parallel_size


def activation_bytes(request: MemoryRequest) -> float:
    """Peak of vLLM's profiling run: the largest of the peaks in a layer, in the sampler and in the compiler.

    In a layer during SwiGLU, for each of T tokens: gate and up (2·ffn), their product (ffn) and three hidden states
    (attention's output, the residual before and after), 2 bytes each. In the sampler: the hidden states twice and
    max_num_seqs rows of logits. Source: v1/worker/gpu_model_runner.py profile_run, _dummy_sampler_run; compared with
    starts of 0.24 with 2048, 8192 and 16384 tokens.
    """
    shape, tokens = request.model.shape, request.batched_tokens
    rows = min(request.max_num_seqs, tokens)
    ffn = shape.ffn / request.tensor_parallel_size
    layer = tokens * 2 * (3 * ffn + 3 * shape.hidden)
    if request.model.weights is WeightFormat.BF16:
        layer += CUBLAS_WORKSPACE
    logits = rows * shape.vocab * sampler_bytes_per_logit(request.vllm, rows)
    sampler = 2 * tokens * 2 * shape.hidden + 2 * CUBLAS_WORKSPACE + logits
    return max(layer, sampler, compiling_bytes(request) if request.first_start else 0)


def compiling_bytes(request: MemoryRequest) -> float:
    """Peak of compilation on a first start; 0 with enforce_eager.

    Kernels are tuned on tensors of real size. The largest is the embedding's: a second copy of its table and two hidden
    states. 1.19 GiB for 2048 tokens, 1.28 for 8192 (0.24).
    """
    if request.enforce_eager:
        return 0.0
    shape = request.model.shape
    return 2 * shape.hidden * (shape.vocab / request.tensor_parallel_size + 2 * request.batched_tokens)


def first_start_extra(request: MemoryRequest) -> float:
    """How many bytes of KV cache a first start lacks, compared with later ones."""
    first, later = (activation_bytes(replace(request, first_start=start)) for start in (True, False))
    return first - later


def overhead_bytes(request: MemoryRequest) -> float:
    if request.overhead_bytes is not None:
        return request.overhead_bytes
    of_version = next(size for since, size in OVERHEAD.items() if request.vllm >= since)
    compiled = 0 if request.enforce_eager else COMPILED_CODE
    base = UNIFIED_OVERHEAD if request.gpu.unified else of_version + compiled
    state = counted_state_bytes(request.vllm, request.max_num_seqs, request.model.shape.vocab)
    return base + state + (RANK_OVERHEAD if request.tensor_parallel_size > 1 else 0)


def graph_bytes(request: MemoryRequest) -> float:
    """CUDA graphs of one rank as the engine estimates them. They share a pool whose size the largest graph sets."""
    sizes = _capture_sizes(request)
    if not sizes:
        return 0.0
    shape, (piecewise, full) = request.model.shape, graph_counts(sizes, request.max_num_seqs)
    depth, width = max(0.35, shape.layers / 40), (shape.ffn / request.tensor_parallel_size + shape.hidden) / 17792
    largest = min(max(sizes), request.max_num_seqs)
    first = FIRST_GRAPH[request.model.weights] * depth + max(sizes) * GRAPH_TOKEN * width
    if not uses_flashinfer(request):
        first = max(first, largest * GRAPH_SEQUENCE / request.tensor_parallel_size)
    return first + (piecewise - 1) * PIECEWISE_GRAPH * depth + max(0, full - 1) * FULL_GRAPH * max(1, largest / 128)


def _capture_sizes(request: MemoryRequest) -> tuple[int, ...]:
    if request.enforce_eager:
        return ()
    return capture_sizes(
        request.vllm, request.gpu, max_num_seqs=request.max_num_seqs, max_num_batched_tokens=request.batched_tokens
    )


def uses_flashinfer(request: MemoryRequest) -> bool:
    """vLLM prefers FlashInfer for attention on Blackwell (platforms/cuda.py), FlashAttention elsewhere."""
    return request.gpu.compute_capability >= (10, 0)


def error_range_bytes(request: MemoryRequest) -> float:
    """How far off the KV cache may be: the sum of the unknowns."""
    unknown = 0.12 * GIB  # spread of repeated starts, rounding in the logs
    if not request.first_start:
        unknown += first_start_extra(request)  # it may be a first start after all
    if not request.gpu.exact:
        unknown += 0.009 * request.gpu.total_bytes * request.gpu_memory_utilization
    if request.gpu.unified and request.overhead_bytes is None:
        unknown += 1.3 * GIB
    elif not measured(request) and request.overhead_bytes is None:
        unknown += 0.35 * GIB + 0.2 * activation_bytes(request)
    if request.tensor_parallel_size > 1:
        unknown += 0.5 * GIB
    return unknown


def measured(request: MemoryRequest) -> bool:
    """Whether logs of this architecture and a close version were available: Hopper with vLLM 0.24."""
    return request.gpu.compute_capability == (9, 0) and (0, 20) <= request.vllm[:2] <= (0, 24)


def reasons(request: MemoryRequest) -> list[str]:
    """Where each figure comes from, one line each."""
    counted = (
        "come out of the KV cache in this version (seen with 0.24)"
        if counts_graphs(request.vllm)
        else "are outside the KV cache in this version (read from the sources, not measured)"
    )
    lines = [
        f"total {request.gpu.total_bytes / GIB:.2f} GiB: {'seen in logs' if request.gpu.exact else 'an estimate'}",
        f"weights: {request.model.checkpoint_bytes / GIB:.2f} GiB stored; growth while loading: measured (vLLM 0.24)",
        f"activations: formula for {request.batched_tokens} batched tokens and {request.max_num_seqs} sequences"
        f"{'' if request.max_num_batched_tokens else ' (vLLM chooses the batch)'}",
        f"KV cache: {request.token_bytes:,} bytes per token, exact",
    ]
    if not request.enforce_eager:
        less = first_start_extra(request) / GIB
        lines.append(
            f"a first start compiles; later starts have about {less:.2f} GiB more (seen with 0.24)"
            if request.first_start
            else f"a start with a warm compile cache; the first start has about {less:.2f} GiB less (seen with 0.24)"
        )
        lines.append(f"CUDA graphs {counted}; their size is an estimate")
    if request.gpu.unified:
        lines.append("overhead: on unified memory it includes the engine's processes; known from a single log")
    elif not measured(request):
        lines.append("overhead: measured only on Hopper with vLLM 0.24, assumed to be the same here")
    if not OLDEST <= request.vllm[:2] <= NEWEST:
        lines.append("the sources of this vLLM version were not read: the closest known rules are used")
    return lines


# Why an engine would refuse to start, in the order of vLLM's own checks and with its remedies.


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    message: str
    remedy: str


# Never free: the CUDA context (78.66 of 79.19 GiB are free on an idle H100), and on unified memory the system as well
# (MemAvailable of an idle DGX Spark: 113 of 121.69 GiB, somewhat more if headless).
CONTEXT = 0.5 * GIB
SYSTEM = 5 * GIB


def refusal(request: MemoryRequest, available: float, outside: float) -> Refusal | None:
    """None if the engine starts.

    Args:
        available: bytes left for the KV cache; negative if there are none.
        outside: bytes that the engine takes beyond its request.
    """
    return (
        at_any_fraction(request)
        or _free_memory(request)
        or _no_room(available)
        or _too_long(request, available)
        or _beyond(request, outside)
    )


def at_any_fraction(request: MemoryRequest) -> Refusal | None:
    """What no gpu_memory_utilization can fix: the limits of the model and of the batch."""
    return _model_limits(request) or _batch_limits(request)


def free_bytes(request: MemoryRequest) -> float:
    """Free memory: as given, else as on an idle machine."""
    if request.free_bytes is not None:
        return request.free_bytes
    return request.gpu.total_bytes - (SYSTEM if request.gpu.unified else CONTEXT)


def _model_limits(request: MemoryRequest) -> Refusal | None:
    shape, ranks = request.model.shape, request.tensor_parallel_size
    if request.max_model_len > shape.max_position:
        return Refusal(
            message=f"max_model_len {request.max_model_len:,} exceeds the model's limit of"
            f" {shape.max_position:,} tokens",
            remedy=f"set max_model_len to {shape.max_position} or less",
        )
    if shape.heads % ranks or (shape.kv_heads % ranks and ranks % shape.kv_heads):
        return Refusal(
            message=f"{shape.heads} heads and {shape.kv_heads} KV heads cannot be split over {ranks} GPUs",
            remedy="use 1, 2 or 4; for more GPUs run one engine each (data parallel)",
        )
    per_rank = shape.ffn // ranks
    if request.native_fp4 and shape.ffn % ranks == 0 and per_rank % 32:
        return Refusal(
            message=f"{shape.ffn} / {ranks} ranks = {per_rank} is not a multiple of 32, as NVFP4 kernels require",
            remedy="use 1, 2 or 4 ranks; for more GPUs run one engine each (data parallel)",
        )
    return None


def _batch_limits(request: MemoryRequest) -> Refusal | None:
    if request.batched_tokens < request.max_num_seqs:
        return Refusal(
            message=f"max_num_batched_tokens {request.batched_tokens} is below max_num_seqs {request.max_num_seqs}",
            remedy="raise max_num_batched_tokens or lower max_num_seqs",
        )
    return None


def _free_memory(request: MemoryRequest) -> Refusal | None:
    wanted, free = (
        request.requested_bytes,
        free_bytes(request),
    )
    if free >= wanted:
        return None
    known = "only" if request.free_bytes is not None else "even on an idle machine only about"
    return Refusal(
        message=f"{known} {free / GIB:.2f} of {request.gpu.total_bytes / GIB:.2f} GiB are free,"
        f" less than the {wanted / GIB:.2f} GiB of gpu_memory_utilization {request.gpu_memory_utilization:g}",
        remedy="decrease gpu_memory_utilization, or stop the other users of this memory",
    )


def _beyond(request: MemoryRequest, outside: float) -> Refusal | None:
    """Allocations beyond the request run out of memory once the KV cache is allocated."""
    wanted = request.requested_bytes + outside
    if request.gpu.unified or wanted <= free_bytes(request):
        return None
    return Refusal(
        message=f"CUDA graphs and workspace need {outside / GIB:.2f} GiB beyond the request, and that much is not free",
        remedy="decrease gpu_memory_utilization or max_num_seqs",
    )


def _no_room(available: float) -> Refusal | None:
    if available > 0:
        return None
    return Refusal(
        message=f"no memory is left for KV cache blocks ({available / GIB:.2f} GiB)",
        remedy="increase gpu_memory_utilization",
    )


def _too_long(request: MemoryRequest, available: float) -> Refusal | None:
    needed = -(-request.max_model_len // BLOCK_TOKENS) * request.block_bytes
    if needed <= available:
        return None
    longest = int(available // request.block_bytes) * BLOCK_TOKENS
    return Refusal(
        message=f"one request of {request.max_model_len:,} tokens needs {needed / GIB:.2f} GiB of KV cache,"
        f" {available / GIB:.2f} GiB are available",
        remedy=f"increase gpu_memory_utilization or decrease max_model_len to {longest} or less",
    )
