"""Service level objectives: the limits that turn measured speed into a verdict."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glm4_deploy.errors import UsageError
from glm4_deploy.files import parse_yaml, read_text

Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Goodput(BaseModel):
    """A request is good when it keeps both limits; `share` of all must be good."""

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


def read(path: Path) -> Slo:
    """An SLO file in YAML or JSON.

    Raises:
        UsageError: unreadable, not YAML, an unknown key (with the nearest known one) or a value out of range.
    """
    raw = parse_yaml(read_text(path), f"SLO file {path}")
    if not isinstance(raw, dict) or not raw:
        raise UsageError(f"SLO file {path} holds no limits", hint="write lines like `ttft_p95_ms: 500`")
    try:
        return Slo.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        near = get_close_matches(str(first["loc"][-1]), [*Slo.model_fields, *Goodput.model_fields], n=1)
        hint = f"did you mean {near[0]}?" if first["type"] == "extra_forbidden" and near else ""
        raise UsageError(f"SLO file {path}: {where}: {first['msg']}", hint=hint) from error
