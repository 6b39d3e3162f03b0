"""Facts that an engine's log states about itself: one row per wording, for vLLM 0.9 to 0.33.

Sources: vLLM's format strings in those versions, and logs of 0.9 to 0.32. A fact that no line states is None.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any


class Phase(StrEnum):
    """The steps of a start, in order."""

    STARTING = "starting"
    CONFIG = "config"
    WEIGHTS = "weights"
    COMPILE = "compile"
    KV_CACHE = "kv_cache"
    GRAPHS = "graphs"
    ROUTES = "routes"
    READY = "ready"


ORDER = tuple(Phase)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What the log says about the engine. None: the log does not say.

    Attributes:
        engine: V0 or V1.
        kernel: vLLM's name of the NVFP4 kernel.
        native_fp4: whether that kernel computes in FP4.
        kv_cache_dtype: as configured ("auto": the model's type).
        max_concurrency: requests of max_model_len that fit at once.
        compile_cached: True if compiled code of an earlier start was loaded.
        ready_s: seconds from the first line with a time to "Application startup complete".
        phase: the furthest phase reached, even if the engine has died since.
        progress: text about the progress within the phase.
    """

    version: str | None = None
    engine: str | None = None
    kernel: str | None = None
    native_fp4: bool | None = None
    attention_backend: str | None = None
    kv_cache_dtype: str | None = None
    weights_gib: float | None = None
    kv_cache_gib: float | None = None
    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None
    compile_s: float | None = None
    compile_cached: bool | None = None
    graph_gib: float | None = None
    ready_s: float | None = None
    phase: Phase = Phase.STARTING
    progress: str | None = None

    @property
    def kernel_path(self) -> str:
        """The NVFP4 kernel, and whether it computes in FP4."""
        native = {
            True: "native FP4",
            False: "not native FP4: expected without a Blackwell GPU, a fault with one",
            None: "native FP4 unknown",
        }[self.native_fp4]
        return f"{self.kernel or 'unknown'} ({native})"


@dataclass(frozen=True, slots=True)
class _Fact:
    """How one fact is read from a line.

    Attributes:
        field: the field of EngineFacts, set from group 1 of `regex`.
        has: a literal that every matching line contains.
        merge: combines the old and the new value when several lines state the fact (each worker logs it).
    """

    field: str
    has: str
    regex: re.Pattern[str]
    convert: Callable[[str], Any]
    merge: Callable[[Any, Any], Any]


def _last(_: Any, new: Any) -> Any:
    return new


def _first(old: Any, _: Any) -> Any:
    return old


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def _dtype(text: str) -> str:
    return text.strip("'\"")


_OLD_BACKEND_NAMES = {
    "flashattention": "FLASH_ATTN",
    "flashinfer": "FLASHINFER",
    "triton": "TRITON_ATTN",
    "tritonattention": "TRITON_ATTN",
    "torchsdpa": "TORCH_SDPA",
    "xformers": "XFORMERS",
    "flexattention": "FLEX_ATTENTION",
    "cutlassmla": "CUTLASS_MLA",
    "flashmla": "FLASHMLA",
    "tritonmla": "TRITON_MLA",
}


def _backend(text: str) -> str:
    """The current name of a backend that vLLM up to 0.11 called `Flash Attention` and so on; others unchanged."""
    name = text.removeprefix("AttentionBackendEnum.").removeprefix("_Backend.")
    return _OLD_BACKEND_NAMES.get(name.replace(" ", "").lower(), name)


_NUMBER = r"(-?\d+(?:\.\d+)?)"
_VERSION = r"v?(\d+\.\d[^\s,)]*)"
FACTS = tuple(
    _Fact(field, has, re.compile(regex), convert, merge)
    for field, has, regex, convert, merge in (
        ("version", "vLLM Version ", rf"^vLLM Version {_VERSION}$", str, _first),
        ("version", "█  version ", rf"█\s+version {_VERSION}", str, _last),
        ("version", "server version ", rf"vLLM (?:API )?server version {_VERSION}", str, _last),
        ("version", " LLM engine (v", rf"Initializing an? (?:V\d )?LLM engine \({_VERSION}\)", str, _last),
        ("engine", " LLM engine (v", r"Initializing an? (V\d) LLM engine \(v", str, _last),
        ("kernel", "FP4", r"^Using ['\"]?([\w.-]+?)['\"]? for (?:NVFP4 GEMM|FP4\b)", str, _last),
        ("attention_backend", " backend", r"Using ['\"]?([\w.]+)['\"]? attention backend\b", _backend, _first),
        ("attention_backend", " backend", r"Using AttentionBackendEnum\.(\w+) backend", _backend, _first),
        ("attention_backend", " backend", r"Using ([A-Z][\w ]{2,30}?) backend on V1 engine", _backend, _first),
        ("attention_backend", " backend",
         r"Using (Flash ?Attention|FlashInfer|XFormers|Torch SDPA|Flex ?Attention|FlashMLA|Triton MLA|Cutlass MLA)"
         r" (?:V1 )?backend\.?$", _backend, _first),
        ("kv_cache_dtype", "kv_cache_dtype", r"'kv_cache_dtype': '([\w.]+)'", _dtype, _last),
        ("kv_cache_dtype", "kv_cache_dtype", r"[ (]kv_cache_dtype='?([\w.]+)", _dtype, _last),
        ("kv_cache_dtype", "to store kv cache", r"Using (\w+) data type to store kv cache", _dtype, _last),
        ("weights_gib", "oading took ", rf"[Mm]odel loading took {_NUMBER} ?(?:GiB|GB)", float, max),
        ("weights_gib", "odel weights took ", rf"Loading model weights took {_NUMBER} ?(?:GiB|GB)", float, max),
        ("kv_cache_gib", "KV cache memory", rf"Available KV cache memory: {_NUMBER} GiB", float, min),
        ("kv_cache_gib", "reserved for KV Cache", rf"memory reserved for KV Cache is {_NUMBER}GiB", float, min),
        ("kv_cache_gib", "GiB for KV cache", rf"Explicitly set \({_NUMBER}/[\d.]+\) GiB for KV cache", float, min),
        ("kv_cache_tokens", "KV cache size", r"\w+ KV cache size: ([\d,]+) tokens", _number, min),
        ("max_concurrency", "aximum concurrency for", rf"Maximum concurrency for [\d,]+ tokens per request: {_NUMBER}x",
         float, min),
        ("compile_s", "torch.compile ", rf"torch\.compile (?:takes|took) {_NUMBER} s in total", float, max),
        ("compile_s", "run together took ",
         rf"torch\.compile and initial profiling/warmup run together took {_NUMBER} s", float, max),
        ("compile_cached", "Directly load the compiled graph", r"Directly load (the compiled) graph", bool, _last),
        ("graph_gib", "capturing finished in", rf"Graph capturing finished in \d+ secs?, took {_NUMBER} GiB",
         float, max),
    )
)  # fmt: skip

PHASES: tuple[tuple[str, Phase], ...] = (
    ("server version ", Phase.CONFIG),
    ("█  version ", Phase.CONFIG),
    ("non-default args", Phase.CONFIG),
    ("Resolved architecture: ", Phase.CONFIG),
    (" LLM engine (v", Phase.CONFIG),
    ("Starting to load model ", Phase.WEIGHTS),
    ("Completed | ", Phase.WEIGHTS),
    ("Loading weights took ", Phase.COMPILE),
    ("odel loading took ", Phase.COMPILE),
    ("Dynamo bytecode transform", Phase.COMPILE),
    ("vailable KV cache memory", Phase.KV_CACHE),
    ("KV cache size: ", Phase.KV_CACHE),
    ("reserved for KV Cache", Phase.KV_CACHE),
    ("blocks: ", Phase.KV_CACHE),
    ("Capturing CUDA graph", Phase.GRAPHS),
    ("Graph capturing finished", Phase.GRAPHS),
    ("init engine (profile, create kv cache", Phase.ROUTES),
    ("Available routes are", Phase.ROUTES),
    ("Starting vLLM ", Phase.ROUTES),
    ("Application startup complete", Phase.READY),
)

NOT_NATIVE = re.compile(r"marlin|emulation|W4A16|humming", re.IGNORECASE)
NATIVE = re.compile(r"cutlass|trtllm|cudnn|cutedsl|b12x|fbgemm|flashinfer", re.IGNORECASE)
# Literals of the banners that begin a start.
BOOT = ("vLLM Version ", "server version ", "█  version ", "non-default args: ")
_BLOCKS = re.compile(r"# (?:cuda|GPU|gpu) blocks: \d+")
_SHARDS = re.compile(r"Completed \| (\d+)/(\d+) \[(?:(\d+:)?(\d+):(\d+))?")
_SIZE = re.compile(r"Checkpoint size: ([\d.]+) GiB")
_GRAPHS = re.compile(r"Capturing CUDA graph.{0,400}?\| (\d+)/(\d+) \[")


def quantizes_activations(kernel: str) -> bool | None:
    """Whether a kernel of that name computes W4A4, as native ones and vLLM's emulation do; None for an unknown name."""
    if re.search("emulation", kernel, re.IGNORECASE):
        return True
    return native(kernel)


def native(kernel: str) -> bool | None:
    """Whether a kernel of that name computes in FP4; None for an unknown name."""
    if NOT_NATIVE.search(kernel):
        return False
    return True if NATIVE.search(kernel) else None


def learn_line(facts: EngineFacts, text: str) -> EngineFacts:
    """The facts, updated from one message."""
    for fact in FACTS:
        if fact.has in text and (match := fact.regex.search(text)):
            facts = _set(facts, fact, match[1])
    for literal, phase in PHASES:
        if literal in text and (phase is not Phase.KV_CACHE or "blocks" not in literal or _BLOCKS.search(text)):
            facts = reach(facts, phase)
    return facts


def _set(facts: EngineFacts, fact: _Fact, text: str) -> EngineFacts:
    try:
        new = fact.convert(text)
    except ValueError:
        return facts
    old = getattr(facts, fact.field)
    changes = {fact.field: new if old is None else fact.merge(old, new)}
    if fact.field == "kernel" and facts.native_fp4 is not False:
        changes["native_fp4"] = native(new)
    return replace(facts, **changes)


def reach(facts: EngineFacts, phase: Phase) -> EngineFacts:
    """Move forward to a phase; never back, because several processes write at the same time."""
    if ORDER.index(phase) <= ORDER.index(facts.phase):
        return facts
    return replace(facts, phase=phase, progress=None)


def progress(text: str, checkpoint_gib: float | None) -> tuple[Phase, str] | None:
    """Progress from a progress bar: `3/7 shards`, with GiB and rate if the checkpoint's size was logged before."""
    if match := _SHARDS.search(text):
        done, total = int(match[1]), int(match[2])
        shown = f"{done}/{total} shards"
        seconds = 3600 * int((match[3] or "0").rstrip(":")) + 60 * int(match[4] or 0) + int(match[5] or 0)
        if checkpoint_gib and total:
            gib = checkpoint_gib * done / total
            shown += f", about {gib:.1f} of {checkpoint_gib:.1f} GiB"
            shown += f", {gib / seconds:.2f} GiB/s" if seconds and done else ""
        return Phase.WEIGHTS, shown
    if match := _GRAPHS.search(text):
        return Phase.GRAPHS, f"{match[1]}/{match[2]} graphs"
    return None


def checkpoint_size(text: str) -> float | None:
    """The size in GiB, as vLLM 0.20 and newer log it."""
    match = _SIZE.search(text)
    return float(match[1]) if match else None


@cache
def literals() -> frozenset[str]:
    """Every line from which a fact, a phase or its progress is read contains one of these."""
    return frozenset({fact.has for fact in FACTS} | {literal for literal, _ in PHASES} | {*BOOT, "Checkpoint size: "})
