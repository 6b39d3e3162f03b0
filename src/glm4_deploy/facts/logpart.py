"""One line of a log as it is read, whatever came before it. Pure."""

from dataclasses import dataclass
from functools import cache, lru_cache

from glm4_deploy.catalog.signatures import Signature, signatures
from glm4_deploy.facts import enginefacts
from glm4_deploy.facts.logline import Line, parse, visible
from glm4_deploy.facts.traceback import START

LONGEST_LINE = 64 * 1024
LONGEST_KNOWN = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """shown: the line without control characters. rows: the signatures that match it. telling: it may tell a fact.
    boot: the banner in it, "" for none. opens: a traceback begins here. writer: process and logger.
    """

    shown: str
    line: Line
    rows: tuple[Signature, ...]
    telling: bool
    boot: str
    opens: bool
    writer: tuple[str, str]


@lru_cache(maxsize=4096)
def parts_of(raw: str) -> tuple[Part, ...]:
    """The parts of a line between carriage returns, without the empty ones. Logs repeat themselves: remembered."""
    shown = (visible(part[:LONGEST_LINE]).rstrip() for part in raw.split("\r"))
    return tuple(_part(text) for text in shown if text)


def _part(shown: str) -> Part:
    line = parse(shown)
    text = line.text
    numbers = sorted({number for word, rows in _words() if word in text for number in rows})
    table = signatures()
    return Part(
        shown=shown,
        line=line,
        rows=tuple(table[number] for number in numbers if table[number].regex.search(text)),
        telling=any(word in text for word in enginefacts.literals()),
        boot=next((literal for literal in enginefacts.BOOT if literal in text), ""),
        opens=START in text,
        writer=(line.process, line.place),
    )


@cache
def _words() -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Each literal with the numbers of the rows that it stands for."""
    rows: dict[str, list[int]] = {}
    for number, row in enumerate(signatures()):
        for word in row.has:
            rows.setdefault(word, []).append(number)
    return tuple((word, tuple(numbers)) for word, numbers in rows.items())
