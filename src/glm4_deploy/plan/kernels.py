"""Which arithmetic to expect for a checkpoint on a GPU, and why. Pure."""

from dataclasses import dataclass

from glm4_deploy.catalog.gpus import Capability
from glm4_deploy.plan.memory_model import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPath:
    """native: 4 bit arithmetic on tensor cores. `flaw` names what can still go wrong, empty where nothing is known."""

    name: str
    native: bool
    why: str
    flaw: str = ""


def kernel_path(capability: Capability, weights: Weights, vllm: tuple[int, ...]) -> KernelPath:
    """The path that vLLM picks by itself. The engine's log has the last word: `Using … for NVFP4 GEMM`."""
    shown = f"compute capability {capability[0]}.{capability[1]}"
    if weights is Weights.BF16:
        return KernelPath(name="bf16", native=False, why="the checkpoint is not quantised")
    if capability >= (10, 0):
        return KernelPath(
            name="native FP4",
            native=True,
            why=f"{shown} has FP4 tensor cores: weights and activations in 4 bit",
            flaw=""
            if capability[0] < 12 or vllm >= (0, 20)
            else "before vLLM 0.20 some NVFP4 tiles fail on 12.x"
            " (vllm#38423): look for `illegal instruction` in the log",
        )
    if capability >= (7, 5):
        return KernelPath(
            name="Marlin, weight-only",
            native=False,
            why=f"{shown} has no FP4 tensor cores: weights stay 4 bit in memory, arithmetic is 16 bit",
        )
    return KernelPath(name="none", native=False, why=f"{shown} is older than any NVFP4 kernel of vLLM")
