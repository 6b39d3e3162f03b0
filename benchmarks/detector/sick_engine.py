"""Bad texts from real models: tiny GLMs with random or NaN weights, run by the CPU engine's PyTorch and transformers.

`generate.py` writes them to the cache once. The right verdict of a row is determined here by brute force on its token
ids, without the detector: a greedy row is a loop if one block of tokens repeats over its last quarter or more.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.detector.documents import Document, MissingError, cache, degenerate
from scripts import engines


def engine_python() -> Path:
    """The newest CPU engine's Python. Raises MissingError if it is not built."""
    if not engines.is_complete(engines.newest()):
        raise MissingError("the CPU engine (scripts/cpu-engine.sh)")
    return engines.directory(engines.newest()) / "bin/python"


def rows(kind: str) -> Iterator[dict[str, Any]]:
    path = cache() / "generated.jsonl"
    if not path.exists():
        python = engine_python()
        part = path.with_suffix(".part")
        print("generating with tiny random GLMs (about a minute)", file=sys.stderr)
        script = Path(__file__).with_name("generate.py")
        subprocess.run([python, script, part], check=True, timeout=3600)
        part.replace(path)
    with path.open(encoding="utf-8") as lines:
        yield from (row for line in lines if (row := json.loads(line))["kind"] == kind)


def _document(family: str, row: dict[str, Any], expected: tuple[str, ...], **more: Any) -> Document:
    return Document(
        family=family,
        text=row["text"],
        expected=expected,
        source=f"GlmForCausalLM, random weights, seed {row['seed']}, temperature {row['temperature']}",
        finish_reason="length",
        **more,
    )


def loop_of(ids: list[int]) -> tuple[int, int] | None:
    """(first token, period in tokens) of the shortest block that the ids end with at least four times."""
    for period in range(1, len(ids) // 4 + 1):
        start = len(ids) - period
        while start and ids[start - 1] == ids[start - 1 + period]:
            start -= 1
        if len(ids) - start >= max(4 * period, len(ids) // 4):
            return start, period
    return None


@degenerate("engine-greedy-loop")
def _(_rng: random.Random) -> Iterator[Document]:
    for row in rows("greedy"):
        loop = loop_of(row["token_ids"])
        if loop is not None:
            start, period = loop
            chars = [sum(row["pieces"][:start]), sum(row["pieces"][start : start + period])]
            yield _document("engine-greedy-loop", row, ("EXACT_LOOP",), start=chars[0], period=chars[1])


@degenerate("engine-sampled-salad")
def _(rng: random.Random) -> Iterator[Document]:
    for row in rows("sampled"):
        ids = tuple(row["token_ids"]) if rng.random() < 0.5 else None
        yield _document(
            "engine-sampled-salad", row, ("SALAD",), logprobs=tuple(row["logprobs"]), token_ids=ids, start=0
        )


@degenerate("engine-nan")
def _(rng: random.Random) -> Iterator[Document]:
    """As a user gets it: text only, or with the ids, or with the logprobs."""
    for row in rows("nan"):
        shown = rng.randrange(3)
        yield _document(
            "engine-nan",
            row,
            ("NAN_COLLAPSE",),
            token_ids=tuple(row["token_ids"]) if shown == 1 else None,
            logprobs=tuple(row["logprobs"]) if shown == 2 else None,
            start=0,
            period=1,
        )
