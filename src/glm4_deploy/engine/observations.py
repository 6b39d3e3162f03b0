"""What earlier starts on this host showed, in one small JSON file that the next plan reads."""

import json
from dataclasses import asdict, fields
from pathlib import Path

from glm4_deploy.files import write_text
from glm4_deploy.plan.memory_compare import Observation

SCHEMA = 1
NAME = "observations.json"
KEPT = 50


def load(directory: Path) -> tuple[Observation, ...]:
    """Oldest first. A missing, damaged or newer file is no observation: a plan does not fail over its memory."""
    try:
        content = json.loads((directory / NAME).read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            return ()
        return tuple(_checked(row) for row in content["observations"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def add(directory: Path, seen: Observation) -> None:
    """Append one; a start seen before with the same settings is replaced, the oldest beyond KEPT are dropped.

    Raises:
        StorageError: the file cannot be written.
    """
    others = [row for row in load(directory) if _key(row) != _key(seen)]
    rows = [*others, seen][-KEPT:]
    text = json.dumps({"schema": SCHEMA, "observations": [asdict(row) for row in rows]}, indent=2, allow_nan=False)
    write_text(directory / NAME, text + "\n")


def _key(row: Observation) -> tuple[str, str, str, bool]:
    return row.gpu, row.vllm, row.weights, row.first_start


def _checked(row: dict[str, object]) -> Observation:
    """Types as written; anything else is a damaged file."""
    values = {field.name: row[field.name] for field in fields(Observation)}
    texts = all(isinstance(values[name], str) for name in ("gpu", "vllm", "weights"))
    overhead = values["overhead_gib"]
    if not texts or not isinstance(values["first_start"], bool) or not isinstance(overhead, int | float):
        raise TypeError("an observation of other types")
    return Observation(**values)  # type: ignore[arg-type]  # checked above
