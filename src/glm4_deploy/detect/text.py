"""The kept tail of a text, addressed by offsets of the whole."""


class Text:
    """tail: the characters that are kept; end: the offset at which they end."""

    def __init__(self, tail: str, end: int) -> None:
        self._tail, self._base = tail, end - len(tail)

    def between(self, start: int, end: int) -> str:
        """What is kept of the text from `start` to `end`."""
        return self._tail[max(start - self._base, 0) : max(end - self._base, 0)]
