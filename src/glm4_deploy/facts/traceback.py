"""Python tracebacks in a log where several processes write at once. Pure."""

import re
from dataclasses import dataclass

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
