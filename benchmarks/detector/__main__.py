"""Builds the corpus (once), judges it, measures, and writes the tables of docs/lab/detector.md.

python -m benchmarks.detector                all of it
python -m benchmarks.detector --rebuild      with the corpus built again
python -m benchmarks.detector judge          without the cost, which wants a quiet machine
python -m benchmarks.detector development    only that half, to the terminal; use it while changing thresholds
"""

import sys
from pathlib import Path

from benchmarks.detector import speed
from benchmarks.detector.build import build
from benchmarks.detector.documents import cache
from benchmarks.detector.evaluate import report, write_report

DOCUMENT = Path(__file__).parents[2] / "docs/lab/detector.md"


def main(arguments: list[str]) -> None:
    if "--rebuild" in arguments or not (cache() / "test.jsonl").exists():
        build()
    if "development" in arguments:
        print("\n".join(report("development")))
        return
    skipped = (cache() / "skipped.txt").read_text(encoding="utf-8").splitlines()
    lines = [*report("development"), *report("test"), *report("confirmation")]
    lines.append("Skipped because a source is missing: " + ("; ".join(skipped) or "none") + ".")
    write_report(lines, DOCUMENT, "python -m benchmarks.detector judge")
    print("\n".join(lines))
    if "judge" not in arguments:
        lines = speed.lines()
        write_report(lines, DOCUMENT, "python -m benchmarks.detector.speed")
        print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
