"""Why an engine would refuse to start, in the order and with the remedy of vLLM's own messages."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4_deploy.plan.memory_model import GIB
from glm4_deploy.plan.memory_rules import BLOCK_TOKENS, requested_bytes

if TYPE_CHECKING:
    from glm4_deploy.plan.memory import Wish


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    message: str
    remedy: str


# What is never free: the CUDA context (78.66 of 79.19 GiB are free on an idle H100); on unified memory the system too
# (MemAvailable of an idle DGX Spark: 113 of 121.69 GiB, headless somewhat more).
CONTEXT = 0.5 * GIB
SYSTEM = 5 * GIB


def refusal(wish: "Wish", available: float, outside: float) -> Refusal | None:
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


def at_any_fraction(wish: "Wish") -> Refusal | None:
    """What no gpu_memory_utilization mends: the limits of the model and of the batch."""
    return _model_limits(wish) or _batch_limits(wish)


def free_bytes(wish: "Wish") -> float:
    """What is free: as told, else as on an idle machine."""
    if wish.free_bytes is not None:
        return wish.free_bytes
    return wish.gpu.total_bytes - (SYSTEM if wish.gpu.unified else CONTEXT)


def _model_limits(wish: "Wish") -> Refusal | None:
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


def _batch_limits(wish: "Wish") -> Refusal | None:
    if wish.batched_tokens < wish.max_num_seqs:
        return Refusal(
            message=f"max_num_batched_tokens {wish.batched_tokens} is smaller than max_num_seqs {wish.max_num_seqs}",
            remedy="raise max_num_batched_tokens or lower max_num_seqs",
        )
    return None


def _free_memory(wish: "Wish") -> Refusal | None:
    wanted, free = requested_bytes(wish.vllm, wish.gpu.total_bytes, wish.gpu_memory_utilization), free_bytes(wish)
    if free >= wanted:
        return None
    known = "only" if wish.free_bytes is not None else "even on an idle machine only about"
    return Refusal(
        message=f"{known} {free / GIB:.2f} of {wish.gpu.total_bytes / GIB:.2f} GiB are free,"
        f" less than the {wanted / GIB:.2f} GiB of gpu_memory_utilization {wish.gpu_memory_utilization:g}",
        remedy="decrease gpu_memory_utilization, or end the other users of this memory",
    )


def _beyond(wish: "Wish", outside: float) -> Refusal | None:
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


def _too_long(wish: "Wish", available: float) -> Refusal | None:
    needed = -(-wish.max_model_len // BLOCK_TOKENS) * wish.block_bytes
    if needed <= available:
        return None
    longest = int(available // wish.block_bytes) * BLOCK_TOKENS
    return Refusal(
        message=f"one request of {wish.max_model_len:,} tokens needs {needed / GIB:.2f} GiB of KV cache,"
        f" {available / GIB:.2f} GiB are there",
        remedy=f"increase gpu_memory_utilization or decrease max_model_len to {longest} or less",
    )
