"""What the plan leaves open: the changes worth a start, each with what it is expected to bring.

Pure. A setting that the load cannot show is not in here: prefix caching and n-gram speculation live on repeated text,
and the load generator sends random words.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glm4_deploy.catalog.rows import Gpu, Version
from glm4_deploy.settings import Settings

# First vLLM whose parser has the flag; the engine matrix asks the real parsers.
FLAG_FROM: Mapping[str, Version] = {
    "attention-backend": (0, 11),
    "performance-mode": (0, 17),
    "linear-backend": (0, 24),
}
ASYNC_BY_DEFAULT: Version = (0, 14)
"""From here on the engine schedules asynchronously unless configured not to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneLoad:
    """users: requests at once. input_len, output_len: tokens of each request."""

    users: int
    input_len: int
    output_len: int

    @property
    def label(self) -> str:
        return f"{self.users} users, {self.input_len} in, {self.output_len} out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One change. settings: what it sets; `args` is merged, everything else replaced.

    prior: the gain in output tokens per second expected before anything was measured (0.05: 5 %).
    """

    axis: str
    value: str
    settings: Mapping[str, Any]
    prior: float

    @property
    def label(self) -> str:
        return f"{self.axis} {self.value}"


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings with the changes; an `args` value of False takes the flag out.

    Raises:
        pydantic.ValidationError: a value is out of range.
    """
    whole = settings.model_dump(mode="json")
    args = {**whole["args"], **changes.get("args", {})}
    kept = {name: value for name, value in args.items() if value is not False}
    return Settings.model_validate({**whole, **changes, "args": kept})


def moves(settings: Settings, load: TuneLoad, version: Version, gpu: Gpu | None) -> tuple[Move, ...]:
    """Every change worth a start, of the settings given; without a GPU only what the scheduler decides."""
    scheduler, device = _scheduler(settings, load, version), _device(settings, version, gpu) if gpu else ()
    return (*scheduler, *device)


def _scheduler(settings: Settings, load: TuneLoad, version: Version) -> Iterator[Move]:
    for tokens, prior in _step_sizes(load):
        yield _setting("max_num_batched_tokens", tokens, prior)
    for share, prior in ((1, 0.10), (2, 0.05), (4, 0.0)):
        yield _setting("max_num_seqs", max(1, math.ceil(load.users / share)), prior)
    if version < ASYNC_BY_DEFAULT:
        yield _flag("async-scheduling", None, 0.08)
    if version >= FLAG_FROM["performance-mode"]:
        yield _flag("performance-mode", "throughput", 0.03)
        yield _flag("performance-mode", "interactivity", 0.0)


def _step_sizes(load: TuneLoad) -> Iterator[tuple[int, float]]:
    """Tokens per engine step; larger than all prompts together, they are all the same."""
    whole = load.users * load.input_len
    sizes = {2048: 0.0, 4096: 0.02, 8192: 0.04, 16384: 0.03}
    useful = [size for size in sizes if size < whole]
    largest = min((size for size in sizes if size >= whole), default=None)
    yield from ((size, sizes[size]) for size in (*useful, *((largest,) if largest else ())))


def _device(settings: Settings, version: Version, gpu: Gpu) -> Iterator[Move]:
    other = "auto" if settings.kv_cache_dtype.startswith("fp8") else "fp8"
    yield _setting("kv_cache_dtype", other, 0.02)
    mode = json.dumps({"cudagraph_mode": "FULL_DECODE_ONLY"})  # the default also captures steps with prompts
    yield _flag("compilation-config", mode, 0.01)
    if version >= FLAG_FROM["attention-backend"]:
        for name, prior in _attention(gpu):
            yield _flag("attention-backend", name, prior)
    if version >= FLAG_FROM["linear-backend"] and settings.quantization != "none":
        for name, prior in _linear(gpu):
            yield _flag("linear-backend", name, prior)


def _attention(gpu: Gpu) -> tuple[tuple[str, float], ...]:
    """Those that this generation of GPU has kernels for, but its usual default."""
    if gpu.compute_capability >= (10, 0):
        return (("FLASHINFER", 0.02), ("TRITON_ATTN", -0.02))
    return (("FLASHINFER", 0.01), ("TRITON_ATTN", -0.05))


def _linear(gpu: Gpu) -> tuple[tuple[str, float], ...]:
    """Below compute capability 10 only Marlin runs NVFP4, so there is nothing to choose."""
    if gpu.compute_capability < (10, 0):
        return ()
    return (("flashinfer_cutlass", 0.05), ("cutlass", 0.03), ("marlin", -0.02))


def _setting(name: str, value: Any, prior: float) -> Move:
    return Move(axis=name, value=str(value), settings={name: value}, prior=prior)


def _flag(name: str, value: str | None, prior: float) -> Move:
    return Move(axis=name, value="on" if value is None else value, settings={"args": {name: value}}, prior=prior)
