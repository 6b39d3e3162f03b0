"""How soon a stream raises an alarm: exact loops cut at random, and the counters and near duplicates of the corpus.

    python -m benchmarks.detector.latency             seed 1, with the late ones
    python -m benchmarks.detector.latency --seed 7    other loops and other texts of the corpus, as counts only

Needs the corpus (python -m benchmarks.detector). Texts arrive 4 characters at a time, Chinese ones 2 at a time. A token
counts as 4 characters, or 1.5 ideographs (and the like): mixed text has both. In time means: an exact loop within max(64 tokens, 4
periods), a counter or a near duplicate within max(160 tokens, 8 periods) of where it begins.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.detector.documents import Document, cache, read
from benchmarks.detector.evaluate import share
from benchmarks.detector.speed import CHARS_PER_TOKEN, CHINESE_CHARS_PER_TOKEN, FAMILIES

from glm4_deploy.detect.stream import Stream

SEEN = 1
EXACT = 90  # loops of each kind of text
SHORTEST, LONGEST = 3, 400  # tokens of their units
BEFORE = 400  # characters of good text before a loop
GRADUAL = ("counter-", "near-")
BARE = "counter-numbers"  # reported late on purpose
EVERY = 3  # of the corpus, one text in so many


@dataclass(frozen=True, slots=True)
class Case:
    """A text that becomes degenerate at character `start`."""

    kind: str
    text: str
    prompt: str | None
    start: int
    period: int | None
    tokens: int
    periods: int

    @property
    def token(self) -> float:
        """Characters of a token of what repeats, each ideograph (and the like) counted as one."""
        unit = self.text[self.start :][: self.period or 200]
        wide = sum(char >= "\u2e80" for char in unit)
        return len(unit) / (wide / CHINESE_CHARS_PER_TOKEN + (len(unit) - wide) / CHARS_PER_TOKEN)


def exact(kind: str, rng: random.Random) -> Iterator[Case]:
    """Loops whose unit was cut from good text, anywhere."""
    rows = [row for half in ("development", "test") for row in read(cache() / f"{half}.jsonl")]
    texts = [row.text for row in rows if row.family in FAMILIES[kind] and len(row.text) >= 2 * BEFORE]
    token, made = CHINESE_CHARS_PER_TOKEN if kind == "Chinese" else CHARS_PER_TOKEN, 0
    while made < EXACT:
        size = round(SHORTEST * (LONGEST / SHORTEST) ** rng.random() * token)
        before, text = rng.choice(texts)[:BEFORE], rng.choice(texts)
        at = rng.randrange(max(len(text) - size, 1))
        unit = text[at : at + size]
        # Rules and rows of numbers are reported late on purpose.
        if len(unit) == size and sum(map(str.isalpha, unit)) >= 0.4 * size and not before.endswith(unit[-8:]):
            copies = max(12, 400 // size)
            yield Case(f"exact loops: {kind}", before + unit * copies, None, len(before), size, 64, 4)
            made += 1


def gradual(rng: random.Random) -> Iterator[Case]:
    """Counters and near duplicates of the corpus that go on for long enough."""
    for half in ("development", "test", "confirmation"):
        rows = [row for row in read(cache() / f"{half}.jsonl") if row.family.removeprefix("late-").startswith(GRADUAL)]
        for row in rng.sample(rows, len(rows) // EVERY):
            if row.start is not None:
                case = Case(row.family, row.text, row.prompt, row.start, row.period or _period(row), 160, 8)
                if len(row.text) - row.start >= _limit(case) + 16 * case.token:
                    yield case


def _period(row: Document) -> int | None:
    stream = Stream(prompt=row.prompt)
    stream.feed(row.text)
    return stream.close(row.finish_reason).period


def _limit(case: Case) -> float:
    return max(case.tokens * case.token, case.periods * (case.period or 1))


def alarm(case: Case) -> int | None:
    """Characters from where it begins to the first alarm."""
    stream, step = Stream(prompt=case.prompt), 2 if case.token < CHARS_PER_TOKEN else CHARS_PER_TOKEN
    for at in range(0, len(case.text), step):
        if stream.feed(case.text[at : at + step]) is not None and at >= case.start:
            return min(at + step, len(case.text)) - case.start
    return None


def report(seed: int) -> list[str]:
    """The table, as Markdown lines; with the late ones, unless they are to stay unread."""
    rng = random.Random(seed)
    in_time, raised, total, late = Counter[str](), Counter[str](), Counter[str](), list[str]()
    cases = [case for kind in FAMILIES for case in exact(kind, rng)] + list(gradual(rng))
    for case in cases:
        taken = alarm(case)
        total[case.kind] += 1
        raised[case.kind] += taken is not None
        in_time[case.kind] += (ok := taken is not None and taken <= _limit(case) + case.token)
        if not ok:
            shown = "never" if taken is None else f"{taken / case.token:.0f} tokens"
            unit = case.text[case.start :][: min(case.period or 80, 80)]
            late.append(f"{case.kind}, period {(case.period or 0) / case.token:.0f} tokens: {shown}: {unit!r}")
    lines = [f"Seed {seed}.", "", "| kind | alarms | in time |", "|---|---|---|"]
    lines += [f"| {kind} | {raised[kind]} of {total[kind]} | {share(in_time[kind], total[kind])} |" for kind in total]
    kinds = [kind for kind in total if not kind.startswith("exact") and kind != BARE]
    together = share(sum(in_time[kind] for kind in kinds), sum(total[kind] for kind in kinds))
    lines += ["", f"Counters and near duplicates together, without bare numbers: {together}."]
    return [*lines, "", *late] if seed == SEEN else lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEEN, help="which loops and texts")
    print("\n".join(report(parser.parse_args().seed)))
