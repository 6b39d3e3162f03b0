"""Server-sent events in a stream of bytes that passes by: where each one ends, and its data.

The bytes are not changed and, but for an event that has not ended yet, not kept.
"""

import re
from collections.abc import Iterator

MAX_EVENT = 1 << 20  # bytes; vLLM's largest events (a prompt's logprobs) are some hundred kilobytes
_END_OF_LINE = re.compile(rb"\r\n|\n|\r")


class EventTooLong(Exception):
    """An event is longer than MAX_EVENT."""


class Events:
    """Feed it chunks that may be cut anywhere (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

    def __init__(self) -> None:
        self._line = bytearray()  # the line that has not ended yet
        self._data: list[bytes] = []  # of the event that has not ended yet
        self._size = 0  # of `_data` in bytes
        self._after_return = False  # a line feed that comes now belongs to the carriage return before it

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """For each event that ends in the chunk: the offset in the chunk just after it, and its data.

        Comments and events without data are skipped.

        Raises:
            EventTooLong: an event has more than MAX_EVENT bytes. Feed no more then.
        """
        if not chunk:  # a carriage return before it still waits for its line feed
            return
        at = 1 if self._after_return and chunk.startswith(b"\n") else 0
        self._after_return = False
        if self.between and b"\r" not in chunk:  # the usual case, many times faster: whole events of one line each
            while chunk.startswith(b"data: ", at):
                size = chunk.find(b"\n", at) - at
                if size < 0 or size > MAX_EVENT or not chunk.startswith(b"\n", at + size + 1):
                    break
                data, at = chunk[at + 6 : at + size], at + size + 2
                yield at, data
            if at == len(chunk):
                return
        for end in _END_OF_LINE.finditer(chunk, at):
            line, at = bytes(self._line) + chunk[at : end.start()], end.end()
            self._line.clear()
            self._after_return = at == len(chunk) and end[0] == b"\r"
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._check(len(line))
            elif not line and self._data:
                joined = b"\n".join(self._data)
                self._data, self._size = [], 0
                yield at, joined
        self._line += chunk[at:]
        self._check(0)

    @property
    def between(self) -> bool:
        """Whether no event has begun that has not ended."""
        return not self._line and not self._data

    def _check(self, more: int) -> None:
        self._size += more
        if self._size + len(self._line) > MAX_EVENT:
            raise EventTooLong
