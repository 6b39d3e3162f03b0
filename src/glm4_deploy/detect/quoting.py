"""Where a loop stands: in a fence of Markdown or a quotation, after which a text about loops goes on; or at a cut."""

from glm4_deploy.detect.tail import Tail

_FENCE = "```"


class Fences:
    """Counts the fences of a stream.

    Attributes:
        open: the text stands inside one.
    """

    def __init__(self) -> None:
        self._carry = ""
        self.open = False

    def feed(self, block: str) -> None:
        """Take the next characters."""
        if "`" in block or self._carry:
            text = self._carry + block
            self.open ^= text.count(_FENCE) % 2 == 1
            ticks = len(text) - len(text.rstrip("`"))
            self._carry = "`" * (ticks % len(_FENCE))


_OPENING, _CLOSING = '"“「『«‘`(', '"”」』»’`)'
_LINE = 200  # characters before a loop in which its quotation begins


def is_quoted(tail: Tail, start: int) -> bool:
    """Whether offset `start` stands in a quotation that its line began, or in a fence."""
    if tail.between(tail.begin, start).count(_FENCE) % 2:
        return True
    line = tail.between(start - _LINE, start + 1).rpartition("\n")[2]
    if line.lstrip().startswith(">"):
        return True
    return any(
        line.count(one) % 2 == 1 if one == other else line.count(one) > line.count(other)
        for one, other in zip(_OPENING, _CLOSING, strict=True)
    )


def is_unfinished(tail: Tail) -> bool:
    """Whether a text stops where more must follow: at a comma, a colon or an opening bracket."""
    return tail.reversed[:100].lstrip()[:1] in tuple(",:([{\\=、，：（")
