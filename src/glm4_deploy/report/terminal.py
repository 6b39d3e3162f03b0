"""Results on a terminal, through Rich. Everything from a server is cleaned first and never read as markup."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from glm4_deploy.report.clean import one_line
from glm4_deploy.result import Result, Status
from glm4_deploy.samples import Report

STYLE = {
    Status.OK: "green",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
    Status.SKIPPED: "dim",
    Status.UNKNOWN: "bold magenta",
}


def console(*, stderr: bool = False) -> Console:
    """Wide enough for a table where the output is no terminal (a file, a CI log)."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else 120)


def results_table(results: Iterable[Result]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for name in ("check", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in ("observed", "expected", "what to do"):
        table.add_column(name, overflow="fold", ratio=1)
    for row in results:
        observed = row.observed if not row.reason else f"{row.status}: {row.reason}"
        table.add_row(
            Text(row.check),
            Text(str(row.status), style=STYLE[row.status]),
            Text(one_line(observed)),
            Text(one_line(row.expected)),
            Text(one_line(row.remedy)),
        )
    return table


def print_results(results: Iterable[Result]) -> None:
    """The table of verdicts, on stdout."""
    console().print(results_table(results))


def print_report(report: Report) -> None:
    """A suite run: the table, then the verdict and what it covers."""
    out = console()
    out.print(results_table(report.results))
    head = f"{report.verdict}: {report.model or 'no model'} at {report.base_url}, suite {report.suite}"
    out.print(Text(one_line(f"{head}, {report.seconds:.1f} s"), style=STYLE[report.verdict]))
    out.print(Text(one_line(report.covered, 2000)))
