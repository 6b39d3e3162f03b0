"""Build the corpus (once), judge it, measure the detector, and write the tables of docs/lab/detector.md.

    python -m benchmarks.detector                everything
    python -m benchmarks.detector --rebuild      with the corpus built again
    python -m benchmarks.detector judge          without the speed, which needs an idle machine
    python -m benchmarks.detector development    that half only, to the terminal; for use while changing thresholds

Building the corpus installs Debian packages of texts (as root, where there is apt-get).
"""

import argparse
from pathlib import Path

from benchmarks.detector import speed
from benchmarks.detector.build import build
from benchmarks.detector.documents import cache
from benchmarks.detector.evaluate import report, write_report

DOCUMENT = Path(__file__).parents[2] / "docs/lab/detector.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("judge", "development"), help="only a part of it")
    parser.add_argument("--rebuild", action="store_true", help="build the corpus even if it exists")
    options = parser.parse_args()
    if options.rebuild or not (cache() / "test.jsonl").exists():
        build()
    if options.part == "development":
        print("\n".join(report("development")))
        return
    skipped = (cache() / "skipped.txt").read_text(encoding="utf-8").splitlines()
    lines = [*report("development"), *report("test"), *report("confirmation")]
    lines.append("Skipped because a source is missing: " + ("; ".join(skipped) or "none") + ".")
    write_report(lines, DOCUMENT, "python -m benchmarks.detector judge")
    print("\n".join(lines))
    if options.part != "judge":
        lines = speed.lines()
        write_report(lines, DOCUMENT, "python -m benchmarks.detector.speed")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
