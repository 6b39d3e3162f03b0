"""Judge the corpus and write the tables of docs/lab/detector.md."""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.detector.baselines import BASELINES, tokens
from benchmarks.detector.documents import Document, cache, read

from glm4_deploy.detect import scan
from glm4_deploy.detect.finding import LoopFinding
from glm4_deploy.detect.stream import Stream

# Groups of families, by the damage that they are about.
GROUPS = {
    "exact loops": ("loop-", "engine-greedy", "vllm-random-greedy"),
    "NaN": ("nan-", "engine-nan", "vllm-nan"),
    "whitespace, empty": ("whitespace", "empty"),
    "counters": ("counter-",),
    "near duplicates": ("near-",),
    "salad with logprobs": ("salad-", "engine-sampled", "vllm-random-sampled", "vllm-noise"),
    "runaway": ("runaway", "vllm-missing-eos"),
    "quoted in issues": ("quoted",),
}


@dataclass(slots=True)
class Tally:
    total: int = 0
    flagged: int = 0
    named: int = 0  # flagged with one of the expected verdicts
    sources: set[str] = field(default_factory=set)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson)."""
    if not total:
        return 0.0, 1.0
    z, share = 1.96, hits / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - spread) / (1 + z * z / total)), min(1.0, (middle + spread) / (1 + z * z / total))


def judge(document: Document) -> LoopFinding:
    return scan(
        document.text,
        prompt=document.prompt,
        finish_reason=document.finish_reason,
        token_ids=document.token_ids,
        logprobs=document.logprobs,
    )


def tally(documents: Iterable[Document], flags: Callable[[Document], tuple[bool, bool]]) -> dict[str, Tally]:
    out: dict[str, Tally] = defaultdict(Tally)
    for document in documents:
        row = out[document.family]
        flagged, named = flags(document)
        row.total += 1
        row.flagged += flagged
        row.named += named
        row.sources.add(document.source)
    return dict(out)


def detector_flags(document: Document) -> tuple[bool, bool]:
    found = judge(document)
    return found.degenerate, found.verdict.value in document.expected


def share(hits: int, total: int) -> str:
    low, high = wilson(hits, total)
    return f"{hits}/{total} = {hits / total:.1%} [{low:.1%}, {high:.1%}]" if total else "none"


def latencies(documents: Sequence[Document]) -> list[tuple[str, float, float]]:
    """For loops that begin within the text: (family, tokens from there to the alarm, periods), fed 4 characters at a time.

    A token counts as 4 characters, or 1.5 of Chinese, Japanese and Korean.
    """
    out = []
    for document in documents:
        if document.start is None or document.logprobs or document.token_ids or not document.text:
            continue
        stream, alarm = Stream(prompt=document.prompt), None
        for at in range(0, len(document.text), 4):
            if stream.feed(document.text[at : at + 4]) is not None:
                alarm = at + 4
                break
        if alarm is None or alarm <= document.start:
            continue
        wide = sum(char >= "\u2e80" for char in document.text) > len(document.text) / 3
        length = alarm - document.start
        period = document.period or round(stream.close().period or 1)
        out.append((document.family, length / (1.5 if wide else 4), length / period))
    return out


def report(half: str) -> list[str]:
    """The tables of one half, as Markdown lines."""
    documents = list(read(cache() / f"{half}.jsonl"))
    rows = tally(documents, detector_flags)
    good = {document.family for document in documents if not document.degenerate}
    lines = [f"### {half.title()}: {len(documents)} documents, {len(rows)} families", ""]
    false = sum(rows[name].flagged for name in good)
    lines += [f"False alarms in legitimate families: {share(false, sum(rows[name].total for name in good))}", ""]
    lines += ["| legitimate family | documents | false alarms | source |", "|---|---|---|---|"]
    lines += [f"| {n} | {rows[n].total} | {rows[n].flagged} | {', '.join(rows[n].sources)} |" for n in sorted(good)]
    lines += ["", "| degenerate family | recall | named as expected | source |", "|---|---|---|---|"]
    for name in sorted(set(rows) - good):
        row = rows[name]
        sources = sorted(row.sources)
        source = sources[0] if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more"
        lines.append(f"| {name} | {share(row.flagged, row.total)} | {row.named}/{row.total} | {source} |")
    lines += ["", *_groups(rows), "", *_latency(documents)]
    if half != "development":
        lines += ["", *_baselines(documents, rows, good)]
    return [*lines, ""]


def _is_of(family: str, starts: tuple[str, ...]) -> bool:
    return family.removeprefix("late-").startswith(starts)


def _groups(rows: dict[str, Tally]) -> list[str]:
    lines = ["| kind | recall |", "|---|---|"]
    for group, starts in GROUPS.items():
        chosen = [row for name, row in rows.items() if _is_of(name, starts)]
        if chosen:
            lines.append(f"| {group} | {share(sum(r.flagged for r in chosen), sum(r.total for r in chosen))} |")
    return lines


def _latency(documents: Sequence[Document]) -> list[str]:
    found = latencies(documents)
    by_kind: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for family, tokens_, periods in found:
        kind = next((group for group, starts in GROUPS.items() if _is_of(family, starts)), "other")
        by_kind[kind].append((tokens_, periods))
    lines = ["| kind | alarms in a stream | median tokens | median periods | within max(64 tokens, 4 periods) |"]
    lines += ["|---|---|---|---|---|"]
    for kind, pairs in by_kind.items():
        within = sum(tokens_ <= 64 or periods <= 4 for tokens_, periods in pairs)
        middle = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
        lines.append(f"| {kind} | {len(pairs)} | {middle[0]:.0f} | {middle[1]:.1f} | {within / len(pairs):.0%} |")
    return lines


def _baselines(documents: Sequence[Document], rows: dict[str, Tally], good: set[str]) -> list[str]:
    """One row for each rule: false alarms and recall with their intervals, then recall by kind."""
    kinds = [group for group, starts in GROUPS.items() if any(_is_of(name, starts) for name in rows)]
    lines = [f"| rule | source | false alarms | recall | {' | '.join(kinds)} |", "|---" * (4 + len(kinds)) + "|"]
    tallies = {"this detector": (rows, "")}
    for name, baseline in BASELINES.items():
        print(f"baseline {name}", file=sys.stderr)
        found = tally(documents, lambda document, rule=baseline.rule: (rule(document), False))  # type: ignore[misc]
        tallies[name] = found, baseline.source
    for name, (found, source) in tallies.items():
        cells = [
            _interval([row for family, row in found.items() if (family in good) is fine]) for fine in (True, False)
        ]
        cells += [_percent([r for family, r in found.items() if _is_of(family, GROUPS[kind])]) for kind in kinds]
        lines.append(f"| {name} | {source} | {' | '.join(cells)} |")
    return lines


def _interval(rows: Sequence[Tally]) -> str:
    hits, total = sum(row.flagged for row in rows), sum(row.total for row in rows)
    low, high = wilson(hits, total)
    return f"{hits / max(total, 1):.1%} [{low:.1%}, {high:.1%}]"


def _percent(rows: Sequence[Tally]) -> str:
    return f"{sum(row.flagged for row in rows) / max(sum(row.total for row in rows), 1):.1%}"


def write_report(lines: Sequence[str], document: Path, command: str) -> None:
    """Replace the tables between the marks of this command in the document."""
    begin, end = f"<!-- begin: {command} -->", "<!-- end -->"
    head, rest = document.read_text(encoding="utf-8").split(begin)
    tail = rest.split(end, 1)[1]
    document.write_text(f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{tail}", encoding="utf-8")


__all__ = ["report", "tokens", "write_report"]
