"""Count the background model of `glm4_deploy.detect.order`: which kinds of words stand side by side in real text.

    python -m benchmarks.detector.order             order.bin
    python -m benchmarks.detector.order --chinese   chinese.bin: jieba's dictionary (MIT), from PyPI

Texts: LibreOffice's help in 19 languages (Debian's libreoffice-help-*, MPL-2.0), Python's documentation and standard
library (PSF-2.0). What is counted are pairs of kinds of words, hashed; no text can be recovered. Healthy pairs are
neighbours. Pairs by chance are those of the same document in a random order, and, a tenth of them, of all documents
together, so that a change of language within a sentence counts as chance too.
"""

import argparse
import glob
import html
import random
import re
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from benchmarks.detector.documents import cache
from benchmarks.detector.legit_real import STDLIB, read
from numpy.typing import NDArray

from glm4_deploy.detect import order
from glm4_deploy.detect.order import STEPS, UNIT, kind_of, slot_of

LANGUAGES = "cs de en-us es fr hu id it ja ko nl pl pt-br ru sv tr vi zh-cn zh-tw".split()  # noqa: SIM905
SLOTS = 1 << 18
EACH = 2_500_000  # characters of a language
SHUFFLES = 2
ABROAD = 0.1  # share of pairs across all documents in what chance is
CHINESE_PAIRS = 30_000
RARE = 2.0  # pairs added to both counts, so that a pair seen once says little

Ids = NDArray[np.int64]
_HIGH = 1 << 24  # a pair is one integer: the first kind times this, plus the second


def help_pages() -> dict[str, list[str]]:
    """LibreOffice's help, by language, without lines that occurred before or are not translated."""
    root = cache() / "libreoffice-help"
    root.mkdir(exist_ok=True)
    for language in LANGUAGES:
        if not list(root.glob(f"libreoffice-help-{language}_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", f"libreoffice-help-{language}"], check=True, cwd=root)
            (package,) = root.glob(f"libreoffice-help-{language}_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    tops = sorted(
        (root / "usr/share/libreoffice/help").glob("*/text"), key=lambda top: (top.parent.name != "en-US", top)
    )
    english: set[str] = set()
    out = {}
    for top in tops:
        seen = set(english)
        out[top.parent.name] = [text for path in sorted(top.rglob("*.html")) if len(text := _page(path, seen)) > 150]
        english = english or seen
    return out


def _page(path: Path, seen: set[str]) -> str:
    page = re.sub(r"<(script|style|head)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    page = html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"</(?:p|h\d|li|td|div|tr)>", "\n", page)))
    lines = [line for raw in page.split("\n") if (line := raw.strip()) and "xhp" not in line and line not in seen]
    seen.update(lines)
    return "\n".join(lines)


def python_texts() -> dict[str, list[str]]:
    """Python's documentation and standard library, without its tests."""
    code = sorted(glob.glob(f"{STDLIB}/*.py") + glob.glob(f"{STDLIB}/[a-su-z]*/*.py"))
    pages = sorted(glob.glob("/usr/share/doc/python3*/html/_sources/**/*.txt", recursive=True))
    return {name: [read(path)[:60_000] for path in paths] for name, paths in (("code", code), ("pages", pages))}


def count(texts: dict[str, list[str]]) -> NDArray[np.int8]:
    """The model: for each slot, the logarithm of real pairs divided by pairs by chance."""
    ids: dict[str, int] = {}
    documents = [row for name in sorted(texts) for row in _rows(texts[name], ids)]
    dice = np.random.default_rng(1)
    real, by_chance = [_pairs(row) for row in documents], []
    for row in documents:
        by_chance += [_pairs(dice.permutation(row)) for _ in range(SHUFFLES)]
    abroad = _pairs(dice.choice(np.concatenate(documents), size=4_000_000))
    names = list(ids)
    near = _slots(np.concatenate(real), names)
    chance = _slots(np.concatenate(by_chance), names) / SHUFFLES
    chance += ABROAD * _slots(abroad, names) * near.sum() / len(abroad)
    found = np.round(UNIT * np.log((near + RARE) / (chance + RARE))).clip(-127, 127).astype(np.int8)
    found[near + chance < RARE + 1] = 0
    return found


def _rows(texts: Sequence[str], ids: dict[str, int]) -> Iterator[Ids]:
    shuffled = list(texts)
    random.Random(1).shuffle(shuffled)
    left = EACH
    for text in shuffled:
        row = np.array([ids.setdefault(kind_of(step), len(ids)) for step in STEPS.findall(text)], dtype=np.int64)
        if left > 0 and len(row) > 20:
            left -= len(text)
            yield row


def _pairs(row: Ids) -> Ids:
    return row[:-1] * _HIGH + row[1:]


def _slots(pairs: Ids, names: Sequence[str]) -> NDArray[np.float64]:
    kinds, counts = np.unique(pairs, return_counts=True)
    slots = [slot_of(names[pair // _HIGH], names[pair % _HIGH], SLOTS) for pair in kinds.tolist()]
    return np.bincount(slots, weights=counts, minlength=SLOTS)


def chinese_pairs() -> str:
    """The pairs of ideographs that are the commonest within words, weighed by how often each word is used."""
    root = cache() / "jieba"
    command = ["pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--dest", str(root), "jieba==0.42.1"]
    subprocess.run([sys.executable, "-m", *command], check=True)
    with tarfile.open(root / "jieba-0.42.1.tar.gz") as archive:
        file = archive.extractfile("jieba-0.42.1/jieba/dict.txt")
        assert file is not None
        lines = file.read().decode().splitlines()
    pairs: Counter[str] = Counter()
    for line in lines:
        word, uses, *_ = line.split(" ")
        for one, other in pairwise(word):
            if order.is_ideograph(one) and order.is_ideograph(other):
                pairs[one + other] += int(uses)
    return "".join(sorted(pair for pair, _ in pairs.most_common(CHINESE_PAIRS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chinese", action="store_true", help="the pairs of ideographs only")
    if parser.parse_args().chinese:
        packed = zlib.compress(chinese_pairs().encode("utf-16-le"), 9)
        Path(order.__file__).with_name("chinese.bin").write_bytes(packed)
        print(f"{CHINESE_PAIRS} pairs, {len(packed)} bytes")
        return
    model = count(help_pages() | python_texts())
    packed = zlib.compress(model.tobytes(), 9)
    Path(order.__file__).with_name("order.bin").write_bytes(packed)
    print(f"{SLOTS} pairs, {np.mean(model != 0):.0%} of them known, {len(packed)} bytes")


if __name__ == "__main__":
    main()
