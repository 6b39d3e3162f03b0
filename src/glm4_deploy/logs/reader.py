"""Reads an engine's log line by line: facts about the engine, how far its start got, what failed and why.

It is fed lines or bytes and opens nothing. Memory does not grow with the log.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from glm4_deploy.catalog.rows import Capability, Role, Signature, parse_version, recognise, signatures
from glm4_deploy.logs.facts import EngineFacts, Phase, checkpoint_size, learn_line, progress
from glm4_deploy.logs.finding import LEVELS, UNKNOWN_ERROR, UNKNOWN_EXCEPTION, LogFinding, in_order
from glm4_deploy.logs.line import (
    LONGEST_KNOWN,
    Frame,
    Line,
    LogPart,
    Raised,
    Tracebacks,
    decode,
    looks_like_a_log,
    parse_line,
    parts_of,
    request_place,
)
from glm4_deploy.result import Severity, Status
from glm4_deploy.text import one_line, redact, strip_controls

TAIL_LINES = 200
LONGEST_QUOTE = 1000
MOST_GENERIC = 10
LAST_WORDS = 20  # an error among this many last lines may be the reason why the log ends
INNERMOST = 15  # calls of a traceback that may say what kind of failure it is
HOURS_OF_A_PASTE = 12
NEAR = 3  # lines between the code of an assertion and its exception
STALLED = 3  # times that a process must say that it waits, without anything else after it


class LogReader:
    """Feed it every line; `facts` and `findings` are up to date after each.

    A log may contain several starts (a restarting container): the facts describe the last one, the findings all.
    """

    def __init__(self) -> None:
        self.facts = EngineFacts()
        self.starts = 0
        self.lines = 0
        self._findings: dict[str, LogFinding] = {}
        self._tail: deque[str | bytes] = deque(maxlen=TAIL_LINES)
        self._tracebacks = Tracebacks()
        self._generic = 0
        self._recognised = False
        self._last_error: tuple[str, int] | None = None
        self._assertion = ("", 0)  # the last line of source code that asserts something, and its number
        self._mentioned: tuple[Raised, str, int] | None = None
        self._gpu: Capability | None = None
        self._doubtful: set[str] = set()  # findings that may have ended the engine: no request was answered since
        self._survived: set[str] = set()
        self._forget_start()

    def _forget_start(self) -> None:
        self._troubled = False
        self._banners: set[str] = set()
        self._size: float | None = None
        self._clock: tuple[float, float] | None = None
        self._now: float | None = None  # of the last line with a time
        self._stamp: tuple[float, float] | None = None

    @property
    def findings(self) -> tuple[LogFinding, ...]:
        """The likely cause first; see `in_order`."""
        found = [self._judged(name, row) for name, row in self._findings.items()]
        if not any(row.status is Status.FAIL and not row.wrapper and row.id != UNKNOWN_EXCEPTION for row in found):
            found = [*self._in_words(found), *self._cut_off()]
        found = self._last_words(found)
        first = next((row for row in in_order(found) if row.status is Status.FAIL and not row.wrapper), None)
        failures = sum(row.status is Status.FAIL for row in found)
        shown = (row for row in found if not self._says_little(row, failures))
        return in_order(_pointing_to(first, row) if row.wrapper and row.status is Status.FAIL else row for row in shown)

    def _says_little(self, row: LogFinding, failures: int) -> bool:
        """A wrapper that is not itself a failure is only worth showing where nothing else says that it ended."""
        harmless = row.wrapper and row.id in self._findings and self._findings[row.id].status is Status.OK
        return harmless and (row.status is Status.OK or failures > 1)

    def _judged(self, name: str, row: LogFinding) -> LogFinding:
        """The finding with what the rest of the log says about it: the version, the GPU, whether the engine served."""
        ready = self.facts.phase is Phase.READY
        severity = Severity.MEDIUM if name in self._survived and ready else row.severity
        known = _table().get(row.id)
        if known is None or not known.regex:  # what it says was made for this one exception
            return replace(row, severity=severity)
        cause, fix = known.cause_and_fix(self._version(), self._gpu)
        if known.quotes:
            cause = f"{cause}: {_quoted(parse_line(row.line).text)}"
        if known.before_ready and not ready and severity is not Severity.CRITICAL:
            severity = LEVELS[known.before_ready]
        if known.at_end and not ready and row.count >= STALLED and self._ends_with(known):
            severity = LEVELS[known.at_end]
        return replace(row, cause=cause, fix=fix, severity=severity)

    def _version(self) -> tuple[int, ...] | None:
        return None if self.facts.version is None else parse_version(self.facts.version)

    def _ends_with(self, row: Signature) -> bool:
        """Whether the log's last line is of this kind."""
        last = next((text for text in reversed(self.tail(TAIL_LINES)) if text.strip()), "")
        return row.matches(last)

    def _cut_off(self) -> Iterator[LogFinding]:
        """Failures whose exception is missing, because the log ends within their tracebacks."""
        for raised in self._tracebacks.rest():
            if raised.level not in _QUIET and not raised.request:
                yield self._exception(raised, "", self.lines)

    def _in_words(self, found: list[LogFinding]) -> list[LogFinding]:
        """Also an exception that is only mentioned, in a text that is not an engine's log and says nothing else."""
        if self._mentioned is None or self.facts != EngineFacts() or any(row.status is Status.FAIL for row in found):
            return found
        return [*found, self._exception(*self._mentioned)]

    def _last_words(self, found: list[LogFinding]) -> list[LogFinding]:
        """Unless another failure explains the end, two warnings count as failures.

        An unknown error at the end of a failed start, and the end of an engine process that the server did not survive.
        """
        if any(row.status is Status.FAIL and not row.wrapper for row in found):
            return found
        key, number = self._last_error or ("", 0)
        at_end = self.lines - number < LAST_WORDS and self.facts.phase is not Phase.READY
        last = self._findings.get(key) if at_end else None
        gone = "engine-process-gone" if "engine-dead" in self._findings else ""
        return [replace(row, severity=Severity.HIGH) if row == last or row.id == gone else row for row in found]

    @property
    def recognised(self) -> bool:
        """Whether the text looks like a log at all: a fact, a finding, a traceback, a level or a time."""
        known = self._recognised or bool(self._findings) or self.facts != EngineFacts()
        return known or any(map(looks_like_a_log, self.tail(TAIL_LINES)))

    @property
    def fatal(self) -> LogFinding | None:
        """The first finding that stops the engine; causes before wrappers."""
        if not self._troubled:  # asked after every line of a start
            return None
        return next((row for row in self.findings if row.severity is Severity.CRITICAL), None)

    @property
    def watching(self) -> bool:
        """Whether every line matters now, because a traceback is open or the log has just begun."""
        return self._tracebacks.any_open or self.lines < TAIL_LINES

    def feed(self, line: str) -> None:
        """Read one line, split at carriage returns (progress bars, CRLF)."""
        self.lines += 1
        for part in parts_of(line) if len(line) <= LONGEST_KNOWN else parts_of.__wrapped__(line):
            self._take(part)

    def tail(self, count: int) -> tuple[str, ...]:
        """The last lines, at most 200, without secrets."""
        lines = list(self._tail)[-count:]
        return tuple(redact(line if isinstance(line, str) else strip_controls(decode(line)).rstrip()) for line in lines)

    def skip(self, lines: Sequence[bytes]) -> None:
        """Count lines that contain nothing of interest, except that an answered request shows a living engine."""
        self.lines += len(lines)
        self._tail.extend(lines[-TAIL_LINES:])
        if self._doubtful and any(b'"POST /' in line and b'" 200' in line for line in lines):
            self._survive()

    def _survive(self) -> None:
        """A request was answered after these errors, so they did not end the engine."""
        self._survived |= self._doubtful
        self._doubtful.clear()

    def _take(self, part: LogPart) -> None:
        shown, line, writer = part.shown, part.line, part.writer
        self._tail.append(shown)
        if part.boot and not self._out_of_order(line):
            self._begin(part.boot)
        if line.clock not in (None, self._now) or line.stamp is not None:
            self._time(line)
        if part.telling:
            self._learn(line.text)
        if not self._recognised:
            self._recognised = looks_like_a_log(shown)
        if self._gpu is None and self.lines < TAIL_LINES:
            self._gpu = gpu_in(line.text)
        if part.answered and self._doubtful:
            self._survive()
        wrote = self._tracebacks.wrote(writer)
        raised = self._tracebacks.feed(part) if self._tracebacks.any_open or part.of_traceback else None
        if part.opens and not wrote:
            self._forget_errors(writer)
        if "assert " in line.text[:60]:
            self._assertion = (line.text.strip(), self.lines)
        if raised is not None and self._says_more(part, raised):
            self._unknown(raised, line, shown)
            self._match(part.rows, line, shown, raised)
        elif part.rows and self._match(part.rows, line, shown, raised):
            return
        elif raised is not None:
            self._unknown(raised, line, shown)
        elif line.level in _LOUD and not self._tracebacks.wrote(writer):
            self._unknown_error(writer, line, shown)
        elif self._mentioned is None and not line.level and not line.process and (said := _mentioned_in(line.text)):
            self._mentioned = (Raised(line=said), shown, self.lines)

    @staticmethod
    def _says_more(part: LogPart, raised: Raised) -> bool:
        """Whether the kind of exception says more than the rows for its text, which name a symptom at most."""
        if any(row.role is not Role.SYMPTOM for row in part.rows):
            return False
        return not part.rows or _family(raised, words=all(row.quotes for row in part.rows)) is not None

    def _begin(self, said: str) -> None:
        """Count a start by its banner. A repeated banner means a new start if the last one got beyond its beginning."""
        under_way = self._troubled or self.facts.phase not in (Phase.STARTING, Phase.CONFIG)
        if under_way and (said in self._banners or not self.starts):
            self.facts = EngineFacts()
            self._forget_start()
            self._doubtful.clear()
            self.starts += 1
        self.starts = max(self.starts, 1)
        self._banners.add(said)

    def _out_of_order(self, line: Line) -> bool:
        """Whether a banner stands after later lines, as in a text that someone put together; a restart comes later."""
        if line.clock is None or self._now is None:
            return False
        return 0 < self._now - line.clock < HOURS_OF_A_PASTE * 3600

    def _time(self, line: Line) -> None:
        if line.clock is not None:
            self._now = line.clock
            first, last = self._clock or (line.clock, line.clock)
            self._clock = (first, line.clock if line.clock > last or first - line.clock > 15e6 else last)
        if line.stamp is not None:
            first, last = self._stamp or (line.stamp, line.stamp)
            self._stamp = (first, max(last, line.stamp))

    def _ready_seconds(self) -> float | None:
        """Seconds by the engine's clock, or by Docker's if the engine logs no times."""
        span = self._clock or self._stamp
        if span is None or span[0] == span[1]:
            return None
        seconds = span[1] - span[0]
        year = 366 * 86400.0
        return round(seconds if seconds >= 0 else seconds + year, 1)

    def _learn(self, text: str) -> None:
        before = self.facts.phase
        self.facts = learn_line(self.facts, text)
        if self.facts.phase is Phase.READY and before is not Phase.READY:
            self._survive()
            self.facts = replace(self.facts, ready_s=self._ready_seconds(), progress=None)
        self._size = checkpoint_size(text) or self._size
        seen = progress(text, self._size)
        if seen is not None and seen[0] is self.facts.phase:
            self.facts = replace(self.facts, progress=seen[1])

    def _match(self, rows: tuple[Signature, ...], line: Line, shown: str, raised: Raised | None) -> bool:
        """Add the findings of the matching signatures; whether any of them is credible."""
        credible = [(row, severity) for row in rows if (severity := _severity_at(row, line)) is not None]
        clearest = min((row.role for row, _ in credible), default=Role.WRAPPER)
        for row, severity in credible:
            if clearest < row.role < Role.WRAPPER:
                continue  # it says less about the same line
            of_request = row.role in (Role.PLACE, Role.SYMPTOM) and _of_request(line, raised)
            worst = max(severity, Severity.MEDIUM, key=lambda one: one.rank) if of_request else severity
            self.add(_finding(row, worst, shown, self.lines))
            if row.id == "not-native-fp4":
                self.facts = replace(self.facts, native_fp4=False)
        return bool(credible)

    def _unknown(self, raised: Raised, line: Line, shown: str) -> None:
        """Add an exception whose text no signature matches."""
        if raised.line.partition(":")[0].rpartition(".")[2] in _NO_FAILURES:
            return
        assertion, number = self._assertion
        if raised.line == "AssertionError" and 0 < self.lines - number <= NEAR:
            raised = replace(raised, line=f"AssertionError: {assertion}")
        # The API server reports on requests too; an engine that dies says more than one line.
        alone = not raised.frames and bool(line.level) and _ENGINE.search(line.process) is None
        if line.level in _QUIET or _of_request(line, raised) or (alone and self.facts.phase is Phase.READY):
            raised = replace(raised, level="WARNING")
        # A number in it may be a request's, an address or a line.
        key = f"exception {_DIGITS.sub('0', raised.line[:200])} {raised.level in _QUIET}"
        if old := self._findings.get(key):
            self._again(key, old)
        elif self._generic < MOST_GENERIC:
            self._generic += 1
            self.add(self._exception(raised, shown, self.lines), key)

    def _exception(self, raised: Raised, shown: str, number: int) -> LogFinding:
        """An exception whose text no signature matches, with what the place that raised it says about it."""
        quiet = raised.level in _QUIET or raised.request
        severity = Severity.MEDIUM if quiet else Severity.HIGH
        at = raised.at
        said = _quoted(raised.line) if raised.line else "an exception that the log cuts off"
        if row := _family(raised):
            return replace(
                _finding(row, severity, shown or at, number),
                role=Role.PLACE if _row_of_place(raised.frames) else Role.SYMPTOM,
                cause=f"{row.cause}; the catalogue does not know the exception itself: {said}, raised at {at}",
            )
        about = "while a request was handled; the engine is fine" if raised.request else "no signature matches it"
        return LogFinding(
            id=UNKNOWN_EXCEPTION,
            severity=severity,
            line=shown or at,
            cause=f"{said}, raised at {at}: {about}",
            fix="read the lines around it; search vLLM's issues for its text and that file",
            source=f"traceback, raised at {at}",
            number=number,
            last=number,
        )

    def _unknown_error(self, writer: tuple[str, str], line: Line, shown: str) -> None:
        """Add a line of level ERROR that no signature matches, unless it continues or follows a traceback."""
        if not line.text.strip():
            return
        key = f"{UNKNOWN_ERROR} {writer} {_DIGITS.sub('0', line.text[:200])}"
        if key not in self._findings:
            others = [name for name, row in self._findings.items() if row.id == UNKNOWN_ERROR]
            for name in others[: 1 - MOST_GENERIC]:
                del self._findings[name]
        if not request_place(line.place):
            self._last_error = (key, self.lines)
        finding = LogFinding(
            id=UNKNOWN_ERROR,
            severity=Severity.MEDIUM,
            line=shown,
            cause=f"the engine logged an error that no signature matches: {_quoted(line.text)}",
            fix="read the lines around it; search vLLM's issues for its text",
            source=f"level {line.level}",
            number=self.lines,
            last=self.lines,
        )
        self.add(finding, key)

    def _forget_errors(self, writer: tuple[str, str]) -> None:
        """Drop this writer's earlier errors: they only introduced its traceback."""
        for key in [key for key in self._findings if key.startswith(f"{UNKNOWN_ERROR} {writer} ")]:
            del self._findings[key]

    def add(self, finding: LogFinding, key: str = "") -> None:
        """Add a finding. Findings with the same key (by default their id) are counted, and the most severe is kept.

        Secrets are removed before the line is cut, because half a secret is not recognised as one.
        """
        self._troubled |= finding.status is Status.FAIL
        name = key or finding.id
        old = self._findings.get(name)
        if old is not None and finding.severity.rank >= old.severity.rank:
            self._again(name, old)
            return
        self._doubt(name, finding)
        line = redact(finding.line)[:LONGEST_QUOTE]
        self._findings[name] = replace(finding, line=line, count=1 if old is None else old.count + 1)

    def _again(self, name: str, old: LogFinding) -> None:
        self._doubt(name, old)
        self._findings[name] = replace(old, count=old.count + 1, last=self.lines)

    def _doubt(self, name: str, finding: LogFinding) -> None:
        """It may have ended the engine, as far as one can tell from its kind."""
        if finding.role is Role.PLACE or name != finding.id:
            self._doubtful.add(name)
            self._survived.discard(name)


# A stop or a disconnected client writes tracebacks too, which are not failures.
# EntryNotFoundError: the hub was asked for an optional file.
_NO_FAILURES = frozenset({"KeyboardInterrupt", "SystemExit", "CancelledError", "GeneratorExit", "EntryNotFoundError"})
_ENGINE = re.compile("Engine|Worker|rank")
_QUIET = frozenset({"DEBUG", "INFO", "WARNING"})
_LOUD = frozenset({"ERROR", "CRITICAL"})
_DIGITS = re.compile(r"\d{1,200}")


@cache
def _table() -> dict[str, Signature]:
    return {row.id: row for row in signatures()}


def _family(raised: Raised, *, words: bool = True) -> Signature | None:
    """The row for what kind of failure an unknown exception is: by the innermost known call, or by its words."""
    message = raised.line.partition(":")[2]
    said = (row for row in signatures() if words and row.speaks_of(message))
    return _row_of_place(raised.frames) or next(said, None)


def _row_of_place(frames: tuple[Frame, ...]) -> Signature | None:
    """The row that knows the innermost of these calls."""
    rows = [row for row in signatures() if row.frames]
    return next((row for frame in reversed(frames[-INNERMOST:]) for row in rows if row.knows(str(frame))), None)


def _quoted(words: str) -> str:
    return f"`{one_line(redact(words), 200)}`"


# An exception within a sentence, in backquotes, or in the text of a future.
_MENTIONED = re.compile(
    r"""(?:[\s`'"(=*]|^)((?:\w{1,60}\.){0,6}[A-Z]\w{1,60}(?:Error|Exception))(?:: |\(['"])(.{1,400})"""
)


def _mentioned_in(text: str) -> str:
    match = _MENTIONED.search(text) if "Error" in text or "Exception" in text else None
    return f"{match[1]}: {match[2].rstrip(_QUOTES)}" if match else ""


_QUOTES = "`'\" )>*"


def _pointing_to(first: LogFinding | None, wrapper: LogFinding) -> LogFinding:
    """A wrapper with the name of the cause; or, if there is none in this text, with where to look for it."""
    if first is not None:
        return replace(wrapper, fix=f"see {first.id} (line {first.number})")
    return replace(
        wrapper, cause=f"{wrapper.cause}. Why is not in this text: it begins too late, or another process said it"
    )


_GPU = re.compile(
    r"\bsm_(\d{2,3})[af]?\b|\bcapability \(?(?:major=)?(\d{1,2})(?:\.|, ?)(?:minor=)?(\d)"
    r"|\b(NVIDIA [A-Z][\w -]{2,40}|GB10|DGX Spark|RTX (?:PRO )?\d{4})\b"
)


def gpu_in(text: str) -> Capability | None:
    """The compute capability of the GPU that a line names."""
    match = _GPU.search(text)
    if match is None:
        return None
    if match[1]:
        return int(match[1][:-1]), int(match[1][-1])
    if match[2]:
        return int(match[2]), int(match[3])
    gpu = recognise(match[4])
    return None if gpu is None else gpu.compute_capability


def _severity_at(row: Signature, line: Line) -> Severity | None:
    """Severity of a match on this line; None if not credible (a logged prompt may quote anything)."""
    severity = LEVELS[row.severity]
    if severity.rank <= Severity.HIGH.rank:
        if line.level in ("DEBUG", "INFO"):
            return None
        if line.level == "WARNING":
            certain = row.role is Role.CAUSE and _HANDLED.search(line.text) is None
            return Severity.MEDIUM if certain else None
    return severity


def _of_request(line: Line, raised: Raised | None) -> bool:
    """Whether a line is about one request: its logger, or a call of its traceback, only runs for requests."""
    return request_place(line.place) or (raised is not None and raised.request)


# A warning that says what the engine does about it.
_HANDLED = re.compile("[Ff]alling back|[Ff]all back|[Rr]etrying|[Ss]kipping|[Ii]gnoring|[Ss]hutdown|[Dd]isabling")


def _finding(row: Signature, severity: Severity, shown: str, number: int) -> LogFinding:
    return LogFinding(
        id=row.id,
        severity=severity,
        line=shown,
        cause=row.cause,
        fix=row.fix,
        source=row.source,
        role=row.role,
        number=number,
        last=number,
    )
