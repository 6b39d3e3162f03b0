"""Build the corpus in the cache: every family, split into development, test and confirmation."""

import os
import random
import shutil
import subprocess
import sys
from zlib import crc32

from benchmarks.detector import held, late, legit_made, legit_real, quoted, sick_engine, sick_made, songs  # noqa: F401 - they register families
from benchmarks.detector.documents import DEGENERATE, LEGITIMATE, Document, Maker, MissingError, cache, is_test, write
from benchmarks.detector.legit_real import PACKAGES


def build(*, install: bool = True) -> list[str]:
    """Write one file for each half to the cache. Returns the families that were skipped, with the reason."""
    if install:
        install_packages()
    skipped: list[str] = []
    halves: dict[str, list[Document]] = {"development": [], "test": [], "confirmation": []}
    for families in (LEGITIMATE, DEGENERATE):
        early = [name for name in families if not name.startswith("late-")]
        for name, maker in families.items():
            half = "confirmation" if name not in early else "test" if is_test(name, early) else "development"
            try:
                halves[half] += _make(name, maker)
            except MissingError as error:
                skipped.append(f"{name}: {error} is not on this machine")
    for half, documents in halves.items():
        print(f"{half}: {write(cache() / f'{half}.jsonl', documents)} documents", file=sys.stderr)
    (cache() / "skipped.txt").write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
    return skipped


def _make(name: str, maker: Maker) -> list[Document]:
    return list(maker(random.Random(crc32(name.encode()))))


def install_packages() -> None:
    """Install the Debian packages with the texts, as root; families whose package is missing are skipped."""
    dpkg = shutil.which("dpkg-query")
    if not dpkg or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    found = subprocess.run([dpkg, "-W", "-f", "${Package}\n"], capture_output=True, text=True, check=True)
    wanted = sorted(set(PACKAGES) - set(found.stdout.split()))
    if not wanted:
        return
    print(f"installing {' '.join(wanted)}", file=sys.stderr)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=False, env=quiet, stdout=sys.stderr)
    for package in wanted:
        subprocess.run(["apt-get", "install", "-y", "-qq", package], check=False, env=quiet, stdout=sys.stderr)
