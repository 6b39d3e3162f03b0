"""What collectors do to whole lines: records of JSON around them, pieces of 16 KiB, and prompts that the engine logs.

Pure. What stands in front of a line is taken off in `logline`.
"""

import json
import re
from collections.abc import Callable

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
LONGEST = 1 << 16
SAMPLE = 1 << 13


def without_prompts(block: bytes) -> bytes:
    """The lines without what users and the model said in them."""
    for mark, rest in _SAID:
        if mark in block:
            block = rest.sub(mark.rstrip(), block)
    return block


# What comes before the text, the text, whether its line ends here, and who wrote it (b"": it is no record).
_Record = tuple[bytes, bytes, bool, bytes]


class Unwrapped:
    """Lines out of records. Feed it blocks of whole lines; what is no record stays as it is."""

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
        self._open[writer] = begun + text if len(begun) < LONGEST else begun
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
