"""`glm4-deploy diagnose`: a log, a live engine's counters, or a person's words become findings."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.cli.output import JUnit, Outputs, stdout_if
from glm4_deploy.cli.params import STATE, Json, StateDir
from glm4_deploy.errors import UsageError
from glm4_deploy.logs.facts import EngineFacts, Phase
from glm4_deploy.logs.finding import LogFinding
from glm4_deploy.logs.reader import LogReader
from glm4_deploy.logs.source import read_file
from glm4_deploy.logs.symptom import rows_for
from glm4_deploy.report_model import make_report
from glm4_deploy.result import Result, Status, ok, warn
from glm4_deploy.text import quote

# Keys of --json; `progress` appears only in the text.
FACTS = (
    "version",
    "engine",
    "kernel",
    "native_fp4",
    "attention_backend",
    "kv_cache_dtype",
    "weights_gib",
    "kv_cache_gib",
    "kv_cache_tokens",
    "max_concurrency",
    "compile_s",
    "graph_gib",
    "ready_s",
    "phase",
)
FIGURES = (
    *("model", "running", "waiting", "kv_usage", "preemptions"),
    *("finished", "prefix_queries", "prefix_hit_rate", "corrupted", "awake", "stalled_s"),
)
KEYS = ("id", "severity", "line", "cause", "fix", "source", "count")
LAST_LINES = 5
WIDTH = 400


def diagnose(
    file: Annotated[str | None, typer.Argument(help="A log file, or - for standard input.", show_default=False)] = None,
    container: Annotated[str | None, typer.Option("--container", help="A container's name or id.")] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="URL", help="Judge the counters of a live engine, not a log.")
    ] = None,
    symptom: Annotated[
        str | None, typer.Option("--symptom", metavar="WORDS", help="What you see, if there is no log.")
    ] = None,
    json_: Json = False,
    junit: JUnit = None,
    state_dir: StateDir = STATE,
) -> None:
    """Find what went wrong in an engine's log, and how to fix it.

    Shows the engine's configuration, how far it got, and the findings, root cause first.

    Without an argument: the log of this deployment's engine, running or dead, else that of its last failed start.
    Accepts any log of vLLM 0.9 or newer, with or without Docker's timestamps. Exit 0: no failure found. 1: a failure
    found. 2: the input is not a log.

    --metrics reads the counters, for up to a minute if requests make no progress. Exit 0 and 1 as for a log, and 1 if
    a counter is missing. 3: no answer. 4: no counters of vLLM. 11: the engine behind the server has died.

    --symptom lists the known failures that the words can mean. Exit 0: some found. 2: none.

    Example: docker logs vllm 2>&1 | glm4-deploy diagnose -
    """
    outputs = Outputs(json=stdout_if(json_), junit=junit)
    outputs.check()
    given = {"FILE": file, "--container": container, "--metrics": metrics, "--symptom": symptom}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} exclude each other", hint="give one of them")
    if symptom is not None:
        _symptom(symptom, outputs)
    elif metrics is not None:
        _metrics(metrics, outputs)
    else:
        _log(*(read_file(file) if file is not None else _read_engine(container, state_dir)), outputs)


def _log(source: str, reader: LogReader, outputs: Outputs) -> None:
    if not reader.recognised:
        reason = "it is empty" if not reader.lines else f"none of its {reader.lines} lines looks like a log line"
        raise UsageError(
            f"nothing to diagnose in {source}: {reason}",
            hint="give the engine's log: docker logs vllm 2>&1 | glm4-deploy diagnose -",
        )
    report = make_report("diagnose", (*(row.result() for row in reader.findings), _start(reader)))
    outputs.write(report, lambda: "\n".join(_text(source, reader)) + "\n", details=wire(reader))
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _read_engine(container: str | None, state_dir: Path) -> tuple[str, LogReader]:
    # Imported late: the Docker SDK takes longer to load than a log file to read, which does not need it.
    from glm4_deploy.deploy.postmortem import diagnose_container, diagnose_deployment

    return diagnose_deployment(state_dir) if container is None else diagnose_container(container)


def _metrics(url: str, outputs: Outputs) -> None:
    # Imported late: an HTTP client takes longer to load than a log to read.
    from glm4_deploy.plan.engine_rules import STALL_SECONDS
    from glm4_deploy.probe.client import ProbeTarget
    from glm4_deploy.probe.metrics import judge_metrics, read_engine, unjudged

    root = ProbeTarget(base_url=url.strip().rstrip("/").removesuffix("/metrics")).root
    stalled = f"the engine holds requests and no counter moved; reading for up to {STALL_SECONDS:g} s"
    seen = read_engine(root, waiting=lambda: typer.echo(stalled, err=True))
    findings, missing = judge_metrics(seen), unjudged(seen)
    answered = ok("the engine reports its counters", check="metrics")
    report = make_report("diagnose", (*(row.result() for row in findings), *missing, answered))
    figures = {name: getattr(seen, name) for name in FIGURES}

    def text() -> str:
        rows = [f"read {root}/metrics"] + [f"{name:18} {_figure(value)}" for name, value in figures.items()]
        for row in findings:
            rows += ["", *_finding(row)]
        rows += ["", *(f"not judged: {row.reason}" for row in missing)]
        if any(row.status is Status.FAIL for row in findings):
            rows += [f"worst:      {findings[0].id}: {findings[0].cause}", f"do this:    {findings[0].fix}"]
        elif not missing:
            rows.append("no failure found in the counters; whether the answers are sane: glm4-deploy smoke")
        return "\n".join(rows) + "\n"

    outputs.write(report, text, details={**figures, "findings": _wire(findings)})
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _symptom(said: str, outputs: Outputs) -> None:
    rows = rows_for(said)
    if not rows:
        raise UsageError(
            f"no known failure fits {quote(said)}",
            hint=(
                "name what fails and how: the machine freezes at start",
                "better, give the log: glm4-deploy diagnose",
            ),
        )
    # A possible cause is not a verdict: nothing was judged, so nothing fails.
    report = make_report("diagnose", (replace(row.result(), status=Status.WARN) for row in rows))
    lines = ["known failures that can look like this, most likely first:"]
    for row in rows:
        lines += ["", *_finding(row)]
    lines += ["", "a log shows which one it is: glm4-deploy diagnose (FILE, --container NAME)"]
    outputs.write(report, lambda: "\n".join(lines) + "\n", details={"findings": _wire(rows)})


def wire(reader: LogReader) -> dict[str, object]:
    """What this command's JSON adds to the shared keys: the facts and, under `findings`, the findings."""
    facts: dict[str, object] = {name: getattr(reader.facts, name) for name in FACTS}
    return {**facts, "findings": _wire(reader.findings)}


def _wire(findings: Iterable[LogFinding]) -> list[dict[str, object]]:
    rows = [row.wire() for row in findings]
    return [{key: row[key] for key in KEYS} for row in rows]


def _start(reader: LogReader) -> Result:
    """How far the start got. A log may end early, so not being ready is a failure only if there is a finding."""
    if reader.facts.phase is Phase.READY:
        return ok("the engine came up", check="start")
    return warn(f"the log ends in the phase {reader.facts.phase}", "ready", check="start")


def _text(source: str, reader: LogReader) -> list[str]:
    facts, findings = reader.facts, reader.findings
    rows = [f"read {source}: {reader.lines} lines" + (f", {reader.starts} starts" if reader.starts > 1 else "")]
    rows += [f"{name:18} {_shown(facts, name)}" for name in FACTS]
    for row in findings:
        rows += ["", *_finding(row, f"line {row.number}" if row.number else "container")]
    bad = any(row.status is Status.FAIL for row in findings)
    rows.append("")
    if bad:
        first = findings[0]
        cause = "not in this text" if first.wrapper else f"{first.id}: {first.cause}"
        return [*rows, f"root cause: {cause}", f"do this:    {first.fix}"]
    if facts.phase == "ready":
        return [*rows, "no failure found; it came up"]
    if not reader.starts:
        rows.append("no failure found, but no start of an engine either: is the beginning missing? Its last lines:")
    else:
        rows.append(f"no failure found, but it is not up: the log ends in the phase `{facts.phase}`. Its last lines:")
    return [*rows, *(f"  | {line[:WIDTH]}" for line in reader.tail(LAST_LINES))]


def _shown(facts: EngineFacts, name: str) -> str:
    value = getattr(facts, name)
    if name == "phase" and facts.progress:
        return f"{value} ({facts.progress})"
    return "unknown" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _figure(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number:.0f}" for name, number in value.items())
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1 else f"{value:.0f}"
    return "unknown" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _finding(row: LogFinding, place: str = "") -> list[str]:
    times = f", seen {row.count} times" if row.count > 1 else ""
    return [
        f"{row.level:5} {row.id}" + (f" ({place}{times})" if place else ""),
        *([f"  | {row.line[:WIDTH]}"] if row.line else []),
        f"  cause:  {row.cause}",
        f"  fix:    {row.fix}",
        f"  source: {row.source}",
    ]
