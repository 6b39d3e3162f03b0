"""A checkpoint's findings on a terminal: what was seen, why it matters, the mend. Commands are not folded."""

from collections.abc import Iterable

from rich.text import Text

from glm4_deploy.report.clean import one_line
from glm4_deploy.report.terminal import STYLE, console
from glm4_deploy.result import Result, Status

MARGIN = 27


def print_findings(results: Iterable[Result], *, why: str, close: str, verdict: Status) -> None:
    """A row each, then the line `close`, on stdout. `why` names the evidence that says what a finding means."""
    out = console()
    for result in results:
        head = Text(f"{result.status:8} ", style=STYLE[result.status]) + Text(f"{result.check:18}")
        out.print(head + Text(one_line(result.observed or result.reason)), soft_wrap=True)
        for word, text in _details(result, why):
            out.print(Text(f"{'':{MARGIN}}{word} {one_line(text, 600)}"), soft_wrap=True)
    out.print(Text(one_line(close, 600), style=STYLE[verdict]), soft_wrap=True)


def _details(result: Result, why: str) -> Iterable[tuple[str, str]]:
    if result.expected:
        yield "wanted:", result.expected
    for evidence in result.evidence:
        if evidence.name == why:
            yield "why:", evidence.text
    if result.status is Status.UNKNOWN and result.observed:
        yield "why:", result.reason
    if result.remedy:
        yield "→", result.remedy
