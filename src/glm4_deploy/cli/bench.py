"""The work behind `glm4-deploy bench`: find where the generator runs, run it, show and store the result."""

import asyncio
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glm4_deploy.errors import DeployError, Unreachable, UsageError, WrongEngine
from glm4_deploy.files import ensure_writable, read_text, write_text
from glm4_deploy.probe import Target, bench, run_suite
from glm4_deploy.probe.coverage import MODEL_PATH
from glm4_deploy.probe.slo import Slo
from glm4_deploy.probe.slo import read as read_slo
from glm4_deploy.report.bench import print_bench
from glm4_deploy.report.wire import dumps
from glm4_deploy.result import Status
from glm4_deploy.samples import BenchLevel, BenchReport, Report

if TYPE_CHECKING:
    from glm4_deploy.engine.state import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where the generator runs, as the user says; None: as `up` left it."""

    container: str | None
    python: str | None
    tokenizer: str | None


def run_bench(
    target: Target,
    where: Where,
    levels: tuple[int, ...],
    lengths: tuple[int, int],
    *,
    slo: Path | None,
    json_: Path | None,
    compare: Path | None,
) -> int:
    """The exit code.

    Raises:
        UsageError, Unreachable, WrongEngine, ExtraMissing, Judged: see the command's help.
    """
    limits = read_slo(slo) if slo is not None else None
    earlier = read_report(compare, lengths) if compare is not None else None
    if json_ is not None and str(json_) != "-":
        ensure_writable(json_)
    found = _identify(target)
    python, base_url = _place(target, where)
    load = bench.Load(
        base_url=base_url,
        model=str(found.model),
        tokenizer=where.tokenizer or _tokenizer(found),
        concurrency=levels,
        input_len=lengths[0],
        output_len=lengths[1],
    )
    started = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
    measured = bench.run(python, load, slo=limits, key=target.key, on_level=_progress)
    report = _judge(found, load, started, measured, limits)
    if json_ is not None and str(json_) != "-":
        write_text(json_, dumps(report) + "\n")
    if json_ is not None and str(json_) == "-":
        typer.echo(dumps(report))
    else:
        print_bench(report, earlier)
    return report.exit_code


def _identify(target: Target) -> Report:
    """Nothing is loaded before it is known to be the engine that is meant."""
    found = asyncio.run(run_suite(target, only=["identity"]))
    if found.exit_code:
        last = next(row for row in found.results if row.status in {Status.FAIL, Status.UNKNOWN})
        kinds: dict[int, type[DeployError]] = {3: Unreachable, 4: WrongEngine}
        raise kinds.get(found.exit_code, WrongEngine)(last.observed, hint=last.remedy)
    return found


def _place(target: Target, where: Where) -> tuple[list[str], str]:
    """The words that run Python beside vLLM, and the engine's address as seen from there."""
    if where.container is not None:
        return bench.in_container(where.container), _inside()
    python = where.python or os.environ.get("GLM4_CPU_PYTHON")
    record = _record()
    if where.python is None and record is not None and record.runner == "compose" and record.id:
        return bench.in_container(record.id), _inside()
    if python:
        return [python], target.root
    raise UsageError(
        "no place to run the load generator: `up` started no container from here",
        hint="name one with --container NAME, or a Python that has vLLM with --python PATH",
    )


def _record() -> "Record | None":
    from glm4_deploy.engine import state

    return state.load()


def _inside() -> str:
    from glm4_deploy.plan.deployment import CONTAINER_PORT

    return f"http://127.0.0.1:{CONTAINER_PORT}"


def _tokenizer(found: Report) -> str:
    path = next((fact.value for fact in found.engine if fact.name == MODEL_PATH and fact.value != "not told"), None)
    if path is None:
        raise UsageError("the server does not tell its model's path", hint="give the tokenizer with --tokenizer DIR")
    return path


def _progress(level: BenchLevel) -> None:
    typer.echo(f"{level.concurrency:4} at once: {level.output_tokens_per_s:.0f} tokens/s", err=True)


def _judge(
    found: Report, load: bench.Load, started: str, levels: tuple[BenchLevel, ...], slo: Slo | None
) -> BenchReport:
    broken = any(level.broken for level in levels)
    return BenchReport(
        base_url=found.base_url,
        model=load.model,
        started=started,
        input_len=load.input_len,
        output_len=load.output_len,
        levels=levels,
        verdict=Status.FAIL if broken else Status.OK,
        exit_code=1 if broken else 0,
        engine=found.engine,
    )


def read_report(path: Path, lengths: tuple[int, int]) -> BenchReport:
    """An earlier --json.

    Raises:
        UsageError: it is none, or it asked for other lengths: two runs of unlike questions have no ratio.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        report = TypeAdapter(BenchReport).validate_json(read_text(path))
    except ValidationError as error:
        first = error.errors()[0]
        words = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise UsageError(
            f"{path} is no result of `bench --json`: {words[:160]}", hint="store one with --json"
        ) from None
    if (report.input_len, report.output_len) != lengths:
        asked = f"{report.input_len} tokens in and {report.output_len} out"
        raise UsageError(f"{path} asked {asked}", hint="give the same --input-len and --output-len")
    return report
