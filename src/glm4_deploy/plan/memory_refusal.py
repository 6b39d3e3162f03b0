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


def refusal(wish: "Wish", available: float) -> Refusal | None:
    """None where the engine starts. `available` is the KV cache's share in bytes, negative where there is none."""
    return (
        _model_limits(wish)
        or _batch_limits(wish)
        or _free_memory(wish)
        or _no_room(available)
        or _too_long(wish, available)
    )


def _model_limits(wish: "Wish") -> Refusal | None:
    if wish.max_model_len > wish.model.max_position:
        return Refusal(
            message=f"max_model_len {wish.max_model_len} exceeds the {wish.model.max_position} positions of the model",
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
    wanted = requested_bytes(wish.vllm, wish.gpu.total_bytes, wish.gpu_memory_utilization)
    if wish.free_bytes is None or wish.free_bytes >= wanted:
        return None
    return Refusal(
        message=f"only {wish.free_bytes / GIB:.2f} of {wish.gpu.total_bytes / GIB:.2f} GiB are free,"
        f" less than the {wanted / GIB:.2f} GiB of gpu_memory_utilization {wish.gpu_memory_utilization:g}",
        remedy="decrease gpu_memory_utilization, or end the other users of this memory",
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
