"""`glm4-deploy smoke | bench`: check a running engine's answers, or measure its speed."""

import asyncio
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr

from glm4_deploy.cli.completion import check_names
from glm4_deploy.cli.output import JUnit, Outputs
from glm4_deploy.cli.params import NOTHING, STATE, JsonFile, Requested, StateDir, with_settings
from glm4_deploy.deploy.state import Record, expected_record, load_record
from glm4_deploy.errors import DeployError, EngineDied, Judged, Unreachable, UsageError, WrongEngine
from glm4_deploy.files import read_text
from glm4_deploy.fingerprint.model import FILE, Fingerprint, fingerprint_beside, read_fingerprint
from glm4_deploy.plan.spec import CONTAINER_PORT
from glm4_deploy.probe.bench import BenchLoad, bench_levels, in_container
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.limits import read_baseline, read_slo, write_baseline
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.questions import read_questions
from glm4_deploy.probe.suite import DIED, MODEL_PATH, NOT_KNOWN, STARTED, checks, run_suite, soak
from glm4_deploy.report.html import to_html
from glm4_deploy.report.terminal import Live, bench_text, checks_text, suite_text
from glm4_deploy.report_model import SCHEMA, BenchLevel, BenchReport, DeploymentNotes, Suite, SuiteReport, make_report
from glm4_deploy.result import Result, Status, fail, ok, skipped
from glm4_deploy.text import did_you_mean, seconds_of

BaseUrl = Annotated[
    str | None,
    typer.Option(help="The endpoint.", metavar="URL", show_default="what `up` started, else the settings' address"),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="The served name that must answer.", show_default="that of the default endpoint, else the only one"
    ),
]
KeyFile = Annotated[
    Path | None, typer.Option(help="File with the API key, which is sent only to the base URL and never shown.")
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHECK",
        help="Run only this check and those it needs; repeatable; `needle-*` works.",
        autocompletion=check_names,
    ),
]


@with_settings(profile="seed")
def smoke(
    base_url: BaseUrl = None,
    model: Model = None,
    api_key_file: KeyFile = None,
    suite: Annotated[str, typer.Option(help="gate, quick (< 1 minute on a GPU), full (minutes) or soak.")] = "quick",
    only: Names = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK", help="Leave this check out; repeatable.", autocompletion=check_names),
    ] = None,
    duration: Annotated[str, typer.Option("--for", help="How long to soak: 90s, 30m, 8h.")] = "30m",
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Maximum seconds until the first token of an answer.")
    ] = 120.0,
    slo: Annotated[Path | None, typer.Option(help="Limits on speed (YAML; docs/how-to/smoke.md).")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Your own questions, asked too (YAML; docs/how-to/questions.md).")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="Perplexities of an earlier good run to compare with.")] = None,
    fingerprint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The right log probabilities (`checkpoint fingerprint`).",
            show_default=f"{FILE} beside the weights that `up` started",
        ),
    ] = None,
    save_baseline: Annotated[Path | None, typer.Option(help="Store this run's perplexities, if it passes.")] = None,
    json_: JsonFile = None,
    junit: JUnit = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page; - is stdout.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List every check and what it proves, then exit.")] = False,
    requested: Requested = NOTHING,
    state_dir: StateDir = STATE,
) -> None:
    """Ask a running engine and judge its answers.

    A pass means that the checks saw no failure. Exit codes: 0 passed, 1 failed or could not be judged,
    2 usage, 3 not reachable, 4 reachable but not the expected engine or model, 11 the engine died in a check.

    Example: glm4-deploy smoke --base-url http://localhost:8080 --suite full --html report.html
    """
    if list_:
        rows = ((check.id, _suites(check.suites), check.seconds, check.proves) for check in checks().values())
        typer.echo(checks_text(rows), nl=False)
        return
    chosen = _suite(suite)
    outputs = Outputs(json=json_, junit=junit, html=html, other=save_baseline)
    outputs.check()
    target = make_target(base_url, model, api_key_file, timeout, requested=requested, state_dir=state_dir)
    printed = _fingerprint(fingerprint, base_url, requested, state_dir)
    options = _options(slo, baseline, questions, printed)
    report = _run(target, chosen, options, tuple(only or ()), tuple(skip or ()), duration, state_dir)
    report = replace(report, deployment=_notes(state_dir, target))
    outputs.write(
        make_report("smoke", report.results, code=report.exit_code),
        lambda: suite_text(report),
        details=report,
        html=lambda: to_html(report),
        seconds=report.seconds,
        started=report.started,
        note=report.covered,
    )
    if save_baseline is not None:
        _save_baseline(save_baseline, report)
    if report.exit_code == Judged.exit_code:
        _tell_of_cache(state_dir, target)
    raise typer.Exit(report.exit_code)


@with_settings(profile="seed")
def bench(
    base_url: BaseUrl = None,
    model: Model = None,
    api_key_file: KeyFile = None,
    concurrency: Annotated[
        str, typer.Option(help="Numbers of concurrent requests, measured one after the other.")
    ] = "1,4,16,64",
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 512,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 128,
    container: Annotated[str | None, typer.Option(help="Run the generator inside this container.")] = None,
    python: Annotated[str | None, typer.Option(help="Run the generator with this Python, which has vLLM.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="The model's directory as the generator sees it.", show_default="as served")
    ] = None,
    slo: Annotated[Path | None, typer.Option(help="Limits on speed (YAML; docs/how-to/smoke.md).")] = None,
    json_: JsonFile = None,
    junit: JUnit = None,
    compare: Annotated[Path | None, typer.Option(metavar="FILE", help="An earlier --json to compare with.")] = None,
    requested: Requested = NOTHING,
    state_dir: StateDir = STATE,
) -> None:
    """Measure a running engine under load: TTFT, TPOT, throughput, goodput.

    The load comes from vLLM's own generator. Without --container and --python it runs beside the engine that `up`
    started. Exit codes: 0 all limits met (or none given), 1 a limit broken or a request failed, 2 usage,
    3 not reachable, 4 not the engine, 11 the engine died under the load.

    Example: glm4-deploy bench --concurrency 1,16 --slo slo.yaml --json today.json --compare yesterday.json
    """
    where = Where(container=container, python=python, tokenizer=tokenizer, state_dir=state_dir)
    target = make_target(base_url, model, api_key_file, 120.0, requested=requested, state_dir=state_dir)
    levels = _levels(concurrency)
    outputs, lengths = Outputs(json=json_, junit=junit), (input_len, output_len)
    raise typer.Exit(run_bench(target, where, levels, lengths, slo=slo, outputs=outputs, compare=compare))


def _save_baseline(path: Path, report: SuiteReport) -> None:
    if report.exit_code:
        typer.echo(f"no baseline stored: this run is {report.verdict}; store one when all is well", err=True)
        return
    write_baseline(path, report)
    typer.echo(f"written: {path}", err=True)


def make_target(
    base_url: str | None,
    model: str | None,
    key_file: Path | None,
    timeout: float,
    *,
    requested: Requested = NOTHING,
    state_dir: Path = STATE,
) -> ProbeTarget:
    """Options → target; without --base-url, what `up` started from this directory, or what the settings name."""
    if requested.given:
        requested.load()  # refuses a wrong setting even if it is not needed
    started_at = None
    named = requested.flags
    model, context = model or named.get("served_model_name"), named.get("max_model_len")
    if base_url is None:
        record = _record_of(requested, state_dir)
        endpoint = record.endpoint
        base_url, model = endpoint.base_url, model or endpoint.model
        started_at = record.started.started_at if record.started else None
        context = context or endpoint.max_model_len
        key_file = key_file or (Path(endpoint.api_key_file) if endpoint.api_key_file else None)
    key = SecretStr(read_text(key_file)) if key_file is not None else None
    return ProbeTarget(
        base_url=base_url,
        model=model,
        api_key=key,
        started_at=started_at,
        max_model_len=context,
        timeout_s=timeout,
    )


def _record_of(requested: Requested, state_dir: Path) -> Record:
    """The record, or one made from the settings if there is none or the command line names another address."""
    record = load_record(state_dir)
    if record is not None and not requested.given:
        return record
    expected = expected_record(requested.plan().deployment)
    return record if record is not None and record.endpoint.base_url == expected.endpoint.base_url else expected


def _run(
    target: ProbeTarget,
    suite: Suite,
    options: Options,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    duration: str,
    state_dir: Path,
) -> SuiteReport:
    seconds = seconds_of(duration)

    def autopsy() -> Result | None:
        from glm4_deploy.deploy import postmortem  # the Docker SDK is needed only now

        return postmortem.autopsy(state_dir, target.root)

    with Live() as live:
        if suite is Suite.SOAK:
            return asyncio.run(
                soak(
                    target,
                    seconds=seconds,
                    options=options,
                    only=only,
                    skip=skip,
                    on_start=live.started,
                    on_result=live.ended_quietly,
                    on_round=live.round_ended,
                    autopsy=autopsy,
                )
            )
        return asyncio.run(
            run_suite(
                target,
                suite=suite,
                options=options,
                only=only,
                skip=skip,
                on_start=live.started,
                on_result=live.ended,
                autopsy=autopsy,
            )
        )


def _notes(state_dir: Path, target: ProbeTarget) -> DeploymentNotes | None:
    """What the files of this deployment add to the report."""
    if load_record(state_dir) is None:
        return None
    from glm4_deploy.deploy.page import notes_on_record  # the Docker SDK is needed only now

    return notes_on_record(state_dir, target.root)


def _tell_of_cache(state_dir: Path, target: ProbeTarget) -> None:
    """Wrong answers may come from kernels that another image compiled, which no log shows."""
    from glm4_deploy.deploy import postmortem  # the Docker SDK is needed only now

    if why := postmortem.cache_doubt(state_dir, target.root):
        typer.echo(f"note: {why}", err=True)


def _fingerprint(path: Path | None, base_url: str | None, requested: Requested, state_dir: Path) -> Fingerprint | None:
    """The named one; else that beside the weights of the deployment asked for; None where there is none."""
    if path is not None:
        return read_fingerprint(path)
    if base_url is not None:
        return None
    return fingerprint_beside(_record_of(requested, state_dir).endpoint.model_dir)


def _options(slo: Path | None, stored: Path | None, questions: Path | None, printed: Fingerprint | None) -> Options:
    return Options(
        questions=read_questions(questions) if questions is not None else (),
        fingerprint=printed,
        slo=read_slo(slo) if slo is not None else None,
        baseline=read_baseline(stored) if stored is not None else None,
    )


def _suite(name: str) -> Suite:
    known = [str(suite) for suite in Suite]
    if name not in known:
        hint = did_you_mean(name, known) or f"one of {', '.join(known)}"
        raise UsageError(f"no suite is named {name[:40]!r}", hint=hint)
    return Suite(name)


def _levels(text: str) -> tuple[int, ...]:
    """`1,4,16,64`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
        raise UsageError(f"--concurrency {text[:40]!r} is not a list of numbers", hint="write it like 1,4,16,64")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _suites(suites: frozenset[Suite]) -> str:
    return " ".join(suite for suite in ("gate", "quick", "full", "soak") if suite in suites)


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where the generator runs, as given on the command line; None: beside what `up` started."""

    container: str | None
    python: str | None
    tokenizer: str | None
    state_dir: Path = STATE


def run_bench(
    target: ProbeTarget,
    where: Where,
    levels: tuple[int, ...],
    lengths: tuple[int, int],
    *,
    slo: Path | None,
    outputs: Outputs,
    compare: Path | None,
) -> int:
    """Measure every level and write the reports; returns the exit code.

    Raises:
        UsageError, Unreachable, WrongEngine, ExtraMissing, Judged: see the command's help; an engine that dies
            under the load is in the reports instead.
    """
    limits = read_slo(slo) if slo is not None else None
    earlier = read_report(compare, lengths) if compare is not None else None
    outputs.check()
    identity = _identify(target)
    python, base_url = _place(target, where)
    load = BenchLoad(
        base_url=base_url,
        model=str(identity.model),
        tokenizer=where.tokenizer or _tokenizer(identity),
        concurrency=levels,
        input_len=lengths[0],
        output_len=lengths[1],
    )
    started = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
    measured: list[BenchLevel] = []

    def keep(level: BenchLevel) -> None:
        measured.append(level)
        _progress(level)

    died = ""
    try:
        bench_levels(python, load, slo=limits, key=target.key, on_level=keep)
    except Judged:  # the generator gives up once no request succeeds
        died = _death_since(identity, target)
        if not died:
            raise
    if any(level.failed for level in measured):
        died = died or _death_since(identity, target)
    results = tuple(_rows(load.concurrency, measured, died))
    shared = make_report("bench", results, code=EngineDied.exit_code if died else None)
    report = BenchReport(
        base_url=identity.base_url,
        model=load.model,
        started=started,
        input_len=load.input_len,
        output_len=load.output_len,
        levels=tuple(measured),
        verdict=shared.verdict,
        exit_code=shared.exit_code,
        engine=identity.engine,
    )
    outputs.write(shared, lambda: bench_text(report, earlier), details=report, started=started)
    from glm4_deploy.deploy.upgrade import keep_bench  # the Docker SDK is needed only now

    if kept := keep_bench(report, where.state_dir):
        typer.echo(f"kept with release {kept}: `glm4-deploy upgrade` compares with it", err=True)
    return report.exit_code


def _identify(target: ProbeTarget) -> SuiteReport:
    """Make sure before any load that this is the expected engine."""
    report = asyncio.run(run_suite(target, only=["identity"]))
    if report.exit_code:
        last = next(row for row in report.results if row.status in {Status.FAIL, Status.UNKNOWN})
        kinds: dict[int, type[DeployError]] = {3: Unreachable, 4: WrongEngine}
        raise kinds.get(report.exit_code, WrongEngine)(last.observed, hint=last.remedy)
    return report


def _place(target: ProbeTarget, where: Where) -> tuple[list[str], str]:
    """The command that runs Python beside vLLM, and the engine's address as seen from there."""
    if where.container is not None:
        return in_container(where.container), _inside()
    python = where.python or os.environ.get("GLM4_CPU_PYTHON")
    record = load_record(where.state_dir)
    if where.python is None and record is not None and record.endpoint.in_container and record.started:
        return in_container(record.started.id), _inside()
    if python:
        return [python], target.root
    raise UsageError(
        "nowhere to run the load generator: `up` started no container from this directory",
        hint="name one with --container NAME, or a Python that has vLLM with --python PATH",
    )


def _inside() -> str:
    return f"http://127.0.0.1:{CONTAINER_PORT}"


def _fact(report: SuiteReport, name: str) -> str | None:
    """A fact about the engine; None if it is not known."""
    return next((fact.value for fact in report.engine if fact.name == name and fact.value != NOT_KNOWN), None)


def _tokenizer(identity: SuiteReport) -> str:
    path = _fact(identity, MODEL_PATH)
    if path is None:
        raise UsageError("the server does not report its model's path", hint="give the tokenizer with --tokenizer DIR")
    return path


def _progress(level: BenchLevel) -> None:
    typer.echo(f"{level.concurrency:4} at once: {level.output_tokens_per_s:.0f} tokens/s", err=True)


def _death_since(identity: SuiteReport, target: ProbeTarget) -> str:
    """How the engine that was identified has died since, as a phrase; '' if it lives."""
    now = asyncio.run(run_suite(target, only=["identity"]))
    alive = next(row for row in now.results if row.check == "alive")
    if not alive.status.passed:
        return alive.observed
    before, after = (_fact(report, STARTED) for report in (identity, now))
    return f"it was started again meanwhile, at {after}" if before and after and after != before else ""


def _rows(loads: Iterable[int], measured: Iterable[BenchLevel], died: str) -> Iterator[Result]:
    """A row per load. The engine died in the first one with a failed request, or in the one that has no result."""
    levels = {level.concurrency: level for level in measured}
    over = ""
    for load in loads:
        level, check = levels.get(load), f"concurrency-{load}"
        if over:
            yield skipped(over, check=check)
        elif level is not None and not (died and level.failed):
            yield _judged(level)
        else:
            over = f"the engine died in {check}"
            failed = f"; {level.failed} of {level.requests} requests failed" if level else ""
            remedy = "find the cause in its log: `glm4-deploy diagnose`"
            yield fail(
                f"{over}: {died}{failed}", "an engine that survives the load", remedy=remedy, check=check, code=DIED
            )


def _judged(level: BenchLevel) -> Result:
    """One load: all limits kept, or the broken ones."""
    check = f"concurrency-{level.concurrency}"
    if level.broken:
        return fail("; ".join(level.broken), "every request answered within the limits", check=check)
    return ok(f"{level.output_tokens_per_s:.0f} tokens/s, TTFT p95 {level.ttft.p95:.0f} ms", check=check)


def read_report(path: Path, lengths: tuple[int, int]) -> BenchReport:
    """An earlier --json report, also from before reports had a `schema`.

    Raises:
        UsageError: it is not one, or its lengths differ, so that the two cannot be compared.
    """
    from pydantic import TypeAdapter, ValidationError

    text = read_text(path)
    try:
        head = TypeAdapter(dict[str, Any]).validate_json(text)
        if head.get("kind", "bench") != "bench" or head.get("schema", SCHEMA) > SCHEMA:
            raise UsageError(f"{path} is not a report of `bench` that this version reads", hint="store one with --json")
        report = TypeAdapter(BenchReport).validate_python(head)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise UsageError(
            f"{path} is not a result of `bench --json`: {problem[:160]}", hint="store one with --json"
        ) from None
    if (report.input_len, report.output_len) != lengths:
        measured = f"{report.input_len} tokens in and {report.output_len} out"
        raise UsageError(f"{path} measured {measured}", hint="give the same --input-len and --output-len")
    return report
