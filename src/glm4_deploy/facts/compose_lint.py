"""What compose-lint (PyPI) finds in a Compose file: the risks of any container. Its JSON has version 2."""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4_deploy.errors import UsageError

LIMIT_SECONDS = 60
# Where its advice, made for any container, is a list of YAML, or would end or cripple an engine.
REMEDIES = {
    "CL-0002": "remove privileged: true; name the devices it needs (GPUs: deploy.resources.reservations.devices)",
    "CL-0003": "set security_opt: [no-new-privileges:true]",
    "CL-0006": "set cap_drop: [ALL]; add back (cap_add) only what the service fails without",
    "CL-0007": "set read_only: true, and a tmpfs or volume for each path that is written (an engine: its caches)",
    "CL-0018": "remove user: root, or name another user who can write the volumes",
    "CL-0026": "set mem_limit and cpus above what was seen in use: at its limit an engine is killed;"
    " page cache and (unified memory) the GPU's part count",
}
_MORE = re.compile(r"\s*(?:Full guide|Details): .*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class LintFinding:
    """One finding as compose-lint words it. severity: low, medium, high, critical. fix: one line, ours in REMEDIES."""

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
        fix=REMEDIES.get(str(row["rule_id"])) or remedy(str(row.get("fix") or "")),
    )


def remedy(fix: str) -> str:
    """The first paragraph of compose-lint's advice on one line, as far as it is prose: and not of its guide."""
    first = _MORE.sub("", fix.partition("\n\n")[0])
    prose = itertools.takewhile(lambda line: not line.startswith((" ", "\t")), first.splitlines())
    return " ".join(" ".join(prose).split()).removesuffix(":")
