"""Time of verify and repair relative to sha256sum and cp of the same bytes, in one run, and their peak memory.

    .venv/bin/python -m benchmarks.checkpoint [--layers 8] [--runs 3] [--dir DIR]

The 9B model has 40 layers (6.6 GiB); a smaller number leaves layers out. The files are in the page cache. Nothing is
kept.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from glm4_deploy.checkpoint.model import GROUP_SIZE, layer_linears, model_shape
from glm4_deploy.checkpoint.rewrite import Piece

DATA = Path(__file__).parents[1] / "tests" / "data" / "nvfp4-tiny" / "glm-4-tiny-nvfp4"
CHUNK = 64 << 20
SCALES = {"weight_global_scale": 2688 / 0.1, "input_global_scale": 2688 / 3}


def config(layers: int) -> dict[str, object]:
    """GLM-4-9B's dimensions, with the keys and the quantization_config that llm-compressor writes."""
    written = json.loads((DATA / "config.json").read_text())
    return written | {
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_attention_heads": 32,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "vocab_size": 151552,
    }


def tokenizer() -> dict[str, object]:
    """One as large as GLM-4's: 151,329 words and twice as many merges, about 20 MB of JSON."""
    special = json.loads((DATA / "tokenizer.json").read_text())["added_tokens"]
    words = [f"Ġword{number:06}" for number in range(151_329)]
    merges = [[word[:5], word[5:]] for word in words] * 2
    return {
        "version": "1.0",
        "added_tokens": special,
        "model": {"type": "BPE", "vocab": {word: number for number, word in enumerate(words)}, "merges": merges},
    }


def pieces(layers: int, nvfp4: bool = True) -> list[Piece]:
    """Every tensor of the checkpoint as its publisher stores it: gate_up fused, lm_head in bf16."""
    shape = model_shape(config(layers))
    made: list[Piece] = []

    def add(name: str, dtype: str, *sizes: int) -> None:
        made.append(Piece(name=name, dtype=dtype, shape=sizes, sources=()))

    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        add(name, "BF16", shape.vocab, shape.hidden)
    add("model.norm.weight", "BF16", shape.hidden)
    for layer in range(layers):
        for norm in ("input", "post_attention"):
            add(f"model.layers.{layer}.{norm}_layernorm.weight", "BF16", shape.hidden)
        for linear in layer_linears(shape, layer, split=False):
            if linear.bias:
                add(f"{linear.name}.bias", "BF16", linear.rows)
            if not nvfp4:
                add(f"{linear.name}.weight", "BF16", linear.rows, linear.columns)
                continue
            add(f"{linear.name}.weight_packed", "U8", linear.rows, linear.columns // 2)
            add(f"{linear.name}.weight_scale", "F8_E4M3", linear.rows, linear.columns // GROUP_SIZE)
            for part in SCALES:
                add(f"{linear.name}.{part}", "F32", 1)
    return made


def content(piece: Piece, count: int, rng: np.random.Generator) -> bytes:
    """Valid random content: finite numbers, positive scales."""
    part = piece.name.rpartition(".")[2]
    if part in SCALES:
        return np.array([SCALES[part]], "<f4").tobytes()
    if piece.dtype == "BF16":
        values = rng.standard_normal(count // 2, np.float32) * np.float32(0.02)
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    if piece.dtype == "F8_E4M3":
        return rng.integers(1, 0x7F, count, np.uint8).tobytes()
    return rng.bytes(count)


def make(directory: Path, layers: int, *, sparse: bool, nvfp4: bool = True) -> int:
    """Write a checkpoint; `sparse` leaves holes for all but the global scales. Returns the number of tensors."""
    directory.mkdir()
    for path in DATA.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, directory / path.name)
    written = config(layers)
    if not nvfp4:
        del written["quantization_config"]
    (directory / "config.json").write_text(json.dumps(written))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False, indent=2))
    bits = {"BF16": 2, "U8": 1, "F8_E4M3": 1, "F32": 4}
    rng = np.random.default_rng(0)
    every = pieces(layers, nvfp4)
    entries, position = {}, 0
    for piece in every:
        size = bits[piece.dtype] * int(np.prod(piece.shape))
        entries[piece.name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
    raw += b" " * (-len(raw) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for piece in every:
            low, high = entries[piece.name]["data_offsets"]
            if sparse and piece.dtype != "F32":
                file.seek(high - low, os.SEEK_CUR)
                continue
            for offset in range(low, high, CHUNK):
                file.write(content(piece, min(CHUNK, high - offset), rng))
        file.truncate(8 + len(raw) + position)
    return len(every)


def run(*words: str | Path) -> tuple[float, float]:
    """Seconds and peak MiB of a command. Exit code 1 (it found something) is accepted."""
    begin = time.perf_counter()
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 1), words
    return seconds, usage.ru_maxrss / 1024


def kit(*words: str | Path) -> tuple[float, float]:
    return run(sys.executable, "-m", "glm4_deploy", "checkpoint", *words)


def median(cases: dict[str, Callable[[], tuple[float, float]]], runs: int) -> dict[str, tuple[float, float]]:
    """Median seconds and highest peak of each; interleaved, so that other load on the machine affects all alike."""
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(runs):
        for name, case in cases.items():
            results[name].append(case())
    return {
        name: (statistics.median(seconds for seconds, _ in rows), max(peak for _, peak in rows))
        for name, rows in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="of the model that is read in full (8)")
    parser.add_argument("--runs", type=int, default=3, help="of each command (3)")
    parser.add_argument("--dir", type=Path, help="where to work; needs free space of twice the model's size")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        work = Path(name)
        whole, part, out = work / "glm-4-whole", work / "glm-4-part", work / "glm-4-out"
        with ProcessPoolExecutor(
            1
        ) as pool:  # a child's peak starts at its parent's size, so this process must stay small
            tensors = pool.submit(make, whole, 40, sparse=True).result()
            pool.submit(make, part, args.layers, sparse=False).result()
        file = part / "model.safetensors"
        size = file.stat().st_size

        def copy() -> tuple[float, float]:
            taken = run("sh", "-c", f"mkdir {out} && cp {part}/* {out} && sync {out}/*")
            shutil.rmtree(out)
            return taken

        def repair() -> tuple[float, float]:
            taken = kit("repair", part, "--output", out)
            assert (out / "config.json").exists()
            shutil.rmtree(out)
            return taken

        figures = median(
            {
                "start": lambda: run(sys.executable, "-m", "glm4_deploy", "version"),
                "headers": lambda: kit("verify", whole),
                "sha256sum": lambda: run("sha256sum", file),
                "full": lambda: kit("verify", part, "--full"),
                "full, manifest": lambda: kit("verify", part, "--manifest", work / "sums"),
                "cp and sync": copy,
                "repair": repair,
            },
            args.runs,
        )
    print(f"headers of {tensors} tensors, 6.59 GiB (sparse): {figures['headers'][0]:.2f} s", end="")
    print(f" ({figures['start'][0]:.2f} s of it to start Python), peak {figures['headers'][1]:.0f} MiB")
    print(f"{args.layers} layers, {size / 2**30:.2f} GiB in the page cache, median of {args.runs}")
    for case, base in (("full", "sha256sum"), ("full, manifest", "sha256sum"), ("repair", "cp and sync")):
        (seconds, peak), (other, _) = figures[case], figures[base]
        print(f"{case}: {seconds:.2f} s, {seconds / other:.2f} × {base} ({other:.2f} s), peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
