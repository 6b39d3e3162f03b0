"""One self-contained page: verdict, what is proved and what is not, answers with the loop marked, plots, the engine.

Prompts and answers are untrusted. Jinja2 escapes every value, and the page forbids itself scripts and requests of any
kind (Content-Security-Policy), so that neither depends on the other alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from glm4_deploy.report.plots import SERIES, Row, Series, distribution, spans, timeline
from glm4_deploy.report_model import AnswerSample, DeploymentNotes, SuiteReport, percentile
from glm4_deploy.result import Result, Status
from glm4_deploy.text import cap, clean_text, one_line

SHOWN = 60  # samples on the page
PROMPT = 2000  # characters
ANSWER = 6000
ROWS = 24  # streams of the timeline
CLAIM = 240
EXCERPT = 700  # characters of a looping answer at the top of the page
WORST_FIRST = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK, Status.SKIPPED)
SENTENCES = {
    Status.OK: "No failure was seen in what was asked",
    Status.WARN: "It passes, with warnings",
    Status.FAIL: "Do not use this engine",
    Status.UNKNOWN: "Not proved: something could not be judged",
    Status.SKIPPED: "Nothing was judged",
}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a check proves, or would have proved, and what came of it."""

    check: str
    status: Status
    proves: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One fact at a glance."""

    name: str
    value: str
    note: str = ""
    status: Status = Status.SKIPPED


def to_html(report: SuiteReport) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    samples = _choose(report.samples)
    series = _series(report.samples)
    rows = _rows(report.samples)
    tally = {status: sum(row.status is status for row in report.results) for status in WORST_FIRST}
    proved, missing, outside = _claims(report)
    notes = report.deployment
    return template.render(
        report=report,
        sentence=SENTENCES[report.verdict],
        counts=[(status, count) for status, count in tally.items() if count],
        wrong=[row for status in WORST_FIRST[:3] for row in report.results if row.status is status],
        looping=_clearest(samples),
        proved=proved,
        missing=missing,
        outside=outside,
        tiles=_tiles(report),
        one_line=one_line,
        evidence=_evidence,
        samples=[show(sample) for sample in samples],
        hidden=len(report.samples) - len(samples),
        labels=[label for label, _ in series],
        ttft=distribution([one for _, (one, _) in series], "ms", "TTFT: share of answers within a time"),
        tpot=distribution([one for _, (_, one) in series], "ms", "TPOT: share of answers within a time"),
        timeline=timeline(rows, "When each token came"),
        rows=rows,
        phases=spans(_phases(notes), "Where the time of the start went") if notes else "",
        releases=notes.releases if notes else (),
        planned=notes.planned if notes else (),
        certificate=notes.certificate if notes else (),
    )


def _claims(report: SuiteReport) -> tuple[list[Claim], list[Claim], list[Claim]]:
    """What the run proved; what it disproved or could not judge, the worst first; what it did not ask."""
    meaning = {one.name: one.value for one in report.proves}
    proved: list[Claim] = []
    missing: list[Claim] = []
    for row in report.results:
        name = row.check.rpartition("/")[2]
        claim = Claim(
            check=one_line(row.check, 80),
            status=row.status,
            proves=one_line(meaning.get(name, row.expected or name), CLAIM),
            why=one_line(row.observed or row.reason, CLAIM),
        )
        (proved if row.status.passed else missing).append(claim)
    missing.sort(key=lambda one: WORST_FIRST.index(one.status))
    asked = {row.check.rpartition("/")[2] for row in report.results}
    outside = [
        Claim(check=one_line(name, 80), status=Status.SKIPPED, proves=one_line(text, CLAIM))
        for name, text in meaning.items()
        if name not in asked
    ]
    return proved, missing, outside


def _tiles(report: SuiteReport) -> list[Tile]:
    notes, known = report.deployment, {fact.name: fact.value for fact in report.engine}
    tiles = []
    if notes is not None and notes.kernel:
        name, _, note = notes.kernel.partition(" (")
        status = {True: Status.OK, False: Status.WARN, None: Status.UNKNOWN}[notes.native_fp4]
        tiles.append(
            Tile(name="NVFP4 kernel", value=one_line(name, 60), note=one_line(note.rstrip(")")), status=status)
        )
    if known.get("vLLM", "unknown") != "unknown":
        length = known.get("context length", "unknown")
        note = f"context {length}" if length != "unknown" else ""
        tiles.append(Tile(name="vLLM", value=one_line(known["vLLM"], 40), note=one_line(note, 60)))
    this = next((one for one in notes.releases if one.this), None) if notes else None
    if this is not None and this.ready_seconds is not None:
        gate = f"gated in {this.gate_seconds:.1f} s more" if this.gate_seconds is not None else ""
        tiles.append(Tile(name="ready after", value=f"{this.ready_seconds:.0f} s", note=gate))
    timings = [one.timing for one in report.samples if one.timing is not None]
    ttft = [one.ttft * 1000 for one in timings if one.ttft is not None]
    tpot = [one.tpot * 1000 for one in timings if one.tpot is not None]
    for name, values, note in (("TTFT", ttft, "time to first token"), ("TPOT", tpot, "time per output token")):
        p50, p95 = percentile(values, 0.5), percentile(values, 0.95)
        if p50 is not None and p95 is not None:
            tiles.append(Tile(name=name, value=f"{p50:.1f} ms", note=f"p95 {p95:.1f} ms; {note}"))
    return tiles


def _clearest(samples: Sequence[AnswerSample]) -> Shown | None:
    """The looping answer with the most copies in a row, as an excerpt."""
    loops = [(one.finding.repeats or 0.0, one) for one in samples if one.finding is not None and one.finding.degenerate]
    return show(max(loops, key=lambda pair: pair[0])[1], EXCERPT) if loops else None


def _phases(notes: DeploymentNotes) -> list[tuple[str, float, float]]:
    """(name, begin, end) of each phase of the start; the last ends where the engine was ready."""
    steps = sorted(notes.phases, key=lambda one: one.value)
    this = next((one.ready_seconds for one in notes.releases if one.this), None)
    ends = [*(one.value for one in steps[1:]), max(this or 0.0, steps[-1].value)] if steps else []
    rows = [(one_line(one.name, 14), one.value, end) for one, end in zip(steps, ends, strict=True)]
    return [row for row in rows if row[2] - row[1] >= 0.05]


def _looping(sample: AnswerSample) -> bool:
    return sample.finding is not None and sample.finding.degenerate


def show(sample: AnswerSample, limit: int = ANSWER) -> Shown:
    """Cleaned, capped at `limit` characters of the answer, and cut where the loop starts."""
    timing = sample.timing
    facts = [sample.finish_reason or "no finish_reason"]
    if timing is not None:
        facts += [f"{timing.tokens} tokens"] if timing.tokens is not None else []
        facts += [f"TTFT {timing.ttft * 1000:.0f} ms"] if timing.ttft is not None else []
        facts += [f"TPOT {timing.tpot * 1000:.1f} ms"] if timing.tpot is not None else []
        facts.append(f"{timing.total:.2f} s")
    bad = _looping(sample)
    why = f"{sample.finding.verdict}: {sample.finding.why}" if sample.finding is not None and bad else ""
    return Shown(
        check=one_line(sample.check, 80),
        gist=one_line(sample.prompt.rpartition("\n")[2], 90),
        prompt=cap(sample.prompt, PROMPT),
        parts=_parts(sample, limit),
        facts=one_line(", ".join(facts)),
        bad=bad,
        why=one_line(why),
    )


def _parts(sample: AnswerSample, limit: int) -> tuple[PagePart, ...]:
    text, finding = sample.answer, sample.finding
    if finding is None or not finding.degenerate or finding.start is None:
        return (PagePart(text=cap(text, limit)),)
    start, end = finding.start, finding.start + (finding.period or 0)
    # What came before the loop is shown from its end: the turn into the loop is what a reader looks for.
    before = text[max(0, start - limit // 2) : start]
    return (
        PagePart(text=("… " if start > limit // 2 else "") + clean_text(before)),
        PagePart(text=cap(text[start:end], limit // 4), mark="unit"),
        PagePart(text=cap(text[end:], limit // 2), mark="loop"),
    )


def _evidence(result: Result) -> list[tuple[str, str]]:
    return [(one_line(piece.name), cap(piece.text, ANSWER // 2)) for piece in result.evidence]


def _choose(samples: Sequence[AnswerSample]) -> list[AnswerSample]:
    """Degenerate samples first, then at most three per check, in the order in which they were sent."""
    taken: dict[str, int] = defaultdict(int)
    kept: list[AnswerSample] = []
    for sample in sorted(samples, key=lambda one: not _looping(one)):
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
    longest = sorted(streamed, key=lambda item: (not _looping(item[1]), -len(item[2].arrivals)))[:ROWS]
    rows = []
    for _, one, timing in sorted(longest, key=lambda item: item[0]):
        loops = one.finding is not None and one.finding.degenerate and one.finding.start is not None
        rows.append(
            Row(
                label=one_line(f"{one.check}: {one.prompt}", 80),
                arrivals=timing.arrivals,
                loop_at=timing.arrival_of(one.finding.start or 0) if loops and one.finding else None,
            )
        )
    return rows
