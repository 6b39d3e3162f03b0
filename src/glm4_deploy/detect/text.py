"""The kept tail of a text, addressed by offsets of the whole."""


class Text:
    """turned: the characters that are kept, from the last to the first; end: the offset at which they end."""

    def __init__(self, turned: str, end: int) -> None:
        self.turned, self.end = turned, end

    @property
    def begin(self) -> int:
        """The offset of the first character that is kept."""
        return self.end - len(self.turned)

    def between(self, start: int, end: int) -> str:
        """What is kept of the text from `start` to `end`."""
        return self.turned[max(self.end - end, 0) : max(self.end - start, 0)][::-1]
