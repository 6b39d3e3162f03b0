"""How far an exact loop goes on after it was found."""

from glm4_deploy.detect.model import Finding, with_repeats
from glm4_deploy.detect.text import Text


class Growth:
    """Compares what comes next with the loop's own cycle; keeps that one cycle and nothing else."""

    def __init__(self, found: Finding, text: Text) -> None:
        self._found = found
        self._cycle = text.turned[: found.period][::-1]
        self._more = 0
        self._over = not self._cycle or found.repeats is None

    def take(self, chunk: str) -> None:
        """Take the text that follows."""
        if self._over or not chunk:
            return
        period, size = len(self._cycle), len(chunk)
        phase = self._more % period
        expected = (self._cycle * ((phase + size) // period + 1))[phase : phase + size]
        if chunk == expected:
            self._more += size
            return
        self._over = True
        self._more += next(at for at, (got, want) in enumerate(zip(chunk, expected, strict=True)) if got != want)

    def finding(self) -> Finding:
        """The finding with all its copies counted."""
        if self._found.repeats is None or not self._more:
            return self._found
        return with_repeats(self._found, self._found.repeats + self._more / len(self._cycle))
