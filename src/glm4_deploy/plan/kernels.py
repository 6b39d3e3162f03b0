"""Which arithmetic NVFP4 weights get: predicted from card, version and checkpoint; the engine's log decides.

    INFO … Using FlashInferCutlassNvFp4LinearKernel for NVFP4 GEMM

Sources are paths in the vLLM repository. Up to 0.19 a checkpoint's scheme chooses
(model_executor/layers/quantization/compressed_tensors/compressed_tensors.py and
schemes/compressed_tensors_w4a4_nvfp4.py); from 0.20 a list of kernels is tried in order
(model_executor/kernels/linear/__init__.py _POSSIBLE_NVFP4_KERNELS).
"""

from dataclasses import dataclass

from glm4_deploy.catalog.images import ImageKind
from glm4_deploy.catalog.rows import Capability, Version
from glm4_deploy.plan.engine_rules import WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPath:
    """native: whether 4-bit arithmetic runs on tensor cores; None if the build decides.

    flaw: what may still go wrong; empty if nothing is known.
    """

    name: str
    native: bool | None
    why: str
    flaw: str = ""


NATIVE, WEIGHT_ONLY = "native FP4", "Marlin, weight-only"


def kernel_path(
    capability: Capability, weights: WeightFormat, vllm: Version, image: ImageKind = ImageKind.NVIDIA
) -> KernelPath:
    """The path that vLLM chooses by itself."""
    shown = f"compute capability {capability[0]}.{capability[1]}"
    if weights not in (WeightFormat.NVFP4, WeightFormat.NVFP4A16):
        return KernelPath(name=str(weights), native=False, why="the checkpoint is not in NVFP4")
    if capability < (7, 5):
        return KernelPath(name="none", native=False, why=f"{shown} is too old for any of vLLM's NVFP4 kernels")
    if weights is WeightFormat.NVFP4A16:
        why = "the checkpoint has no scale for activations: weights are 4-bit, arithmetic is 16-bit"
        return KernelPath(name=WEIGHT_ONLY, native=False, why=why)
    if capability < (10, 0):
        why = f"{shown} has no FP4 tensor cores: weights stay 4-bit in memory, arithmetic is 16-bit"
        return KernelPath(name=WEIGHT_ONLY, native=False, why=why)
    if image is ImageKind.OTHER and capability == (11, 0):
        why = f"{shown} has FP4 tensor cores; whether this build has kernels for them was not seen in any log"
        return KernelPath(name=f"{NATIVE} or {WEIGHT_ONLY}", native=None, why=why)
    why = f"{shown} has FP4 tensor cores: weights and activations are 4-bit"
    return KernelPath(name=NATIVE, native=True, why=why, flaw=_flaw(capability, vllm, image))


def _flaw(capability: Capability, vllm: Version, image: ImageKind) -> str:
    if capability[0] < 12:
        return ""
    if vllm < (0, 20):
        return "before vLLM 0.20 some NVFP4 tiles fail on 12.x (vllm#38423): look for `illegal instruction` in the log"
    if image is ImageKind.OTHER and (0, 29) <= vllm < (0, 31):
        return (
            "builds of main from 31 August to 8 September 2026 are weight-only on 12.x (vllm#53014, vllm#55170);"
            " the releases are not"
        )
    return ""
