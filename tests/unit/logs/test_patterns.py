"""No line makes a pattern slow: every repetition is bounded, and none crosses a line."""

import re
import subprocess
import sys
from collections.abc import Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from glm4_deploy.catalog.rows import signatures
from glm4_deploy.logs import line, noise, reader
from glm4_deploy.text import ANSI

OF_MODULES = {
    f"{module.__name__}.{name}": pattern
    for module in (line, reader)
    for name, pattern in vars(module).items()
    if isinstance(pattern, re.Pattern)
}
OF_ROWS = {
    f"{row.id} {field}": re.compile(pattern)
    for row in signatures()
    for field in ("regex", "frames", "about")
    if (pattern := getattr(row, field))
}
OF_NOISE = {f"noise {number}": row[2] for number, row in enumerate(noise._NOISE)}
PATTERNS = {**OF_MODULES, **OF_ROWS, **OF_NOISE, "ANSI": ANSI}


def unbounded(tree: Any) -> Iterator[Any]:
    """Repetitions without an upper limit, of anything that is not a single fixed byte."""
    for code, value in tree:
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            _, most, inner = value
            fixed = len(inner) == 1 and inner[0][0] is codes.LITERAL
            if most is codes.MAXREPEAT and not fixed:
                yield value
            yield from unbounded(inner)
        else:
            yield from _inside(value)


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, parser.SubPattern):
        yield from unbounded(value)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _inside(one)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_repetition_is_bounded(name: str) -> None:
    assert not list(unbounded(parser.parse(PATTERNS[name].pattern)))


def test_the_check_finds_an_unbounded_repetition() -> None:
    assert list(unbounded(parser.parse(r"a(b|\d+)c")))
    assert not list(unbounded(parser.parse(r"a(b|\d{1,9})c")))


FEED = """
import re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from glm4_deploy.catalog.rows import signatures
from glm4_deploy.logs.reader import LogReader
for row in signatures():
    patterns = row.regex + row.frames + row.about
    words = [*row.has, row.example, *re.findall(r"[A-Za-z_ /]{4,}", patterns)]
    reader = LogReader()
    for word in dict.fromkeys(words):
        for filler in ("", " ", "1"):
            reader.feed((word + filler) * 1000)
            reader.feed("ValueError: " + (word + filler) * 1000)
        reader.feed("(a" + " " * 20_000 + word)
        reader.feed(word + "x" * 20_000)
print("done")
"""


def test_its_own_words_repeated_make_no_pattern_slow() -> None:
    """Five long lines for each of some two thousand words, within a minute of CPU time."""
    done = subprocess.run([sys.executable, "-c", FEED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-500:]
