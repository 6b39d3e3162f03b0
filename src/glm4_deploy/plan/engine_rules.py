"""The model's shape, vLLM's memory rules by version, and the arithmetic to expect on a GPU."""

import math
from dataclasses import dataclass
from enum import StrEnum

from glm4_deploy.catalog.rows import Capability, Gpu, Version

# When an engine hangs: it holds requests, and none of these counters moves. `probe.hang` judges by it, and
# templates/targets/liveness.py does the same inside a pod.
HELD_REQUESTS = ("vllm:num_requests_running", "vllm:num_requests_waiting")
WORK_COUNTERS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:iteration_tokens_total_count",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
)
STALL_SECONDS = 60.0  # without progress until the watch calls it hung
LIVENESS_SECONDS = 2 * STALL_SECONDS  # until Kubernetes kills it: nothing checks before that

# A model as far as memory is concerned. Bytes everywhere; GiB only in messages.

GIB = 2**30
MIB = 2**20

# Bytes per element of the KV cache. `auto` is the model's own type, 16 bits here.
KV_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
# The first vLLM with which templates/tools/glm4_tool_parser.py was tried (scripts/engines.toml has all of them).
TOOLS_FROM: Version = (0, 11, 0)


class WeightFormat(StrEnum):
    """How a checkpoint stores its linear layers. NVFP4A16, AWQ, GPTQ and INT4 are 4-bit weights for 16-bit
    arithmetic."""

    NVFP4 = "nvfp4"
    NVFP4A16 = "nvfp4a16"
    AWQ = "awq"
    GPTQ = "gptq"
    INT4 = "int4"
    FP8 = "fp8"
    INT8 = "int8"
    BF16 = "bf16"

    @property
    def four_bit(self) -> bool:
        return self in (self.NVFP4, self.NVFP4A16, self.AWQ, self.GPTQ, self.INT4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The dimensions of a GLM, in elements. ffn: the width of gate and of up, each.

    max_position: the longest context that the model was trained for, in tokens.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_position: int
    attention_bias: bool = True
    tied: bool = False

    def kv_heads_per_rank(self, tensor_parallel: int) -> int:
        """KV heads are split over the ranks while there are enough of them, then replicated."""
        return max(1, self.kv_heads // tensor_parallel)

    def kv_token_bytes(self, dtype: str, tensor_parallel: int = 1) -> int:
        """Bytes of one token in one rank's KV cache: K and V, all layers."""
        return 2 * self.layers * self.kv_heads_per_rank(tensor_parallel) * self.head_dim * KV_BYTES[dtype]

    @property
    def embedding_bytes(self) -> int:
        """Bytes of the embedding and the output layer, which quantization leaves at 16 bits."""
        return (1 if self.tied else 2) * self.vocab * self.hidden * 2

    @property
    def linear_elements(self) -> int:
        """Elements of the linear layers in all decoder layers: attention, gate, up and down."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model as a checkpoint stores it.

    checkpoint_bytes: the sum of its tensors. architecture: the class that config.json names.
    """

    name: str
    weights: WeightFormat
    checkpoint_bytes: int
    shape: ModelShape
    architecture: str = "GlmForCausalLM"


def glm4_9b(weights: WeightFormat = WeightFormat.NVFP4) -> StoredModel:
    """GLM-4-9B-chat-hf. Source: the base checkpoint's config.json and tensors; NVFP4 as llm-compressor writes it."""
    size = {WeightFormat.NVFP4: 7_072_892_800, WeightFormat.BF16: 18_799_902_720}[weights]
    shape = ModelShape(
        layers=40, hidden=4096, ffn=13696, heads=32, kv_heads=2, head_dim=128, vocab=151552, max_position=131072
    )
    return StoredModel(name="GLM-4-9B", weights=weights, checkpoint_bytes=size, shape=shape)


# What each vLLM version does with memory at startup: one function per rule, each with its source.
#
# Sources are paths in the vLLM repository. The rules were compared across its releases 0.10.1.1, 0.11.0, 0.11.1,
# 0.12.0, 0.13.0, 0.14.1, 0.15.1, 0.16.0, 0.17.1, 0.18.1, 0.19.0, 0.20.1, 0.21.0, 0.22.1, 0.23.0, 0.24.0, 0.25.1,
# 0.26.0, 0.27.1, 0.28.0, 0.29.0, 0.30.0, 0.31.0, 0.32.0 and 0.33.0.

OLDEST: Version = (0, 10, 1)
NEWEST: Version = (0, 33)
BLOCK_TOKENS = 16  # CacheConfig.DEFAULT_BLOCK_SIZE; kept by FlashAttention, FlashInfer and Triton
# envs.VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE, allocated by the FlashInfer backend on its first real batch
FLASHINFER_WORKSPACE = 394 * MIB


def requested_bytes(version: Version, total_bytes: int, fraction: float) -> int:
    """total × fraction; rounded up from 0.14 on (v1/worker/utils.py request_memory)."""
    wanted = total_bytes * fraction
    return math.ceil(wanted) if version >= (0, 14) else int(wanted)


def default_fraction(version: Version) -> float:
    """gpu_memory_utilization if none is given (config/cache.py)."""
    return 0.92 if version >= (0, 20) else 0.9


# Dense models that run on model runner V2 (config/vllm.py DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES), by release.
V2_MODELS: dict[Version, frozenset[str]] = {
    (0, 23): frozenset({"Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"}),
    (0, 22): frozenset({"Qwen3ForCausalLM"}),
    (0,): frozenset(),
}


def runner_v2(version: Version, architecture: str, *, wsl: bool = False) -> bool:
    """Whether a dense model runs on model runner V2 (config/vllm.py use_v2_model_runner).

    Listed models from 0.22, every dense one from 0.25. V2 needs pinned memory, which vLLM does not use on WSL2 before
    0.24 (platforms/interface.py is_pin_memory_available): a start there was made with V1.
    """
    if version >= (0, 25):
        return True
    if wsl and version < (0, 24):
        return False
    return architecture in next(models for since, models in V2_MODELS.items() if version >= since)


def counts_graphs(version: Version, *, v2: bool) -> bool:
    """Whether CUDA graphs are estimated and subtracted from the KV cache.

    envs.VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS: absent up to 0.17, "0" in 0.18 and 0.19, "1" from 0.20 (its log line
    says 0.21). The estimate of runner V2 is 0 before 0.29 (v1/worker/gpu/model_runner.py profile_cudagraph_memory).
    """
    return version >= ((0, 29) if v2 else (0, 20))


class Attention(StrEnum):
    """An attention backend, by the name in vLLM's log."""

    FLASHINFER = "FLASHINFER"
    FLASH_ATTN = "FLASH_ATTN"
    TRITON = "TRITON_ATTN"


def attention_backend(version: Version, capability: Capability, kv_cache_dtype: str) -> Attention:
    """The first backend that supports the KV cache's type (platforms/cuda.py _get_backend_priorities).

    FlashInfer is first on compute capability 10.x only; before 0.12 only on 10.0. Elsewhere FlashAttention is, which
    has an fp8 cache only as version 3, on Hopper (v1/attention/backends/flash_attn.py); then FlashInfer follows, and
    before 0.12 Triton.
    """
    if capability[0] == 10 and (version >= (0, 12) or capability == (10, 0)):
        return Attention.FLASHINFER
    if KV_BYTES[kv_cache_dtype] == 2 or capability[0] == 9:
        return Attention.FLASH_ATTN
    return Attention.FLASHINFER if version >= (0, 12) else Attention.TRITON


def workspace_bytes(version: Version, *, batched_tokens: int, heads: int, head_dim: int) -> int:
    """FlashInfer's workspace (v1/attention/backends/flashinfer.py _get_workspace_buffer); from 0.28 it grows."""
    grown = 16 * batched_tokens * heads * head_dim if version >= (0, 28) else 0
    return max(FLASHINFER_WORKSPACE, grown)


def free_is_available(version: Version, capability: Capability) -> bool:
    """On unified memory: whether page cache counts as free (utils/mem_utils.py MemorySnapshot.measure).

    cudaMemGetInfo before 0.11.1, MemAvailable later; up to 0.19 for a list of capabilities, then for every integrated
    GPU (vllm#35356).
    """
    return version >= (0, 20) or (version >= (0, 11, 1) and capability in ((8, 7), (11, 0), (12, 1)))


def counts_all_used(version: Version) -> bool:
    """Whether everything that left the free memory counts, not only what PyTorch and libraries report (total_consumed).

    From 0.27 on (utils/mem_utils.py memory_profiling). Memory that PyTorch's allocator cannot give back counts too.
    """
    return version >= (0, 27)


def default_num_seqs(version: Version, gpu: Gpu) -> int:
    """max_num_seqs of the API server if none is given (engine/arg_utils.py get_batch_defaults)."""
    return 1024 if default_batched_tokens(version, gpu, max_num_seqs=2**20, max_model_len=2**20) > 2048 else 256


def default_batched_tokens(version: Version, gpu: Gpu, *, max_num_seqs: int, max_model_len: int) -> int:
    """max_num_batched_tokens of the API server if none is given (engine/arg_utils.py get_batch_defaults).

    The device's memory comes from NVML, which does not report it on a GB10 or Thor: they get the small default (0.33
    reads it elsewhere and then excludes the GB10 by name).
    """
    seen = 0 if gpu.unified else (gpu.smi_mib or gpu.total_mib) * 2**20
    if version >= (0, 33) and gpu.unified and gpu.compute_capability != (12, 1):
        seen = gpu.total_bytes
    tokens = 2048
    if version >= (0, 28) and seen >= 160 * GIB:
        tokens = 16384
    elif seen >= 70 * GIB and "a100" not in gpu.label.lower():
        tokens = 8192
    return min(tokens, max_num_seqs * max_model_len)


def capture_sizes(version: Version, gpu: Gpu, *, max_num_seqs: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """Batch sizes that get a CUDA graph, ascending (config/vllm.py _set_cudagraph_sizes)."""
    ceiling = 1024 if version >= (0, 28) and gpu.compute_capability[0] == 10 else 512
    largest = min(max_num_seqs * 2, ceiling)
    if version < (0, 11, 1):
        sizes = [1, 2, 4, *range(8, largest + 1, 8)]
        return tuple(size for size in sizes if size <= max_num_batched_tokens)
    largest = min(largest, max_num_batched_tokens)
    sizes = [size for size in (1, 2, 4) if size <= largest]
    sizes += range(8, min(largest + 1, 256), 8)
    sizes += range(256, largest + 1, 16)
    if version >= (0, 20) and max_num_batched_tokens <= largest:
        sizes.append(max_num_batched_tokens)
    return tuple(sorted(set(sizes)))


def graph_counts(sizes: tuple[int, ...], max_num_seqs: int) -> tuple[int, int]:
    """Piecewise and full graphs of the default mode, FULL_AND_PIECEWISE: full ones only for sizes of pure decode.

    Confirmed by logs: 19 + 11 for 64 sequences (0.24), 51 + 35 for 256 (0.13).
    """
    return len(sizes), sum(1 for size in sizes if size <= max_num_seqs)


def sampler_bytes_per_logit(version: Version, rows: int, *, v2: bool) -> int:
    """Peak bytes per logit in the sampler's dummy run.

    Runner V1 up to 0.16, and for fewer than 8 rows: bf16 and fp32 logits, sorted values and 64-bit indices with
    scratch: 38, measured (1.40 GiB for 256 rows of 151,936 logits). From 0.17 a Triton kernel filters in place: 2 +
    4, plus 8 for softmax and noise (v1/sample/ops/topk_topp_sampler.py). Runner V2 samples without filters: 2 + 4,
    and from 0.26 it makes no fp32 copy (v1/worker/gpu/sample/sampler.py apply_sampling_params). From 0.33 with all
    filters: 36, estimated from one log.
    """
    if version >= (0, 33):
        return 36
    if v2:
        return 2 if version >= (0, 26) else 6
    return 14 if version >= (0, 17) and rows >= 8 else 38


def counted_state_bytes(version: Version, rows: int, vocab: int) -> float:
    """Penalty counts that runner V2 keeps for each sequence (v1/worker/gpu/sample/penalties.py).

    They are allocated before the weights, so only a version that counts all used memory counts them.
    """
    return rows * vocab * 4.125 if counts_all_used(version) else 0.0


def capacity_tokens(version: Version, blocks: int, max_model_len: int) -> int:
    """The figure in the log line `GPU KV cache size` (v1/core/kv_cache_utils.py, get_kv_cache_capacity from 0.20)."""
    if version < (0, 20):
        return blocks * BLOCK_TOKENS
    return int(concurrency(blocks, max_model_len) * max_model_len)


def concurrency(blocks: int, max_model_len: int) -> float:
    """Requests of max_model_len that fit at once (get_max_concurrency_for_kv_cache_config)."""
    return blocks / math.ceil(max_model_len / BLOCK_TOKENS)
