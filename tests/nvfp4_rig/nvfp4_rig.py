"""A test rig: lets vLLM serve NVFP4 W4A4 checkpoints on the CPU, through vLLM's own software emulation.

With this directory on PYTHONPATH, vLLM loads `register` in each of its processes (entry point `vllm.general_plugins`).
vLLM's emulation is plain PyTorch: it quantizes activations to FP4 with `input_global_scale`, dequantizes the weights,
and multiplies in bf16. vLLM does not offer it on a CPU. The rig does so, and patches only what stops it there:

- `swizzle_blockscale` ends in `.cuda()`, so block scales stay linear (up to 0.15), and what undoes the swizzle takes
  them as they are. 0.17 and 0.19 undo a swizzle that they never did; older ones forget to cut `k` to blocks;
- 0.17 and 0.19 turn the weights' global scale into its reciprocal, and then divide by it as if they had not: their
  emulation serves garbage from every compressed-tensors checkpoint, on a GPU too. The rig turns it back;
- the emulation expects two dimensions; GLM through the Transformers backend gives it three;
- each weight is dequantized once, not at each step: it is for small models.

What vLLM does with the checkpoint (loading, fused layers, the largest of several global scales) is untouched. Nothing
here says anything about the kernels or the speed of a GPU.
"""

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

LAYERS = "vllm.model_executor.layers.quantization"
KERNELS = "vllm.model_executor.kernels.linear"
UTILS = f"{LAYERS}.utils.nvfp4_emulation_utils"
SWITCH = "VLLM_USE_NVFP4_CT_EMULATIONS"


def register() -> None:
    """Called by vLLM, once or more per process."""
    if SWITCH in importlib.import_module("vllm.envs").environment_variables:  # up to 0.19
        os.environ[SWITCH] = "1"
    utils = importlib.import_module(UTILS)
    if getattr(utils, "on_rig", False):
        return
    utils.on_rig = True
    utils.convert_swizzled_to_linear = lambda scale, m, k, block_size: scale[:m, : k // block_size]
    utils.dequantize_to_dtype = _once_per_weight(utils.dequantize_to_dtype)
    emulate = utils.run_nvfp4_emulations

    def in_two_dimensions(x: Any, *args: Any, **options: Any) -> Any:
        out = emulate(x.reshape(-1, x.shape[-1]), *args, **options)
        return out.reshape(*x.shape[:-1], out.shape[-1])

    if user := module(f"{KERNELS}.nvfp4.emulation"):  # from 0.20
        kernels = importlib.import_module(KERNELS)
        cpu = importlib.import_module("vllm.platforms").PlatformEnum.CPU
        kernels._POSSIBLE_NVFP4_KERNELS[cpu] = [user.EmulationNvFp4LinearKernel]
    elif user := module(f"{LAYERS}.utils.nvfp4_utils"):  # 0.17 to 0.19
        utils.dequantize_to_dtype = _by_the_reciprocal(utils.dequantize_to_dtype)
    else:
        user = importlib.import_module(f"{LAYERS}.compressed_tensors.schemes.compressed_tensors_w4a4_nvfp4")
        _without_gpu_backend(user)
    user.run_nvfp4_emulations = in_two_dimensions


def _once_per_weight(dequantize: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM dequantizes each weight again at each step, which takes most of the time."""
    kept: dict[tuple[int, int], tuple[Any, ...]] = {}

    def dequantized(weight: Any, scale: Any, *args: Any, **options: Any) -> Any:
        place = (weight.data_ptr(), scale.data_ptr())
        if place not in kept:
            # The tensors are kept too, so that no other can take their place.
            kept[place] = (dequantize(weight, scale, *args, **options), weight, scale)
        return kept[place][0]

    return dequantized


def _by_the_reciprocal(dequantize: Callable[..., Any]) -> Callable[..., Any]:
    return lambda weight, scale, global_scale, *rest: dequantize(weight, scale, 1.0 / global_scale, *rest)


def module(name: str) -> ModuleType | None:
    """A module of vLLM, or None where this version has none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name and name.startswith(missing.name):
            return None
        raise


def _without_gpu_backend(scheme: ModuleType) -> None:
    """Up to 0.15 the scheme's constructor demands a backend for a GPU, although the emulation does not use it."""

    def init(self: Any) -> None:
        self.backend = "emulation"
        self.group_size = 16
        scheme.logger.info_once("Using emulation for NVFP4 GEMM")

    scheme.CompressedTensorsW4A4Fp4.__init__ = init
    scheme.swizzle_blockscale = lambda scale: scale.data
