"""What collectors do to whole lines: records of JSON around them, pieces of 16 KiB, and prompts that the engine logs.

Pure. What stands in front of a line is taken off in `logline`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache

from glm4_deploy.catalog.rows import Signature, signatures
from glm4_deploy.logs.facts import BOOT, literals
from glm4_deploy.text import strip_controls

# Python tracebacks in a log where several processes write at once. Pure.

START = "Traceback (most recent call last)"
LONGEST = 2000
MOST_OPEN = 64
MOST_WRITERS = 1024
_FILE = re.compile(r'^\s*(?:\|\s*)?File "([^"]+)", line (\d+)')
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?::(?:\s|$)|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An exception as its traceback ends: the line, and where it was raised (None where the log does not say)."""

    line: str
    file: str | None
    number: int | None


@dataclass(slots=True)
class _Open:
    file: str | None = None
    number: int | None = None
    lines: int = 0


class Tracebacks:
    """Follows the traceback of each writer, by a key (process and logger), so that interleaved ones stay apart."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], _Open] = {}
        self._wrote: set[tuple[str, str]] = set()

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def wrote(self, key: tuple[str, str]) -> bool:
        """Whether this writer has begun a traceback: its other lines introduce, continue or follow it."""
        return key in self._wrote

    def feed(self, key: tuple[str, str], text: str) -> Raised | None:
        """The exception, with the line that names it; None for every other line."""
        if START in text:
            if key not in self._open and len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[key] = _Open()
            if len(self._wrote) < MOST_WRITERS:
                self._wrote.add(key)
            return None
        state = self._open.get(key)
        if state is None:
            return None
        state.lines += 1
        if match := _FILE.match(text):
            state.file, state.number = match[1], int(match[2])
            return None
        if state.lines > LONGEST:
            del self._open[key]
        elif text[:1] not in (" ", "\t", "") and _EXCEPTION.match(text):
            del self._open[key]
            return Raised(line=text, file=state.file, number=state.number)
        return None


# One line of an engine's log, freed of what others put in front: Docker, Compose, journald, vLLM's process and level.
#
# Pure. The prefixes changed over the years: `(VllmWorker rank=0 pid=222)`, `(EngineCore_DP0 pid=143)`,
# `(EngineCore pid=698)`, `(Worker pid=7) (Worker_TP0 pid=7)`, none at all (vLLM 0.9, tqdm).

_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:[.,]\d+)?)(Z|[+-]\d\d:?\d\d)?\s+(?:\|\s)?")
_OUTER = re.compile(
    r"[A-Za-z0-9][\w.@-]*\s+\|\s?"  # docker compose logs, docker service logs
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)? \S+ [\w.@/-]+(?:\[\d+\])?: ?"  # journald, syslog
    r"|[\w.-]+ [\w.@/-]+\[\d+\]: ?"  # journald after a time of another form
    r"|\[pod/[\w.-]+/[\w.-]+\] ?"  # kubectl logs --prefix
)
_PROCESS = re.compile(r"\([A-Za-z][\w.-]*[ ,]+[^()]*\bpid=\d+[^()]*\) ?|\[rank\d+\]: ?")
_LEVEL = re.compile(
    r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)(?::\s+|\s+((?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?)"
    r" \[?([\w./<>-]+:\d+)\](?: |$))"
)
# FlashInfer's `- WARNING - x.py:1 - ` and PyTorch's `[W1123 14:42:43.1 x.cpp:2] `, `[E321 …`, `[E x.cpp:2] `.
_OTHER_LEVEL = re.compile(
    r"- (DEBUG|INFO|WARNING|ERROR|CRITICAL) - |\[?([WEIF])(?:\d{3,4} \d\d:\d\d:\d\d\.\d+)? [^\]\s]{1,200}:\d+\] ?"
)
# A level, a word of failure, a time: dmesg's, syslog's, or of any form that holds hours, minutes and seconds.
_LOG = re.compile(
    r"\b(?:DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL)\b"
    r"|(?i:\b(?:error|warning|exception|traceback|failed|failure|fatal|panic|killed|denied)\b)"
    r"|^\[ *\d+\.\d{3,}\] |\d\d:\d\d:\d\d(?!\d)|\bpid=\d|\w(?:Error|Exception)\b"
)
_LETTERS = {"W": "WARNING", "E": "ERROR", "I": "INFO", "F": "CRITICAL"}
MOST_PREFIXES = 8


@dataclass(frozen=True, slots=True)
class Line:
    """text: the message alone. process: its prefixes, "" where it has none. clock: vLLM's own time in seconds of an
    arbitrary year; stamp: Docker's, seconds since the epoch. place: `file.py:12` of the logger."""

    text: str
    process: str = ""
    level: str = ""
    place: str = ""
    clock: float | None = None
    stamp: float | None = None


def decode(line: bytes) -> str:
    """UTF-8 as far as it is; every byte that is not becomes U+FFFD."""
    return line.decode("utf-8", errors="replace")


def looks_like_a_log(text: str) -> bool:
    """Whether one visible line may be of a log of any origin."""
    return _LOG.search(text) is not None


def parse_line(text: str) -> Line:
    """Take the prefixes off. `text` is one line as `strip_controls` leaves it."""
    at, stamp, process = 0, None, ""
    for _ in range(MOST_PREFIXES):
        if match := _STAMP.match(text, at):
            stamp = _epoch(match) if stamp is None else stamp
        elif match := _PROCESS.match(text, at):
            process += match[0].strip()
        else:
            match = _OUTER.match(text, at)
        if match is None:
            break
        at = match.end()
    level = _LEVEL.match(text, at)
    if level is None:
        if other := _OTHER_LEVEL.match(text, at):
            named = other[1] or _LETTERS[other[2]]
            return Line(text[other.end() :], process=process, level=named, stamp=stamp)
        return Line(text[at:], process=process, stamp=stamp)
    return Line(
        text[level.end() :],
        process=process,
        level=level[1],
        place=level[3] or "",
        clock=_clock(level[2]) if level[2] else None,
        stamp=stamp,
    )


def _clock(text: str) -> float | None:
    """`11-23 14:43:47` as seconds; in a leap year, so that 02-29 is a day."""
    day, time = text.replace(",", ".").split(" ")
    try:
        return datetime.fromisoformat(f"{'2024-' if len(day) == 5 else ''}{day}T{time[:15]}+00:00").timestamp()
    except ValueError:
        return None


def _epoch(match: re.Match[str]) -> float | None:
    zone = (match[3] or "Z").replace("Z", "+00:00")
    try:
        return datetime.fromisoformat(f"{match[1]}T{match[2].replace(',', '.')[:15]}{zone}").timestamp()
    except ValueError:
        return None


# One line of a log as it is read, whatever came before it. Pure.

LONGEST_LINE = 64 * 1024
LONGEST_KNOWN = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPart:
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
def parts_of(raw: str) -> tuple[LogPart, ...]:
    """The parts of a line between carriage returns, without the empty ones. Logs repeat themselves: remembered."""
    shown = (strip_controls(part[:LONGEST_LINE]).rstrip() for part in raw.split("\r"))
    return tuple(_part(text) for text in shown if text)


def _part(shown: str) -> LogPart:
    line = parse_line(shown)
    text = line.text
    numbers = sorted({number for word, rows in _words() if word in text for number in rows})
    table = signatures()
    return LogPart(
        shown=shown,
        line=line,
        rows=tuple(table[number] for number in numbers if table[number].regex.search(text)),
        telling=any(word in text for word in literals()),
        boot=next((literal for literal in BOOT if literal in text), ""),
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


# Docker's json-file and Fluentd; OpenShift, Vector, python-json-logger; journald's `-o json`.
_TEXTS = ("log", "message", "MESSAGE", "msg")
_LEVELS = ("levelname", "level", "severity")
_TIMES = ("time", "timestamp", "@timestamp", "asctime")
_NAMES = {"WARN": "WARNING", "ERR": "ERROR", "FATAL": "CRITICAL"}
_CRI = re.compile(rb"(\S+) (stdout|stderr) ([FP]) ")  # files below /var/log/pods
# vLLM's logs of requests and answers (--enable-log-requests): private, any text at all, and most of such a log.
_SAID = tuple(
    (mark, re.compile(re.escape(mark) + rb"[^\n]*"))
    for mark in (b"Received request ", b"Generated response ", b" details: prompt: ")
)
LONGEST_WRAPPED = 1 << 16
SAMPLE = 1 << 13


def without_prompts(block: bytes) -> bytes:
    """The lines without what users and the model said in them."""
    for mark, rest in _SAID:
        if mark in block:
            block = rest.sub(mark.rstrip(), block)
    return block


# What comes before the text, the text, whether its line ends here, and who wrote it (b"": it is not a record).
_Record = tuple[bytes, bytes, bool, bytes]


class Unwrapped:
    """Lines out of records. Feed it blocks of whole lines; what is not a record stays as it is."""

    def __init__(self) -> None:
        self._open: dict[bytes, bytes] = {}  # by writer: the pieces so far of a line that goes on

    def feed(self, block: bytes) -> bytes:
        """The lines in these records."""
        sample = block[:SAMPLE] + block[-SAMPLE:]  # a collector wraps every line
        for mark, unwrap in _WAYS:
            if mark in sample:
                lines = (self._line(unwrap, line) for line in block.split(b"\n"))
                return b"\n".join(line for line in lines if line is not None)
        return block

    def rest(self) -> bytes:
        """Lines whose ends never came."""
        return b"\n".join(self._open.values())

    def _line(self, unwrap: Callable[[bytes], _Record], line: bytes) -> bytes | None:
        head, text, whole, writer = unwrap(line)
        begun = self._open.pop(writer, b"") or head
        if whole:
            return begun + text
        self._open[writer] = begun + text if len(begun) < LONGEST_WRAPPED else begun
        return None


def _of_json(line: bytes) -> _Record:
    start = line.find(b"{")
    alone = start == 0 or line[:start].endswith((b"| ", b"|"))  # or behind Compose's prefix
    try:
        record = json.loads(line[start:]) if alone else None
    except (ValueError, RecursionError):
        record = None
    text = _first(record, _TEXTS) if isinstance(record, dict) else ""
    if not isinstance(record, dict) or not text:
        return b"", line, True, b""
    time, level = _first(record, _TIMES), _first(record, _LEVELS).upper()
    head = f"{time} " if time else ""
    said = f"{_NAMES.get(level, level)}: {text}" if level and level not in text[:200] else text
    said = "\n".join((said, *_first(record, ("exc_info",)).splitlines()))
    # Docker's own records end a whole line with its newline; others have none.
    piece = {"log", "stream", "time"} <= record.keys()
    whole = not piece or said.endswith("\n")
    lines = said.removesuffix("\n").replace("\n", f"\n{head}")
    return (
        head.encode(),
        lines.encode(errors="replace"),
        whole,
        str(record["stream"]).encode(errors="replace") if piece else b"",
    )


def _first(record: dict[str, object], keys: tuple[str, ...]) -> str:
    return next((value for key in keys if isinstance(value := record.get(key), str)), "")


def _of_cri(line: bytes) -> _Record:
    if (match := _CRI.match(line)) is None:
        return b"", line, True, b""
    return match[1] + b" ", line[match.end() :], match[3] == b"F", match[2]


_WAYS: tuple[tuple[bytes, Callable[[bytes], _Record]], ...] = (
    (b'{"', _of_json),
    *((b" std%b %b " % (name, tag), _of_cri) for name in (b"err", b"out") for tag in (b"F", b"P")),
)
