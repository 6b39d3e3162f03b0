"""`glm4-deploy smoke` and `glm4-deploy bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glm4_deploy.probe import Options, Report, Suite, Target

BaseUrl = Annotated[
    str | None,
    typer.Option(help="The endpoint. [what `up` started here, else the settings' own address]", metavar="URL"),
]
Model = Annotated[
    str | None, typer.Option(help="The served name that must answer. [as for --base-url, else the only one]")
]
KeyFile = Annotated[
    Path | None, typer.Option(help="A file that holds the API key; it goes to the base URL alone and is never shown.")
]
Names = Annotated[
    list[str] | None, typer.Option(metavar="CHECK", help="Only this check, and what it needs; repeat, or `needle-*`.")
]


def register(app: typer.Typer) -> None:
    """Add smoke and bench."""
    app.command()(smoke)
    app.command()(bench)


def smoke(
    base_url: BaseUrl = None,
    model: Model = None,
    api_key_file: KeyFile = None,
    suite: Annotated[str, typer.Option(help="gate, quick (< 1 minute on a GPU), full (minutes) or soak.")] = "quick",
    only: Names = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="Leave this check out; repeat.")] = None,
    duration: Annotated[str, typer.Option("--for", help="How long to soak: 90s, 30m, 8h.")] = "30m",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until the first token of an answer.")] = 120.0,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Context in tokens, where the server does not tell.")
    ] = None,
    slo: Annotated[Path | None, typer.Option(help="Limits on speed (YAML; docs/how-to/smoke.md).")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Perplexities of a good day to compare with.")] = None,
    save_baseline: Annotated[Path | None, typer.Option(help="Store this run's perplexities, if it passes.")] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - is stdout.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML, for CI; - is stdout.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page; - is stdout.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show every check and what it proves, and stop.")] = False,
) -> None:
    """Ask a running engine, and judge what it answers.

    A pass means that no failure was seen in what was asked. Exit codes: 0 passed, 1 failed or could not be judged,
    2 usage, 3 not reachable, 4 reachable but not the engine or model expected.

    Example: glm4-deploy smoke --base-url http://localhost:8080 --suite full --html report.html
    """
    from glm4_deploy.cli.outputs import Outputs
    from glm4_deploy.probe import Suite
    from glm4_deploy.report.terminal import print_checks

    if list_:
        from glm4_deploy.probe import CHECKS

        print_checks((check.id, _suites(check.suites), check.seconds, check.proves) for check in CHECKS.values())
        return
    chosen = _choice(suite, [str(name) for name in Suite])
    outputs = Outputs(json=json_, junit=junit, html=html, baseline=save_baseline)
    outputs.check()
    target = make_target(base_url, model, api_key_file, timeout, max_model_len)
    options = _options(slo, baseline)
    report = _run(target, Suite(chosen), options, tuple(only or ()), tuple(skip or ()), duration)
    outputs.write(report)
    raise typer.Exit(report.exit_code)


def bench(
    base_url: BaseUrl = None,
    model: Model = None,
    api_key_file: KeyFile = None,
    concurrency: Annotated[str, typer.Option(help="Requests at once, a load each.")] = "1,4,16,64",
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 512,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 128,
    container: Annotated[str | None, typer.Option(help="Run the generator inside this container.")] = None,
    python: Annotated[str | None, typer.Option(help="Run the generator by this Python, which has vLLM.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="The model's directory as the generator sees it. [as served]")
    ] = None,
    slo: Annotated[Path | None, typer.Option(help="Limits on speed (YAML; docs/how-to/smoke.md).")] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is stdout.")
    ] = None,
    compare: Annotated[Path | None, typer.Option(metavar="FILE", help="An earlier --json to compare with.")] = None,
) -> None:
    """Load a running engine through vLLM's own generator: TTFT, TPOT, throughput, goodput.

    Without --container and --python the generator runs beside the engine that `up` started here. Exit codes: 0 all
    limits kept (or none given), 1 a limit broken or a request failed, 2 usage, 3 not reachable, 4 not the engine.

    Example: glm4-deploy bench --concurrency 1,16 --slo slo.yaml --json today.json --compare yesterday.json
    """
    from glm4_deploy.cli.bench import Where, run_bench

    where = Where(container=container, python=python, tokenizer=tokenizer)
    target = make_target(base_url, model, api_key_file, 120.0, None)
    levels = _levels(concurrency)
    raise typer.Exit(run_bench(target, where, levels, (input_len, output_len), slo=slo, json_=json_, compare=compare))


def make_target(
    base_url: str | None, model: str | None, key_file: Path | None, timeout: float, max_model_len: int | None
) -> "Target":
    """Options → target; without --base-url, what `up` started from this directory, or what the settings name."""
    from pydantic import SecretStr

    from glm4_deploy.files import read_text
    from glm4_deploy.probe import Target

    started_at = None
    if base_url is None:
        from glm4_deploy.cli.options import make_deployment
        from glm4_deploy.engine import state

        record = state.load() or state.expected(make_deployment({}))
        base_url, model = record.base_url, model or record.model
        started_at = record.started_at or None
        max_model_len = max_model_len or record.max_model_len
        key_file = key_file or (Path(record.api_key_file) if record.api_key_file else None)
    key = SecretStr(read_text(key_file)) if key_file is not None else None
    return Target(
        base_url=base_url,
        model=model,
        api_key=key,
        started_at=started_at,
        max_model_len=max_model_len,
        timeout_s=timeout,
    )


def _run(
    target: "Target", suite: "Suite", options: "Options", only: tuple[str, ...], skip: tuple[str, ...], duration: str
) -> "Report":
    import asyncio

    from glm4_deploy.cli.options import seconds_of
    from glm4_deploy.probe import Suite, run_suite, soak
    from glm4_deploy.report.terminal import Live

    seconds = seconds_of(duration)
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
            )
        )


def _options(slo: Path | None, stored: Path | None) -> "Options":
    from glm4_deploy.probe import Options, baseline
    from glm4_deploy.probe import slo as limits

    return Options(
        slo=limits.read(slo) if slo is not None else None,
        baseline=baseline.read(stored) if stored is not None else None,
    )


def _choice(value: str, known: list[str]) -> str:
    from difflib import get_close_matches

    from glm4_deploy.errors import UsageError

    if value in known:
        return value
    near = get_close_matches(value, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
    raise UsageError(f"no suite is named {value[:40]!r}", hint=hint)


def _levels(text: str) -> tuple[int, ...]:
    """`1,4,16,64`."""
    from glm4_deploy.errors import UsageError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
        raise UsageError(f"not a list of concurrencies: {text[:40]!r}", hint="write it like 1,4,16,64")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _suites(suites: "frozenset[Suite]") -> str:
    return " ".join(suite for suite in ("gate", "quick", "full", "soak") if suite in suites)
