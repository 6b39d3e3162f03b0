"""Reports as text for a person: every function returns the text and the caller prints it, except `Live`."""

import sys
from collections.abc import Iterable, Iterator

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from glm4_deploy.report_model import BenchLevel, BenchReport, SuiteReport
from glm4_deploy.result import WHY, Result, Status
from glm4_deploy.text import one_line

# Results, through Rich. Everything from a server is cleaned first and never read as markup.

FOLD = 3
NARROW = 80  # below this width, a table of five columns is unreadable
STYLE = {
    Status.OK: "green",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
    Status.SKIPPED: "dim",
    Status.UNKNOWN: "bold magenta",
}


def console(*, stderr: bool = False) -> Console:
    """Wide enough for a table where the output is not a terminal (a file, a CI log)."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else 120)


def _text(*parts: RenderableType, soft_wrap: bool = False) -> str:
    """The text that a console on stdout would show, with each part on separate lines."""
    out = console()
    with out.capture() as shown:
        for part in parts:
            out.print(part, soft_wrap=soft_wrap)
    return shown.get()


def table_text(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A plain table; every cell is cleaned."""
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell, 300)) for cell in row))
    return _text(table)


def results_text(results: Iterable[Result]) -> str:
    """The results as a table, or as lines if the terminal is too narrow."""
    rows = tuple(results)
    return _text(_table_of(rows)) if console().width >= NARROW else _text(*_lines(rows))


def suite_text(report: SuiteReport) -> str:
    """A suite run: the table, then the verdict and what it covers."""
    head = f"{report.verdict}: {report.model or 'no model'} at {report.base_url}, suite {report.suite}"
    close = Text(one_line(f"{head}, {report.seconds:.1f} s"), style=STYLE[report.verdict])
    return results_text(report.results) + _text(close, Text(one_line(report.covered, 2000)))


def findings_text(results: Iterable[Result], close: str, verdict: Status) -> str:
    """For each result its severity, rule, place and observation, then what it means and what to do. Lines are not
    wrapped, so that commands can be copied. The last line is `close`."""
    parts = [part for result in results for part in _finding(result)]
    return _text(*parts, Text(one_line(close, 600), style=STYLE[verdict]), soft_wrap=True)


def _finding(result: Result) -> Iterator[Text]:
    place = f"{result.source}:{result.line}: " if result.line else f"{result.source}: " if result.source else ""
    head = Text(f"{result.severity or result.status:8} ", style=STYLE[result.status]) + Text(f"{result.check:18}")
    yield head + Text(one_line(place + (result.observed or result.reason)))
    for word, text in _details(result):
        yield Text(f"{'':{MARGIN}}{word} {one_line(text, 600)}")


def _table_of(results: tuple[Result, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for name in ("check", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in ("observed", "expected", "what to do"):
        table.add_column(name, overflow="fold", ratio=1)
    for name, row in _folded(results):
        table.add_row(
            Text(name),
            Text(str(row.status), style=STYLE[row.status]),
            Text(one_line(row.observed or row.reason)),
            Text(one_line(row.expected)),
            Text(one_line(row.remedy)),
        )
    return table


def _lines(results: tuple[Result, ...]) -> Iterator[RenderableType]:
    """The contents of the table as lines."""
    for name, row in _folded(results):
        yield Text(f"{name}: ") + Text(str(row.status), style=STYLE[row.status])
        for word, text in (("", row.observed or row.reason), ("expected: ", row.expected), ("→ ", row.remedy)):
            if text:
                yield Padding(Text(f"{word}{one_line(text)}"), (0, 0, 0, 2))


def _folded(results: tuple[Result, ...]) -> Iterator[tuple[str, Result]]:
    """(name, row); FOLD or more checks skipped for the same reason become one row, in the place of the first."""
    skipped = [row.reason for row in results if row.status is Status.SKIPPED]
    shown: set[str] = set()
    for row in results:
        same = skipped.count(row.reason) if row.status is Status.SKIPPED else 0
        if same < FOLD:
            yield row.check, row
        elif row.reason not in shown:
            shown.add(row.reason)
            yield f"{same} checks", row


def checks_text(rows: Iterable[tuple[str, str, float, str]]) -> str:
    """`smoke --list`: name, suites, typical seconds on a GPU, what it proves."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("suites")
    table.add_column("about", justify="right", no_wrap=True)
    table.add_column("proves", ratio=1)
    for name, suites, seconds, proves in rows:
        table.add_row(Text(name), Text(suites), Text(f"{seconds:g} s"), Text(proves))
    return _text(table)


class Live:
    """Progress on stderr: the running check, and each result as it arrives. Use as a context manager."""

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
        """Like `ended`, but only for failures and undecided checks: a soak runs many rounds."""
        if result.status in {Status.FAIL, Status.UNKNOWN}:
            self.ended(result)

    def round_ended(self, number: int, seconds: float, verdict: Status) -> None:
        words = f"round {number}, {seconds:.0f} s so far: {verdict}"
        self._console.print(Text(words, style=STYLE[verdict]))


MARGIN = 27


def _details(result: Result) -> Iterable[tuple[str, str]]:
    if result.expected:
        yield "expected:", result.expected
    for evidence in result.evidence:
        if evidence.name == WHY:
            yield "why:", evidence.text
    if result.status is Status.UNKNOWN and result.observed:
        yield "why:", result.reason
    if result.remedy:
        yield "→", result.remedy


COLUMNS = (
    "at once",
    "requests",
    "TTFT p50",
    "p95",
    "p99",
    "TPOT p50",
    "p95",
    "p99",
    "tokens/s",
    "requests/s",
    "goodput/s",
)


def bench_text(report: BenchReport, earlier: BenchReport | None) -> str:
    """Times in milliseconds. With `earlier`, a second line per level: this run as a multiple of the earlier one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limits broken", ratio=1)
    before = {level.concurrency: level for level in earlier.levels} if earlier else {}
    for level in report.levels:
        judged = Text(one_line("; ".join(level.broken)), style=STYLE[Status.FAIL])
        table.add_row(*_cells(level), judged)
        if level.concurrency in before:
            table.add_row(*_ratios(level, before[level.concurrency]), Text("of the earlier run", style="dim"))
    lengths = f"{report.input_len} tokens in, {report.output_len} out"
    words = f"{report.verdict}: {report.model} at {report.base_url}, {lengths}; vLLM's own load generator, one run"
    return _text(table, Text(one_line(words), style=STYLE[report.verdict]))


def _cells(level: BenchLevel) -> Iterable[str]:
    times = (level.ttft.p50, level.ttft.p95, level.ttft.p99, level.tpot.p50, level.tpot.p95, level.tpot.p99)
    yield str(level.concurrency)
    yield str(level.requests)
    yield from (f"{value:.1f}" for value in times)
    yield f"{level.output_tokens_per_s:.0f}"
    yield f"{level.requests_per_s:.2f}"
    yield "-" if level.goodput is None else f"{level.goodput:.2f}"


def _ratios(level: BenchLevel, before: BenchLevel) -> Iterable[Text]:
    pairs = [
        *((getattr(level.ttft, share), getattr(before.ttft, share)) for share in ("p50", "p95", "p99")),
        *((getattr(level.tpot, share), getattr(before.tpot, share)) for share in ("p50", "p95", "p99")),
        (level.output_tokens_per_s, before.output_tokens_per_s),
        (level.requests_per_s, before.requests_per_s),
        (level.goodput or 0.0, before.goodput or 0.0),
    ]
    yield Text("")
    yield Text("")
    yield from (Text(f"x {now / then:.2f}" if now and then else "-", style="dim") for now, then in pairs)
