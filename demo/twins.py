"""Make a sick twin of the demo model: `python demo/twins.py KIND --out DIR [--seed N]`. Needs only NumPy and a second.

KIND         what is wrong                                what an engine then does
loops        every matrix redrawn at random               the same tokens over and over at temperature 0
nan          NaN in one layer                             HTTP 200 and token id 0 (`!`) without end
noise        strong noise added to each matrix             word salad
missing-eos  <|user|> and <|observation|> no longer stop  a right answer, then more text up to max_tokens
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

HEALTHY = Path(__file__).parent / "glm-4-tiny-chat"
Tensors = dict[str, np.ndarray]  # bf16 as its bits: uint16
BF16_NAN = 0x7FC0
NAN_TENSOR = "model.layers.2.mlp.down_proj.weight"
NOISE = 0.6  # of each matrix's own standard deviation
EOS_LEFT = "<|endoftext|>"


def to_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bits(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bf16, ties to even."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)


def read(path: Path) -> tuple[bytes, Tensors]:
    """The header with its length prefix, unchanged, and a writable copy of each tensor."""
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    tensors = {}
    for name, entry in json.loads(blob[8:start]).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{path}: {name} is {entry['dtype']}, not BF16: twins can be made of the demo model only")
        low, high = (start + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(blob[low:high], "<u2").reshape(entry["shape"]).copy()
    return blob[:start], tensors


def write(path: Path, header: bytes, tensors: Tensors) -> None:
    entries = json.loads(header[8:])
    order = sorted(tensors, key=lambda name: entries[name]["data_offsets"][0])
    path.write_bytes(header + b"".join(tensors[name].tobytes() for name in order))


def loops(tensors: Tensors, rng: np.random.Generator) -> None:
    for name, bits in tensors.items():
        if bits.ndim == 2:
            tensors[name] = to_bits(rng.normal(0.0, 0.02, bits.shape))


def nan(tensors: Tensors, _: np.random.Generator) -> None:
    tensors[NAN_TENSOR][:] = BF16_NAN


def noise(tensors: Tensors, rng: np.random.Generator) -> None:
    for name, bits in tensors.items():
        if bits.ndim == 2:
            values = to_float(bits)
            tensors[name] = to_bits(values + rng.normal(0.0, NOISE * values.std(), bits.shape))


def forget_eos(directory: Path) -> None:
    tokens = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    kept = next(token["id"] for token in tokens if token["content"] == EOS_LEFT)
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        data = json.loads(path.read_text(encoding="utf-8")) | {"eos_token_id": kept}
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


SICK: dict[str, Callable[[Tensors, np.random.Generator], None]] = {"loops": loops, "nan": nan, "noise": noise}
KINDS = (*SICK, "missing-eos")


def make(kind: str, out: Path, *, seed: int = 0, healthy: Path = HEALTHY) -> Path:
    """Write the twin to `out`, which must not exist yet; it appears whole or not at all."""
    if out.exists():
        raise SystemExit(f"{out} is there already: remove it or name another directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".twin-") as work:
        twin = Path(work) / "twin"
        shutil.copytree(healthy, twin)
        if kind == "missing-eos":
            forget_eos(twin)
        else:
            header, tensors = read(twin / "model.safetensors")
            SICK[kind](tensors, np.random.default_rng(seed))
            write(twin / "model.safetensors", header, tensors)
        twin.rename(out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(make(args.kind, args.out, seed=args.seed), file=sys.stdout)


if __name__ == "__main__":
    main()
