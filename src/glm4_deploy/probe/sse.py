"""Server-sent events, cut from raw chunks that may break anywhere."""

from collections.abc import Iterable, Iterator

DONE = b"[DONE]"


def events(chunks: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(seconds, data) of each event, stamped with the arrival of the chunk that completed it.

    Comments and other fields are passed over; several data lines of one event are joined by a newline. An event that
    never saw its blank line is not yielded: `[DONE]` missing at the end is how a truncated stream is recognised.
    """
    rest = b""
    for at, chunk in chunks:
        block = (rest + chunk).replace(b"\r\n", b"\n")
        # A chunk may end between \r and \n: keep the \r for the next one.
        *whole, rest = block.split(b"\n\n")
        for event in whole:
            data = _data(event)
            if data is not None:
                yield at, data


def _data(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:  # nearly every event of every server
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
