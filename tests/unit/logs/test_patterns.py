"""No line makes a pattern slow: every repetition is bounded, and none crosses a line."""

import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from glm4_deploy.catalog.rows import signatures
from glm4_deploy.logs import line, noise, reader
from glm4_deploy.logs.line import LONGEST_END, LONGEST_LINE
from glm4_deploy.text import _RULES, ANSI

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
OF_REDACTION = {f"redact {number}": rule[0] for number, rule in enumerate(_RULES)}
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


LENGTH = LONGEST_LINE + LONGEST_END  # characters that a pattern is ever given
NOTICED = 0.04  # seconds of CPU time; most patterns need a hundredth of that for such a line
STRAIGHT = 1.6  # of a growth of 1 (twice the line, twice the time) and of 2, the nearer


def own_words(name: str, pattern: str) -> tuple[str, ...]:
    """What a pattern looks for, as far as it can be read off it and off its row."""
    row = {row.id: row for row in signatures()}.get(name.partition(" ")[0])
    of_row = (*row.has, row.example) if row else ()
    return tuple(dict.fromkeys((*of_row, *re.findall(r"[A-Za-z_ /]{4,}", pattern))))


def lines_of(word: str, length: int) -> Iterator[str]:
    """Lines made of one word, each of them a way to have a pattern start over and over."""
    for filler in ("", " ", "1"):
        unit = word + filler
        yield (unit * (length // len(unit) + 1))[:length]
    yield "(a" + " " * length + word
    yield word + "x" * length
    yield word + "1" * length


def growth(pattern: re.Pattern[Any], word: str) -> float:
    """The exponent by which the time of the slowest line grows with its length; 0 if no line is slow.

    It stops at the first line that settles it.
    """

    def seconds(line: str) -> float:
        text: Any = line if isinstance(pattern.pattern, str) else line.encode()
        begin = time.process_time()
        pattern.search(text)
        return max(time.process_time() - begin, 1e-6)

    worst = 0.0
    for short, long in zip(lines_of(word, LENGTH // 4), lines_of(word, LENGTH), strict=True):
        if (slow := seconds(long)) > NOTICED:
            # The best of a few, so that a moment's interruption does not count.
            again = 0 if slow > 5 * NOTICED else 3
            slow = min([slow, *(seconds(long) for _ in range(again))])
            worst = max(worst, math.log(slow / min(seconds(short) for _ in range(3)), 4) if slow > NOTICED else 0)
            if worst > STRAIGHT:
                break
    return worst


@pytest.mark.parametrize("name", [*PATTERNS, *OF_REDACTION])
def test_its_own_words_repeated_make_no_pattern_slow(name: str) -> None:
    pattern = (PATTERNS | OF_REDACTION)[name]
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode()
    slow = {word: exponent for word in own_words(name, text) if (exponent := growth(pattern, word)) > STRAIGHT}
    assert not slow


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        (r"\([A-Za-z][\w.-]*[ ,]+[^()]*\bpid=\d+", "Error"),
        (r"sm_\d+\w* is not compatible", "sm_"),
        (r"with pid=.*\bprocess.*killed", "with pid= process "),
    ],
)
def test_a_slow_pattern_is_found(pattern: str, word: str) -> None:
    """Patterns that this project had."""
    assert growth(re.compile(pattern), word) > STRAIGHT


FEED = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from glm4_deploy.catalog.rows import signatures
from glm4_deploy.logs.reader import LogReader
reader = LogReader()
for row in signatures():
    words = " ".join((*row.has, row.example))
    reader.feed(words * (20_000 // len(words)))
    reader.feed("ValueError: " + words * (20_000 // len(words)))
print("done")
"""


def test_the_whole_reader_takes_long_lines_of_every_failures_words() -> None:
    """Five hundred long lines in some seconds; a minute of CPU time ends it."""
    done = subprocess.run([sys.executable, "-c", FEED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-500:]
