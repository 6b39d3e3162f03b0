"""Limits that turn measurements into a verdict: an SLO file, and a baseline of perplexities from a good day."""

import json
import math
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glm4_deploy.errors import UsageError
from glm4_deploy.files import parse_yaml, read_text, write_text
from glm4_deploy.report_model import SuiteReport
from glm4_deploy.text import did_you_mean

# Service level objectives.

Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Goodput(BaseModel):
    """A request is good if it keeps both limits; at least `share` of all requests must be good."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft_ms: Limit
    tpot_ms: Limit
    share: Annotated[float, Field(gt=0, le=1)] = 0.95


class Slo(BaseModel):
    """Upper limits in milliseconds by percentile, a lower limit on tokens per second, and goodput. All optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft_p50_ms: Limit | None = None
    ttft_p95_ms: Limit | None = None
    ttft_p99_ms: Limit | None = None
    tpot_p50_ms: Limit | None = None
    tpot_p95_ms: Limit | None = None
    tpot_p99_ms: Limit | None = None
    output_tokens_per_s: Limit | None = None
    goodput: Goodput | None = None


def read_slo(path: Path) -> Slo:
    """An SLO file in YAML or JSON.

    Raises:
        UsageError: unreadable, not YAML, an unknown key (with the nearest known one) or a value out of range.
    """
    raw = parse_yaml(read_text(path), f"SLO file {path}")
    if not isinstance(raw, dict) or not raw:
        raise UsageError(f"SLO file {path} contains no limits", hint="write lines like `ttft_p95_ms: 500`")
    try:
        return Slo.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        near = did_you_mean(str(first["loc"][-1]), [*Slo.model_fields, *Goodput.model_fields])
        hint = near if first["type"] == "extra_forbidden" else ""
        raise UsageError(f"SLO file {path}: {where}: {first['msg']}", hint=hint) from error


# The perplexity baseline.

SCHEMA = 1


def read_baseline(path: Path) -> dict[str, float]:
    """Perplexity by passage id.

    Raises:
        UsageError: unreadable, or not written by `write_baseline` (older files use the key `form` for `schema`).
    """
    hint = "write one with --save-baseline while the engine is good"
    try:
        raw = json.loads(read_text(path))
        values = {str(name): float(value) for name, value in raw["perplexity"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"baseline {path}: {type(error).__name__}: {str(error)[:100]}", hint=hint) from error
    sound = values and all(math.isfinite(value) and value >= 1 for value in values.values())
    if raw.get("schema", raw.get("form")) != SCHEMA or not sound:
        raise UsageError(f"baseline {path} was not written by this version", hint=hint)
    return values


def write_baseline(path: Path, report: SuiteReport) -> None:
    """Store the perplexities of a run.

    Raises:
        UsageError: the run measured no perplexity.
        StorageError: the file could not be written.
    """
    if not report.perplexity:
        raise UsageError("no baseline stored: this run measured no perplexity", hint="run the check `perplexity` too")
    body = {
        "schema": SCHEMA,
        "model": report.model,
        "engine": {fact.name: fact.value for fact in report.engine},
        "perplexity": {fact.name: fact.value for fact in report.perplexity},
    }
    write_text(path, json.dumps(body, indent=2, ensure_ascii=False) + "\n")
