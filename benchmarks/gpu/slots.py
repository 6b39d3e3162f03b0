"""How vLLM before 0.20 loads gate_up's two global scales, fused and split: its own loader, on any CPU.

    pip download --no-deps vllm==0.19.1 && unzip -q vllm-0.19.1*.whl -d old
    pip install --no-deps --target old compressed-tensors==0.15.0.1 gguf diskcache depyf astor lark python-json-logger
    PYTHONPATH=old "$(scripts/cpu-engine.sh)" benchmarks/gpu/slots.py CHECKPOINT...

The layer is vLLM's own and the tensors are the checkpoint's; nothing is computed with them. `torch.empty` returns
memory with whatever it held before, so that value is fixed here: zero, as in fresh memory, or 1e6, which no global
scale has.
"""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_USE_NVFP4_CT_EMULATIONS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import torch
import vllm
from safetensors.torch import load_file
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers.linear import MergedColumnParallelLinear
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

LAYER = "model.layers.0.mlp"
SCALE = "weight_global_scale"


@contextmanager
def memory_holds(value: float) -> Iterator[None]:
    """Within the block, small float tensors that are not initialised hold `value`."""
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> Any:
        tensor = real(*args, **kwargs)
        return tensor.fill_(value) if tensor.dtype == torch.float32 and tensor.numel() <= 2 else tensor

    torch.empty = empty
    try:
        yield
    finally:
        torch.empty = real


def slots(checkpoint: Path, held: float) -> list[float]:
    """The two global scales as the engine has loaded them. held: what the memory held before."""
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    scheme = CompressedTensorsConfig.from_config(config["quantization_config"])
    with memory_holds(held):
        layer = MergedColumnParallelLinear(
            config["hidden_size"],
            [config["intermediate_size"]] * 2,
            bias=False,
            quant_config=scheme,
            prefix=f"{LAYER}.gate_up_proj",
            params_dtype=torch.bfloat16,
        )
    parameter = dict(layer.named_parameters())[SCALE]
    if (fused := tensors.get(f"{LAYER}.gate_up_proj.{SCALE}")) is not None:
        parameter.weight_loader(parameter, fused)
    for number, name in enumerate(("gate_proj", "up_proj")):
        if (split := tensors.get(f"{LAYER}.{name}.{SCALE}")) is not None:
            parameter.weight_loader(parameter, split, number)
    return [float(value) for value in parameter.detach()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    checkpoints = parser.parse_args().checkpoints
    print(f"vLLM {vllm.__version__}")
    port = 20000 + os.getpid() % 20000
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
        parallel_state.init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
        for checkpoint in checkpoints:
            for held in (0.0, 1e6):
                scales = slots(checkpoint, held)
                print(f"{checkpoint.name}: memory held {held:g}: slots {scales}, the engine uses {max(scales):g}")


if __name__ == "__main__":
    main()
