"""Calibrations that ship with the kit: somebody's engine, never the reader's."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from glm4_deploy.catalog.rows import load_catalog
from glm4_deploy.errors import UsageError
from glm4_deploy.files import parse_yaml
from glm4_deploy.report_model import BenchReport

# What a calibration rests on: measured loads of one engine, from `bench --json` or from a calibration file.

HINT = "measure one with `glm4-deploy bench --json FILE`; docs/how-to/scale.md shows the form"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One closed-loop load: `concurrency` users without think time, lengths in tokens, times in milliseconds."""

    concurrency: int
    requests: int
    input_len: int
    output_len: int
    ttft_p50: float
    ttft_p95: float
    tpot_p50: float
    tpot_p95: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """None: not told. example: shipped with the kit, and so not of the reader's own machine."""

    name: str
    levels: tuple[Level, ...]
    card: str | None = None
    vllm: str | None = None
    date: str | None = None
    model: str | None = None
    note: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_tokens: int | None = None
    block_tokens: int | None = None
    example: bool = False


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Word = Annotated[str, BeforeValidator(str)]  # YAML takes 2026-11-25 for a date and 0.24 for a number


class _Times(BaseModel):
    model_config = ConfigDict(extra="ignore")
    p50: Positive
    p95: Positive

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.p95 < self.p50:
            raise ValueError(f"p95 {self.p95:g} is below p50 {self.p50:g}")
        return self


class _Level(BaseModel):
    model_config = ConfigDict(extra="ignore")
    concurrency: Count
    requests: Count
    ttft: _Times
    tpot: _Times
    output_tokens_per_s: Positive


class _BenchRun(BaseModel):
    model_config = ConfigDict(extra="forbid")
    input_len: Count
    output_len: Annotated[int, Field(gt=1)]
    levels: Annotated[list[_Level], Field(min_length=1)]


class _File(BaseModel):
    """A calibration file (YAML or JSON)."""

    model_config = ConfigDict(extra="forbid")
    card: str
    vllm: Word
    date: Word
    model: str
    note: str | None = None
    max_num_seqs: Count
    max_num_batched_tokens: Count
    kv_cache_tokens: Count | None = None
    block_tokens: Count = 16
    runs: Annotated[list[_BenchRun], Field(min_length=1)]


def parse_measured(text: str, name: str) -> MeasuredRun:
    """A file's text: a report of `bench --json`, or a calibration file.

    Raises:
        UsageError: neither, or with a value that no measurement can have.
    """
    raw = _load(text, name)
    if not isinstance(raw, dict):
        raise UsageError(f"{name} is no calibration", hint=HINT)
    try:
        if "base_url" in raw:
            return _from_bench(TypeAdapter(BenchReport).validate_python(raw), name)
        return from_mapping(raw, name)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")[:120]
        raise UsageError(f"{name} is no calibration: {where}: {said}", hint=HINT) from None


def _load(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return parse_yaml(text, name)


def from_mapping(raw: dict[str, Any], name: str, *, example: bool = False) -> MeasuredRun:
    """A calibration file's content. Raises pydantic.ValidationError."""
    file = _File.model_validate(raw)
    levels = tuple(_level(level, run.input_len, run.output_len) for run in file.runs for level in run.levels)
    words = file.model_dump(exclude={"runs"})
    return MeasuredRun(name=name, levels=levels, example=example, **words)


def _from_bench(report: BenchReport, name: str) -> MeasuredRun:
    facts = {fact.name: fact.value for fact in report.engine}
    raw = TypeAdapter(BenchReport).dump_python(report)
    run = _BenchRun.model_validate({key: raw[key] for key in ("input_len", "output_len", "levels")})
    if any(level.failed for level in report.levels):
        raise UsageError(f"{name}: requests failed while it was measured", hint="measure again, on a sound engine")
    return MeasuredRun(
        name=name,
        levels=tuple(_level(level, report.input_len, report.output_len) for level in run.levels),
        vllm=facts.get("vLLM"),
        date=report.started[:10],
        model=report.model,
    )


def _level(level: _Level, input_len: int, output_len: int) -> Level:
    return Level(
        concurrency=level.concurrency,
        requests=level.requests,
        input_len=input_len,
        output_len=output_len,
        ttft_p50=level.ttft.p50,
        ttft_p95=level.ttft.p95,
        tpot_p50=level.tpot.p50,
        tpot_p95=level.tpot.p95,
        tokens_per_s=level.output_tokens_per_s,
    )


def joined(parts: list[MeasuredRun]) -> MeasuredRun:
    """Several files of one engine as one calibration (other lengths in each, for example).

    Raises:
        UsageError: they are of different engines.
    """
    first, rest = parts[0], parts[1:]
    for other in rest:
        for field in ("model", "vllm", "card", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(first, field) != getattr(other, field):
                words = (
                    f"{field} is {getattr(first, field)} in {first.name} and {getattr(other, field)} in {other.name}"
                )
                raise UsageError(f"these calibrations are not of one engine: {words}", hint="give those of one engine")
    from dataclasses import replace

    levels = tuple(level for part in parts for level in part.levels)
    return replace(first, name=", ".join(part.name for part in parts), levels=levels)


@cache
def _rows() -> dict[str, Any]:
    rows: dict[str, Any] = load_catalog("calibrations")["calibrations"]
    return rows


def examples() -> tuple[str, ...]:
    return tuple(_rows())


def example(name: str) -> MeasuredRun:
    """The row of that name. Raises KeyError."""
    return from_mapping(_rows()[name], name, example=True)
