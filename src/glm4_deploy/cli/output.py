"""Where a command's reports go: text, JSON, JUnit XML, HTML, SARIF."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from glm4_deploy.errors import UsageError
from glm4_deploy.files import ensure_writable, write_text
from glm4_deploy.report.wire import dumps, report_json, to_junit
from glm4_deploy.report_model import Report
from glm4_deploy.text import one_line

STDOUT = Path("-")
JUnit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML, for CI; - is stdout.")]


def stdout_if(wanted: bool) -> Path | None:
    """The JSON path of a command whose `--json` is a switch."""
    return STDOUT if wanted else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The path of each report of one run: `-` for stdout, None for no report. Text goes to stdout if it is free."""

    json: Path | None = None
    junit: Path | None = None
    html: Path | None = None
    sarif: Path | None = None
    other: Path | None = None
    """A file that the command itself will write."""

    def check(self) -> None:
        """Make sure before the run that every path can be written: a soak may take all night.

        Raises:
            UsageError: two reports go to stdout or to the same file.
            StorageError: a path that cannot be written.
        """
        given = [path for path in (self.json, self.junit, self.html, self.sarif, self.other) if path is not None]
        for path in given:
            if given.count(path) > 1:
                where = "stdout" if path == STDOUT else str(path)
                raise UsageError(f"two reports go to {where}", hint="give each its own file")
            if path != STDOUT:
                ensure_writable(path)

    @property
    def text(self) -> bool:
        """Whether stdout is free for the text."""
        return STDOUT not in (self.json, self.junit, self.html, self.sarif)

    def write(
        self,
        report: Report,
        text: Callable[[], str],
        *,
        details: Any = None,
        html: Callable[[], str] | None = None,
        sarif: Callable[[], str] | None = None,
        seconds: float = 0.0,
        started: str = "",
        note: str = "",
    ) -> None:
        """Print the text or one report on stdout and write the others to their files, each noted on stderr.

        Args:
            details: what the JSON has beside the shared keys.
            seconds, started, note: about the run, for JUnit.
        """
        if self.text:
            typer.echo(text(), nl=False)
        _put(self.json, lambda: report_json(report, details))
        _put(self.junit, lambda: to_junit(report, seconds=seconds, started=started, note=note))
        if html is not None:
            _put(self.html, html)
        if sarif is not None:
            _put(self.sarif, sarif)


def show_steps(steps: Iterable[str], *, json_: bool) -> None:
    """What --dry-run prints: every step, and nothing if one is refused."""
    lines = [one_line(step, 1000) for step in steps]
    typer.echo(dumps({"dry_run": True, "steps": lines}) if json_ else "\n".join(lines))


def _put(path: Path | None, render: Callable[[], str]) -> None:
    if path == STDOUT:
        typer.echo(render(), nl=False)
    elif path is not None:
        write_text(path, render())
        typer.echo(f"written: {path}", err=True)
