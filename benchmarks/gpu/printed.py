"""The demo model's fingerprint in real engines: sound ones in many settings, and ones whose checkpoint is damaged.

Many engines at once share the GPU; each check runs in a fork of its own, which judges as the gate of `up` does: with
the arithmetic that the engine's kernel has.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from engines import Record, clock, end, ended, fork, free_port, read, seen, serve
from verdicts import READY

ROOT = Path(__file__).parents[2]
sys.path.insert(1, str(ROOT))
from benchmarks import fingerprint as lab  # noqa: E402 (the repository is not on the path before)

from glm4_deploy.checkpoint.repair import repair_checkpoint  # noqa: E402
from glm4_deploy.detect import scan  # noqa: E402
from glm4_deploy.fingerprint.judge import Comparison, judge  # noqa: E402
from glm4_deploy.fingerprint.model import Arithmetic, Fingerprint, read_fingerprint  # noqa: E402
from glm4_deploy.probe.checks import fingerprint as room  # noqa: E402
from glm4_deploy.probe.client import Client, ProbeTarget  # noqa: E402
from glm4_deploy.probe.probe import CHAT, GREEDY, Options, answer_fault, canaries  # noqa: E402
from glm4_deploy.probe.suite import run_suite  # noqa: E402
from glm4_deploy.report_model import Suite  # noqa: E402

EAGER: dict[str, object] = {"enforce-eager": None}
BASE: dict[str, object] = {
    "gpu-memory-utilization": 0.03,
    "kv-cache-memory-bytes": 2**28,
    "max-model-len": 4096,
    "max-num-seqs": 32,
}
KERNELS = {"marlin": Arithmetic.W4A16, "emulation": Arithmetic.W4A4}
NO_CACHE: dict[str, object] = {"no-enable-prefix-caching": None}
SOUND: dict[str, dict[str, object]] = {
    "eager": EAGER,
    "eager, no prefix cache": {**EAGER, **NO_CACHE},
    "eager, chunks of 128 tokens": {**EAGER, "max-num-batched-tokens": 128},
    "eager, one sequence": {**EAGER, "max-num-seqs": 1},
    "eager, FP8 KV cache without scales": {**EAGER, "kv-cache-dtype": "fp8"},
    "eager, Triton attention": {**EAGER, "attention-backend": "TRITON_ATTN"},
    "compiled": {},
    "compiled, no prefix cache, chunks of 256": {**NO_CACHE, "max-num-batched-tokens": 256},
    "compiled, FP8 KV cache without scales": {"kv-cache-dtype": "fp8"},
}
RUNS = 16  # of each sound engine, in turn alone and beside other requests
QUEUE_RUNS = 4  # where one sequence runs at a time, each request waits behind all the others
AT_ONCE = 12
MLP, Q = "mlp.gate_up_proj", "self_attn.q_proj"
SCALES = (
    *(f"{MLP}.weight_global_scale={factor:g}" for factor in (1.02, 1.1, 1.25, 1.5, 2, 64)),
    *(f"{Q}.weight_global_scale={factor:g}" for factor in (3.375, 8)),
    *(f"mlp.down_proj.weight_global_scale={factor:g}" for factor in (3.375, 8)),
    *(f"{MLP}.input_global_scale={factor:g}" for factor in (64, 4, 2)),
    "rope_theta=11000",
    "rope_theta=20000",
    "template=",
)
LARGEST, NOT_A_NUMBER = 0x7E, 0x7F  # codes of FP8


def damages() -> dict[str, Callable[[Path], None]]:
    """Name → what to do to a checkpoint's directory. `TENSOR=FACTOR` means layer 1 of 4."""
    made: dict[str, Callable[[Path], None]] = {name: _stored(name) for name in SCALES}
    block = {"the largest number": LARGEST, "not a number": NOT_A_NUMBER}
    made |= {f"one FP8 block scale: {name}": _changed(lab.block(3, 5, code)) for name, code in block.items()}
    made["a tile of 64 × 64 weights is zero"] = _changed(lab.tile)
    made |= {f"rank 8, {size:.0%} of lm_head": _changed(lab.adapted(size)) for size in (0.1, 0.3)}
    made["layers 1 and 2 exchanged"] = lambda directory: moved(
        directory, directory, {"model.layers.1.": "model.layers.2.", "model.layers.2.": "model.layers.1."}
    )
    last = {name: name for name in ("model.norm.weight", "lm_head.weight")}
    made["last norm and lm_head from another model's shard"] = lambda directory: moved(directory, lab.OTHER_MODEL, last)
    return made


def _stored(name: str) -> Callable[[Path], None]:
    return lambda directory: lab.stored(directory, name)


def _changed(change: lab.Change) -> Callable[[Path], None]:
    return lambda directory: changed(directory, change)


def header(blob: bytes) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and the entry of each."""
    start = 8 + int.from_bytes(blob[:8], "little")
    return start, {name: entry for name, entry in json.loads(blob[8:start]).items() if name != "__metadata__"}


def changed(directory: Path, change: lab.Change) -> None:
    """Apply a change to the tensors in bf16 and FP8 of a checkpoint in one file."""
    path = directory / "model.safetensors"
    blob = bytearray(path.read_bytes())
    start, entries = header(bytes(blob))
    for name, entry in entries.items():
        low, high = (start + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(blob[low:high], "<u2").reshape(entry["shape"])
            rows = (bits.astype(np.uint32) << 16).view(np.float32)
            after = change(name, rows)
            if after is not rows:
                blob[low:high] = _bits(after).tobytes()
        elif entry["dtype"].startswith("F8"):
            codes = np.frombuffer(blob[low:high], np.uint8).reshape(entry["shape"])
            blob[low:high] = change(name, codes).tobytes()
    path.write_bytes(blob)


def _bits(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bf16, ties to even."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype("<u2")


def moved(directory: Path, source: Path, names: dict[str, str]) -> None:
    """Tensors whose name begins with a key get the data of those that begin with its value, from another checkpoint."""
    path = directory / "model.safetensors"
    blob, other = bytearray(path.read_bytes()), (source / "model.safetensors").read_bytes()
    (start, entries), (start_there, there) = header(bytes(blob)), header(other)
    for name, entry in entries.items():
        for prefix, wanted in names.items():
            if name.startswith(prefix):
                low, high = (start + offset for offset in entry["data_offsets"])
                first, last = (start_there + o for o in there[name.replace(prefix, wanted, 1)]["data_offsets"])
                if last - first != high - low:
                    raise ValueError(f"{name} has another size in {source}")
                blob[low:high] = other[first:last]
                break
    path.write_bytes(blob)


def sound_model(models: Path) -> Path:
    """The demo model in NVFP4, as `checkpoint repair` writes it for this vLLM, with its fingerprint."""
    directory = models / "printed-sound"
    if not directory.exists():
        repair_checkpoint(lab.NVFP4, directory, vllm=(0, 24, 0))
    return directory


def damaged_model(models: Path, number: int, damage: Callable[[Path], None]) -> Path:
    directory = models / f"printed-{number}"
    directory.mkdir()
    for file in sound_model(models).iterdir():  # copies: repair makes hard links
        (directory / file.name).write_bytes(file.read_bytes())
    damage(directory)
    return directory


@dataclass(slots=True, kw_only=True)
class Job:
    """An engine to start, and what to ask of it."""

    stage: str
    name: str
    model: Path
    kernel: str
    flags: dict[str, object]
    runs: int
    port: int = 0
    starts: int = 0
    began: float = 0.0
    ready: float = 0.0
    engine: int = 0
    driver: int = 0

    @property
    def label(self) -> str:
        return f"{self.kernel}: {self.name}"

    def file(self, logs: Path, kind: str) -> Path:
        return logs / f"{self.stage}-{re.sub('[^a-z0-9.]+', '-', self.label.lower())}.{kind}"

    def start(self, logs: Path) -> None:
        linear = {"linear-backend": "emulation"} if self.kernel == "emulation" else {}
        self.began, self.port, self.starts = clock(), free_port(), self.starts + 1
        work = serve(self.model, lab.NAME, {**BASE, **self.flags, **linear}, self.port)
        self.engine = fork(self.file(logs, "log"), work)

    def ask(self, logs: Path, printed: Fingerprint) -> None:
        self.ready = clock()
        result, url = self.file(logs, "jsonl"), f"http://127.0.0.1:{self.port}"

        def work() -> None:
            asyncio.run(checks(url, result, printed, KERNELS[self.kernel], self.runs))

        self.driver = fork(self.file(logs, "txt"), work)

    def close(self, record: Record) -> None:
        for pid in filter(None, (self.driver, self.engine)):
            end(pid)
        log, result = read(self.file(record.logs, "log")), self.file(record.logs, "jsonl")
        rows = [json.loads(line) for line in read(result).splitlines()]
        start = round(self.ready - self.began, 1) if self.ready else None
        facts = {key: value for key, value in seen(log).items() if key in ("kernel", "refusal")}
        if not rows:
            facts["tail"] = log[-400:] + read(self.file(record.logs, "txt"))[-400:]
        record.add(self.stage, self.label, start_s=start, rows=rows, **facts)


def run_jobs(record: Record, jobs: Sequence[Job], seconds: float, at_once: int = AT_ONCE) -> None:
    """As many engines at a time as said; one that has been asked makes room for the next."""
    printed = read_fingerprint(lab.NVFP4 / "fingerprint.json")
    waiting, going = list(jobs), []
    while waiting or going:
        while waiting and len(going) < at_once and clock() < seconds - 45:
            going.append(waiting.pop(0))
            going[-1].start(record.logs)
        if not going:
            record.add("jobs", jobs[0].stage, left_out=[job.label for job in waiting])
            return
        asyncio.run(asyncio.sleep(0.2))
        for job in list(going):
            log = job.file(record.logs, "log")
            over = clock() > seconds - 3
            if not job.driver and re.search(READY, read(log)):
                job.ask(record.logs, printed)
            elif not job.driver and not over and job.starts == 1 and ended(job.engine):
                job.start(record.logs)  # two of so many may have chosen the same port
            elif over or (ended(job.driver) if job.driver else ended(job.engine) or clock() - job.began > 200):
                job.close(record)
                going.remove(job)


async def checks(url: str, result: Path, printed: Fingerprint, arithmetic: Arithmetic, runs: int) -> None:
    """The check so many times, in turn alone and beside others; after the first run also the questions."""
    target = ProbeTarget(base_url=url, timeout_s=120)
    options = Options(fingerprint=printed, arithmetic=arithmetic)
    judged: list[Comparison] = []
    near: list[dict[str, float]] = []

    def recording(*arguments: Any) -> Comparison:
        own = next(one for one in arguments[1] if one.arithmetic is arithmetic)
        near.append({str(bucket): round(one.kl, 5) for bucket, one in own.buckets.items()})
        judged.append(judge(*arguments))
        return judged[-1]

    room.judge = recording  # to see the buckets' figures too
    for number in range(runs):
        others = lab.OTHERS[number % len(lab.OTHERS)]
        load = asyncio.create_task(lab._load(url, others)) if others else None
        await asyncio.sleep(0.3 if others else 0)
        judged.clear()
        near.clear()
        report = await run_suite(target, suite=Suite.FULL, only=("fingerprint",), options=options)
        one = next(row for row in report.results if row.check == "fingerprint")
        row: dict[str, Any] = {"status": str(one.status), "others": others, "seconds": round(one.seconds or 0, 2)}
        if judged:
            row |= {"kl": round(judged[0].distance.kl, 5), "top1": round(judged[0].distance.agreement, 4)}
            row["buckets"] = near[0]
        if str(one.status) != "ok":
            row |= {"said": one.observed or one.reason, "points_to": one.remedy.partition(":")[0]}
        if load is not None:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
        if number == 0:
            row |= await questions(target)
        with result.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


async def questions(target: ProbeTarget) -> dict[str, Any]:
    """The suite's canaries at temperature 0: which answers are wrong, and which stories loop."""
    wrong, loops = [], []
    async with Client(target) as client:
        for one in canaries():
            body = {"model": lab.NAME, "messages": list(one.messages), "max_tokens": one.max_tokens, **GREEDY}
            said = (await client.post(CHAT, body)).json()
            choice = said["choices"][0] if "choices" in said else {"message": {"content": ""}, "finish_reason": "error"}
            text = choice["message"]["content"] or ""
            if one.family == "long":
                loops += [one.id] if scan(text, prompt=one.prompt).degenerate else []
            elif answer_fault(one, text) or "choices" not in said:
                wrong.append(one.id)
    return {"wrong": wrong, "looping": loops}


def sound_jobs(models: Path) -> Iterator[Job]:
    for name, flags in sorted(SOUND.items(), key=lambda row: "compiled" not in row[0]):  # slow starts first
        for kernel in KERNELS:
            runs = QUEUE_RUNS if "one sequence" in name else RUNS
            yield Job(stage="sound", name=name, model=sound_model(models), kernel=kernel, flags=flags, runs=runs)


def damaged_jobs(models: Path) -> Iterator[Job]:
    for number, (name, damage) in enumerate(damages().items()):
        model = damaged_model(models, number, damage)
        for kernel in KERNELS:
            if kernel == "marlin" and "input_global_scale" in name and not name.endswith("=64"):
                continue  # Marlin does not read it
            yield Job(stage="damaged", name=name, model=model, kernel=kernel, flags=EAGER, runs=1)


def printed_stage(record: Record, models: Path, stage: str, seconds: float) -> None:
    jobs = sound_jobs(models) if stage == "sound" else damaged_jobs(models)
    run_jobs(record, tuple(jobs), seconds)


def added_stage(record: Record, models: Path, seconds: float) -> None:
    """What the check adds to `gate` and `quick`, on one compiled engine that has the GPU to itself."""
    job = Job(stage="added", name="compiled", model=sound_model(models), kernel="marlin", flags={}, runs=0)
    job.start(record.logs)
    log, out = job.file(record.logs, "log"), job.file(record.logs, "txt")
    while not re.search(READY, read(log)) and not ended(job.engine) and clock() < seconds - 60:
        asyncio.run(asyncio.sleep(0.2))
    printed = read_fingerprint(lab.NVFP4 / "fingerprint.json")

    def work() -> None:
        url = f"http://127.0.0.1:{job.port}"
        asyncio.run(lab._seconds(printed, url, "compiled, Marlin", rounds={Suite.GATE: 3, Suite.QUICK: 1}))

    driver = fork(out, work)
    while not ended(driver) and clock() < seconds - 3:
        asyncio.run(asyncio.sleep(0.2))
    for pid in (driver, job.engine):
        end(pid)
    record.add("added", job.label, said=read(out)[-600:])
