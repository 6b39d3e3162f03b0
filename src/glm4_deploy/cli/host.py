"""`glm4-deploy doctor | audit`: check this host, and the Compose file that would run on it."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from glm4_deploy.audit import audit_file
from glm4_deploy.cli.output import JUnit, Outputs, stdout_if
from glm4_deploy.cli.params import (
    STATE,
    Json,
    Requested,
    StateDir,
    with_settings,
)
from glm4_deploy.deploy.candidates import holds_own_port, recorded_engine
from glm4_deploy.deploy.state import expected_record
from glm4_deploy.doctor import Needs, doctor_results, gather_host, readiness
from glm4_deploy.errors import DeployError, Judged, UsageError
from glm4_deploy.plan.spec import Fraction, plan_deployment
from glm4_deploy.render.compose import COMPOSE
from glm4_deploy.report.sarif import to_sarif
from glm4_deploy.report.terminal import findings_text, results_text
from glm4_deploy.report_model import Report, make_report
from glm4_deploy.result import Severity, Status


@with_settings()
def doctor(
    requested: Requested,
    state_dir: StateDir = STATE,
    as_json: Json = False,
    junit: JUnit = None,
) -> None:
    """Check whether this host can run the deployment.

    Changes nothing and takes at most 3 s. Verdicts: ready, slow (no FP4 arithmetic), blocked, unknown. Exit code 0 for
    ready and slow, 1 otherwise.

    Example: glm4-deploy doctor --profile gb10 --json
    """
    outputs = Outputs(json=stdout_if(as_json), junit=junit)
    outputs.check()
    settings, row = requested.load()
    needs = Needs(settings=settings, profile=row)
    report = make_report("doctor", doctor_results(gather_host(needs, partial(_holds_port, needs, state_dir)), needs))
    verdict = readiness(report.results)
    close = f"\n{verdict}: for profile {row.name} ({row.summary})\n"
    outputs.write(report, lambda: results_text(report.results) + close, details={"readiness": verdict})
    raise typer.Exit(report.exit_code)


def _holds_port(needs: Needs, state_dir: Path) -> bool:
    """Whether this deployment's own engine holds the port, as `up` would see it."""
    expected = expected_record(plan_deployment(needs.settings, needs.profile, Fraction(value=None)))
    try:
        return holds_own_port(expected.endpoint.base_url, state_dir, lambda: recorded_engine(expected, state_dir))
    except DeployError:
        return False  # without Docker or Compose, no engine of this deployment runs


def audit(
    file: Annotated[
        Path | None, typer.Argument(help="A Compose file.", show_default="the one that `up` rendered into --state-dir")
    ] = None,
    fail_on: Annotated[str, typer.Option(help="Exit 1 from this severity on: critical, high, medium or low.")] = "high",
    state_dir: StateDir = STATE,
    json_: Json = False,
    junit: JUnit = None,
    sarif: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write SARIF 2.1.0, for code scanning; - is stdout.")
    ] = None,
) -> None:
    """Find risks in a vLLM Compose file, with severity and fix.

    Works on any Compose file, not only a rendered one.

    Rules named CL-… are those of compose-lint. What could not be judged is `unknown` and fails too.

    Example: glm4-deploy audit docker-compose.yml
    """
    if fail_on not in tuple(Severity):
        raise UsageError(f"--fail-on {fail_on[:40]!r} is not a severity", hint=f"one of {', '.join(Severity)}")
    outputs = Outputs(json=stdout_if(json_), junit=junit, sarif=sarif)
    outputs.check()
    path = file or state_dir / COMPOSE
    report = make_report("audit", audit_file(path, Severity(fail_on)))
    for row in report.results:
        if row.check == "vllm" and row.status is Status.SKIPPED:
            typer.echo(f"{path}: {row.reason}", err=True)
    outputs.write(
        report,
        lambda: _audit_text(path, report),
        details={"file": str(path), "fail_on": fail_on},
        sarif=lambda: to_sarif(report.results, path),
    )
    bad = [row for row in report.results if row.status in (Status.FAIL, Status.UNKNOWN)]
    if bad:
        raise Judged(f"{path}: {len(bad)} finding(s) of {fail_on} or above, or not judged", hint=bad[0].remedy)


def _audit_text(path: Path, report: Report) -> str:
    findings = [row for row in report.results if row.status not in (Status.OK, Status.SKIPPED)]
    counts = Counter(str(row.severity or row.status) for row in findings)
    summary = ", ".join(f"{number} {name}" for name, number in counts.items()) or "nothing found"
    return findings_text(findings, f"{path}: {summary}", report.verdict)
