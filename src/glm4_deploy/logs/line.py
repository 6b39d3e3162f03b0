"""One line of an engine's log: tracebacks, prefixes, and the signatures it matches."""

import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache

from ahocorasick_rs import AhoCorasick

from glm4_deploy.catalog.rows import Signature, signatures
from glm4_deploy.logs.facts import BOOT, literals
from glm4_deploy.text import strip_controls

# Every pattern here and in the catalog has bounded repetitions, and is searched in at most LONGEST_LINE characters: no
# line takes more than a moment.

# The lines of a Python traceback.

START = "Traceback (most recent call last)"
IGNORED = "Exception ignored in"  # Python could not raise it anywhere: the process goes on
LONGEST = 2000
MOST_OPEN = 64
MOST_WRITERS = 1024
MOST_FRAMES = 60
_FILE = re.compile(r'\s{0,40}(?:[|│] {0,8})?File "([^"\n]{1,500})", line (\d{1,9})(?:, in (\S{1,200}))?')
# As people shorten a traceback, or as C++ prints one: `flashinfer/gemm/gemm_base.py:1498 in fp8_gemm_sm100`.
_SHORT_FILE = re.compile(
    r"\s{0,40}(?:at |in |from )?((?:[\w.-]{1,80}/){1,20}[\w.-]{1,80}\.(?:py|cu|cuh|cpp|h)):(\d{1,9})(?::| in | \(| - )"
    r" ?(\w{0,100})"
)
_NAME = r"(?:[A-Za-z_]\w{0,80}\.){0,10}"
# The exception at the end of a traceback, and one that stands alone because the paste begins or ends near it.
_EXCEPTION = re.compile(rf"{_NAME}[A-Za-z_]\w{{0,100}}(?::(?:\s|$)|$)")
_ALONE = re.compile(
    rf"{_NAME}[A-Za-z_]\w{{0,100}}(?:Error(?:_\w{{1,40}})?|Exception|Failure|Fault|Timeout|TimedOut|Exhausted|Refused|NotFound|Unavailable)"
    r"(?: ?:(?:\s|$)|$)"
)
_CODE = frozenset(
    [
        *("else", "try", "finally", "pass", "return", "break", "continue", "raise", "yield", "lambda", "self", "cls"),
        *("with", "except", "note", "hint", "fix", "usage"),
    ]
)
# Functions that only run for a request: what they raise is that request's error.
_REQUEST = re.compile(
    r"/(?:starlette|fastapi)/|/uvicorn/protocols/|/entrypoints/\S{0,80}(?:serving\w{0,40}|api_router|chat_utils|/protocol"
    r"|preprocess\w{0,20}|/renderers?/\S{0,40})\.py|/v1/engine/(?:input_)?processor\.py"
    r"|/(?:tool|reasoning)_?parsers?/|/\w{0,60}(?:tool|reasoning)_parser\.py"
)
_REQUEST_PLACE = re.compile(
    r"serving\w{0,40}\.py|api_router\.py|chat_utils\.py|protocol\.py|preprocess\w{0,20}\.py"
    r"|\w{0,40}_(?:tool|reasoning)_parser\.py"
)


def request_place(place: str) -> bool:
    """Whether a logger in that file only reports on requests."""
    return _REQUEST_PLACE.match(place) is not None


@dataclass(frozen=True, slots=True)
class Frame:
    """A call of a traceback. request: it only happens while a request is handled."""

    file: str
    number: int
    function: str
    request: bool

    def __str__(self) -> str:
        return f"{self.file} {self.function}"


def frame_in(text: str) -> Frame | None:
    match = _FILE.match(text) or (_SHORT_FILE.match(text) if "/" in text else None)
    if match is None:
        return None
    return Frame(match[1], int(match[2]), match[3] or "", _REQUEST.search(match[1]) is not None)


def exception_in(text: str) -> str | None:
    """The exception that a line of a traceback names; None for its other lines."""
    if text[:1] in (" ", "\t", ""):
        text = text.lstrip(" \t|│+-") if text.lstrip()[:1] in ("|", "│") else ""  # inside an exception group
    match = _EXCEPTION.match(text)
    if match is None:
        return None
    name = match[0].rstrip(": \t")
    last = name.rpartition(".")[2]
    # A line of source code that lost its indentation looks similar: `else:`, `self.x`.
    is_class = last[:1].isupper() or (":" in match[0] and name not in _CODE and len(text) > len(match[0]))
    return text if is_class and name not in _CODE else None


# Prefixes of a line: those of Docker, Compose and journald, then vLLM's process and level.
#
# vLLM's differ by version: `(VllmWorker rank=0 pid=222)`, `(EngineCore_DP0 pid=143)`, `(EngineCore pid=698)`,
# `(Worker pid=7) (Worker_TP0 pid=7)`, none at all (vLLM 0.9, tqdm).

_STAMP = re.compile(r"\[?(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)(Z|[+-]\d\d:?\d\d)?\]?\s{1,20}(?:\|\s)?")
_LEVELS = r"DEBUG|INFO|WARNING|ERROR|CRITICAL"
_OUTER = re.compile(
    rf"(?!(?:{_LEVELS})\s)[A-Za-z0-9][\w.@-]{{0,100}}\s{{1,60}}\|\s?"  # docker compose logs, docker service logs
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,9})? [^\s:]{1,100} [\w.@/-]{1,100}(?:\[\d{1,9}\])?: ?"  # journald
    r"|[\w.-]{1,100} [\w.@/-]{1,100}\[\d{1,9}\]: ?"  # journald after a time in another format
    r"|\[pod/[\w.-]{1,200}/[\w.-]{1,200}\] ?"  # kubectl logs --prefix
    r"|[\w.:-]{1,80}: kern: {1,10}\w{1,10}: \[\d{4}-[\dTZ:.-]{5,40}\]: ?"  # talosctl dmesg
    r"|(?:kernel: ?)?\[ {0,12}\d{1,9}\.\d{3,9}\] |kernel: "  # dmesg
    r"|\[[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\] "  # dmesg -T
    r"|\[\d{1,4},\d{1,4}\]<std(?:err|out)>: ?"  # mpirun
    r"|\[[\w./<>-]{1,80}\.py:\d{1,6}\] "  # the rest of a prefix that was cut
    r"|`{1,3}(?=[A-Za-z(\[])|[-*•] {1,3}(?=`|[\w.]{1,100}(?:Error|Exception): )"  # Markdown
)
_PROCESS = re.compile(
    r"\([A-Za-z][\w.-]{0,60}(?:[ ,][^()\n]{0,100}?)?\bpid=\d{1,10}[^()\n]{0,200}\) ?|\[rank ?\d{1,5}\]: ?"
    r"|\((?:APIServer|EngineCore|Worker|VllmWorker|RayWorker|DPCoordinator|raylet)[\w.-]{0,40}\) ?"
    r"|\[repeated \d{1,6}x across cluster\] ?"
)
_LEVEL = re.compile(
    rf"\[?({_LEVELS})(?::\s{{1,20}}|:[A-Za-z_][\w.]{{0,100}}:|\] "  # logging's own formats
    r"|\s{0,10}\|\s{1,10}(?:[\w.<>]{1,100}:[\w.<>]{1,100}:\d{1,6} - )?"  # loguru
    r"|\s{1,10}((?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,9})?) \[?([\w./<>-]{1,200}:\d{1,6})\](?: |$))"
)
# FlashInfer's `- WARNING - x.py:1 - `, `host:7:8 [0] NCCL INFO `, PyTorch's `[W1123 14:42:43.1 x.cpp:2] `.
_OTHER_LEVEL = re.compile(
    rf"- ({_LEVELS}) - |[\w.-]{{1,100}}:\d{{1,9}}:\d{{1,9}} \[\d{{1,4}}\] NCCL (INFO) "
    r"|[^\s:]{1,300}\.py:\d{1,6}: \w{0,40}(W)arning: "
    r"|\[?([WEIF])(?:\d{3,4} \d\d:\d\d:\d\d\.\d{1,9})?(?: {1,8}\d{1,9})? [^\]\s]{1,200}:\d{1,6}\] ?"
)
# Programs around the engine that only say that they failed: docker, podman, kubectl; logfmt (dockerd, containerd).
_TOOL_FAILED = re.compile(
    r"(?:[a-z][\w.-]{0,30}: )?(?:Error response from daemon|Error|FATAL|fatal|panic|error during [\w -]{1,40}): "
    r"|(?:time=\S{1,80} )?level=(?:error|fatal|panic)\b"
)
# A level, a word of failure, or a time: dmesg's, syslog's, or any format with hours, minutes and seconds.
_LOG = re.compile(
    r"\b(?:DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL)\b"
    r"|(?i:\b(?:error|warning|exception|traceback|failed|failure|fatal|panic|killed|denied)\b)"
    r"|^\[ {0,12}\d{1,9}\.\d{3}|\d\d:\d\d:\d\d(?!\d)|\bpid=\d|\w(?:Error|Exception)\b"
)
_QUIET = frozenset({"DEBUG", "INFO", "WARNING"})
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
            named = other[1] or other[2] or _LETTERS[other[3] or other[4]]
            return Line(text[other.end() :], process=process, level=named, stamp=stamp)
        failed = "ERROR" if _TOOL_FAILED.match(text, at) else ""
        return Line(text[at:], process=process, level=failed, stamp=stamp)
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

LONGEST_READ = 64 * 1024  # bytes of a line that are kept
LONGEST_LINE = 6000  # characters of it that are searched: its beginning, and its end
LONGEST_END = 2000
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
        ignored: the traceback that follows is one that Python could not raise anywhere.
        frame: the call of a traceback that it shows.
        exception: the exception that it names if it is the last line of a traceback.
        alone: it names an exception, with or without a traceback.
        answered: a request was answered.
        writer: process and logger.
    """

    shown: str
    line: Line
    rows: tuple[Signature, ...]
    telling: bool
    boot: str
    opens: bool
    ignored: bool
    frame: Frame | None
    exception: str | None
    alone: bool
    answered: bool

    @property
    def of_traceback(self) -> bool:
        """Whether a traceback begins, goes on or ends here, as far as one line can tell."""
        return self.opens or self.ignored or self.alone or self.frame is not None

    writer: tuple[str, str]


@lru_cache(maxsize=4096)
def parts_of(raw: str) -> tuple[LogPart, ...]:
    """The non-empty parts of a line between carriage returns. Cached, because logs repeat themselves."""
    shown = (strip_controls(_cut(part)).rstrip() for part in _PARTS.split(raw))
    return tuple(_part(text) for text in shown if text)


# A progress bar ends without a newline, so the next record follows in its line.
_PARTS = re.compile(r"\r|(?<=it/s\])(?=[(\[A-Z])|(?<=s/it\])(?=[(\[A-Z])")


def _cut(text: str) -> str:
    if len(text) <= LONGEST_LINE + LONGEST_END:
        return text
    return f"{text[:LONGEST_LINE]} … {text[-LONGEST_END:]}"


def _part(shown: str) -> LogPart:
    line = parse_line(shown)
    text = line.text
    automaton, meanings = _words()
    found = {number for number, _, _ in automaton.find_matches_as_indexes(text, overlapping=True)}
    rows = sorted({row for number in found for row in meanings[number].rows})
    table = signatures()
    return LogPart(
        shown=shown,
        line=line,
        rows=tuple(table[number] for number in rows if table[number].matches(text)),
        telling=any(meanings[number].fact for number in found),
        boot=next((literal for literal in BOOT if literal in text), ""),
        opens=START in text,
        ignored=text.startswith(IGNORED),
        frame=frame_in(text),
        exception=exception_in(text),
        alone=_ALONE.match(text) is not None,
        answered='"POST /' in text and '" 200' in text,
        writer=(line.process, line.place),
    )


@dataclass(slots=True)
class _Word:
    """What a literal may mean: the indices of the signatures that contain it, and whether a fact does."""

    rows: list[int] = field(default_factory=list)
    fact: bool = False


@cache
def _words() -> tuple[AhoCorasick, tuple[_Word, ...]]:
    """All literals, found in one pass."""
    words: dict[str, _Word] = {}
    for number, row in enumerate(signatures()):
        for word in row.has:
            words.setdefault(word, _Word()).rows.append(number)
    for word in literals():
        words.setdefault(word, _Word()).fact = True
    return AhoCorasick(list(words)), tuple(words.values())


# Tracebacks in a log that several processes write to at once.


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """The exception at the end of a traceback.

    Attributes:
        line: its line; "" if the log ends before it.
        level: of the line that began the traceback.
        frames: the calls, innermost last; the outermost of a long traceback are missing.
    """

    line: str
    level: str = ""
    frames: tuple[Frame, ...] = ()

    @property
    def at(self) -> str:
        """The file and line that raised it."""
        return (
            f"{self.frames[-1].file}:{self.frames[-1].number}" if self.frames else "a place that the log does not give"
        )

    @property
    def request(self) -> bool:
        """Whether it was raised while a request was handled."""
        return any(frame.request for frame in self.frames)


@dataclass(slots=True)
class _Open:
    level: str
    frames: deque[Frame] = field(default_factory=lambda: deque(maxlen=MOST_FRAMES))
    lines: int = 0

    def raised(self, text: str) -> Raised:
        return Raised(line=text, level=self.level, frames=tuple(self.frames))


class Tracebacks:
    """Follows one traceback per writer (process and logger), so that interleaved tracebacks stay separate."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], _Open] = {}
        self._wrote: set[tuple[str, str]] = set()
        self._ignored: tuple[str, str] | None = None

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def wrote(self, key: tuple[str, str]) -> bool:
        """Whether this writer has started a traceback: its other lines introduce, continue or follow it."""
        return key in self._wrote

    def feed(self, part: LogPart) -> Raised | None:
        """The exception if this line names it and so ends the traceback; otherwise None.

        A traceback whose first lines are missing begins with its first `File` line; an exception may stand alone.
        """
        key, level = part.writer, part.line.level
        if part.opens:
            self._begin(key, "WARNING" if self._ignored == key else level)
            self._ignored = None
            return None
        state = self._open.get(key)
        if part.frame is not None:
            state = state or self._begin(key, level)
            state.frames.append(part.frame)
            return None
        if state is None:
            self._ignored = key if part.ignored else self._ignored
            return Raised(line=part.line.text, level=level) if part.alone and level not in _QUIET else None
        state.lines += 1
        if state.lines > LONGEST:
            del self._open[key]
        elif part.exception:
            del self._open[key]
            return state.raised(part.exception)
        return None

    def rest(self) -> tuple[Raised, ...]:
        """Tracebacks that the log cuts off before it names the exception."""
        return tuple(state.raised("") for state in self._open.values() if state.frames)

    def _begin(self, key: tuple[str, str], level: str) -> _Open:
        if key not in self._open and len(self._open) >= MOST_OPEN:
            self._open.pop(next(iter(self._open)))
        self._open[key] = state = _Open(level)
        if len(self._wrote) < MOST_WRITERS:
            self._wrote.add(key)
        return state
