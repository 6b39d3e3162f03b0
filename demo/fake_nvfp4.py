"""NVFP4 W4A4 as a rounding of bf16 values, so that training can reckon with it: its gradient is that of no rounding.

A group of 16 values shares a scale in FP8 (E4M3), a tensor shares one in float32, and each value is one of the 15 of
FP4 (E2M1). Weights and activations are rounded so, as the engine's kernels do; products stay in bf16.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear

GROUP = 16
FP4_MAX, FP8_MAX = 6.0, 448.0


def rounded(values: torch.Tensor) -> torch.Tensor:
    """The nearest NVFP4 values; the last dimension is a multiple of GROUP."""
    with torch.no_grad():
        groups = values.detach().float().unflatten(-1, (-1, GROUP))
        amax = groups.abs().amax(-1, keepdim=True)
        whole = (amax.max() / (FP4_MAX * FP8_MAX)).clamp(min=1e-12)
        scale = ((amax / FP4_MAX / whole).to(torch.float8_e4m3fn).float() * whole).clamp(min=1e-12)
        steps = groups / scale
        size = steps.abs()
        grid = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
        near = ((steps / grid).round() * grid).clamp(-FP4_MAX, FP4_MAX) * scale
        near = near.flatten(-2).to(values.dtype)
    return values + (near - values).detach()


class FakeNvfp4:
    """Rounds what the layers' Linear modules multiply, while `on`."""

    def __init__(self, layers: torch.nn.Module) -> None:
        self.on = False
        for module in layers.modules():
            if isinstance(module, torch.nn.Linear):
                self._wrap(module)

    def _wrap(self, module: torch.nn.Linear) -> None:
        plain = module.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            if not self.on:
                return plain(x)
            return linear(rounded(x), rounded(module.weight), module.bias)

        module.forward = forward  # type: ignore[method-assign]
