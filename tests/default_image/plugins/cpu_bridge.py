"""In the stand-in for NVIDIA's image: what a CPU cannot do of compose/*.yaml, bridged in vLLM.

vLLM loads `register` in each of its processes (entry point `vllm.general_plugins`). On a CPU 0.13 refuses an FP8 KV
cache beside prefix caching and chunked prefill, which are on by default; without them it falls back to the model's type
by itself. The bridge does the same with them, in every version. Everything else that the command line asks for is taken
as it is.
"""

from typing import Any


def register() -> None:
    """Called by vLLM, once or more per process."""
    from vllm.logger import init_logger
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]  # a class method
    if getattr(check, "bridged", False):
        return
    logger = init_logger("vllm.cpu_bridge")

    def check_and_update_config(cls: Any, config: Any) -> None:
        if config.cache_config.cache_dtype != "auto":
            logger.info("cpu_bridge: KV cache in the model's type, not %s", config.cache_config.cache_dtype)
            config.cache_config.cache_dtype = "auto"
        check(cls, config)

    check_and_update_config.bridged = True  # type: ignore[attr-defined]  # a mark on a function
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
