"""Near duplicates: the same sentences again and again with small changes.

A token is *covered* when it stands in a shingle (SHINGLE tokens in a row) that has been seen before; else it is new.
A running score goes up by one for each covered token and down for each new one, so that it stays above zero exactly
while new tokens are rare, and the place where it last was zero is where the repetition began. Quotations, refrains
and boilerplate also score, but only for one distance back; a loop goes on for three or more.
"""

from collections import deque
from dataclasses import dataclass
from statistics import median_low

from glm4_deploy.detect.limits import NEAR, SHINGLE, WORDS
from glm4_deploy.detect.words import Words, value_of

_KEPT = 4096  # new tokens and distances remembered of one region


class Region:
    """The stretch of tokens up to now in which new ones are rarer than one in 1 + cost."""

    def __init__(self, cost: float) -> None:
        self._cost = cost
        self._score = 0.0
        self._restart(0)

    def _restart(self, index: int) -> None:
        self.start, self.length = index, 0
        self.new = self.numerals = 0
        self.lags: deque[int] = deque(maxlen=_KEPT)
        self.before_new: deque[str] = deque(maxlen=_KEPT)  # the token before each new one
        self.next_look = NEAR.tokens

    @property
    def busy(self) -> bool:
        return self._score > 0

    def take(self, index: int, token: str, before: str, lag: int) -> None:
        """Take one token; lag is the distance back to what covers it, 0 when it is new."""
        if self._score <= 0:
            if not lag:
                return
            self._score = 0.0
            self._restart(index)
        self.length += 1
        if lag:
            self._score = min(self._score + 1, NEAR.ceiling)
            self.lags.append(lag)
            return
        self._score -= self._cost
        self.new += 1
        if value_of(token) is not None:
            self.numerals += 1
        self.before_new.append(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """A stretch at the end of the text that says little new.

    start: offset where the first copy begins; tokens: its length; lag: tokens from copy to copy.
    copies: how many, the first one counted; novelty: share of new tokens after the first copy.
    numerals: share of the new tokens that are numbers; spread: distinct places of the changes over all changes.
    """

    start: int
    end: int
    tokens: int
    lag: int
    novelty: float
    numerals: float
    spread: float

    @property
    def copies(self) -> float:
        return self.tokens / self.lag + 1


class Shingles:
    """Follows the tokens of a stream and says which stretch at its end is a near duplicate of itself."""

    def __init__(self) -> None:
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._next = 0  # index of the next token to take, from the beginning of the text
        self._matched_to = -1  # index of the last token of the last known shingle
        self._lag = 0
        self._busy = False
        self.regions = tuple(Region(cost) for cost in NEAR.costs)

    def feed(self, words: Words) -> None:
        """Take the tokens that are new in `words`."""
        tokens = words.tokens
        # A token can be judged once every shingle that holds it has been seen.
        first = max(self._next - words.dropped, 0)
        recent = tokens[first:]
        shingles = zip(*(recent[back:] for back in range(SHINGLE)), strict=False)
        index = first + words.dropped - 1
        for index, shingle in enumerate(shingles, start=first + words.dropped):
            matched = self._match(shingle, index)
            if not matched and not self._busy and self._matched_to < index:
                continue
            lag = self._lag if self._matched_to >= index else 0
            local = index - words.dropped
            before = tokens[local - 1] if local else ""
            self._busy = False
            for region in self.regions:
                region.take(index, tokens[local], before, lag)
                self._busy |= region.busy
        self._next = index + 1

    def _match(self, shingle: tuple[str, ...], index: int) -> bool:
        """Whether the shingle that begins at `index` was seen before."""
        key = hash(shingle)
        seen = self._young.get(key)
        if seen is None:
            seen = self._old.get(key)
        self._young[key] = index
        if len(self._young) >= WORDS:
            self._old, self._young = self._young, {}
        if seen is None or index - seen < SHINGLE or not _telling(shingle):
            return False
        self._matched_to, self._lag = index + SHINGLE - 1, index - seen
        return True

    def looks(self, words: Words, *, all_: bool) -> list[Likeness]:
        """What the regions say that have grown by a quarter since the last look (all_: that are long enough)."""
        due = [region for region in self.regions if region.length >= (NEAR.tokens if all_ else region.next_look)]
        for region in due:
            region.next_look = region.length * 5 // 4
        return [_likeness(region, words) for region in due]


def _telling(shingle: tuple[str, ...]) -> bool:
    """A shingle tells something if it is not made of a few symbols (a bit string, a board, `na na na`)."""
    if len(set(shingle)) < SHINGLE - 1:
        return False
    return sum(word.isalpha() and (len(word) > 1 or word >= "\u0900") for word in shingle) >= SHINGLE // 2


def _likeness(region: Region, words: Words) -> Likeness:
    lag = median_low(region.lags)
    return Likeness(
        start=words.start(region.start - lag - words.dropped),
        end=words.end(len(words.tokens) - 1),
        tokens=region.length,
        lag=lag,
        novelty=region.new / region.length,
        numerals=region.numerals / max(region.new, 1),
        spread=len(set(region.before_new)) / max(len(region.before_new), 1),
    )
