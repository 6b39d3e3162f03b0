"""The detector on a stream: looks every HOP characters, keeps at most WINDOW of them, tells at once."""

from collections import deque
from collections.abc import Iterable
from itertools import islice

from glm4_deploy.detect.context import Ending, request_of
from glm4_deploy.detect.counters import counting, find_counter
from glm4_deploy.detect.likeness import find_near_duplicate
from glm4_deploy.detect.limits import HOP, WINDOW, WORDS
from glm4_deploy.detect.loops import find_loop
from glm4_deploy.detect.model import Finding, Verdict, clean, degenerate
from glm4_deploy.detect.neardup import Shingles
from glm4_deploy.detect.numbers import Numbers
from glm4_deploy.detect.text import Text
from glm4_deploy.detect.words import Words

_BLOCKS = WINDOW // HOP


class Stream:
    """Feed it chunks as they arrive; the verdict does not depend on where the chunks were cut.

    Memory: the last WINDOW (65,536) characters; nothing else grows.
    """

    def __init__(self, *, prompt: str | None = None) -> None:
        self._request = request_of(prompt)
        self._numbers = Numbers()
        self._pending = ""
        self._turned: deque[str] = deque(maxlen=_BLOCKS)  # blocks, the newest first, each from its last character
        self._seen = 0
        self._hops = 0
        self._blank = True
        self._words = Words(WORDS)
        self._shingles = Shingles()
        self._found: Finding | None = None

    def feed(
        self, chunk: str, *, token_ids: Iterable[int] = (), logprobs: Iterable[float | None] = ()
    ) -> Finding | None:
        """A degenerate finding as soon as there is one, and on every later call; None while all is well."""
        if self._found is None:
            self._found = self._numbers.feed(token_ids, logprobs)
        self._take(chunk)
        return self._found

    def close(self, finish_reason: str | None = None) -> Finding:
        """The verdict on the whole, with how it ended."""
        if self._found is not None:
            return self._found
        found = self._numbers.close()
        if found is None and self._blank and not self._pending.strip():
            found = _nothing(self._seen + len(self._pending))
        if found is None:
            self._words.finish(self._pending, self._seen)
            self._shingles.feed(self._words)
            found = self._look(_BLOCKS, self._pending, Ending.of(finish_reason)) or self._numbers.salad()
        self._found = found or clean("the text goes on without repeating itself")
        return self._found

    def _take(self, chunk: str) -> None:
        text = self._pending + chunk
        full = len(text) - len(text) % HOP
        for start in range(0, full, HOP):
            if self._found is not None:
                break
            block = text[start : start + HOP]
            self._turned.appendleft(block[::-1])
            self._seen += HOP
            self._hops += 1
            self._blank = self._blank and block.isspace()
            self._words.feed(block, self._seen - HOP)
            self._shingles.feed(self._words)
            # A look at 8 times the largest power of two in the count: every scale at an eighth of its own length.
            self._found = self._look(8 * (self._hops & -self._hops), "", Ending.RUNNING)
        self._pending = text[full:]

    def _look(self, blocks: int, rest: str, ending: Ending) -> Finding | None:
        turned = rest[::-1] + "".join(islice(self._turned, min(blocks, _BLOCKS)))
        end = self._seen + len(rest)
        found = find_loop(turned, end=end, ending=ending, request=self._request)
        if found is not None:
            return found
        first = self._words.since(end - len(turned))
        found = find_counter(counting(self._words, first, turned, end), ending=ending, request=self._request)
        if found is not None:
            return found
        alike = self._shingles.looks(self._words, all_=ending is not Ending.RUNNING)
        if not alike:
            return None
        tail = "".join(self._turned)
        return find_near_duplicate(alike, Text((rest[::-1] + tail)[::-1], end), ending=ending, request=self._request)


def _nothing(length: int) -> Finding:
    if not length:
        return degenerate(Verdict.EMPTY, "the answer is empty", confidence=1.0, start=0)
    return degenerate(
        Verdict.WHITESPACE, f"the answer is {length} characters of whitespace", confidence=1.0, start=0, period=1
    )
