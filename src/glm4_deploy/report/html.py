"""One self-contained page: verdicts, what was said with the loop marked, plots, the engine's facts.

Prompts and answers are untrusted. Jinja2 escapes every value, and the page forbids itself scripts and requests of any
kind (Content-Security-Policy), so that neither depends on the other alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from glm4_deploy.report.clean import cap, clean, one_line
from glm4_deploy.report.svg import SERIES, Row, Series, distribution, timeline
from glm4_deploy.result import Result, Status
from glm4_deploy.samples import Report, Sample

SHOWN = 60  # samples on the page
PROMPT = 2000  # characters
ANSWER = 6000
ROWS = 24  # streams of the timeline
WORST_FIRST = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK, Status.SKIPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of an answer; `mark` is "", "unit" (the first copy of what repeats) or "loop" (what follows)."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A sample as the page shows it: all text cleaned and capped."""

    check: str
    gist: str
    prompt: str
    parts: tuple[Part, ...]
    facts: str
    bad: bool
    why: str


def to_html(report: Report) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    samples = _choose(report.samples)
    series = _series(report.samples)
    rows = _rows(report.samples)
    tally = {status: sum(row.status is status for row in report.results) for status in WORST_FIRST}
    return template.render(
        report=report,
        counts=[(status, count) for status, count in tally.items() if count],
        one_line=one_line,
        evidence=_evidence,
        samples=[show(sample) for sample in samples],
        hidden=len(report.samples) - len(samples),
        labels=[label for label, _ in series],
        ttft=distribution([one for _, (one, _) in series], "ms", "TTFT: share of answers within a time"),
        tpot=distribution([one for _, (_, one) in series], "ms", "TPOT: share of answers within a time"),
        timeline=timeline(rows, "When each token came"),
        rows=[row.label for row in rows],
    )


def show(sample: Sample) -> Shown:
    """Cleaned, capped, and cut where the loop starts."""
    timing = sample.timing
    facts = [sample.finish_reason or "no finish_reason"]
    if timing is not None:
        facts += [f"{timing.tokens} tokens"] if timing.tokens is not None else []
        facts += [f"TTFT {timing.ttft * 1000:.0f} ms"] if timing.ttft is not None else []
        facts += [f"TPOT {timing.tpot * 1000:.1f} ms"] if timing.tpot is not None else []
        facts.append(f"{timing.total:.2f} s")
    bad = sample.finding is not None and sample.finding.degenerate
    why = f"{sample.finding.verdict}: {sample.finding.why}" if sample.finding is not None and bad else ""
    return Shown(
        check=one_line(sample.check, 80),
        gist=one_line(sample.prompt.rpartition("\n")[2], 90),
        prompt=cap(sample.prompt, PROMPT),
        parts=_parts(sample),
        facts=one_line(", ".join(facts)),
        bad=bad,
        why=one_line(why),
    )


def _parts(sample: Sample) -> tuple[Part, ...]:
    text, finding = sample.answer, sample.finding
    if finding is None or not finding.degenerate or finding.start is None:
        return (Part(text=cap(text, ANSWER)),)
    start, end = finding.start, finding.start + (finding.period or 0)
    # What came before the loop is shown from its end: the turn into the loop is what a reader looks for.
    before = text[max(0, start - ANSWER // 2) : start]
    return (
        Part(text=("… " if start > ANSWER // 2 else "") + clean(before)),
        Part(text=cap(text[start:end], ANSWER // 4), mark="unit"),
        Part(text=cap(text[end:], ANSWER // 2), mark="loop"),
    )


def _evidence(result: Result) -> list[tuple[str, str]]:
    return [(one_line(piece.name), cap(piece.text, ANSWER // 2)) for piece in result.evidence]


def _choose(samples: Sequence[Sample]) -> list[Sample]:
    """Degenerate ones first, then at most three a check, in the order in which they were asked."""
    taken: dict[str, int] = defaultdict(int)
    kept: list[Sample] = []
    for sample in sorted(samples, key=lambda one: not (one.finding is not None and one.finding.degenerate)):
        taken[sample.check] += 1
        if len(kept) < SHOWN and taken[sample.check] <= 3:
            kept.append(sample)
    return kept


def _series(samples: Sequence[Sample]) -> list[tuple[str, tuple[Series, Series]]]:
    """TTFT and TPOT by check, the checks with the most streams first."""
    by_check: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.timing is not None and sample.timing.arrivals:
            by_check[sample.check].append(sample)
    most = sorted(by_check.items(), key=lambda item: -len(item[1]))[:SERIES]
    found = []
    for check, asked in most:
        timings = [sample.timing for sample in asked if sample.timing is not None]
        ttft = tuple(timing.ttft * 1000 for timing in timings if timing.ttft is not None)
        tpot = tuple(timing.tpot * 1000 for timing in timings if timing.tpot is not None)
        label = f"{one_line(check, 40)} ({len(asked)})"
        found.append((label, (Series(label=label, values=ttft), Series(label=label, values=tpot))))
    return found


def _rows(samples: Sequence[Sample]) -> list[Row]:
    """The streams with the most tokens, in the order in which they were asked."""
    streamed = [(n, one, one.timing) for n, one in enumerate(samples) if one.timing and len(one.timing.arrivals) > 1]
    longest = sorted(streamed, key=lambda item: -len(item[2].arrivals))[:ROWS]
    return [
        Row(label=one_line(f"{one.check}: {one.prompt}", 80), arrivals=timing.arrivals)
        for _, one, timing in sorted(longest, key=lambda item: item[0])
    ]
