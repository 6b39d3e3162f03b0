"""Measure a real vLLM on the CPU under the loads of loads.py, and record the figures of each.

python -m benchmarks.scale.measure --rounds 3 --out benchmarks/scale/results/cpu.json
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from benchmarks.scale import loads
from tests.e2e.engine import NAME, engine

from glm4_deploy.probe.bench import LAUNCH, MARK

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo" / "glm-4-tiny-chat"
# The demo model takes 2 ms per step, less than the API server and the generator need for its tokens. This one, with
# dummy weights, is slow enough for the engine to be the bottleneck.
SLOW = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of all loads (3)")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args()
    python = os.environ["GLM4_CPU_PYTHON"]
    os.environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = (
        "120"  # or the server closes connections that the generator is about to reuse
    )
    # One core computes; the other is left to the API server and the generator. With both, the engine would finish an
    # answer before the server gets to send its first token.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0"
    rows: list[dict[str, Any]] = []
    engines: dict[str, Any] = {}
    flags = ["--max-num-seqs", str(loads.MAX_NUM_SEQS), "--max-num-batched-tokens", str(loads.MAX_NUM_BATCHED_TOKENS)]
    flags += ["--no-enable-prefix-caching", "--block-size", str(loads.BLOCK_TOKENS), "--load-format", "dummy"]
    with tempfile.TemporaryDirectory() as place:
        log, model = Path(place) / "engine.log", slow_model(Path(place) / "glm-4-slow")
        tight = [*flags, "--num-gpu-blocks-override", str(loads.TIGHT_BLOCKS)]
        with engine(python, model, log, *tight) as running:
            engines["tight"] = cache(running.base_url)
            for number in range(options.rounds):
                rows += send(
                    python, running.base_url, model, [loads.WARM_UP, *loads.tight()], number, 1000 * (number + 1)
                )
        with engine(python, model, log, *flags) as running:
            engines["wide"] = cache(running.base_url)
            for number in range(options.rounds):
                seed = 1000 * (number + 1)
                rows += send(python, running.base_url, model, [loads.WARM_UP, *loads.fit()], number, seed)
                rows += send(python, running.base_url, model, [loads.WARM_UP, *loads.held_out()], number, seed + 500)
                capacity = next(row for row in reversed(rows) if row["name"] == "capacity")["requests_per_s"]
                rows += send(python, running.base_url, model, loads.open_loop(capacity), number, seed + 700)
                write(options.out, engines, rows)


class Stalls(threading.Thread):
    """How long this process was kept from running by other work on the machine.

    Independent of the engine, so a load that met a stall may be left out without looking at its figures.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.worst = 0.0
        self.start()

    def run(self) -> None:
        while True:
            began = time.monotonic()
            time.sleep(0.05)
            self.worst = max(self.worst, time.monotonic() - began - 0.05)

    def take(self) -> float:
        """Seconds of the longest stall since the last call."""
        worst, self.worst = self.worst, 0.0
        return round(worst, 2)


STALLS = Stalls()


def slow_model(directory: Path) -> Path:
    """The demo model's tokenizer with a larger shape."""
    shutil.copytree(DEMO, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | SLOW), encoding="utf-8")
    return directory


def send(
    python: str, base_url: str, model: Path, wanted: Sequence[loads.Load], number: int, seed: int
) -> list[dict[str, Any]]:
    """Run the loads; the rows of all but warm-ups, in order."""
    words = [load.words(base_url, NAME, str(model), seed + i) for i, load in enumerate(wanted)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [python, "-c", LAUNCH, json.dumps(words)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    rows, left, before, tail = [], list(wanted), preemptions(base_url), []
    for line in process.stdout:
        tail = [*tail[-30:], line]
        if not line.startswith(MARK):
            continue
        load, after = left.pop(0), preemptions(base_url)
        row = read(load, json.loads(line.removeprefix(MARK))) | {"round": number, "preemptions": after - before}
        row["stall_s"] = STALLS.take()
        before = after
        if load.part != "warm-up":
            rows.append(row)
            print({k: v for k, v in row.items() if not isinstance(v, list)}, flush=True)
    process.wait()
    assert not left, "".join(tail)[-3000:]
    return rows


def read(load: loads.Load, raw: dict[str, Any]) -> dict[str, Any]:
    """What the generator measured: times in milliseconds; the requests' lengths in tokens where they vary."""
    good = [i for i, error in enumerate(raw["errors"]) if not error]
    lengths = {name: [raw[name][i] for i in good] if load.spread else [] for name in ("input_lens", "output_lens")}
    return {
        "part": load.part,
        "name": load.name,
        "input_len": load.input_len,
        "output_len": load.output_len,
        "concurrency": load.concurrency,
        "rate": None if load.concurrency else load.rate,
        "requests": raw["completed"],
        "failed": raw["failed"],
        "seconds": raw["duration"],
        "ttft": {f"p{p}": round(raw[f"p{p}_ttft_ms"], 3) for p in (50, 95, 99)},
        "tpot": {f"p{p}": round(raw[f"p{p}_tpot_ms"], 3) for p in (50, 95, 99)},
        "output_tokens_per_s": round(raw["output_throughput"], 3),
        "requests_per_s": round(raw["request_throughput"], 3),
        "load_average": round(os.getloadavg()[0], 2),
        **lengths,
    }


def cache(base_url: str) -> dict[str, str]:
    """Labels of vllm:cache_config_info: block_size and num_gpu_blocks among them."""
    text = httpx.get(f"{base_url}/metrics", trust_env=False).text
    line = next(line for line in text.splitlines() if line.startswith("vllm:cache_config_info{"))
    pairs = [part.split("=", 1) for part in line[line.index("{") + 1 : line.rindex("}")].split(",") if "=" in part]
    return {name: value.strip('"') for name, value in pairs if name in {"block_size", "num_gpu_blocks"}}


def preemptions(base_url: str) -> int:
    text = httpx.get(f"{base_url}/metrics", trust_env=False).text
    found = [line for line in text.splitlines() if line.startswith("vllm:num_preemptions_total")]
    return round(sum(float(line.split()[-1]) for line in found))


def write(path: Path, engines: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    head = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "vllm": "0.32.0",
        "model": "GLM-4 of 26 million parameters, dummy weights",
        "max_num_seqs": loads.MAX_NUM_SEQS,
        "max_num_batched_tokens": loads.MAX_NUM_BATCHED_TOKENS,
        "engines": engines,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{body}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
