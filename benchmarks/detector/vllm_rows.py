"""Answers of a real vLLM on the CPU: the demo model and its sick twins (demo/twins.py), written to the cache once.

The right verdict of a row follows from how its model was made and from brute force on the token ids, not from the
detector.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache as once
from pathlib import Path
from typing import Any

from benchmarks.detector.documents import cache
from benchmarks.detector.sick_engine import engine_python

DEMO = Path(__file__).parents[2] / "demo"
SEEDS = {"healthy": (0,), "missing-eos": (0,), "nan": (0,), "noise": (0, 1, 2), "loops": (0, 1)}
PROMPTS = 24


@once
def rows(kind: str) -> tuple[dict[str, Any], ...]:
    """Every answer of this kind of model, over its seeds. Raises MissingError if there is no CPU engine."""
    return tuple(row for seed in SEEDS[kind] for row in _rows(kind, seed))


def _rows(kind: str, seed: int) -> Iterator[dict[str, Any]]:
    path = cache() / f"vllm-{kind}-{seed}.jsonl"
    if not path.exists():
        _generate(kind, seed, path)
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _generate(kind: str, seed: int, path: Path) -> None:
    python = engine_python()
    print(f"vLLM answers: {kind}, seed {seed} (about a minute)", file=sys.stderr)
    with tempfile.TemporaryDirectory() as work:
        model = DEMO / "glm-4-tiny-chat"
        if kind != "healthy":
            model = Path(work) / "twin"
            make = [sys.executable, DEMO / "twins.py", kind, "--out", model, "--seed", str(seed)]
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        asked, part = Path(work) / "prompts.json", Path(work) / "rows.jsonl"
        asked.write_text(json.dumps(prompts(seed)), encoding="utf-8")
        script = Path(__file__).with_name("generate_vllm.py")
        with (cache() / "vllm.log").open("ab") as log:
            subprocess.run([python, script, kind, str(seed), model, asked, part], check=True, timeout=1800,
                           stdout=log, stderr=log)  # fmt: skip
        part.rename(path) if part.stat().st_dev == path.parent.stat().st_dev else path.write_bytes(part.read_bytes())


def prompts(seed: int) -> list[str]:
    """Single-turn questions drawn from the demo model's curriculum by a seed."""
    sys.path.insert(0, str(DEMO))
    try:
        from curriculum import sample
    finally:
        sys.path.remove(str(DEMO))
    rng = random.Random(seed)
    chosen: list[str] = []
    while len(chosen) < PROMPTS:
        turns = sample(rng)
        questions = [content for role, content in turns if role == "user"]
        if len(questions) == 1 and turns[0][0] == "user" and len(questions[0]) < 1200:
            chosen.append(questions[0])
    return chosen
