"""The detector on wild text: shapes from public threads, and good texts that look like them.

    python -m benchmarks.detector.wild               the development half: recall, false alarms, families missed
    python -m benchmarks.detector.wild --kept        the half that nobody reads while rules are changed
    python -m benchmarks.detector.wild --rules       other systems' rules on the same rows too
    python -m benchmarks.detector.wild --show NAME   the ends of this family's texts

Kinds and families are split by a checksum of their names, so a kind is wholly in one half. A family whose source is
not on this machine is skipped and named.
"""

import argparse
import random
import sys
from collections.abc import Collection, Iterator, Sequence
from zlib import crc32

from benchmarks.detector import lookalikes, threads, threads_rows  # noqa: F401 - it registers kinds
from benchmarks.detector.baselines import BASELINES
from benchmarks.detector.documents import Document, MissingError, frame, is_test
from benchmarks.detector.evaluate import detector_flags, share, tally

from glm4_deploy.detect import Stream, scan


def documents(half: str) -> Iterator[Document]:
    """The rows of `development` or `kept`."""
    for name in _of(half, threads.KINDS):
        thread, make = threads.KINDS[name]
        for row in _rows(name, make):
            yield Document(family=name, text=row.text, expected=("DEGENERATE",), source=thread, prompt=row.prompt,
                           finish_reason=row.finish_reason, start=row.start, period=row.period)  # fmt: skip
    for name in _of(half, lookalikes.FAMILIES):
        source, make_good = lookalikes.FAMILIES[name]
        rng = random.Random(crc32(f"frame {name}".encode()))
        yield from (frame(name, source, text, rng) for text in _rows(name, make_good))


def _of(half: str, names: Collection[str]) -> list[str]:
    return sorted(name for name in names if is_test(name, names) is (half == "kept"))


def _rows(name, make):  # type: ignore[no-untyped-def]
    try:
        return list(make(random.Random(crc32(name.encode()))))
    except (MissingError, OSError) as error:
        print(f"skipped {name}: {error} is not on this machine", file=sys.stderr)
        return []


def alarms(document: Document) -> bool:
    """Whether a stream raises an alarm, be it a provisional one."""
    stream = Stream(prompt=document.prompt)
    return any(stream.feed(document.text[at : at + 4]) is not None for at in range(0, len(document.text), 4))


def report(rows: Sequence[Document]) -> list[str]:
    """The tables, as Markdown lines."""
    full = tally(rows, detector_flags)
    blind = tally(rows, lambda row: (scan(row.text).degenerate, False))
    streamed = tally(rows, lambda row: (alarms(row), False))
    good = {row.family for row in rows if not row.degenerate}
    lines = ["| family | flagged | text alone | in a stream | source |", "|---|---|---|---|---|"]
    for name in sorted(full, key=lambda name: (name in good, name)):
        if name not in good or full[name].flagged or blind[name].flagged:
            counts = f"{full[name].flagged}/{full[name].total} | {blind[name].flagged} | {streamed[name].flagged}"
            lines.append(f"| {name} | {counts} | {', '.join(full[name].sources)} |")
    for title, families in (("recall", set(full) - good), ("false alarms", good)):
        total = sum(full[name].total for name in families)
        sums = [sum(found[name].flagged for name in families) for found in (full, blind, streamed)]
        lines += ["", f"{title}: {share(sums[0], total)}; text alone {share(sums[1], total)}; in a stream {sums[2]}; "
                  f"{len(families)} families"]  # fmt: skip
    return lines


def rules(rows: Sequence[Document]) -> list[str]:
    """What other systems' rules say of the same rows."""
    lines = ["", "| rule | recall | false alarms |", "|---|---|---|"]
    for name, baseline in BASELINES.items():
        hits = [(row.degenerate, baseline.rule(row)) for row in rows]
        sick, fine = ([hit for is_sick, hit in hits if is_sick is wanted] for wanted in (True, False))
        lines.append(f"| {name} | {share(sum(sick), len(sick))} | {share(sum(fine), len(fine))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", action="store_true", help="the half that is kept")
    parser.add_argument("--rules", action="store_true", help="other systems' rules too (minutes)")
    parser.add_argument("--show", metavar="FAMILY", help="only the ends of this family's texts, with their verdicts")
    options = parser.parse_args()
    rows = list(documents("kept" if options.kept else "development"))
    if options.show:
        for row in rows:
            if row.family == options.show:
                found = scan(row.text, prompt=row.prompt, finish_reason=row.finish_reason)
                print(f"{found.verdict} ({found.why}); {row.finish_reason}; {row.prompt!r}: …{row.text[-300:]!r}\n")
        return
    print("\n".join([*report(rows), *(rules(rows) if options.rules else [])]))


if __name__ == "__main__":
    main()
