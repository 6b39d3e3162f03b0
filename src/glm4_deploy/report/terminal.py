"""Results on a terminal, through Rich. Everything from a server is cleaned first and never read as markup."""

import sys
from collections.abc import Iterable, Iterator

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from glm4_deploy.report.clean import one_line
from glm4_deploy.result import Result, Status
from glm4_deploy.samples import Report

FOLD = 3
NARROW = 80  # below it a table of five columns has three letters for each of the last
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
    for name, row in _folded(tuple(results)):
        table.add_row(
            Text(name),
            Text(str(row.status), style=STYLE[row.status]),
            Text(one_line(row.observed or row.reason)),
            Text(one_line(row.expected)),
            Text(one_line(row.remedy)),
        )
    return table


def _lines(results: Iterable[Result]) -> Iterator[RenderableType]:
    """The same as the table where there is no room for one."""
    for name, row in _folded(tuple(results)):
        yield Text(f"{name}: ") + Text(str(row.status), style=STYLE[row.status])
        for word, text in (("", row.observed or row.reason), ("expected: ", row.expected), ("→ ", row.remedy)):
            if text:
                yield Padding(Text(f"{word}{one_line(text)}"), (0, 0, 0, 2))


def _folded(results: tuple[Result, ...]) -> Iterator[tuple[str, Result]]:
    """(name, row), with three or more checks that were skipped for one reason on one row, where the first stood."""
    skipped = [row.reason for row in results if row.status is Status.SKIPPED]
    told: set[str] = set()
    for row in results:
        same = skipped.count(row.reason) if row.status is Status.SKIPPED else 0
        if same < FOLD:
            yield row.check, row
        elif row.reason not in told:
            told.add(row.reason)
            yield f"{same} checks", row


def print_checks(rows: Iterable[tuple[str, str, float, str]]) -> None:
    """`smoke --list`: name, suites, typical seconds on a GPU, what it proves."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("suites")
    table.add_column("about", justify="right", no_wrap=True)
    table.add_column("proves", ratio=1)
    for name, suites, seconds, proves in rows:
        table.add_row(Text(name), Text(suites), Text(f"{seconds:g} s"), Text(proves))
    console().print(table)


class Live:
    """Progress on stderr: what is being asked, and each verdict as it falls. Use as a context manager."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._status = self._console.status("")

    def __enter__(self) -> "Live":
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def started(self, check: str) -> None:
        self._status.update(Text(f"asking: {check}"))

    def ended(self, result: Result) -> None:
        if result.status is Status.SKIPPED:
            return
        line = Text(f"{result.status:8}", style=STYLE[result.status]) + Text(f"{result.check:18}")
        self._console.print(line + Text(f"{result.seconds or 0:7.1f} s"))

    def ended_quietly(self, result: Result) -> None:
        """In a soak only what is not well is worth a line."""
        if result.status in {Status.FAIL, Status.UNKNOWN}:
            self.ended(result)

    def round_ended(self, number: int, seconds: float, verdict: Status) -> None:
        words = f"round {number}, {seconds:.0f} s so far: {verdict}"
        self._console.print(Text(words, style=STYLE[verdict]))


def print_results(results: Iterable[Result]) -> None:
    """The table of verdicts, on stdout; lines where it is too narrow for one."""
    out = console()
    if out.width >= NARROW:
        out.print(results_table(results))
    else:
        out.print(*_lines(results), sep="\n")


def print_report(report: Report) -> None:
    """A suite run: the table, then the verdict and what it covers."""
    print_results(report.results)
    out = console()
    head = f"{report.verdict}: {report.model or 'no model'} at {report.base_url}, suite {report.suite}"
    out.print(Text(one_line(f"{head}, {report.seconds:.1f} s"), style=STYLE[report.verdict]))
    out.print(Text(one_line(report.covered, 2000)))
