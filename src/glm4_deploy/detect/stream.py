"""The detector on a stream: looks every HOP characters, keeps at most WINDOW of them, tells at once."""

import math
from collections import deque
from collections.abc import Sequence
from itertools import islice

from glm4_deploy.detect.counting import Words, counting, find_counter
from glm4_deploy.detect.exact import find_folded, find_loop, find_or_due, fold, is_blank
from glm4_deploy.detect.finding import Growth, LoopFinding, LoopVerdict, Text, clean, degenerate
from glm4_deploy.detect.garbage import Numbers, find_mixed_scripts, find_poor, find_runaway
from glm4_deploy.detect.prompt import Ending, request_of
from glm4_deploy.detect.similar import Shingles, find_near_duplicate
from glm4_deploy.detect.thresholds import HOP, WINDOW, WORD_HOPS, WORDS

_BLOCKS = WINDOW // HOP


class Stream:
    """Feed it chunks as they arrive; the verdict does not depend on where the chunks were cut.

    Memory: the last WINDOW (65,536) characters, at most 2 × WORDS (32,768) tokens of them, and as many hashes.
    """

    def __init__(self, *, prompt: str | None = None) -> None:
        self._prompt = prompt
        self._request = request_of(prompt)
        self._numbers = Numbers()
        self._pending = ""
        self._turned: deque[str] = deque(maxlen=_BLOCKS)  # blocks, the newest first, each from its last character
        self._folded: deque[str] = deque(maxlen=_BLOCKS // WORD_HOPS)  # the same of letters and digits alone
        self._seen = 0
        self._hops = 0
        self._blank = True
        self._words = Words(WORDS)
        self._shingles = Shingles()
        self._due = math.inf  # offset at which a run becomes a loop if it goes on
        self._due_blocks = 0
        self._found: LoopFinding | None = None
        self._growth: Growth | None = None

    def feed(
        self, chunk: str, *, token_ids: Sequence[int] = (), logprobs: Sequence[float | None] = ()
    ) -> LoopFinding | None:
        """A degenerate finding as soon as there is one, and on every later call; None while all is well."""
        if self._found is None and (token_ids or logprobs):
            self._found = self._numbers.feed(token_ids, logprobs)
        self._take(chunk)
        return self._found

    def close(self, finish_reason: str | None = None) -> LoopFinding:
        """The verdict on the whole, with how it ended."""
        if self._growth is not None:
            return self._growth.finding()
        if self._found is None:
            self._found = self._conclude(Ending.of(finish_reason)) or clean("the text goes on without repeating itself")
        return self._found

    def _conclude(self, ending: Ending) -> LoopFinding | None:
        found = self._numbers.close()
        if found is not None:
            return found
        if self._blank and is_blank(self._pending):
            return _nothing(self._seen + len(self._pending))
        unread = self._tail(self._hops % WORD_HOPS)
        self._words.finish(unread + self._pending, self._seen - len(unread))
        self._folded.appendleft(fold(unread + self._pending)[::-1])
        self._shingles.feed(self._words)
        text = Text(self._pending[::-1] + self._turned_tail(_BLOCKS), self._seen + len(self._pending))
        return (
            self._look(text, ending)
            or self._look_at_words(_BLOCKS, text, ending)
            or find_runaway(text, ending=ending, prompt=self._prompt, passed_end=self._numbers.passed_end)
            or self._numbers.salad()
            or find_mixed_scripts(text)
        )

    def _take(self, chunk: str) -> None:
        text, at = self._pending + chunk, 0
        while self._found is None:
            block = text[at : at + HOP]
            if self._due <= self._seen + len(block):
                at += self._take_due(block)
            if self._found is not None or len(block) < HOP:
                break
            self._take_block(block)
            at += HOP
        self._pending = text[at:] if self._found is None else ""
        if self._growth is not None:
            self._growth.take(text[at:])

    def _take_due(self, block: str) -> int:
        """Look within a block, where a run was to become a loop; how much of the block that took."""
        read, self._due = int(self._due) - self._seen, math.inf
        text = Text(block[:read][::-1] + self._turned_tail(self._due_blocks), self._seen + read)
        self._look_running(text)
        return read if self._found is not None else 0

    def _take_block(self, block: str) -> None:
        self._turned.appendleft(block[::-1])
        self._seen += HOP
        self._hops += 1
        self._blank = self._blank and is_blank(block)
        # A look at 8 times the largest power of two in the count: every scale at an eighth of its own length.
        hops = self._hops & -self._hops
        text = Text(self._turned_tail(8 * hops), self._seen)
        due = self._look_running(text)
        if due < min(self._due, self._seen + hops * HOP):
            self._due, self._due_blocks = due, 9 * hops
        if self._found is None and self._hops % WORD_HOPS == 0:
            unread = self._tail(WORD_HOPS)
            self._words.feed(unread, self._seen - WORD_HOPS * HOP)
            self._folded.appendleft(fold(unread)[::-1])
            self._shingles.feed(self._words)
            self._found = self._look_at_words(8 * hops, text, Ending.RUNNING)

    def _look_running(self, text: Text) -> float:
        """Look for an exact loop; where one is due if the text goes on as it does."""
        self._found, due = find_or_due(text, ending=Ending.RUNNING, request=self._request)
        if self._found is not None and self._found.start == text.begin:
            # It fills what was looked at: look at all that is kept for where it begins.
            text = Text(text.turned[: text.end - self._seen] + self._turned_tail(_BLOCKS), text.end)
            self._found = self._look(text, Ending.RUNNING) or self._found
        if self._found is not None and self._found.period:
            self._growth = Growth(self._found, text)
        return due

    def _turned_tail(self, blocks: int) -> str:
        return "".join(islice(self._turned, blocks))

    def _tail(self, blocks: int) -> str:
        return self._turned_tail(blocks)[::-1]

    def _look(self, text: Text, ending: Ending) -> LoopFinding | None:
        return find_loop(text, ending=ending, request=self._request)

    def _look_at_words(self, blocks: int, text: Text, ending: Ending) -> LoopFinding | None:
        masks = self._words.turned_masks(blocks // WORD_HOPS + 1)
        ways = counting(self._words, masks, text, ended=ending is not Ending.RUNNING)
        found = find_counter(ways, ending=ending, request=self._request)
        if found is not None:
            return found
        few = min(blocks // WORD_HOPS + 1, len(self._folded))
        folded = "".join(islice(self._folded, few))
        found = find_folded(folded, text, ending=ending, request=self._request)
        if found is None and not (self._request.repeat or self._request.count):
            found = find_poor(self._words, text)
        if found is not None:
            return self._look(text, ending) or found
        alike = self._shingles.looks(self._words, all_=ending is not Ending.RUNNING)
        if not alike:
            return None
        if ending is Ending.RUNNING:
            text = Text(self._turned_tail(_BLOCKS), text.end)
        found = find_near_duplicate(alike, text, ending=ending, request=self._request)
        # An exact loop of a long unit may be near, and not due yet: name it by what it is.
        return found and (self._look(text, ending) or found)


def _nothing(length: int) -> LoopFinding:
    if not length:
        return degenerate(LoopVerdict.EMPTY, "the answer is empty", confidence=1.0, start=0)
    return degenerate(
        LoopVerdict.WHITESPACE, f"the answer is {length} characters of whitespace", confidence=1.0, start=0, period=1
    )
