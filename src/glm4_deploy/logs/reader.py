"""Reads an engine's log line by line: facts about the engine, how far its start got, what failed and why.

It is fed lines or bytes and opens nothing. Memory does not grow with the log.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from glm4_deploy.catalog.rows import Signature
from glm4_deploy.logs.facts import EngineFacts, Phase, checkpoint_size, learn_line, progress
from glm4_deploy.logs.line import (
    LONGEST_KNOWN,
    Line,
    LogPart,
    Raised,
    Tracebacks,
    decode,
    looks_like_a_log,
    parts_of,
)
from glm4_deploy.result import Result, Severity, Status
from glm4_deploy.text import redact, strip_controls

TAIL_LINES = 200
LONGEST_QUOTE = 1000
MOST_GENERIC = 10
LAST_WORDS = 20  # an error among this many last lines may be the reason why the log ends


# Levels as the signatures name them; an engine does not survive a fatal one.
LEVELS = {"fatal": Severity.CRITICAL, "error": Severity.HIGH, "warn": Severity.MEDIUM, "info": Severity.LOW}
_STATUS = {Severity.MEDIUM: Status.WARN, Severity.LOW: Status.OK}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFinding:
    """A line of the log that means something, with its cause and fix.

    Attributes:
        line: the line, without control characters and secrets.
        wrapper: the line only reports that something else failed.
        count: how often it occurred.
        number: line number, from 1.
    """

    id: str
    severity: Severity
    line: str
    cause: str
    fix: str
    source: str = ""
    wrapper: bool = False
    count: int = 1
    number: int = 0

    @property
    def level(self) -> str:
        """fatal, error, warn or info."""
        return next(level for level, severity in LEVELS.items() if severity is self.severity)

    @property
    def status(self) -> Status:
        return _STATUS.get(self.severity, Status.FAIL)

    def result(self) -> Result:
        """The finding as a row of a report, with the line as `observed` and the cause as `reason`."""
        return Result(
            check=self.id,
            status=self.status,
            severity=self.severity,
            observed=self.line,
            remedy=self.fix,
            reason=self.cause,
            source=self.source,
            line=self.number or None,
        )

    def wire(self) -> dict[str, object]:
        """The finding in JSON, with the log's level as its severity."""
        return asdict(self) | {"severity": self.level}


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
        """Failures in the order of their lines, then warnings, then information, and the wrappers last."""
        return tuple(sorted(self._judged(), key=_rank))

    def _judged(self) -> Iterator[LogFinding]:
        """Unless another failure explains the end, two warnings count as failures.

        An unknown error at the end of a failed start, and the end of an engine process that the server did not survive.
        """
        rows = self._findings
        failed = any(row.status is Status.FAIL and not row.wrapper for row in rows.values())
        key, number = self._last_error or ("", 0)
        last_word = self.lines - number < LAST_WORDS and self.facts.phase is not Phase.READY
        causes = {key} if last_word else set()
        if "engine-dead" in rows:
            causes.add("engine-process-gone")
        for name, row in rows.items():
            yield replace(row, severity=Severity.HIGH) if not failed and name in causes else row

    @property
    def recognised(self) -> bool:
        """Whether the text looks like a log at all: a fact, a finding, a traceback, a level or a time."""
        known = self._recognised or bool(self._findings) or self.facts != EngineFacts()
        return known or any(map(looks_like_a_log, self.tail(TAIL_LINES)))

    @property
    def fatal(self) -> LogFinding | None:
        """The first finding that stops the engine; causes before wrappers."""
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
        """Count lines that contain nothing of interest."""
        self.lines += len(lines)
        self._tail.extend(lines[-TAIL_LINES:])

    def _take(self, part: LogPart) -> None:
        shown, line, writer = part.shown, part.line, part.writer
        self._tail.append(shown)
        if part.boot:
            self._begin(part.boot)
        if line.clock != self._now or line.stamp is not None:
            self._time(line)
        if part.telling:
            self._learn(line.text)
        if not self._recognised:
            self._recognised = looks_like_a_log(shown)
        if part.opens:
            self._forget_errors(writer)
        raised = self._tracebacks.feed(writer, line.text) if part.opens or self._tracebacks.any_open else None
        if part.rows and self._match(part.rows, line, shown):
            return
        if raised is not None:
            self._unknown(raised, line, shown)
        elif line.level in _LOUD and not self._tracebacks.wrote(writer):
            self._unknown_error(writer, line, shown)

    def _begin(self, said: str) -> None:
        """Count a start by its banner. A repeated banner means a new start if the last one got beyond its beginning."""
        under_way = self._troubled or self.facts.phase not in (Phase.STARTING, Phase.CONFIG)
        if under_way and (said in self._banners or not self.starts):
            self.facts = EngineFacts()
            self._forget_start()
            self.starts += 1
        self.starts = max(self.starts, 1)
        self._banners.add(said)

    def _time(self, line: Line) -> None:
        self._now = line.clock
        if line.clock is not None:
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
            self.facts = replace(self.facts, ready_s=self._ready_seconds(), progress=None)
        self._size = checkpoint_size(text) or self._size
        seen = progress(text, self._size)
        if seen is not None and seen[0] is self.facts.phase:
            self.facts = replace(self.facts, progress=seen[1])

    def _match(self, rows: tuple[Signature, ...], line: Line, shown: str) -> bool:
        """Add the findings of the matching signatures; whether any of them is credible."""
        known = False
        for row in rows:
            severity = _severity_at(row, line.level)
            if severity is None:
                continue
            known = True
            self.add(_finding(row, severity, shown, self.lines))
            if row.id == "not-native-fp4":
                self.facts = replace(self.facts, native_fp4=False)
        return known

    def _unknown(self, raised: Raised, line: Line, shown: str) -> None:
        """Add an exception that no signature matches, with the place that raised it."""
        if raised.line.partition(":")[0].rpartition(".")[2] in _ENDED_FROM_OUTSIDE:
            return
        key = f"unknown-exception {raised.line[:200]}"
        if key not in self._findings:
            if self._generic >= MOST_GENERIC:
                return
            self._generic += 1
        at = f"{raised.file}:{raised.number}" if raised.file else "a place that the log does not give"
        self.add(
            LogFinding(
                id="unknown-exception",
                severity=Severity.MEDIUM if line.level in _QUIET else Severity.HIGH,
                line=shown,
                cause=f"an exception that no signature matches, raised at {at}",
                fix="read the lines around it; search vLLM's issues for its text and that file",
                source=f"traceback, raised at {at}",
                number=self.lines,
            ),
            key,
        )

    def _unknown_error(self, writer: tuple[str, str], line: Line, shown: str) -> None:
        """Add a line of level ERROR that no signature matches, unless it continues or follows a traceback."""
        if not line.text.strip():
            return
        key = f"unknown-error {writer} {_DIGITS.sub('0', line.text[:200])}"
        if key not in self._findings:
            others = [name for name, row in self._findings.items() if row.id == "unknown-error"]
            for name in others[: 1 - MOST_GENERIC]:
                del self._findings[name]
        self._last_error = (key, self.lines)
        finding = LogFinding(
            id="unknown-error",
            severity=Severity.MEDIUM,
            line=shown,
            cause="the engine logged an error that no signature matches",
            fix="read the lines around it; search vLLM's issues for its text",
            source=f"level {line.level}",
            number=self.lines,
        )
        self.add(finding, key)

    def _forget_errors(self, writer: tuple[str, str]) -> None:
        """Drop this writer's earlier errors: they only introduced its traceback."""
        for key in [key for key in self._findings if key.startswith(f"unknown-error {writer} ")]:
            del self._findings[key]

    def add(self, finding: LogFinding, key: str = "") -> None:
        """Add a finding. Findings with the same key (by default their id) are counted, and the most severe is kept.

        Secrets are removed before the line is cut, because half a secret is not recognised as one.
        """
        self._troubled |= finding.status is Status.FAIL
        old = self._findings.get(key or finding.id)
        if old is None or finding.severity.rank < old.severity.rank:
            count = 1 if old is None else old.count + 1
            line = redact(finding.line)[:LONGEST_QUOTE]
            self._findings[key or finding.id] = replace(finding, line=line, count=count)
        else:
            self._findings[key or finding.id] = replace(old, count=old.count + 1)


# A stop or a disconnected client writes tracebacks too, which are not failures.
_ENDED_FROM_OUTSIDE = frozenset({"KeyboardInterrupt", "SystemExit", "CancelledError", "GeneratorExit"})
_QUIET = frozenset({"DEBUG", "INFO", "WARNING"})
_LOUD = frozenset({"ERROR", "CRITICAL"})
_DIGITS = re.compile(r"\d+")


def _rank(finding: LogFinding) -> tuple[bool, int, int]:
    return finding.wrapper, max(finding.severity.rank, 1), finding.number


def _severity_at(row: Signature, level: str) -> Severity | None:
    """Severity of a match on a line of that level; None if not credible (a logged prompt may quote anything)."""
    severity = LEVELS[row.severity]
    if severity.rank <= Severity.HIGH.rank:
        if level in ("DEBUG", "INFO"):
            return None
        if level == "WARNING":
            return Severity.MEDIUM
    return severity


def _finding(row: Signature, severity: Severity, shown: str, number: int) -> LogFinding:
    return LogFinding(
        id=row.id,
        severity=severity,
        line=shown,
        cause=row.cause,
        fix=row.fix,
        source=row.source,
        wrapper=row.wrapper,
        number=number,
    )
