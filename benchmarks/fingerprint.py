"""How small a damage the fingerprint finds, and what sound engines differ by.

    PYTHONPATH=src python -m benchmarks.fingerprint [--texts N]                   # damage, in the reference arithmetic
    PYTHONPATH=src python -m benchmarks.fingerprint --sound 200                   # sound draws of that arithmetic
    PYTHONPATH=src python -m benchmarks.fingerprint --size 4                      # memory and time at 9B's shape
    PYTHONPATH=src python -m benchmarks.fingerprint --engine 0.13.0 [--runs 25] [--damage X]    # real engines

The damaged models are the demo model's; a sound engine is another draw of the same arithmetic (seed 9), which is as far
from the reference as a real engine is. An engine is vLLM on the CPU of that version (scripts/cpu-engine.sh), on the rig
of tests/nvfp4_rig; every row is one run of the check `fingerprint`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from benchmarks import checkpoint as full_size
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tests.checkpoints import write_scale
from tests.e2e.engine import NAME, engine
from tokenizers import Tokenizer

from glm4_deploy.catalog.rows import parse_version
from glm4_deploy.checkpoint.fingerprint import merge_texts
from glm4_deploy.checkpoint.read import read_checkpoint
from glm4_deploy.checkpoint.reference import Reference, Text, Top, Weights, bf16, reference
from glm4_deploy.checkpoint.repair import repair_checkpoint
from glm4_deploy.fingerprint.distance import measure
from glm4_deploy.fingerprint.judge import judge
from glm4_deploy.fingerprint.model import Arithmetic, Fingerprint, read_fingerprint
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report_model import Suite
from glm4_deploy.result import Result, Status

ROOT = Path(__file__).parents[1]
BF16, NVFP4 = ROOT / "demo/glm-4-tiny-chat", ROOT / "demo/glm-4-tiny-chat-nvfp4"
SOUND = 9  # the seed of a draw that no reference contains
NEW = 1000  # the first seed of draws that nobody had seen when the limits were set
OTHER_MODEL = ROOT / "demo/glm-4-tiny-tools"
LAYER = "model.layers.1."
FACTORS = (1.02, 1.1, 1.25, 1.5, 2, 4, 16, 64)
OTHERS = (0, 6, 1, 24)  # other requests in the batch while the check runs, in turn
QUESTIONS = ("arithmetic", "counting", "recall", "language", "loop-greedy")


Change = Callable[[str, np.ndarray], np.ndarray]  # a tensor's name and rows → its rows
Maker = Callable[[Arithmetic], Reference]


class Damaged(Weights):
    """A checkpoint of which some tensors are changed, or taken from elsewhere, as they are read."""

    def __init__(self, change: Change, source: Callable[[str], tuple[Weights | None, str]] | None = None) -> None:
        super().__init__(read_checkpoint(NVFP4))
        self.change, self.source = change, source

    def rows(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        other, there = self.source(name) if self.source else (None, name)
        return self.change(name, (other.rows if other else super().rows)(there, first, last))


def same(_name: str, rows: np.ndarray) -> np.ndarray:
    return rows


def scaled(tensor: str, factor: float) -> Change:
    return lambda name, rows: rows * np.float32(factor) if name == tensor else rows


def dirty(name: str, rows: np.ndarray) -> np.ndarray:
    """vLLM takes the larger of two global scales of a fused layer; of gate_up only one is stored (vllm#39764).

    The other one is what memory held: here 0x46 in every byte, which MALLOC_PERTURB_=185 puts there.
    """
    fused = name.endswith(("gate_up_proj.weight_global_scale", "gate_up_proj.input_global_scale"))
    return np.maximum(rows, np.frombuffer(b"\x46" * 4, np.float32)) if fused else rows


def block(row: int, column: int, code: int) -> Change:
    """One FP8 scale of a group of 16 weights becomes the number with this code."""

    def change(name: str, rows: np.ndarray) -> np.ndarray:
        if name == f"{LAYER}mlp.down_proj.weight_scale":
            rows = rows.copy()
            rows[row, column] = code
        return rows

    return change


def tile(name: str, rows: np.ndarray) -> np.ndarray:
    """A tile of 64 × 64 weights is zero, as where a kernel skips one."""
    if name == f"{LAYER}mlp.down_proj.weight_scale":
        rows = rows.copy()
        rows[64:128, 4:8] = 0
    return rows


def words(ids: Sequence[int], factor: float) -> Change:
    """Some rows of the head are too small: the logits of these tokens."""

    def change(name: str, rows: np.ndarray) -> np.ndarray:
        if name == "lm_head.weight":
            rows = rows.copy()
            rows[list(ids)] *= np.float32(factor)
        return rows

    return change


def adapted(size: float) -> Change:
    """A change of rank 8 to an unquantized matrix, `size` of its norm: that of the head."""
    rng = np.random.default_rng(0)
    low, high = rng.standard_normal((2048, 8), np.float32), rng.standard_normal((8, 256), np.float32)

    def change(name: str, rows: np.ndarray) -> np.ndarray:
        if name != "lm_head.weight":
            return rows
        delta = (low @ high)[: len(rows)]
        return rows + delta * (size * np.linalg.norm(rows) / np.linalg.norm(delta))

    return change


@dataclass(slots=True, kw_only=True)
class Adapted(Reference):
    """With a LoRA adapter of rank 8 on the attention of every layer, whose output has `size` of the layer's norm."""

    size: float

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        out = Reference._linear(self, name, x)
        if ".self_attn." not in name:
            return out
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        low = rng.standard_normal((x.shape[1], 8), np.float32)
        more = x @ low @ rng.standard_normal((8, out.shape[1]), np.float32)
        return bf16(out + more * (self.size * np.linalg.norm(out) / np.linalg.norm(more)))


@dataclass(slots=True, kw_only=True)
class Unturned(Reference):
    """Tokens from `turned` on get no rotary embedding, as from a table that is too short."""

    turned: int

    def _turn(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([Reference._turn(self, x)[: self.turned], x[self.turned :]])


def cases() -> Iterator[tuple[str, Maker]]:
    """(name, maker of the damaged model)."""
    checkpoint = read_checkpoint(NVFP4)

    def made(
        weights: Weights | None = None, config: dict | None = None, **more: Any
    ) -> Callable[[Arithmetic], Reference]:
        def make(arithmetic: Arithmetic) -> Reference:
            model = reference(checkpoint, arithmetic)
            parts = {"weights": weights or model.weights, "config": (checkpoint.config or {}) | (config or {})}
            kind = {"size": Adapted, "turned": Unturned}.get(next(iter(more), ""), Reference)
            return kind(shape=model.shape, arithmetic=arithmetic, **parts, **more)

        return make

    yield "none (another order of sums)", made()
    for layer in ("self_attn.q_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        for scale in ("weight_global_scale", "input_global_scale"):
            for factor in FACTORS:
                yield f"{layer}.{scale} × {factor:g}", made(Damaged(scaled(f"{LAYER}{layer}.{scale}", factor)))
    yield "fused gate_up in dirty memory, every layer", made(Damaged(dirty))
    yield "one FP8 block scale: the largest number", made(Damaged(block(3, 5, 0x7E)))
    yield "one FP8 block scale: not a number", made(Damaged(block(3, 5, 0x7F)))
    yield "a tile of 64 × 64 weights is zero", made(Damaged(tile))
    swap = {"layers.1.": "layers.2.", "layers.2.": "layers.1."}
    yield (
        "layers 1 and 2 exchanged",
        made(Damaged(same, lambda name: (None, re.sub(r"layers\.[12]\.", lambda m: swap[m[0]], name)))),
    )
    other = Weights(read_checkpoint(OTHER_MODEL))
    last = ("model.norm.weight", "lm_head.weight")
    yield (
        "last norm and lm_head from another model's shard",
        made(Damaged(same, lambda name: (other if name in last else None, name))),
    )
    for theta in (10100.0, 11000.0, 20000.0, 5000000.0):
        yield f"rope_theta {theta:.0f} for 10000", made(config={"rope_theta": theta, "rope_parameters": {}})
    yield "no rotary embedding from token 512 on", made(turned=512)
    for scale in (1.0, 1 / 64, 1 / 256, 64.0, 256.0):
        yield f"FP8 KV cache, scale {scale:g}", made(fp8_cache=scale)
    for size in (0.01, 0.03, 0.1, 0.3):
        yield f"rank 8, {size:.0%} of lm_head", made(Damaged(adapted(size)))
    for size in (0.03, 0.1, 0.3):
        yield f"LoRA of rank 8 on all attention, {size:.0%} of each output", made(size=size)
    for name, kind in (("digits", str.isdecimal), ("Chinese", lambda word: any("一" <= c <= "鿿" for c in word))):
        for factor in (0.95, 0.8, 0.5):
            yield f"lm_head × {factor:g} for the tokens of {name}", made(Damaged(words(tokens_of(kind), factor)))


def tokens_of(kind: Callable[[str], bool]) -> list[int]:
    """Token ids whose text is of a kind."""
    tokenizer = Tokenizer.from_file(str(NVFP4 / "tokenizer.json"))
    return [n for n in range(tokenizer.get_vocab_size()) if (text := tokenizer.decode([n]).strip()) and kind(text)]


class Questions:
    """The canaries of the catalog that have a right answer, with that of the demo model."""

    def __init__(self) -> None:
        sys.path.insert(0, str(ROOT / "demo"))
        import curriculum

        template = (NVFP4 / "chat_template.jinja").read_text()
        render = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template).render
        tokenizer = Tokenizer.from_file(str(NVFP4 / "tokenizer.json"))
        end = tokenizer.token_to_id("<|user|>")
        self.texts: list[Text] = []
        self.answers: list[list[int]] = []
        for name, (*asked, (_, answer)) in curriculum.CANARY_TURNS.items():
            if name.startswith("long-"):  # smoke judges whether a story loops, not its words
                continue
            messages = [{"role": role, "content": content} for role, content in asked]
            prompt, rest = (
                tokenizer.encode(text, add_special_tokens=False).ids
                for text in (render(messages=messages, add_generation_prompt=True), "\n" + answer)
            )
            rest = [*rest[1:], end]  # the prompt ends with the line break
            self.texts.append(Text(ids=(*prompt, *rest), points=tuple(range(len(prompt), len(prompt) + len(rest)))))
            self.answers.append(rest)

    def wrong(self, model: Reference) -> int:
        """How many answers differ from the right one at temperature 0. Each token is asked for behind the right ones,
        which is what decoding does up to its first error."""
        chosen = model.head(model.run(self.texts, draw=SOUND)).ids[:, 0]
        ends = np.cumsum([len(answer) for answer in self.answers])[:-1]
        return sum(part.tolist() != answer for part, answer in zip(np.split(chosen, ends), self.answers, strict=True))


def in_arithmetic(printed: Fingerprint, only: str) -> None:
    asked, spread = merge_texts([replace(text, tops={}) for text in printed.texts])
    questions = Questions()
    head = "KL | verdict | off | points to"
    print(f"| damage | wrong answers of {len(questions.texts)} | W4A4: {head} | W4A16: {head} |\n|{'---|' * 10}")
    for name, make in cases():
        if not re.search(only, name):
            continue
        cells = [str(questions.wrong(make(Arithmetic.W4A4)))]
        for arithmetic in (Arithmetic.W4A4, Arithmetic.W4A16):
            model = make(arithmetic)
            tops = spread(model, model.run(asked, draw=SOUND))
            if not all(np.isfinite(top.logprobs).all() for top in tops):
                cells += ["not a number", "**fail**", "–", "–"]
                continue
            found = judge(printed, measure(printed, answers_of(tops)), arithmetic)
            off = ", ".join(f"{bucket} × {ratio:.1f}" for bucket, ratio in found.off[:3])
            cause = found.points_to.partition(":")[0].removesuffix(" off").removesuffix(" are")
            status = str(found.status) if found.status is Status.OK else f"**{found.status}**"
            cells += [f"{found.distance.kl:.4f}", status, off or "–", cause or "–"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def sound_draws(printed: Fingerprint, count: int) -> None:
    """How far sound arithmetic is from the W4A4 reference: draws that it does not contain, of another last bit each."""
    asked, spread = merge_texts([replace(text, tops={}) for text in printed.texts])
    model = reference(read_checkpoint(NVFP4), Arithmetic.W4A4)
    verdicts: Counter[str] = Counter()
    ratios: list[float] = []
    for draw in range(NEW, NEW + count):
        found = judge(
            printed, measure(printed, answers_of(spread(model, model.run(asked, draw=draw)))), Arithmetic.W4A4
        )
        verdicts[str(found.status)] += 1
        ratios.append(found.distance.kl / found.expected)
        if found.status is not Status.OK:
            print(f"draw {draw}: {found.status}, {found.distance.kl:.4f}, {found.off}", flush=True)
        if len(ratios) % 10 == 0:
            spread_seen = f"{min(ratios):.3f} to {max(ratios):.3f} of the expected KL"
            print(f"{len(ratios)} draws: {dict(verdicts)}, {spread_seen}", flush=True)


def answers_of(tops: Sequence[Top]) -> list[list[dict[int, float]]]:
    """As an engine gives them."""
    return [
        [
            dict(zip(ids, values, strict=True))
            for ids, values in zip(top.ids.tolist(), top.logprobs.tolist(), strict=True)
        ]
        for top in tops
    ]


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
    for one in {tensor, *(tensor.replace("gate_up", half) for half in ("gate", "up"))}:
        if LAYER + one in tensors:
            write_scale(directory, LAYER + one, float(value) * write_scale(directory, LAYER + one, 1.0))


def in_engine(printed: Fingerprint, version: str, args: argparse.Namespace, arguments: list[str]) -> None:
    """Start an engine with the checkpoint, sound or not, and run the check in each situation in turn."""
    with tempfile.TemporaryDirectory(prefix="fingerprint-") as work:
        model, log = Path(work) / NVFP4.name, Path(work) / "log"
        repair_checkpoint(NVFP4, model, vllm=parse_version(version))
        for file in model.iterdir():  # repair makes hard links, and the original must not change
            data = file.read_bytes()
            file.unlink()
            file.write_bytes(data)
        stored(model, args.damage)
        python = Path.home() / f".cache/glm4-deploy/cpu-engine-{version}/bin/python"
        extra = ("--quantization", "compressed-tensors", *arguments)
        environment = {"PYTHONPATH": str(ROOT / "tests/nvfp4_rig")}
        with engine(str(python), model, log, *extra, env=environment, eager=not args.compiled, start_s=1800) as running:
            shown = f"{version} {'compiled' if args.compiled else 'eager'} {' '.join(arguments)}".strip()
            if args.runs > 1:
                asyncio.run(_sound_runs(printed, running.base_url, args.runs, f"{shown}, {args.damage}"))
            else:
                print(f"| {shown} | {args.damage} | {asyncio.run(_with_questions(printed, running.base_url))} |")
            if args.seconds:
                asyncio.run(_seconds(printed, running.base_url, shown))
        for line in log.read_text(errors="replace").splitlines():
            if any(word in line for word in PATH_WORDS):
                print(f"    {line.split('] ', 1)[-1][:400]}", flush=True)


PATH_WORDS = (  # of the lines that say which path an engine took
    "NVFP4 GEMM",
    "Chunked prefill is",
    "refix caching",
    "torch.compile takes",
    "Compiling a graph",
    "Dynamo bytecode transform",
    "Initializing a V1 LLM engine",
)


async def _check(printed: Fingerprint, url: str, *more: str) -> tuple[Result, list[Result]]:
    """The check's row, and those of other checks."""
    options = Options(fingerprint=printed, arithmetic=Arithmetic.W4A4)
    target = ProbeTarget(base_url=url, timeout_s=300)
    report = await run_suite(target, suite=Suite.FULL, only=("fingerprint", *more), options=options)
    row = next(row for row in report.results if row.check == "fingerprint")
    return row, [one for one in report.results if one.check in more]


async def _sound_runs(printed: Fingerprint, url: str, runs: int, shown: str) -> None:
    """A row for each situation: how often each verdict, and the range of the divergence."""
    found: dict[int, list[Result]] = {}
    for number in range(runs):
        others = OTHERS[number % len(OTHERS)]
        load = asyncio.create_task(_load(url, others)) if others else None
        row, _ = await _check(printed, url)
        found.setdefault(others, []).append(row)
        print(f"{number + 1} of {runs}, beside {others}: {row.status}, {row.observed or row.reason}", file=sys.stderr)
        if load is not None:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
    for others, rows in found.items():
        kls = sorted(float(match[1]) for row in rows if (match := re.search(r"KL ([\d.]+)", row.observed)))
        verdicts = ", ".join(
            f"{count} × {status}" for status, count in Counter(str(row.status) for row in rows).items()
        )
        seconds = statistics.median(row.seconds or 0.0 for row in rows)
        spread = f"{kls[0]:.4f}–{kls[-1]:.4f}" if kls else "–"
        print(f"| {shown} | {others} | {verdicts} | {spread} | {seconds:.1f} |", flush=True)
        for row in rows:
            if row.status is not Status.OK:
                print(f"    {row.status}: {row.observed or row.reason}", flush=True)


async def _with_questions(printed: Fingerprint, url: str) -> str:
    row, rest = await _check(printed, url, *QUESTIONS)
    wrong = [f"{one.check} {one.status}" for one in rest if one.status is not Status.OK]
    said = f"{row.status} | {row.observed or row.reason} | {row.remedy.partition(':')[0] or '–'}"
    return f"{said} | {', '.join(wrong) or f'all {len(rest)} ok'}"


ROUNDS = {Suite.GATE: 3, Suite.QUICK: 3}


async def _seconds(printed: Fingerprint, url: str, shown: str, rounds: Mapping[Suite, int] = ROUNDS) -> None:
    """What the check adds to a suite: with and without it in turn, and its own row."""
    target, options = ProbeTarget(base_url=url, timeout_s=300), Options(fingerprint=printed)
    for suite, times in rounds.items():
        rows: list[list[float]] = [[], [], []]
        for _ in range(times):
            without = await run_suite(target, suite=suite, skip=("fingerprint",), options=options)
            whole = await run_suite(target, suite=suite, options=options)
            own = next(row.seconds or 0.0 for row in whole.results if row.check == "fingerprint")
            for kept, value in zip(rows, (without.seconds, whole.seconds, own), strict=True):
                kept.append(value)
        cells = " | ".join(f"{statistics.median(row):.1f}" for row in rows)
        print(f"| {shown} | {suite}: seconds without, with, the check's own | {cells} |", flush=True)


async def _load(url: str, at_once: int) -> None:
    """Other requests, at another temperature, until it is cancelled."""
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        while True:
            body = {"model": NAME, "prompt": "The keeper of the lighthouse", "max_tokens": 40, "temperature": 1.3}
            await asyncio.gather(*(client.post("/v1/completions", json=body | {"seed": n}) for n in range(at_once)))


def at_full_size(layers: int, nvfp4: bool) -> None:
    """`checkpoint fingerprint` on random weights of GLM-4-9B's shape, with the demo model's tokenizer.

    That tokenizer makes more tokens of the same texts than GLM-4's does.
    """
    with tempfile.TemporaryDirectory(prefix="fingerprint-") as work:
        base = Path(work) / "bf16"
        full_size.make(base, layers, sparse=False, nvfp4=False)
        directories = [base]
        if nvfp4:
            directories.append(Path(work) / "nvfp4")
            full_size.make(directories[1], layers, sparse=False)
        for directory in directories:
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(BF16 / name, directory / name)
            config = json.loads((directory / "config.json").read_text())
            (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}))
        size = sum(path.stat().st_size for path in Path(work).rglob("*.safetensors"))
        began = time.monotonic()
        command = [sys.executable, "-m", "glm4_deploy", "checkpoint", "fingerprint", *map(str, directories)]
        done = subprocess.run([*command, "--output", f"{work}/fingerprint.json"], check=False)
        seconds, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"exit {done.returncode}, {layers} layers, {len(directories)} forms, {size / 1e9:.1f} GB of weights")
        print(f"peak {used.ru_maxrss / 1e6:.2f} GB, {used.ru_utime + used.ru_stime:.0f} s of CPU time, {seconds:.0f} s")
        if done.returncode == 0:
            print(f"fingerprint.json: {(Path(work) / 'fingerprint.json').stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", help="version of a real engine")
    parser.add_argument("--size", type=int, metavar="LAYERS", help="memory and time at GLM-4-9B's shape (40 layers)")
    parser.add_argument("--nvfp4", action="store_true", help="with --size: of both forms, not of bf16 alone")
    parser.add_argument("--texts", type=int, help="use only the first so many texts (the long ones come last)")
    parser.add_argument("--sound", type=int, metavar="N", help="sound draws of the W4A4 arithmetic instead of damages")
    parser.add_argument("--only", default="", help="only the damages whose name matches this expression")
    parser.add_argument("--damage", default="sound", help="on disk: sound, TENSOR=FACTOR, rope_theta=X or template=")
    parser.add_argument("--runs", type=int, default=1, help="1: with questions too; more: alone and beside others")
    parser.add_argument("--compiled", action="store_true", help="without --enforce-eager")
    parser.add_argument("--seconds", action="store_true", help="also what the check adds to gate and quick")
    args, arguments = parser.parse_known_args()
    printed = read_fingerprint(NVFP4 / "fingerprint.json")
    if args.texts:
        printed = replace(printed, texts=printed.texts[: args.texts])
    if args.size:
        at_full_size(args.size, args.nvfp4)
    elif args.sound:
        sound_draws(printed, args.sound)
    elif args.engine:
        in_engine(printed, args.engine, args, arguments)
    else:
        in_arithmetic(printed, args.only)


if __name__ == "__main__":
    main()
