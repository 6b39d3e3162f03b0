"""`glm4-deploy audit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glm4_deploy.plan.audit import Finding

MAX_BYTES = 1 << 20


def register(app: typer.Typer) -> None:
    """Add audit."""
    app.command()(audit)


def audit(
    file: Annotated[Path | None, typer.Argument(help="A Compose file. [what `up` rendered here]")] = None,
    fail_on: Annotated[str, typer.Option(help="Exit 1 from this severity on: critical, high, medium or low.")] = "high",
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Find what is risky in a vLLM Compose file, ours or anybody's, with severity and mend.

    Rules named CL-… are those of compose-lint; what could not be judged is `unknown` and fails too.

    Example: glm4-deploy audit docker-compose.yml
    """
    from glm4_deploy.errors import Judged, UsageError
    from glm4_deploy.plan.audit import ORDER, Severity

    if fail_on not in ORDER[:-1]:
        raise UsageError(f"--fail-on {fail_on[:40]!r} is no severity", hint=f"one of {', '.join(ORDER[:-1])}")
    path = file or Path(".glm4/compose.yaml")
    findings = _findings(path)
    if json_:
        from glm4_deploy.report.wire import dumps

        typer.echo(dumps({"schema": 1, "file": str(path), "findings": findings}))
    else:
        _show(path, findings)
    bad = [
        row
        for row in findings
        if row.severity is Severity.UNKNOWN or ORDER.index(row.severity) <= ORDER.index(Severity(fail_on))
    ]
    if bad:
        raise Judged(f"{path}: {len(bad)} finding(s) of {fail_on} or above, or not judged", hint=bad[0].remedy)


def _findings(path: Path) -> "tuple[Finding, ...]":
    """compose-lint's and ours, worst first.

    Raises:
        UsageError: not a readable Compose file, or one that is made to hurt.
    """
    from glm4_deploy.errors import UsageError
    from glm4_deploy.facts.compose_lint import lint
    from glm4_deploy.files import parse_yaml, read_text
    from glm4_deploy.plan.audit import ORDER, Finding, Severity, audit, has_vllm

    if path.exists() and (not path.is_file() or path.stat().st_size > MAX_BYTES):
        raise UsageError(
            f"{path} is no file of at most {MAX_BYTES >> 20} MiB, so no Compose file", hint="check the path"
        )
    text = read_text(path)
    report = lint(path)  # first: it refuses what would blow up on loading
    content = parse_yaml(text, path)
    common = [
        Finding(rule=row.rule, severity=Severity(row.severity), service=row.service, line=row.line,
                observed=row.message, remedy=row.fix)
        for row in report.findings
    ]  # fmt: skip
    unseen = [
        Finding(
            rule="not-seen",
            severity=Severity.UNKNOWN,
            service="",
            observed=gap,
            remedy="audit the merged file: docker compose config",
        )
        for gap in report.gaps
    ]
    if not has_vllm(content):
        typer.echo(f"{path}: no service looks like vLLM; only the rules for any container were applied", err=True)
    rows = (*common, *audit(content), *unseen)
    return tuple(sorted(rows, key=lambda row: (ORDER.index(row.severity), row.service, row.rule)))


def _show(path: Path, findings: "tuple[Finding, ...]") -> None:
    from collections import Counter

    from glm4_deploy.report.clean import one_line

    for row in findings:
        where = one_line(f"{row.service}:{row.line}" if row.line else row.service, 80)
        typer.echo(f"{row.severity:8} {row.rule:17} {where}: {one_line(row.observed, 200)}")
        typer.echo(f"{'':8} → {one_line(row.remedy, 160)}")
    counts = Counter(str(row.severity) for row in findings)
    typer.echo(f"{path}: " + (", ".join(f"{number} {name}" for name, number in counts.items()) or "nothing found"))
