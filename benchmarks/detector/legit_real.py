"""Good texts from Debian packages, the standard library and this machine's own files."""

import glob
import gzip
import json
import random
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from benchmarks.detector.documents import MissingError, Text, legitimate, pieces

PACKAGES = [
    "adwaita-icon-theme",
    "bible-kjv-text",
    "bible-kjv",
    "bowtie2-examples",
    "fortunes",
    "fortunes-de",
    "fortunes-es",
    "fortunes-ru",
    "fortunes-zh",
    "iso-codes",
    "manpages-de",
    "manpages-ja",
    "manpages-ru",
    "manpages-zh",
    "miscfiles",
    "python3-doc",
]
EACH = 100


def read(path: str | Path) -> str:
    """A text file, gzipped or not."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise MissingError(str(path)) from error
    return (gzip.decompress(raw) if str(path).endswith(".gz") else raw).decode("utf-8", "replace")


def some(pattern: str, rng: random.Random, count: int, *, least: int = 400) -> Iterator[str]:
    """Pieces of `count` random files of a glob pattern."""
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not paths:
        raise MissingError(pattern)
    rng.shuffle(paths)

    def one_round() -> Iterator[str]:
        for path in paths:
            text = read(path)
            if len(text) >= least:
                yield from pieces(text, rng, 1)

    # A few rounds over the same files are enough; a family of short files is smaller.
    return islice((piece for _ in range(20) for piece in one_round()), count)


def texts(found: Iterator[str]) -> Iterator[Text]:
    return (Text(text=text) for text in found)


STDLIB = sysconfig.get_path("stdlib")


@legitimate("code-python", "the standard library")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some(f"{STDLIB}/[a-z]*.py", rng, EACH))


@legitimate("code-python-tests", "the standard library's tests")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some(f"{STDLIB}/test/test_*.py", rng, EACH))


@legitimate("code-codepages", "the standard library's encodings: long tables in source")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some(f"{STDLIB}/encodings/*.py", rng, EACH))


@legitimate("code-c", "the C headers of this machine")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some("/usr/include/**/*.h", rng, EACH, least=1500))


@legitimate("code-shell-perl", "Debian's scripts")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some("/usr/share/perl/*/**/*.pm", rng, EACH // 2)) or iter(())


@legitimate("html", "python3-doc")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some("/usr/share/doc/python3*/html/**/*.html", rng, EACH))


@legitimate("restructuredtext", "python3-doc")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some("/usr/share/doc/python3*/html/_sources/**/*.txt", rng, EACH))


@legitimate("svg-files", "icons of installed packages")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some("/usr/share/icons/*/scalable/*/*.svg", rng, EACH, least=800))


@legitimate("licences", "/usr/share/common-licenses")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some("/usr/share/common-licenses/*", rng, EACH))


@legitimate("json-iso-codes", "iso-codes")
def _(rng: random.Random) -> Iterator[Text]:
    for path in glob.glob("/usr/share/iso-codes/json/iso_*.json") * 12:
        rows = next(iter(json.loads(read(path)).values()))
        start = rng.randrange(max(len(rows) - 40, 1))
        chosen = rows[start : start + rng.randint(8, 40)]
        yield Text(text=json.dumps(chosen, ensure_ascii=False, indent=rng.choice([None, 2])))


@legitimate("markdown-tables", "iso-codes, as Markdown tables")
def _(rng: random.Random) -> Iterator[Text]:
    rows = json.loads(read("/usr/share/iso-codes/json/iso_3166-2.json"))["3166-2"]
    for _ in range(EACH):
        start = rng.randrange(len(rows) - 60)
        lines = ["| code | name | type |", "|---|---|---|"]
        lines += [
            f"| {row['code']} | {row['name']} | {row['type']} |" for row in rows[start : start + rng.randint(8, 60)]
        ]
        yield Text(text="Here is the table:\n\n" + "\n".join(lines))


@legitimate("records-colon", "miscfiles: airports, currencies, area codes")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some("/usr/share/misc/*.gz", rng, EACH))


@legitimate("word-lists", "miscfiles: dictionary")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(pieces(read("/usr/share/dict/web2"), rng, EACH))


@legitimate("constitution", "miscfiles: numbered legal text")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(pieces(read("/usr/share/state/us-constitution.gz"), rng, EACH))


def bible(passage: str) -> str:
    if not shutil.which("bible"):
        raise MissingError("bible-kjv")
    done = subprocess.run(
        ["bible", "-l100", f"{passage}:1-200"], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()


# The most repetitive chapters: offerings, genealogies, journeys, boundary lists, refrains.
REPETITIVE = [
    "num7",
    "ps136",
    "gen5",
    "gen11",
    "mat1",
    "luk3",
    "num1",
    "num2",
    "num26",
    "num33",
    "josh12",
    "josh15",
    "1chr1",
    "1chr2",
    "1chr6",
    "neh7",
    "ezr2",
    "ps107",
    "ps118",
    "ps148",
    "ps150",
    "ecc3",
    "mat5",
    "rev2",
    "rev3",
    "rev7",
    "amos1",
    "amos2",
    "deu27",
    "deu28",
    "lev15",
    "eze48",
    "dan3",
    "ex25",
    "ex37",
    "gen1",
    "neh3",
    "2sam23",
]


@legitimate("verse-repetitive", "bible-kjv: the chapters that repeat themselves most")
def _(rng: random.Random) -> Iterator[Text]:
    for passage in REPETITIVE:
        text = bible(passage)
        yield Text(text=text)
        yield from texts(pieces(text, rng, 2, low=800, high=4000))


@legitimate("verse", "bible-kjv")
def _(rng: random.Random) -> Iterator[Text]:
    books = ["gen", "ex", "isa", "jer", "ps", "prov", "mat", "mark", "luke", "john", "acts", "rom"]
    for _ in range(EACH):
        yield Text(text=bible(f"{rng.choice(books)}{rng.randint(1, 16)}"))


def fortunes(pattern: str, rng: random.Random, size: int = 12) -> Iterator[Text]:
    paths = [
        path
        for path in glob.glob(f"/usr/share/games/fortunes/{pattern}")
        if "." not in Path(path).name and Path(path).is_file()
    ]
    cookies = [cookie.strip("\n") for path in sorted(paths) for cookie in read(path).split("\n%\n") if cookie.strip()]
    if not cookies:
        raise MissingError(f"fortunes {pattern}")
    for _ in range(EACH):
        start = rng.randrange(len(cookies))
        yield Text(text="\n\n".join(cookies[start : start + rng.randint(1, size)]))


@legitimate("fortunes", "fortunes")
def _(rng: random.Random) -> Iterator[Text]:
    return fortunes("[b-z]*", rng)


@legitimate("songs-poems", "fortunes: songs and poems")
def _(rng: random.Random) -> Iterator[Text]:
    return fortunes("songs-poems", rng, 8)


@legitimate("ascii-art", "fortunes: art")
def _(rng: random.Random) -> Iterator[Text]:
    return fortunes("a[rs]*t", rng, 4)


@legitimate("chinese-poems", "fortunes-zh: Tang and Song")
def _(rng: random.Random) -> Iterator[Text]:
    return fortunes("*[gn]100", rng)


@legitimate("german-spanish-russian", "fortunes-de, -es, -ru")
def _(rng: random.Random) -> Iterator[Text]:
    return fortunes("[der][esu]/*", rng)


def manual(language: str, rng: random.Random, count: int) -> Iterator[Text]:
    paths = sorted(glob.glob(f"/usr/share/man/{language}/man[1-8]/*.gz"))
    if not paths:
        raise MissingError(f"manual pages {language}")
    for path in rng.sample(paths, min(count, len(paths))):
        lines = [line for line in read(path).splitlines() if not line.startswith((".\\", "'\\"))]
        yield from texts(pieces("\n".join(lines), rng, 1))


@legitimate("chinese-manuals", "manpages-zh")
def _(rng: random.Random) -> Iterator[Text]:
    return manual("zh_CN", rng, EACH)


@legitimate("manuals-ja-ru-de", "manpages-ja, -ru, -de")
def _(rng: random.Random) -> Iterator[Text]:
    for language in ("ja", "ru", "de"):
        yield from manual(language, rng, EACH // 2)


@legitimate("dna", "bowtie2-examples: the phage lambda, FASTA and FASTQ")
def _(rng: random.Random) -> Iterator[Text]:
    root = "/usr/share/doc/bowtie2/examples"
    yield from texts(pieces(read(f"{root}/reference/lambda_virus.fa.gz"), rng, EACH // 2))
    yield from texts(pieces(read(f"{root}/reads/longreads.fq.gz"), rng, EACH // 2, low=1500))


@legitimate("logs", "this machine's package log and listings")
def _(rng: random.Random) -> Iterator[Text]:
    yield from texts(pieces(read("/var/log/dpkg.log"), rng, EACH // 2))
    for command in (["ls", "-l", "/usr/bin"], ["dpkg", "-l"], ["ls", "-lR", "/etc"], ["cat", "/proc/self/smaps"]):
        out = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
        yield from texts(pieces(out, rng, EACH // 8))


@legitimate("config", "/etc and systemd units")
def _(rng: random.Random) -> Iterator[Text]:
    return texts(some("/etc/**/*.conf", rng, EACH))
