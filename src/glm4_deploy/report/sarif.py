"""A report about a file as SARIF 2.1.0 (OASIS): GitHub's code scanning and editors show it beside the file's lines."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glm4_deploy import __version__
from glm4_deploy.report.wire import dumps
from glm4_deploy.result import Result, Severity, Status
from glm4_deploy.text import one_line

SCHEMA_URI = "https://json.schemastore.org/sarif-2.1.0.json"
# Levels have three values; GitHub ranks by `security-severity`, a CVSS-like number.
LEVELS = {Status.FAIL: "error", Status.WARN: "warning", Status.UNKNOWN: "warning"}
SCORES = {Severity.CRITICAL: "9.5", Severity.HIGH: "8.0", Severity.MEDIUM: "5.5", Severity.LOW: "3.0"}


def to_sarif(results: Iterable[Result], file: Path) -> str:
    """The findings in a file; what passed or was skipped is left out."""
    found = [row for row in results if row.status in LEVELS]
    driver = {"name": "glm4-deploy", "version": __version__, "rules": _rules(found)}
    findings = [_finding(row, file) for row in found]
    run = {"tool": {"driver": driver}, "results": findings}
    return dumps({"$schema": SCHEMA_URI, "version": "2.1.0", "runs": [run]}) + "\n"


def _rules(found: Iterable[Result]) -> list[dict[str, Any]]:
    """One rule per check, ranked by its worst finding."""
    worst: dict[str, Result] = {}
    for row in found:
        if row.check not in worst or _rank(row) < _rank(worst[row.check]):
            worst[row.check] = row
    return [_rule(row) for row in worst.values()]


def _rule(row: Result) -> dict[str, Any]:
    rule: dict[str, Any] = {"id": row.check, "shortDescription": {"text": one_line(row.observed or row.reason)}}
    if row.remedy:
        rule["help"] = {"text": one_line(row.remedy)}
    if row.severity is not None:
        rule["properties"] = {"security-severity": SCORES[row.severity], "tags": ["security"]}
    return rule


def _rank(row: Result) -> int:
    return row.severity.rank if row.severity is not None else len(Severity)


def _finding(row: Result, file: Path) -> dict[str, Any]:
    service = f"{row.source}: " if row.source else ""
    remedy = f" To do: {row.remedy}." if row.remedy else ""
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(file)}}
    if row.line is not None:
        place["region"] = {"startLine": row.line}
    return {
        "ruleId": row.check,
        "level": LEVELS[row.status],
        "message": {"text": one_line(f"{service}{row.observed or row.reason}.{remedy}", 1000)},
        "locations": [{"physicalLocation": place}],
    }


def _uri(file: Path) -> str:
    """Relative to the working directory, which in CI is the repository, so that the forge finds the file."""
    return file.absolute().as_uri().removeprefix(f"{Path.cwd().as_uri()}/")
