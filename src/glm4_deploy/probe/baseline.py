"""The stored perplexities of a good day: a small JSON file beside the deployment."""

import json
import math
from pathlib import Path

from glm4_deploy.errors import UsageError
from glm4_deploy.files import write_text
from glm4_deploy.samples import Report

FORM = 1


def read(path: Path) -> dict[str, float]:
    """Perplexity by passage id.

    Raises:
        UsageError: unreadable, or not written by `write`.
    """
    hint = "write one with --save-baseline on a day when the engine is good"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        values = {str(name): float(value) for name, value in raw["perplexity"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"baseline {path}: {type(error).__name__}: {str(error)[:100]}", hint=hint) from error
    sound = values and all(math.isfinite(value) and value >= 1 for value in values.values())
    if raw.get("form") != FORM or not sound:
        raise UsageError(f"baseline {path} is not one of this version", hint=hint)
    return values


def write(path: Path, report: Report) -> None:
    """All of it or nothing.

    Raises:
        UsageError: the run measured no perplexity.
        StorageError: it could not be written.
    """
    if not report.perplexity:
        raise UsageError("no baseline stored: this run measured no perplexity", hint="run the check `perplexity` too")
    body = {
        "form": FORM,
        "model": report.model,
        "engine": {fact.name: fact.value for fact in report.engine},
        "perplexity": {fact.name: fact.value for fact in report.perplexity},
    }
    write_text(path, json.dumps(body, indent=2, ensure_ascii=False) + "\n")
