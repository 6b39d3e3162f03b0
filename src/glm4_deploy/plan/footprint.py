"""What one engine takes of a GPU's memory: the request, and a formula for each part, fitted to logs."""

from dataclasses import dataclass, replace
from enum import StrEnum

from glm4_deploy.catalog.rows import Gpu, Version
from glm4_deploy.plan.engine_rules import (
    BLOCK_TOKENS,
    GIB,
    MIB,
    NEWEST,
    OLDEST,
    Attention,
    StoredModel,
    WeightFormat,
    attention_backend,
    capture_sizes,
    counted_state_bytes,
    counts_all_used,
    counts_graphs,
    default_batched_tokens,
    free_is_available,
    graph_counts,
    requested_bytes,
    runner_v2,
    sampler_bytes_per_logit,
    workspace_bytes,
)


class Basis(StrEnum):
    """What a plan rests on, best first."""

    HERE = "measured on this host"
    LOGS = "public logs of such cards with close versions"
    SOURCES = "vLLM's sources; no log of such a card with a close version"
    GUESS = "a guess: neither this version's sources nor such a card's logs were read"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRequest:
    """One engine on one GPU (or on `tensor_parallel_size` of them).

    gpu_memory_utilization: fraction of the GPU's total.
    max_num_batched_tokens: None leaves it to vLLM.
    kv_cache_memory_bytes: bytes that the engine allocates instead of profiling; None lets it profile.
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
    kv_cache_memory_bytes: int | None = None
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

    @property
    def v2(self) -> bool:
        """Whether it runs on model runner V2."""
        return runner_v2(self.vllm, self.model.architecture, wsl=self.gpu.wsl)

    @property
    def attention(self) -> Attention:
        return attention_backend(self.vllm, self.gpu.compute_capability, self.kv_cache_dtype)

    @property
    def counts_graphs(self) -> bool:
        """Whether graphs and workspace come out of the KV cache."""
        return counts_graphs(self.vllm, v2=self.v2) and not self.enforce_eager


# Loading adds the table of rotary embeddings, at 16 bits for each position and dimension of a head (bf16 checkpoints
# of four models: 0.010 to 0.031 GiB, as logged). Marlin's layout of 4-bit weights takes 2 % more (NVFP4 on an H100:
# 6.71 for 6.587 GiB; AWQ on an L40S and an RTX 5090: 0.15 to 0.28 GiB), the native layout 0.3 % more (RTX 5070 Ti,
# RTX PRO 6000).
MARLIN_GROWTH, NATIVE_GROWTH = 0.02, 0.003
# Neither weights nor activations: kernel code and libraries. Hopper: 0.22 GiB in nine starts of 0.24 without compiled
# code; in public logs 0.25 with 0.18 and 0.19, 0.13 with 0.15 to 0.17, 0.02 to 0.07 with 0.10 to 0.13. Others: public
# logs of Ada and of 12.0.
OVERHEAD_DATACENTER = {(0, 27): 0.26 * GIB, (0, 18): 0.22 * GIB, (0, 14): 0.13 * GIB, (0,): 0.06 * GIB}
OVERHEAD = {(0, 18): 0.16 * GIB, (0,): 0.06 * GIB}
# Compiled code, and graphs that profiling tried: 0.03 GiB more with 0.24 on an H100.
COMPILED_CODE = 0.03 * GIB
# What cuBLAS allocates through PyTorch on its first matrix product, by capability (ATen/cuda/CublasHandlePool.cpp):
# once for the layers of a bf16 model, twice for the sampler. H100: 0.85 instead of 0.81 GiB with bf16 weights, 2.21
# GiB with 1024 sequences; RTX 5090: 0.20 GiB in all for 2048 tokens.
CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_SMALL = 32 * MIB, 8.125 * MIB
# On unified memory vLLM attributes every drop of MemAvailable to itself, including its processes and compile workers.
# GB10 with 0.13: 0.8 GiB (a dense model), 2.0 (a MoE model); with 0.27, which counts more: 2.05.
UNIFIED_OVERHEAD, UNIFIED_OVERHEAD_ALL = 0.8 * GIB, 2.05 * GIB
# Before 0.11.1 page cache counts as used there, and reading the weights fills it: 6.6 of 32.6 GiB in the only log.
PAGE_CACHE = 0.2
# NCCL's and other buffers for several ranks, beyond those of one: two H200 with 0.11, two H100 with 0.15 (0.55 GiB in
# all) and with 0.19 (2.07), two B200 with 0.22 (about 1.4).
RANK_OVERHEAD = {(0, 18): 1.5 * GIB, (0, 14): 0.42 * GIB, (0,): 1.3 * GIB}
# CUDA graphs as the engine estimates them (gpu_model_runner.py profile_cudagraph_memory): the larger of the two first
# captures, plus each further piecewise and full graph. NVFP4 on an H100 with 0.24, two logs: the first piecewise graph
# takes 34 MiB at 128 tokens and 98 at 512, the first full one 34 at 64 sequences and 132 at 256, where FlashAttention 3
# splits the KV cache in 32; each further piecewise graph 4 MiB, each further full one 1 at 64 and 2 at 256. bf16: one
# log, with the growth of NVFP4.
FIRST_GRAPH, FIRST_GRAPH_BF16 = 12.7 * MIB, 50 * MIB
GRAPH_TOKEN, GRAPH_SEQUENCE = 170.7 * 1024, 0.516 * MIB
PIECEWISE_GRAPH, FULL_GRAPH = 4 * MIB, 1 * MIB
# Actual minus estimated size per graph: 0.16 for 0.11 GiB and 0.20 for 0.15 (30 graphs each), 0.51 for 0.39 (86).
GRAPH_UNDERESTIMATE = 1.7 * MIB


def weights_bytes(request: MemoryRequest) -> float:
    """Bytes of weights on one rank after loading."""
    model = request.model
    rotary = model.shape.max_position * model.shape.head_dim * 2
    growth = 0.0
    if model.weights.four_bit:
        growth = NATIVE_GROWTH if request.native_fp4 else MARLIN_GROWTH
    linear = max(0, model.checkpoint_bytes - model.shape.embedding_bytes)
    return (model.checkpoint_bytes + growth * linear) / request.tensor_parallel_size + rotary


def activation_bytes(request: MemoryRequest) -> float:
    """Peak of vLLM's profiling run: the largest of the peaks in a layer, in the sampler and in the compiler.

    In a layer during SwiGLU, for each of T tokens: gate and up (2·ffn), their product (ffn) and three hidden states
    (attention's output, the residual before and after), 2 bytes each. In the sampler: the hidden states (twice from
    0.17 on) and max_num_seqs rows of logits. Source: v1/worker/gpu_model_runner.py profile_run, _dummy_sampler_run;
    compared with starts of 0.24 with 2048, 8192 and 16384 tokens, and with public ones of 0.15 to 0.19.
    """
    shape, tokens = request.model.shape, request.batched_tokens
    rows = min(request.max_num_seqs, tokens)
    ffn = shape.ffn / request.tensor_parallel_size
    cublas = CUBLAS_WORKSPACE if request.gpu.compute_capability[0] in (9, 10) else CUBLAS_WORKSPACE_SMALL
    layer = tokens * 2 * (3 * ffn + 3 * shape.hidden)
    if request.model.weights is WeightFormat.BF16:
        layer += cublas
    logits = rows * shape.vocab * sampler_bytes_per_logit(request.vllm, rows, v2=request.v2)
    states = 2 if request.vllm >= (0, 17) else 1
    sampler = states * tokens * 2 * shape.hidden + 2 * cublas + logits
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


def compiling_kept_bytes(request: MemoryRequest) -> float:
    """What compilation leaves behind on a first start: PyTorch's allocator keeps the embedding's copy, so a version
    that counts all used memory charges it a second time. All public first starts of 0.28 and 0.29 on 12.0 show it
    (1.42 GiB for a vocabulary of 151,936 and 5,120 hidden), none on Ada; the sources do not say when it happens.
    """
    kept = request.gpu.compute_capability[0] == 12 and not request.gpu.unified and request.vllm >= (0, 28)
    if not kept or not request.first_start or request.enforce_eager:
        return 0.0
    return 2 * request.model.shape.hidden * request.model.shape.vocab / request.tensor_parallel_size


def first_start_extra(request: MemoryRequest) -> float:
    """How many bytes of KV cache a first start lacks, compared with later ones."""
    first, later = (replace(request, first_start=start) for start in (True, False))
    return activation_bytes(first) - activation_bytes(later) + compiling_kept_bytes(first)


def overhead_bytes(request: MemoryRequest) -> float:
    """What libraries, kernel code and counted state take; what an earlier start on this host showed, if known."""
    if request.overhead_bytes is not None:
        return request.overhead_bytes
    state = counted_state_bytes(request.vllm, request.max_num_seqs, request.model.shape.vocab)
    ranks = _by_version(RANK_OVERHEAD, request.vllm) if request.tensor_parallel_size > 1 else 0
    return _base_overhead(request) + state + ranks + compiling_kept_bytes(request)


def _base_overhead(request: MemoryRequest) -> float:
    if request.gpu.unified:
        base = UNIFIED_OVERHEAD_ALL if counts_all_used(request.vllm) else UNIFIED_OVERHEAD
        return base + page_cache_bytes(request)
    datacenter = request.gpu.compute_capability[0] in (9, 10)
    table = OVERHEAD_DATACENTER if datacenter else OVERHEAD
    compiled = COMPILED_CODE if datacenter and request.vllm >= (0, 18) and not request.enforce_eager else 0
    return _by_version(table, request.vllm) + compiled


def _by_version(table: dict[Version, float], version: Version) -> float:
    """The row of the newest version that is not newer than this one; rows are newest first."""
    return next(size for since, size in table.items() if version >= since)


def page_cache_bytes(request: MemoryRequest) -> float:
    """What reading the weights adds to the page cache, where the version takes page cache for used memory."""
    if not request.gpu.unified or free_is_available(request.vllm, request.gpu.compute_capability):
        return 0.0
    return PAGE_CACHE * request.model.checkpoint_bytes / request.tensor_parallel_size


def graph_bytes(request: MemoryRequest) -> float:
    """CUDA graphs of one rank as the engine estimates them. They share a pool whose size the largest graph sets."""
    sizes = _capture_sizes(request)
    if not sizes:
        return 0.0
    shape, (piecewise, full) = request.model.shape, graph_counts(sizes, request.max_num_seqs)
    depth, width = max(0.35, shape.layers / 40), (shape.ffn / request.tensor_parallel_size + shape.hidden) / 17792
    largest = min(max(sizes), request.max_num_seqs)
    of_format = FIRST_GRAPH_BF16 if request.model.weights is WeightFormat.BF16 else FIRST_GRAPH
    first = of_format * depth + max(sizes) * GRAPH_TOKEN * width
    if request.attention is Attention.FLASH_ATTN:
        first = max(first, largest * GRAPH_SEQUENCE / request.tensor_parallel_size)
    return first + (piecewise - 1) * PIECEWISE_GRAPH * depth + max(0, full - 1) * FULL_GRAPH * max(1, largest / 128)


def actual_graph_bytes(request: MemoryRequest) -> float:
    """What the graphs take once they are captured: more than the engine's estimate."""
    return graph_bytes(request) + GRAPH_UNDERESTIMATE * sum(graph_counts(_capture_sizes(request), request.max_num_seqs))


def _capture_sizes(request: MemoryRequest) -> tuple[int, ...]:
    if request.enforce_eager:
        return ()
    return capture_sizes(
        request.vllm, request.gpu, max_num_seqs=request.max_num_seqs, max_num_batched_tokens=request.batched_tokens
    )


def attention_workspace(request: MemoryRequest) -> float:
    """FlashInfer's buffer, allocated while the first graph is profiled or, uncounted, at the first real batch."""
    if request.attention is not Attention.FLASHINFER:
        return 0.0
    shape, ranks = request.model.shape, request.tensor_parallel_size
    size = workspace_bytes(
        request.vllm, batched_tokens=request.batched_tokens, heads=shape.heads // ranks, head_dim=shape.head_dim
    )
    return float(size)


# Versions of which logs were seen, by compute capability: first and last.
SEEN: dict[tuple[int, int], tuple[tuple[Version, Version], ...]] = {
    (8, 0): (((0, 15), (0, 19)),),
    (8, 9): (((0, 24), (0, 29)),),
    (9, 0): (((0, 15), (0, 24)),),
    (10, 0): (((0, 22), (0, 22)),),
    (11, 0): (((0, 22), (0, 22)),),
    (12, 0): (((0, 17), (0, 17)), ((0, 23), (0, 29))),
    (12, 1): (((0, 10), (0, 10)), ((0, 13), (0, 13)), ((0, 27), (0, 27))),
}


def basis(request: MemoryRequest) -> Basis:
    """What the plan rests on for this card and version."""
    if request.overhead_bytes is not None:
        return Basis.HERE
    version = request.vllm[:2]
    if not OLDEST[:2] <= version <= NEWEST:
        return Basis.GUESS
    seen = SEEN.get(request.gpu.compute_capability, ())
    if measured(request) or any(first <= version <= last for first, last in seen):
        return Basis.LOGS
    return Basis.SOURCES if request.gpu.compute_capability[0] in {capability[0] for capability in SEEN} else Basis.GUESS


def error_range_bytes(request: MemoryRequest) -> float:
    """How far off the KV cache may be: the sum of the unknowns."""
    unknown = 0.12 * GIB  # spread of repeated starts, rounding in the logs
    if not request.first_start:
        unknown += first_start_extra(request)  # it may be a first start after all
    unknown += compiling_kept_bytes(request)  # or PyTorch can give the copy back
    if not request.gpu.exact:
        unknown += 0.009 * request.gpu.total_bytes * request.gpu_memory_utilization
    if request.tensor_parallel_size > 1:
        unknown += 1.2 * GIB  # two H200 with 0.24 and NVLink multicast off took 0.35 instead of RANK_OVERHEAD's 1.5
    if request.overhead_bytes is None:
        unknown += _unmeasured_bytes(request)
    return unknown


def _unmeasured_bytes(request: MemoryRequest) -> float:
    """The part of the range that an earlier start on this host takes away."""
    if request.gpu.unified:
        return 1.5 * GIB + page_cache_bytes(request)  # identical starts on one host varied by up to 2.9 GiB
    if measured(request):
        return 0.0
    share = {Basis.LOGS: (0.15, 0.1), Basis.SOURCES: (0.35, 0.2), Basis.GUESS: (0.6, 0.3)}
    fixed, of_peak = share[basis(request)]
    # A model of runner V2's first releases may run on V1; graphs, compiler and layout differ between cards.
    runner = graph_bytes(request) if (0, 22) <= request.vllm < (0, 25) else 0.0
    graphs = 0.4 * graph_bytes(request) if request.counts_graphs else 0.0
    layout = 0.02 * weights_bytes(request) if request.model.weights.four_bit else 0.0
    return fixed * GIB + of_peak * activation_bytes(request) + max(runner, graphs) + layout


def measured(request: MemoryRequest) -> bool:
    """Whether own logs of this architecture and a close version were available: Hopper with vLLM 0.24."""
    return request.gpu.compute_capability == (9, 0) and (0, 20) <= request.vllm[:2] <= (0, 24)
