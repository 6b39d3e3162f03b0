"""One self-contained page: verdicts, what was said with the loop marked, plots, the engine's facts.

Prompts and answers are untrusted. Jinja2 escapes every value, and the page forbids itself scripts and requests of any
kind (Content-Security-Policy), so that neither depends on the other alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from glm4_deploy.report_model import AnswerSample, SuiteReport
from glm4_deploy.result import Result, Status
from glm4_deploy.text import cap, clean_text, one_line

# Plots as inline SVG without script, image or outside font, in the page's own colours (light, dark and print).
# Drawn by hand on purpose: pygal embeds a script and makes the timeline of 24 streams 2.4 MB where this makes 0.14 MB;
# leather makes six times as much and has fixed colours, so no dark mode.

WIDTH = 640
LEFT = 54
RIGHT = 30
TOP = 14
BOTTOM = 40
SERIES = 4  # as many colours as the page has (--s0 to --s3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve: its label and its values, in milliseconds."""

    label: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One stream of the timeline: its label and when its tokens came, in seconds after it was sent."""

    label: str
    arrivals: tuple[float, ...]


def distribution(series: Sequence[Series], unit: str, title: str) -> str:
    """The share of answers (y) within a time (x, from 0): one step curve per series, lines at p50 and p95."""
    height = 260
    shown = [one for one in series if one.values][:SERIES]
    if not shown:
        return ""
    top = nice_ceiling(max(max(one.values) for one in shown))
    parts = [_frame(height, top, unit), *_shares(height)]
    for place, one in enumerate(shown):
        parts.append(_steps(sorted(one.values), top, height, place))
    return _svg(height, title, parts)


def timeline(rows: Sequence[Row], title: str) -> str:
    """One row per stream, one tick per token, a dot at the first: a reader notices the gaps."""
    pitch = 15
    height = TOP + BOTTOM + pitch * len(rows)
    if not rows:
        return ""
    top = nice_ceiling(max(row.arrivals[-1] for row in rows))
    parts = [_frame(height, top, "s after it was sent")]
    for place, row in enumerate(rows):
        y = TOP + pitch * place + pitch / 2
        xs = [_x(at, top) for at in row.arrivals]
        ticks = "".join(f"M{x:.1f} {y - 4:.1f}v8" for x in _thin(xs))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{xs[0]:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<path class="tick" d="{ticks}"/>')
        parts.append(
            f'<circle class="first" cx="{xs[0]:.1f}" cy="{y:.1f}" r="3"><title>{escape(row.label)}</title></circle>'
        )
        parts.append(f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{place + 1}</text>')
    return _svg(height, title, parts)


def nice_ceiling(value: float) -> float:
    """The next of ten round numbers times a power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power > value:
        power /= 10
    while power * 10 <= value:
        power *= 10
    return next(power * step for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if power * step >= value)


def _x(value: float, top: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(value / top, 1.0)


def _frame(height: int, top: float, unit: str) -> str:
    """The x axis with five labels."""
    base = height - BOTTOM
    parts = [f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    for step in range(5):
        value = top * step / 4
        x = _x(value, top)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{escape(unit)}</text>')
    return "".join(parts)


def _shares(height: int) -> list[str]:
    span = height - TOP - BOTTOM
    parts = []
    for share in (0.0, 0.5, 0.95, 1.0):
        y = TOP + span * (1 - share)
        if share in {0.5, 0.95}:
            parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if share != 1.0:
            words = {0.0: "0", 0.5: "p50", 0.95: "p95"}[share]
            parts.append(f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    return parts


def _steps(ordered: list[float], top: float, height: int, place: int) -> str:
    span = height - TOP - BOTTOM
    path = [f"M{_x(ordered[0], top):.1f} {TOP + span}"]
    for rank, value in enumerate(ordered, start=1):
        path.append(f"H{_x(value, top):.1f}V{TOP + span * (1 - rank / len(ordered)):.1f}")
    path.append(f"H{WIDTH - RIGHT}")
    return f'<path class="curve s{place}" d="{"".join(path)}"/>'


def _thin(xs: list[float]) -> list[float]:
    """Ticks at least half a pixel apart: more would only fill the file."""
    kept: list[float] = []
    for x in xs:
        if not kept or x - kept[-1] >= 0.5:
            kept.append(x)
    return kept


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"


SHOWN = 60  # samples on the page
PROMPT = 2000  # characters
ANSWER = 6000
ROWS = 24  # streams of the timeline
WORST_FIRST = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK, Status.SKIPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePart:
    """A stretch of an answer; `mark` is "", "unit" (the first copy of what repeats) or "loop" (what follows)."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A sample as the page shows it: all text cleaned and capped."""

    check: str
    gist: str
    prompt: str
    parts: tuple[PagePart, ...]
    facts: str
    bad: bool
    why: str


def to_html(report: SuiteReport) -> str:
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


def show(sample: AnswerSample) -> Shown:
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


def _parts(sample: AnswerSample) -> tuple[PagePart, ...]:
    text, finding = sample.answer, sample.finding
    if finding is None or not finding.degenerate or finding.start is None:
        return (PagePart(text=cap(text, ANSWER)),)
    start, end = finding.start, finding.start + (finding.period or 0)
    # What came before the loop is shown from its end: the turn into the loop is what a reader looks for.
    before = text[max(0, start - ANSWER // 2) : start]
    return (
        PagePart(text=("… " if start > ANSWER // 2 else "") + clean_text(before)),
        PagePart(text=cap(text[start:end], ANSWER // 4), mark="unit"),
        PagePart(text=cap(text[end:], ANSWER // 2), mark="loop"),
    )


def _evidence(result: Result) -> list[tuple[str, str]]:
    return [(one_line(piece.name), cap(piece.text, ANSWER // 2)) for piece in result.evidence]


def _choose(samples: Sequence[AnswerSample]) -> list[AnswerSample]:
    """Degenerate samples first, then at most three per check, in the order in which they were sent."""
    taken: dict[str, int] = defaultdict(int)
    kept: list[AnswerSample] = []
    for sample in sorted(samples, key=lambda one: not (one.finding is not None and one.finding.degenerate)):
        taken[sample.check] += 1
        if len(kept) < SHOWN and taken[sample.check] <= 3:
            kept.append(sample)
    return kept


def _series(samples: Sequence[AnswerSample]) -> list[tuple[str, tuple[Series, Series]]]:
    """TTFT and TPOT by check, the checks with the most streams first."""
    by_check: dict[str, list[AnswerSample]] = defaultdict(list)
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


def _rows(samples: Sequence[AnswerSample]) -> list[Row]:
    """The streams with the most tokens, in the order in which they were asked."""
    streamed = [(n, one, one.timing) for n, one in enumerate(samples) if one.timing and len(one.timing.arrivals) > 1]
    longest = sorted(streamed, key=lambda item: -len(item[2].arrivals))[:ROWS]
    return [
        Row(label=one_line(f"{one.check}: {one.prompt}", 80), arrivals=timing.arrivals)
        for _, one, timing in sorted(longest, key=lambda item: item[0])
    ]
