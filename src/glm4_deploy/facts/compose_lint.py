"""What compose-lint (PyPI) finds in a Compose file: the risks of any container. Its JSON has version 2."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4_deploy.errors import UsageError

LIMIT_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class LintFinding:
    """One finding as compose-lint words it. severity: low, medium, high, critical."""

    rule: str
    severity: str
    service: str
    line: int
    message: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """gaps: what it could not look into (include, extends, an unreadable env file)."""

    findings: tuple[LintFinding, ...]
    gaps: tuple[str, ...]


def lint(file: Path) -> LintReport:
    """Run compose-lint on this file alone: no override beside it, no .env, no configuration of the audited project.

    Its parser bounds what a hostile file can build, so it reads the file before anything else does.

    Raises:
        UsageError: not a readable Compose file.
    """
    # -I: nothing beside the audited file is imported. An empty configuration of ours: none there silences a rule.
    words = [sys.executable, "-I", "-m", "compose_lint", "check", "--format", "json", "--no-merge-overrides"]
    words += ["--no-env", "--allow-partial-coverage", str(file.absolute()), "--config"]
    try:
        with tempfile.NamedTemporaryFile(suffix=".yml") as nothing:
            argv = [*words, nothing.name]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{file} took more than {LIMIT_SECONDS} s to read", hint="is it a Compose file?") from None
    return _parse(done.stdout, done.stderr, file)


def _parse(stdout: str, stderr: str, file: Path) -> LintReport:
    try:
        content: dict[str, Any] = json.loads(stdout)
        errors = [str(row["message"]) for row in content["errors"]]
        findings = tuple(_finding(row) for row in content["findings"])
        gaps = tuple(str(row.get("message", row)) for row in content["warnings"])
    except (ValueError, KeyError, TypeError):
        last = (stderr.strip().splitlines() or ["no output"])[-1]
        raise UsageError(f"cannot audit {file}: {last[:200]}", hint="check that it is a Compose file") from None
    if errors:
        raise UsageError(
            f"cannot audit {file}: {' '.join(errors[0].split())[:200]}", hint="check that it is a Compose file"
        )
    return LintReport(findings=findings, gaps=gaps)


def _finding(row: dict[str, Any]) -> LintFinding:
    return LintFinding(
        rule=str(row["rule_id"]),
        severity=str(row["severity"]),
        service=str(row["service"]),
        line=int(row["line"] or 0),
        message=str(row["message"]),
        fix=str(row.get("fix") or ""),
    )
