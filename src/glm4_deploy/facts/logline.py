"""One line of an engine's log, freed of what others put in front: Docker, Compose, journald, vLLM's process and level.

Pure. The prefixes changed over the years: `(VllmWorker rank=0 pid=222)`, `(EngineCore_DP0 pid=143)`,
`(EngineCore pid=698)`, `(Worker pid=7) (Worker_TP0 pid=7)`, none at all (vLLM 0.9, tqdm).
"""

import re
from dataclasses import dataclass
from datetime import datetime

ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")

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


def visible(text: str) -> str:
    """The text without ANSI sequences and control characters; tabs stay."""
    return _CONTROL.sub("", ANSI.sub("", text) if "\x1b" in text else text)


def looks_like_a_log(text: str) -> bool:
    """Whether one visible line may be of a log of any origin."""
    return _LOG.search(text) is not None


def parse(text: str) -> Line:
    """Take the prefixes off. `text` is one line as `visible` leaves it."""
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
