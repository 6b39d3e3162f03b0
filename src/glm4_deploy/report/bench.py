"""The table of a load test, and what changed against an earlier one."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from glm4_deploy.report.clean import one_line
from glm4_deploy.report.terminal import STYLE, console
from glm4_deploy.result import Status
from glm4_deploy.samples import BenchLevel, BenchReport

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


def print_bench(report: BenchReport, earlier: BenchReport | None) -> None:
    """Times in milliseconds. With `earlier`, a second line a level: this run as a multiple of that one."""
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
    out = console()
    out.print(table)
    lengths = f"{report.input_len} tokens in, {report.output_len} out"
    words = f"{report.verdict}: {report.model} at {report.base_url}, {lengths}; vLLM's own load generator, one run"
    out.print(Text(one_line(words), style=STYLE[report.verdict]))


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
