"""What the engine that will load the checkpoint needs: the windows of vLLM versions, each with its source."""

from dataclasses import dataclass
from enum import StrEnum

from glm4_deploy.catalog.images import Version, default_tag, resolve_version


class GateUp(StrEnum):
    """How `mlp.gate_up_proj` must be stored."""

    SPLIT_IF_NVFP4 = "split-if-nvfp4"
    EITHER = "either"
    FUSED = "fused"


# vllm#39765 fills every slot of a fused layer's global scale; released with 0.20.
FUSED_SCALES_LOAD_FROM: Version = (0, 20)
# The model registry of 0.31 has a class of its own for GlmForCausalLM, with packed gate_proj and up_proj; that of 0.32
# maps it to the Transformers backend, whose module is `gate_up_proj`.
TRANSFORMERS_BACKEND_FROM: Version = (0, 32)
# vLLM pins compressed-tensors exactly: 0.10.1 -> 0.10.2 (ignores unknown keys), 0.10.2 to 0.13 -> 0.11.0 and 0.12.2
# (refuse them, and do not know scale_dtype and zp_dtype), 0.14 and later -> 0.13.0 and later (know them).
DTYPE_KEYS_REFUSED_FROM: Version = (0, 10, 2)
DTYPE_KEYS_KNOWN_FROM: Version = (0, 14)
# vLLM's requirement: below 0.20 transformers<5; 0.20 to 0.23 either; from 0.24 transformers>=5.5.3.
TRANSFORMERS_5_POSSIBLE_FROM: Version = (0, 20)
TRANSFORMERS_5_CERTAIN_FROM: Version = (0, 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An engine. `transformers` is its major version, None where vLLM's requirement allows 4 and 5."""

    vllm: Version
    gate_up: GateUp
    transformers: int | None
    refuses_dtype_keys: bool

    @property
    def label(self) -> str:
        return f"vLLM {self.version}"

    @property
    def version(self) -> str:
        return ".".join(str(part) for part in self.vllm)

    @property
    def transformers_label(self) -> str:
        return "Transformers 4 or 5" if self.transformers is None else f"Transformers {self.transformers}"


def target(vllm: Version) -> Target:
    """The engine of a vLLM version."""
    if vllm < FUSED_SCALES_LOAD_FROM:
        gate_up = GateUp.SPLIT_IF_NVFP4
    else:
        gate_up = GateUp.EITHER if vllm < TRANSFORMERS_BACKEND_FROM else GateUp.FUSED
    if vllm < TRANSFORMERS_5_POSSIBLE_FROM:
        transformers: int | None = 4
    else:
        transformers = None if vllm < TRANSFORMERS_5_CERTAIN_FROM else 5
    return Target(
        vllm=vllm,
        gate_up=gate_up,
        transformers=transformers,
        refuses_dtype_keys=DTYPE_KEYS_REFUSED_FROM <= vllm < DTYPE_KEYS_KNOWN_FROM,
    )


def default_version() -> Version:
    """The vLLM inside the kit's default image."""
    return resolve_version(default_tag())
