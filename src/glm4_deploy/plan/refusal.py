"""Why an engine would refuse to start, in the order of vLLM's own checks and with its remedies."""

from dataclasses import dataclass

from glm4_deploy.plan.engine_rules import (
    BLOCK_TOKENS,
    GIB,
)
from glm4_deploy.plan.footprint import MemoryRequest


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
