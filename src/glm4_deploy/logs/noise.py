"""What surrounds the lines of a log: records of collectors, and the marks that terminals and pastes leave.

Everything here works on blocks of whole lines, so a log of any size passes through it quickly.
"""

import json
import re
from collections.abc import Callable

from glm4_deploy.logs.line import parse_line
from glm4_deploy.text import ANSI

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


# Marks of terminals and pastes. Each row: a byte that is quickly searched for, marks
# of which one must occur, what is removed, what replaces it.
_NOISE: tuple[tuple[bytes, tuple[bytes, ...], re.Pattern[bytes], bytes], ...] = (
    (b"\0", (b"\0",), re.compile(rb"\0+"), b""),
    (b"\x1b", (b"\x1b",), re.compile(ANSI.pattern.encode("ascii")), b""),
    # Escape sequences as text: `^[[1;36m` (cat -v, less), `\u001b[0m` (JSON), `#033[0m` (rsyslog).
    (b"^", (b"^[[",), re.compile(rb"\^\[\[[0-9;?]{0,20}[A-Za-z]"), b""),
    (
        b"\\",
        (b"\\x1b[", b"\\x1B[", b"\\u001b[", b"\\033[", b"\\e["),
        re.compile(rb"\\(?:x1[bB]|u001[bB]|033|e)\[[0-9;?]{0,20}[A-Za-z]"),
        b"",
    ),
    (b"#", (b"#033[",), re.compile(rb"#033\[[0-9;?]{0,20}[A-Za-z]"), b""),
    # The same without its escape character, as browsers copy it.
    (
        b"m",
        (b"[0m", b"0;0m", b"[00m"),
        re.compile(rb"\[(?:0{1,2}|1|(?:0|1|01|00|38;5);\d{1,3}|3[0-7]|9[0-7])m(?!\])"),
        b"",
    ),
    (b"^", (b"^M",), re.compile(rb"\^M(?=$|[\s^(\[]|DEBUG|INFO|WARN|ERROR|CRITICAL)", re.MULTILINE), b"\r"),
    # Quoted in a mail or an issue, once or several times.
    (b">", (b"\n>", b"\n >"), re.compile(rb"^ ?(?:> ?){1,6}", re.MULTILINE), b""),
    (b"&", (b"&quot;",), re.compile(rb"&quot;"), b'"'),
    (b"&", (b"&#39;", b"&#x27;", b"&apos;"), re.compile(rb"&#39;|&#x27;|&apos;"), b"'"),
    (b"&", (b"&gt;",), re.compile(rb"&gt;"), b">"),
    (b"&", (b"&lt;",), re.compile(rb"&lt;"), b"<"),
    (b"&", (b"&amp;",), re.compile(rb"&amp;"), b"&"),
)


def plain(block: bytes) -> bytes:
    """The lines without colours, control sequences, quoting marks and HTML entities."""
    for first, marks, pattern, new in _NOISE:
        if first in block and any(mark in block for mark in marks):
            block = pattern.sub(new, block)
    return block


# Lines that were wrapped at a column: by a terminal (exactly at it) or by an editor (between words).
NARROWEST, WIDEST = 60, 240
MOST = 0.7
SHORT = 40  # lines
MOST_REJOINED = 32  # pieces of one line
_BEGINS = re.compile(
    r"\s{2}|[(\[]|File \"|Traceback |[`~*\-=#]{3}|NVRM: |During handling |The above "
    r"|(?:\w{1,60}\.){1,8}\w{1,80}: |\w{1,80}(?:Error|Exception): "
)


def rejoin(block: bytes) -> bytes:
    """The lines as they were before a wrap; unchanged if they were not wrapped.

    The rest of a wrapped line is moved up to its beginning and leaves an empty line, so that line numbers stay.
    """
    lines = [line.rstrip(b"\r") for line in block.split(b"\n")]
    sizes = [len(line.decode(errors="replace")) for line in lines]
    width = max(sizes)
    if not NARROWEST <= width <= WIDEST:
        return block
    goes_on = [bool(later) and not _begins(later.decode(errors="replace")) for later in lines[1:]] + [False]
    full = [size == width for size in sizes]
    by_terminal = _wrapped(goes_on, full, 0)
    if by_terminal:  # then each full line goes on, whatever the next begins with, unless that has its own prefix
        later_has = [_prefixed(later.decode(errors="replace")) for later in lines[1:]] + [True]
        by_terminal = [one and not prefixed for one, prefixed in zip(full, later_has, strict=True)]
    joins = by_terminal or _wrapped(goes_on, _between_words(lines, sizes, width), sum(goes_on))
    if joins is None:
        return b"\n".join(_once(lines, goes_on)) if len(lines) <= SHORT else block
    glue = b"" if by_terminal else b" "
    start = pieces = 0
    for at, joined in enumerate(joins[:-1]):
        if not joined or pieces > MOST_REJOINED:
            start, pieces = at + 1, 0
            continue
        lines[start] += glue + lines[at + 1]
        lines[at + 1] = b""
        pieces += 1
    return b"\n".join(lines)


def _begins(text: str) -> bool:
    """Whether a line looks like the beginning of one."""
    return _BEGINS.match(text) is not None or _prefixed(text)


def _prefixed(text: str) -> bool:
    return parse_line(text).text != text


def _once(lines: list[bytes], goes_on: list[bool]) -> list[bytes]:
    """Join single breaks of a short text: a long line without the end of a sentence, then one in lower case.

    Whether there was a space is unknown; so the joined line has one, and the emptied line gets the other reading.
    """
    for at in range(len(lines) - 1, 0, -1):
        first, later = lines[at - 1], lines[at]
        cut = len(first) >= NARROWEST and first[-1:] not in b".:;,!?)}]>'\""
        if cut and goes_on[at - 1] and later[:1].islower():
            lines[at - 1], lines[at] = first.rstrip() + b" " + later, first[-NARROWEST:] + later
    return lines


def _between_words(lines: list[bytes], sizes: list[int], width: int) -> list[bool]:
    """Whether the first word of the next line would not have fitted."""
    words = [len(later.split(b" ", 1)[0].decode(errors="replace")) for later in lines[1:]] + [0]
    return [size + 1 + word > width for size, word in zip(sizes, words, strict=True)]


def _wrapped(goes_on: list[bool], full: list[bool], continuations: int) -> list[bool] | None:
    """Which lines go on in the next; None unless most full lines do, and so explain most of the continuations."""
    joins = [one and other for one, other in zip(goes_on, full, strict=True)]
    continued = sum(joins)
    return joins if continued >= 2 and continued >= MOST * max(sum(full), continuations) else None
