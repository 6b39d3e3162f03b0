"""One line of an engine's log: tracebacks, prefixes, the signatures it matches, and the records that collectors wrap
around lines."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache

from glm4_deploy.catalog.rows import Signature, signatures
from glm4_deploy.logs.facts import BOOT, literals
from glm4_deploy.text import strip_controls

# Python tracebacks in a log that several processes write to at once.

START = "Traceback (most recent call last)"
LONGEST = 2000
MOST_OPEN = 64
MOST_WRITERS = 1024
_FILE = re.compile(r'^\s*(?:\|\s*)?File "([^"]+)", line (\d+)')
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?::(?:\s|$)|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """The exception at the end of a traceback: its line, and the file and line that raised it (None if not logged)."""

    line: str
    file: str | None
    number: int | None


@dataclass(slots=True)
class _Open:
    file: str | None = None
    number: int | None = None
    lines: int = 0


class Tracebacks:
    """Follows one traceback per writer (process and logger), so that interleaved tracebacks stay separate."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], _Open] = {}
        self._wrote: set[tuple[str, str]] = set()

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def wrote(self, key: tuple[str, str]) -> bool:
        """Whether this writer has started a traceback: its other lines introduce, continue or follow it."""
        return key in self._wrote

    def feed(self, key: tuple[str, str], text: str) -> Raised | None:
        """The exception if this line names it and so ends the traceback; otherwise None."""
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


# Prefixes of a line: those of Docker, Compose and journald, then vLLM's process and level.
#
# vLLM's differ by version: `(VllmWorker rank=0 pid=222)`, `(EngineCore_DP0 pid=143)`, `(EngineCore pid=698)`,
# `(Worker pid=7) (Worker_TP0 pid=7)`, none at all (vLLM 0.9, tqdm).

_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:[.,]\d+)?)(Z|[+-]\d\d:?\d\d)?\s+(?:\|\s)?")
_OUTER = re.compile(
    r"[A-Za-z0-9][\w.@-]*\s+\|\s?"  # docker compose logs, docker service logs
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)? \S+ [\w.@/-]+(?:\[\d+\])?: ?"  # journald, syslog
    r"|[\w.-]+ [\w.@/-]+\[\d+\]: ?"  # journald after a time in another format
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
# A level, a word of failure, or a time: dmesg's, syslog's, or any format with hours, minutes and seconds.
_LOG = re.compile(
    r"\b(?:DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL)\b"
    r"|(?i:\b(?:error|warning|exception|traceback|failed|failure|fatal|panic|killed|denied)\b)"
    r"|^\[ *\d+\.\d{3,}\] |\d\d:\d\d:\d\d(?!\d)|\bpid=\d|\w(?:Error|Exception)\b"
)
_LETTERS = {"W": "WARNING", "E": "ERROR", "I": "INFO", "F": "CRITICAL"}
MOST_PREFIXES = 8


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its prefixes.

    Attributes:
        text: the message.
        process: vLLM's process prefixes; "" for none.
        place: `file.py:12` of the logger.
        clock: vLLM's time, in seconds of an arbitrary year.
        stamp: Docker's time, in seconds since the epoch.
    """

    text: str
    process: str = ""
    level: str = ""
    place: str = ""
    clock: float | None = None
    stamp: float | None = None


def decode(line: bytes) -> str:
    """The line as UTF-8; invalid bytes become U+FFFD."""
    return line.decode("utf-8", errors="replace")


def looks_like_a_log(text: str) -> bool:
    """Whether a visible line may come from a log of any kind."""
    return _LOG.search(text) is not None


def parse_line(text: str) -> Line:
    """Remove the prefixes. `text` is one line without control characters (`strip_controls`)."""
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
    """`11-23 14:43:47` as seconds, in a leap year so that 02-29 is valid."""
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


# What one line contains, whatever came before it.

LONGEST_LINE = 64 * 1024
LONGEST_KNOWN = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPart:
    """A line, or the part of one between two carriage returns.

    Attributes:
        shown: the text without control characters.
        rows: the signatures that match it.
        telling: it may state a fact.
        boot: the banner in it; "" for none.
        opens: a traceback begins here.
        writer: process and logger.
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
    """The non-empty parts of a line between carriage returns. Cached, because logs repeat themselves."""
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
    """Each literal with the indices of the signatures that contain it."""
    rows: dict[str, list[int]] = {}
    for number, row in enumerate(signatures()):
        for word in row.has:
            rows.setdefault(word, []).append(number)
    return tuple((word, tuple(numbers)) for word, numbers in rows.items())


# Records around a line: JSON (Docker's json-file, Fluentd, OpenShift, Vector, python-json-logger, journald's `-o json`)
# and CRI, which both split long lines into pieces of 16 KiB.
_TEXTS = ("log", "message", "MESSAGE", "msg")
_LEVELS = ("levelname", "level", "severity")
_TIMES = ("time", "timestamp", "@timestamp", "asctime")
_NAMES = {"WARN": "WARNING", "ERR": "ERROR", "FATAL": "CRITICAL"}
_CRI = re.compile(rb"(\S+) (stdout|stderr) ([FP]) ")  # files below /var/log/pods
# vLLM's log of requests and answers (--enable-log-requests): private, arbitrary text, and most of such a log.
_SAID = tuple(
    (mark, re.compile(re.escape(mark) + rb"[^\n]*"))
    for mark in (b"Received request ", b"Generated response ", b" details: prompt: ")
)
LONGEST_WRAPPED = 1 << 16
SAMPLE = 1 << 13


def without_prompts(block: bytes) -> bytes:
    """The lines without the text of users and of the model."""
    for mark, rest in _SAID:
        if mark in block:
            block = rest.sub(mark.rstrip(), block)
    return block


# What precedes the text, the text, whether its line ends here, and its stream (b"": not a record).
_Record = tuple[bytes, bytes, bool, bytes]


class Unwrapped:
    """Extracts lines from records. Feed it blocks of whole lines; anything that is not a record is passed through."""

    def __init__(self) -> None:
        self._open: dict[bytes, bytes] = {}  # by stream: the pieces so far of an unfinished line

    def feed(self, block: bytes) -> bytes:
        """The lines in these records."""
        sample = block[:SAMPLE] + block[-SAMPLE:]  # a collector wraps every line
        for mark, unwrap in _WAYS:
            if mark in sample:
                lines = (self._line(unwrap, line) for line in block.split(b"\n"))
                return b"\n".join(line for line in lines if line is not None)
        return block

    def rest(self) -> bytes:
        """Lines that were never finished."""
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
    # In Docker's records, a complete line ends with a newline; other records have none.
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
