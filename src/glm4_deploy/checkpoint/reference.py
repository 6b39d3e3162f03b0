"""GLM-4's arithmetic in NumPy, layer by layer from the files: the log probabilities that an engine must give.

No engine, no GPU and no torch: a layer is read, all texts go through it, and it is freed, so 9B in bf16 needs a few GB.
Values are rounded to bf16 where an engine rounds them, sums are float32. NVFP4 weights are dequantized as vLLM does;
W4A4 also quantizes the inputs of each linear layer, by the formulas of vLLM's nvfp4_emulation_utils.py.
The model is that of Transformers' modeling_glm.py; tests/e2e/test_fingerprint.py compares the two.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from glm4_deploy.checkpoint.header import Tensor
from glm4_deploy.checkpoint.model import GATE, GATE_UP, GROUP_SIZE, UP, model_shape
from glm4_deploy.checkpoint.read import Checkpoint
from glm4_deploy.fingerprint.model import TOP, Arithmetic
from glm4_deploy.plan.engine_rules import ModelShape

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]
Step: TypeAlias = Callable[[], None]

ROWS = 2048  # of a weight in memory as float32 at once: 110 MB for the widest layer of 9B
TOKENS = 1024  # that go through the MLP at once
QUERIES = 256  # of one text against all its keys at once
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
PAIRS = np.stack([E2M1[np.arange(256) & 15], E2M1[np.arange(256) >> 4]], axis=1)  # two weights per byte, low first
E2M1_EDGES = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
E4M3_MAX = 448.0


def bf16(values: Floats) -> Floats:
    """Rounded to the nearest bf16, ties to even."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    rounded: Floats = ((bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def e4m3(values: Floats) -> Floats:
    """Rounded to the nearest float8_e4m3fn, saturating."""
    _, exponent = np.frexp(np.abs(values))
    step = np.exp2(np.maximum(exponent - 4, -9).astype(np.float32))
    rounded: Floats = np.clip(np.rint(values / step) * step, -E4M3_MAX, E4M3_MAX).astype(np.float32)
    return rounded


def _decode_e4m3() -> Floats:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, (codes & 7).astype(np.float32)
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * np.exp2(exponent - 10.0))
    value[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -value, value).astype(np.float32)


E4M3 = _decode_e4m3()


def quantized(x: Floats, global_scale: np.float32) -> Floats:
    """Inputs [tokens, columns] after FP4 with a scale in FP8 for each group of 16."""
    groups = x.reshape(len(x), -1, GROUP_SIZE)
    scale = e4m3(global_scale * (np.abs(groups).max(-1, keepdims=True) * np.float32(1 / 6)))
    inverse = np.divide(global_scale, scale, out=np.zeros_like(scale), where=scale != 0)
    # The middle between two values goes to the even code, as a kernel's round-to-nearest does.
    size = np.minimum(np.abs(groups * inverse), 6)
    code = np.searchsorted(E2M1_EDGES, size, side="left")
    code += (size == E2M1_EDGES[np.minimum(code, 6)]) & (code % 2 == 1)
    return bf16((np.copysign(E2M1[code], groups) * (scale / global_scale)).reshape(x.shape))


class Weights:
    """The tensors of a checkpoint, read from their shards when asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._paths = {shard.file.name: shard.file.path for shard in checkpoint.shards}
        self._tensors = {tensor.name: tensor for tensor in checkpoint.tensors}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def rows_of(self, name: str) -> int:
        return self._tensors[name].shape[0]

    def rows(self, name: str, first: int = 0, last: int | None = None) -> npt.NDArray[Any]:
        """Rows of a tensor: float32 from float dtypes; the raw bytes of U8 and F8_E4M3."""
        tensor = self._tensors[name]
        last = tensor.shape[0] if last is None else min(last, tensor.shape[0])
        width = tensor.nbytes // tensor.shape[0]
        raw = np.fromfile(
            self._paths[tensor.shard], np.uint8, count=(last - first) * width, offset=tensor.start + first * width
        )
        return _floats(raw, tensor).reshape(last - first, *tensor.shape[1:])

    def picked(self, name: str, ids: Ints) -> Floats:
        """Single rows, such as embeddings."""
        unique, inverse = np.unique(ids, return_inverse=True)
        found = np.concatenate([self.rows(name, int(row), int(row) + 1) for row in unique])
        return found[inverse]


def _floats(raw: npt.NDArray[np.uint8], tensor: Tensor) -> npt.NDArray[Any]:
    if tensor.dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if tensor.dtype in ("F16", "F32"):
        return raw.view(np.float16 if tensor.dtype == "F16" else np.float32).astype(np.float32)
    return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Token ids, and the lengths of the prefixes whose next token is asked for."""

    ids: tuple[int, ...]
    points: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """[points, TOP] each: the most likely next tokens, and their log probabilities in nats."""

    ids: Ints
    logprobs: Floats


@dataclass(slots=True, kw_only=True)
class Reference:
    """One model on one arithmetic: all texts go through it together."""

    weights: Weights
    shape: ModelShape
    config: Mapping[str, Any]
    arithmetic: Arithmetic
    fp8_cache: float | None = None  # for benchmarks/fingerprint.py: keys and values as FP8, divided by this scale
    hidden: Floats = field(init=False)

    def run(self, texts: Sequence[Text], *, draw: int = 0, step: Step = lambda: None) -> Floats:
        """What goes into `head`, [points of all texts, hidden].

        Args:
            draw: 0: as exact as bf16 is. Other numbers change each embedding by about the last bit of bf16, as another
                order of sums would: in FP4 that moves values across the edges, and the answers with them.
            step: called after each layer.
        """
        ids = np.array([token for text in texts for token in text.ids])
        self.hidden = self.weights.picked("model.embed_tokens.weight", ids)
        if draw:
            noise = np.random.default_rng(draw).standard_normal(self.hidden.shape, np.float32)
            self.hidden = bf16(self.hidden * (1 + noise * np.float32(2**-8)))
        ends = np.cumsum([0, *(len(text.ids) for text in texts)])
        spans = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        for layer in range(self.shape.layers):
            self._layer(f"model.layers.{layer}.", spans)
            step()
        wanted = [span.start + point - 1 for span, text in zip(spans, texts, strict=True) for point in text.points]
        return self._norm("model.norm", self.hidden[wanted])

    def _layer(self, prefix: str, spans: Sequence[slice]) -> None:
        x = self._norm(f"{prefix}input_layernorm", self.hidden)
        query, key, value = (self._linear(f"{prefix}self_attn.{name}_proj", x) for name in "qkv")
        mixed = np.concatenate([self._attend(query[span], key[span], value[span]) for span in spans])
        self.hidden = bf16(self.hidden + self._linear(f"{prefix}self_attn.o_proj", mixed))
        for first in range(0, len(self.hidden), TOKENS):
            part = slice(first, first + TOKENS)
            x = self._norm(f"{prefix}post_attention_layernorm", self.hidden[part])
            gate, up = self._gate_up(prefix, x)
            act = bf16(bf16(gate / (1 + np.exp(-gate))) * up)
            self.hidden[part] = bf16(self.hidden[part] + self._linear(f"{prefix}mlp.down_proj", act))

    def _gate_up(self, prefix: str, x: Floats) -> tuple[Floats, Floats]:
        fused = prefix + GATE_UP
        if f"{fused}.weight" in self.weights or f"{fused}.weight_packed" in self.weights:
            both = self._linear(fused, x)
            return both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
        return self._linear(prefix + GATE, x), self._linear(prefix + UP, x)

    def _norm(self, name: str, x: Floats) -> Floats:
        variance = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        epsilon = np.float32(self.config.get("rms_norm_eps", 1.5625e-07))
        scaled = (x / np.sqrt(variance + epsilon)).astype(np.float32)
        return bf16(bf16(scaled) * self.weights.rows(f"{name}.weight"))

    def _linear(self, name: str, x: Floats) -> Floats:
        packed = f"{name}.weight_packed"
        if packed in self.weights and self.arithmetic is Arithmetic.W4A4:
            x = quantized(x, self.weights.rows(f"{name}.input_global_scale")[0])
        parts = [x @ weight.T for weight in self._chunks(name)]
        out = np.concatenate(parts, axis=1)
        if f"{name}.bias" in self.weights:
            out = out + self.weights.rows(f"{name}.bias")
        return bf16(out)

    def _chunks(self, name: str) -> Iterator[Floats]:
        """The weight, ROWS at a time."""
        packed, scales = f"{name}.weight_packed", f"{name}.weight_scale"
        if packed not in self.weights:
            plain = f"{name}.weight"
            for first in range(0, self.weights.rows_of(plain), ROWS):
                yield self.weights.rows(plain, first, first + ROWS)
            return
        whole = self.weights.rows(f"{name}.weight_global_scale")[0]
        for first in range(0, self.weights.rows_of(packed), ROWS):
            codes = self.weights.rows(packed, first, first + ROWS)
            scale = E4M3[self.weights.rows(scales, first, first + ROWS)] / whole
            grouped = PAIRS[codes].reshape(len(codes), -1, GROUP_SIZE) * scale[..., None]
            yield bf16(grouped.reshape(len(codes), -1))

    def _attend(self, query: Floats, key: Floats, value: Floats) -> Floats:
        """Causal attention within one text, [tokens, heads * head_dim] each."""
        shape, tokens = self.shape, len(query)
        q = self._turn(query.reshape(tokens, shape.heads, shape.head_dim))
        k = self._turn(key.reshape(tokens, shape.kv_heads, shape.head_dim))
        v = value.reshape(tokens, shape.kv_heads, shape.head_dim)
        if self.fp8_cache:
            scale = np.float32(self.fp8_cache)
            k, v = bf16(e4m3(k / scale) * scale), bf16(e4m3(v / scale) * scale)
        out = np.empty_like(q)
        sharpness, shared = np.float32(shape.head_dim**-0.5), shape.heads // shape.kv_heads
        for head in range(shape.heads):
            keys, values = k[:, head // shared].T, v[:, head // shared]
            for first in range(0, tokens, QUERIES):
                last = min(first + QUERIES, tokens)
                scores = q[first:last, head] @ keys[:, :last] * sharpness
                scores[np.arange(last)[None] > np.arange(first, last)[:, None]] = -np.inf
                weight = np.exp(scores - scores.max(-1, keepdims=True))
                out[first:last, head] = (weight @ values[:last]) / weight.sum(-1, keepdims=True)
        return bf16(out).reshape(tokens, -1)

    def _turn(self, x: Floats) -> Floats:
        """Rotary embedding of neighbouring pairs, in the first half of each head."""
        rope = self.config.get("rope_parameters") or {}
        theta = float(rope.get("rope_theta") or self.config.get("rope_theta") or 10000.0)
        partial = rope.get("partial_rotary_factor") or self.config.get("partial_rotary_factor") or 0.5
        size = int(self.shape.head_dim * float(partial))
        frequency = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
        angle = np.arange(len(x))[:, None, None] * frequency
        cos, sin = bf16(np.cos(angle).astype(np.float32)), bf16(np.sin(angle).astype(np.float32))
        even, odd = x[..., 0:size:2], x[..., 1:size:2]
        out = x.copy()
        out[..., 0:size:2], out[..., 1:size:2] = even * cos - odd * sin, odd * cos + even * sin
        return bf16(out)

    def head(self, x: Floats) -> Top:
        """The TOP most likely tokens of each point, over the vocabulary a part at a time."""
        name = "model.embed_tokens" if self.shape.tied else "lm_head"
        best_ids = np.zeros((len(x), 0), np.int64)
        best: Floats = np.zeros((len(x), 0), np.float32)
        total = np.full(len(x), -np.inf)
        first = 0
        for weight in self._chunks(name):
            logits = bf16(x @ weight.T)
            total = np.logaddexp(total, _logsumexp(logits))
            best = np.concatenate([best, logits], axis=1)
            ids = np.broadcast_to(np.arange(first, first + len(weight)), logits.shape)
            best_ids = np.concatenate([best_ids, ids], axis=1)
            kept = np.argsort(-best, axis=1, kind="stable")[:, :TOP]
            best, best_ids = np.take_along_axis(best, kept, 1), np.take_along_axis(best_ids, kept, 1)
            first += len(weight)
        return Top(ids=best_ids, logprobs=(best - total[:, None]).astype(np.float32))


def _logsumexp(logits: Floats) -> npt.NDArray[np.float64]:
    top = logits.max(-1, keepdims=True)
    total: npt.NDArray[np.float64] = top[:, 0] + np.log(np.exp((logits - top).astype(np.float64)).sum(-1))
    return total


def reference(checkpoint: Checkpoint, arithmetic: Arithmetic, **options: Any) -> Reference:
    """A reference for a checkpoint that `checkpoint verify` accepts.

    Raises:
        BadConfigError: config.json does not determine the model.
    """
    config = checkpoint.config or {}
    return Reference(
        weights=Weights(checkpoint), shape=model_shape(config), config=config, arithmetic=arithmetic, **options
    )
