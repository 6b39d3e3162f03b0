"""How small a damage the fingerprint finds, and what sound engines differ by.

    PYTHONPATH=src python -m benchmarks.fingerprint [--texts N]                   # damage, in the reference arithmetic
    PYTHONPATH=src python -m benchmarks.fingerprint --engine 0.13.0 [--runs 25] [--damage X]    # real engines

The damaged models are the demo model's; a sound engine is another draw of the same arithmetic (seed 9), which is as far
from the reference as a real engine is. An engine is vLLM on the CPU of that version (scripts/cpu-engine.sh), on the rig
of tests/nvfp4_rig; every row is one run of the check `fingerprint`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
from tests.checkpoints import write_scale
from tests.e2e.engine import NAME, engine

from glm4_deploy.catalog.rows import parse_version
from glm4_deploy.checkpoint.fingerprint import merge_texts
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.checkpoint.reference import Reference, Weights, reference
from glm4_deploy.checkpoint.repair import repair_checkpoint
from glm4_deploy.fingerprint.distance import measure
from glm4_deploy.fingerprint.judge import judge
from glm4_deploy.fingerprint.model import Arithmetic, Fingerprint, read_fingerprint
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.suite import run_suite

ROOT = Path(__file__).parents[1]
NVFP4 = ROOT / "demo/glm-4-tiny-chat-nvfp4"
SOUND = 9  # the seed of a draw that no reference contains
LAYER = "model.layers.1."


class Damaged(Weights):
    """A checkpoint of which some tensors are changed as they are read."""

    def __init__(self, change: Callable[[str, np.ndarray], np.ndarray], renamed: dict[str, str] | None = None) -> None:
        super().__init__(read_checkpoint(NVFP4))
        self.change, self.renamed = change, renamed or {}

    def rows(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        for old, new in self.renamed.items():
            name = name.replace(old, new) if old in name else name
        return self.change(name, super().rows(name, first, last))


def scaled(tensor: str, factor: float) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda name, rows: rows * np.float32(factor) if name == tensor else rows


def one_block(name: str, rows: np.ndarray) -> np.ndarray:
    """One FP8 scale of a row becomes the largest one."""
    if name == f"{LAYER}mlp.down_proj.weight_scale":
        rows = rows.copy()
        rows[3, 5] = 0x7E
    return rows


def adapted(size: float) -> Callable[[str, np.ndarray], np.ndarray]:
    """A change of rank 8 to an unquantized matrix, `size` of its norm: that of the head."""
    rng = np.random.default_rng(0)
    low, high = rng.standard_normal((2048, 8), np.float32), rng.standard_normal((8, 256), np.float32)

    def change(name: str, rows: np.ndarray) -> np.ndarray:
        if name != "lm_head.weight":
            return rows
        delta = (low @ high)[: len(rows)]
        return rows + delta * (size * np.linalg.norm(rows) / np.linalg.norm(delta))

    return change


def cases() -> Iterator[tuple[str, Callable[[Arithmetic], Reference]]]:
    """(name, maker of the damaged model)."""
    checkpoint = read_checkpoint(NVFP4)

    def with_weights(weights: Weights) -> Callable[[Arithmetic], Reference]:
        def make(arithmetic: Arithmetic) -> Reference:
            model = reference(checkpoint, arithmetic)
            model.weights = weights
            return model

        return make

    yield "none (another order of sums)", with_weights(Weights(checkpoint))
    for layer in ("self_attn.q_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        for scale in ("weight_global_scale", "input_global_scale"):
            for factor in (1.02, 1.1, 1.25, 1.5, 2, 4, 16, 64):
                tensor = f"{LAYER}{layer}.{scale}"
                yield f"{layer}.{scale} × {factor:g}", with_weights(Damaged(scaled(tensor, factor)))
    yield "one FP8 block scale", with_weights(Damaged(one_block))
    yield (
        "layers 1 and 2 exchanged",
        with_weights(
            Damaged(
                lambda _name, rows: rows, {"layers.1.": "layers.X.", "layers.2.": "layers.1.", "layers.X.": "layers.2."}
            )
        ),
    )
    for theta in (20000.0, 5000000.0):
        config = {**(checkpoint.config or {}), "rope_theta": theta, "rope_parameters": {}}
        yield (
            f"rope_theta {theta:.0f} for 10000",
            lambda arithmetic, config=config: replace_config(reference(checkpoint, arithmetic), config),
        )
    yield "FP8 KV cache, scale 1", lambda arithmetic: reference(checkpoint, arithmetic, fp8_cache=True)
    for size in (0.01, 0.03, 0.1):
        yield f"rank 8, {size:.0%} of lm_head", with_weights(Damaged(adapted(size)))


def replace_config(model: Reference, config: dict) -> Reference:
    model.config = config
    return model


def in_arithmetic(printed: Fingerprint) -> None:
    texts = [replace(text, tops={}) for text in printed.texts]
    asked, spread = merge_texts(texts)
    print("| damage | W4A4: KL | verdict | off | W4A16: KL | verdict | off |\n|---|---|---|---|---|---|---|")
    for name, make in cases():
        cells = []
        for arithmetic in (Arithmetic.W4A4, Arithmetic.W4A16):
            model = make(arithmetic)
            tops = spread(model, model.run(asked, draw=SOUND))
            answers = [
                [dict(zip(a, b, strict=True)) for a, b in zip(t.ids.tolist(), t.logprobs.tolist(), strict=True)]
                for t in tops
            ]
            found = judge(printed, measure(printed, answers), arithmetic)
            off = ", ".join(f"{bucket} × {ratio:.1f}" for bucket, ratio in found.off[:3])
            cells += [f"{found.distance.kl:.4f}", str(found.status), off or "–"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def stored(directory: Path, name: str) -> None:
    """Damage a checkpoint on disk. `tensor × factor`, `rope_theta X` or `sound`."""
    if name == "sound":
        return
    tensor, _, value = name.partition("=")
    if tensor == "rope_theta":
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["rope_theta"] = config["rope_parameters"]["rope_theta"] = float(value)
        path.write_text(json.dumps(config))
        return
    if tensor == "template":
        path = directory / "chat_template.jinja"
        path.write_text(path.read_text().replace("{{ message['content'] }}", " {{ message['content'] }}"))
        return
    tensors = {line.name for line in read_checkpoint(directory).tensors}
    for one in (tensor, *(tensor.replace("gate_up", half) for half in ("gate", "up"))):
        if LAYER + one in tensors:
            write_scale(directory, LAYER + one, float(value) * write_scale(directory, LAYER + one, 1.0))


def in_engine(printed: Fingerprint, version: str, damage: str, runs: int, arguments: list[str]) -> None:
    """Start an engine with the checkpoint, sound or not, and run the check, every second time beside other requests."""
    with tempfile.TemporaryDirectory(prefix="fingerprint-") as work:
        model = Path(work) / NVFP4.name
        repair_checkpoint(NVFP4, model, vllm=parse_version(version))
        for file in model.iterdir():  # repair makes hard links, and the original must not change
            data = file.read_bytes()
            file.unlink()
            file.write_bytes(data)
        stored(model, damage)
        python = Path.home() / f".cache/glm4-deploy/cpu-engine-{version}/bin/python"
        extra = ("--quantization", "compressed-tensors", *arguments)
        environment = {"PYTHONPATH": str(ROOT / "tests/nvfp4_rig")}
        with engine(str(python), model, Path(work) / "log", *extra, env=environment) as running:
            found = Counter(asyncio.run(_runs(printed, running.base_url, runs)))
        for (status, seen), count in sorted(found.items()):
            print(f"| {version} {' '.join(arguments)} | {damage} | {count} × {status} | {seen} |", flush=True)


async def _runs(printed: Fingerprint, url: str, runs: int) -> list[tuple[str, str]]:
    target, found = ProbeTarget(base_url=url, timeout_s=300), []
    only = (
        ("fingerprint", "arithmetic", "counting", "recall", "language", "loop-greedy")
        if runs == 1
        else ("fingerprint",)
    )
    for number in range(runs):
        load = asyncio.create_task(_load(url)) if number % 2 else None
        report = await run_suite(target, only=only, options=Options(fingerprint=printed, arithmetic=Arithmetic.W4A4))
        if load is not None:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
        row = next(row for row in report.results if row.check == "fingerprint")
        rest = [f"{one.check} {one.status}" for one in report.results if one.check in only[1:]]
        found.append((str(row.status), "; ".join((row.observed or row.reason, *rest, f"{row.remedy[:60]}"))))
    return found


async def _load(url: str) -> None:
    """Other requests, at another temperature, until it is cancelled."""
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        while True:
            body = {"model": NAME, "prompt": "The keeper of the lighthouse", "max_tokens": 40, "temperature": 1.3}
            await asyncio.gather(*(client.post("/v1/completions", json=body | {"seed": n}) for n in range(6)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", help="version of a real engine")
    parser.add_argument("--texts", type=int, help="use only the first so many texts (the long ones come last)")
    parser.add_argument("--damage", default="sound", help="on disk: sound, TENSOR=FACTOR, rope_theta=X or template=")
    parser.add_argument("--runs", type=int, default=1)
    args, arguments = parser.parse_known_args()
    printed = read_fingerprint(NVFP4 / "fingerprint.json")
    if args.texts:
        printed = replace(printed, texts=printed.texts[: args.texts])
    if args.engine:
        in_engine(printed, args.engine, args.damage, args.runs, arguments)
    else:
        in_arithmetic(printed)


if __name__ == "__main__":
    main()
