"""Where a run's reports go: known to be writable before the first question, because a soak may take a night."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from glm4_deploy.errors import UsageError
from glm4_deploy.files import ensure_writable, write_text
from glm4_deploy.samples import Report

STDOUT = Path("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """A path each, `-` for stdout, None for none. Without one on stdout the table goes there."""

    json: Path | None
    junit: Path | None
    html: Path | None
    baseline: Path | None

    def check(self) -> None:
        """
        Raises:
            UsageError: two on stdout, or two in one file.
            StorageError: a path that cannot be written.
        """
        given = [path for path in (self.json, self.junit, self.html, self.baseline) if path is not None]
        for path in given:
            if given.count(path) > 1:
                where = "stdout" if path == STDOUT else str(path)
                raise UsageError(f"two reports go to {where}", hint="give each a file of its own")
            if path != STDOUT:
                ensure_writable(path)

    def write(self, report: Report) -> None:
        """The table or one report on stdout, the others into their files, each told of on stderr."""
        from glm4_deploy.report.terminal import print_report

        if STDOUT not in {self.json, self.junit, self.html}:
            print_report(report)
        for path, render in self._formats():
            if path == STDOUT:
                typer.echo(render(report), nl=False)
            else:
                write_text(path, render(report))
                typer.echo(f"written: {path}", err=True)
        if self.baseline is not None:
            self._save(report, self.baseline)

    def _formats(self) -> Iterator[tuple[Path, Callable[[Report], str]]]:
        if self.json is not None:
            from glm4_deploy.report.wire import dumps

            yield self.json, lambda report: dumps(report) + "\n"
        if self.junit is not None:
            from glm4_deploy.report.junit import to_junit

            yield self.junit, to_junit
        if self.html is not None:
            from glm4_deploy.report.html import to_html

            yield self.html, to_html

    def _save(self, report: Report, path: Path) -> None:
        from glm4_deploy.probe import baseline

        if report.exit_code:
            words = f"no baseline stored: this run is {report.verdict}; store one on a day when all is well"
            typer.echo(words, err=True)
            return
        baseline.write(path, report)
        typer.echo(f"written: {path}", err=True)
