"""Which near duplicates are loops, given what repeats, how the text ended and what was asked for."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low

from glm4_deploy.detect.counting import Words, value_of
from glm4_deploy.detect.finding import LoopFinding, LoopVerdict, Text, degenerate
from glm4_deploy.detect.prompt import Ending, PromptRequest, Shape, is_verse, shape_of
from glm4_deploy.detect.thresholds import DRIFT, NEAR, SHINGLE, WORDS

# Near duplicates: the same sentences again and again with small changes.
#
# A token is *covered* when it stands in a shingle (SHINGLE tokens in a row) that has been seen before; else it is new.
# A running score goes up by one for each covered token and down for each new one, so that it stays above zero exactly
# while new tokens are rare, and the place where it last was zero is where the repetition began. Quotations, refrains
# and boilerplate also score, but only for one distance back; a loop goes on for three or more.

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
        self.before_new: deque[str] = deque(maxlen=_KEPT)  # the token before each row of new ones
        self._in_new = False
        self.next_look = NEAR.tokens

    def take(self, first: int, tokens: Sequence[str], lags: Sequence[int]) -> None:
        """Take tokens; `lags` holds each one's distance back to what covers it, 0 when it is new.

        tokens: one more than lags, since the token before the first one comes along.
        """
        if self._score > 0 and 0 not in lags:
            self._score = min(self._score + len(lags), NEAR.ceiling)
            self.length += len(lags)
            self.lags.extend(lags)
            self._in_new = False
        elif self._score > 0 or any(lags):
            self._take_each(first, tokens, lags)

    def _take_each(self, first: int, tokens: Sequence[str], lags: Sequence[int]) -> None:
        # One loop over local names: it runs for every token of an ordinary text.
        score, cost, ceiling = self._score, self._cost, NEAR.ceiling
        for at, lag in enumerate(lags):
            if lag:
                if score <= 0:
                    score = 0.0
                    self._restart(first + at)
                if score < ceiling:
                    score += 1
                self.length += 1
                self.lags.append(lag)
                self._in_new = False
            elif score > 0:
                score -= cost
                self.length += 1
                self._take_new(tokens[at], tokens[at + 1])
        self._score = score

    def _take_new(self, before: str, token: str) -> None:
        self.new += 1
        self.numerals += value_of(token) is not None
        if not self._in_new:
            self.before_new.append(before)
        self._in_new = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """A stretch at the end of the text that says little new.

    start: offset where the first copy begins; tokens: its length; lag: tokens from copy to copy.
    copies: how many, the first one counted; novelty: share of new tokens after the first copy.
    numerals: share of the new tokens that are numbers; changes: rows of new tokens; spread: distinct places of them
    over all.
    """

    start: int
    end: int
    tokens: int
    lag: int
    novelty: float
    numerals: float
    spread: float
    changes: int

    @property
    def copies(self) -> float:
        return self.tokens / self.lag + 1


class Shingles:
    """Follows the tokens of a stream and says which stretch at its end is a near duplicate of itself."""

    def __init__(self) -> None:
        # Hash of a shingle -> 4 × the index where it last began + 0: nobody asked, 1: it tells nothing, 2: it tells.
        self._seen: dict[int, int] = {}
        self._next = 0  # index of the next token to judge, from the beginning of the text
        self._covered_to = -1  # index of the last token of the last known shingle
        self._lag = 0
        self.regions = tuple(Region(cost) for cost in NEAR.costs)

    def feed(self, words: Words) -> None:
        """Take the tokens that are new in `words`."""
        # A token can be judged once every shingle that holds it has been seen.
        first = self._next - words.dropped
        recent = words.tokens[first:]
        if len(recent) < SHINGLE:
            return
        lags = self._lags(recent)
        before = words.tokens[first - 1] if first else ""
        for region in self.regions:
            region.take(self._next, [before, *recent], lags)
        self._next += len(lags)
        if len(self._seen) >= 2 * WORDS:
            young = 4 * (self._next - WORDS)
            self._seen = {key: known for key, known in self._seen.items() if known >= young}

    def _lags(self, tokens: Sequence[str]) -> list[int]:
        """The distance back of each token but the last few, 0 for new ones. (One loop: it runs for every token.)"""
        seen, get = self._seen, self._seen.get
        shingles = zip(*(tokens[back:] for back in range(SHINGLE)), strict=False)
        covered_to, lag, lags = self._covered_to, self._lag, []
        for index, shingle in enumerate(shingles, start=self._next):
            key = hash(shingle)
            known = get(key)
            if known is None:
                seen[key] = 4 * index
            else:
                telling = known & 3 or (2 if _telling(shingle) else 1)
                seen[key] = 4 * index + telling
                if telling == 2 and index - (known >> 2) >= SHINGLE:
                    covered_to, lag = index + SHINGLE - 1, index - (known >> 2)
            lags.append(lag if covered_to >= index else 0)
        self._covered_to, self._lag = covered_to, lag
        return lags

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
        changes=len(region.before_new),
        spread=len(set(region.before_new)) / max(len(region.before_new), 1),
    )


def find_near_duplicate(
    found: Iterable[Likeness], text: Text, *, ending: Ending, request: PromptRequest
) -> LoopFinding | None:
    """The first of these that nothing excuses."""
    loops = (item for item in found if _is_loop(item, text, ending) and not request.allows(item.copies))
    return next((_finding(item, text) for item in loops), None)


def _is_loop(item: Likeness, text: Text, ending: Ending) -> bool:
    # A long paragraph whose changes fall anywhere is no template being filled in: it needs fewer copies.
    drifts = item.lag >= DRIFT.unit and item.changes >= DRIFT.changes and item.spread >= DRIFT.spread
    if item.tokens < NEAR.tokens or item.copies < (DRIFT.copies if drifts else NEAR.copies[ending]):
        return False
    sample = text.between(item.start, item.end)
    if shape_of(sample) is not Shape.PROSE or (is_verse(sample) and item.copies < NEAR.verse_copies):
        return False
    if item.novelty and item.numerals >= 0.8:
        # Only numbers change: rows and records do that, and counters have a rule of their own.
        few = item.lag >= NEAR.long_unit and item.novelty <= NEAR.few
        enough = NEAR.text_copies if item.lag >= NEAR.text_unit else NEAR.numeral_copies
        return few and (ending is Ending.CUT or item.copies >= enough)
    if item.novelty <= NEAR.few:
        return True
    if item.lag < NEAR.short_unit or item.copies < (DRIFT.copies if drifts else NEAR.varied_copies):
        return False
    # More changes than that are a template being filled in (a litany, a form letter), unless they come anywhere, or
    # it never ends.
    anywhere = item.novelty <= NEAR.some and item.spread >= NEAR.spread
    return anywhere or (item.novelty <= NEAR.slots and item.copies >= NEAR.slot_copies)


def _finding(item: Likeness, text: Text) -> LoopFinding:
    unit = text.between(item.start, item.end)
    period = max(round((item.end - item.start) / item.copies), 1)
    return degenerate(
        LoopVerdict.NEAR_DUPLICATE,
        f"about the same {period} characters come {item.copies:.1f} times; {item.novelty:.1%} of the words are new",
        confidence=round(min(0.95, 0.6 + 0.03 * item.copies + (NEAR.some - item.novelty)), 2),
        start=item.start,
        unit=unit[:period],
        period=period,
        repeats=item.copies,
    )
