"""The kept tail of a text, and the periodic runs that it ends in.

A text ends in a run of period p and length n when its last n characters satisfy t[i] == t[i - p]. In the reversed text
the tail's overlap with itself at distance p is a prefix match, so `str.find` (two-way search in C, linear in the worst
case) gives the smallest p at which the last m characters recur. Longer periods need a longer needle, and by Fine and
Wilf's theorem the needle can skip every overlap already ruled out: its length doubles, and all runs of a tail cost a
constant number of passes over it. That is why the detector keeps text reversed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from glm4_deploy.detect.thresholds import MAX_GAP, MAX_GAP_SHARE

MIN_OVERLAP = 6  # characters that must recur before a run is considered


class Tail:
    """The last characters of a text, addressed by offsets into the whole text.

    Attributes:
        reversed: the kept characters, last one first.
        end: offset just after the last character.
    """

    __slots__ = ("end", "reversed")

    def __init__(self, reversed_text: str, end: int) -> None:
        self.reversed, self.end = reversed_text, end

    @property
    def begin(self) -> int:
        """Offset of the first character kept."""
        return self.end - len(self.reversed)

    def before(self, distance: int) -> "Tail":
        """The same tail without its last `distance` characters."""
        return Tail(self.reversed[distance:], self.end - distance)

    def between(self, start: int, end: int) -> str:
        """The text from offset `start` to `end`, as far as it is kept, in reading order."""
        return self.reversed[max(self.end - end, 0) : max(self.end - start, 0)][::-1]


@dataclass(frozen=True, slots=True)
class Run:
    """The last `length` characters repeat with this `period` (both in characters)."""

    period: int
    length: int

    @property
    def repeats(self) -> float:
        return self.length / self.period

    def unit(self, reversed_text: str) -> str:
        """The first copy, in reading order."""
        return reversed_text[self.length - self.period : self.length][::-1]


def may_repeat(reversed_text: str) -> bool:
    """Whether the text may end in a run: its last characters recur."""
    return reversed_text.find(reversed_text[:MIN_OVERLAP], 1) > 0


def tail_runs(reversed_text: str, *, reach: int) -> Iterator[Run]:
    """Every run of at least three copies that the text ends in, shortest period first, up to a period of `reach`."""
    period, overlap = 1, MIN_OVERLAP
    while overlap + period <= len(reversed_text):
        period = reversed_text.find(reversed_text[:overlap], period, reach + overlap)
        if period < 0:
            return
        matched = _overlap(reversed_text, period, overlap)
        if matched >= 2 * period:
            yield Run(period, matched + period)
        # A longer run of three copies needs an overlap of twice its period, and a longer one than this one reached.
        period += 1
        overlap = max(matched + 1, 2 * period)


def runs_before_end(reversed_text: str, *, reach: int, distances: Iterable[int]) -> Iterator[tuple[Run, int]]:
    """Runs that pass through a point at one of these distances from the end, each with its own distance from it."""
    for distance in distances:
        for run in tail_runs(reversed_text[distance:], reach=reach):
            stop = distance
            while stop and reversed_text[stop - 1] == reversed_text[stop - 1 + run.period]:
                stop -= 1
            if stop:
                yield Run(run.period, run.length + distance - stop), stop


def across_gaps(reversed_text: str, run: Run) -> tuple[Run, int]:
    """Extend a run back across odd tokens, while they remain few.

    Returns:
        The run without its gaps, and its length with them.
    """
    needle = reversed_text[: run.period] * -(-MIN_OVERLAP // run.period)
    matched = end = run.length
    while (at := reversed_text.find(needle, end, end + run.period + MAX_GAP + len(needle))) >= 0:
        while at > end and reversed_text[at - 1] == reversed_text[at - 1 + run.period]:
            at -= 1
        length = _overlap(reversed_text, run.period, at, at) + run.period - at
        if at - matched > MAX_GAP_SHARE * (matched + length):
            break
        matched, end = matched + length, at + length
    return Run(run.period, matched), end


def _overlap(reversed_text: str, period: int, known: int, begin: int = 0) -> int:
    """Where characters from `begin` on stop matching those `period` later; up to `known` they are known to match."""
    low, step, limit = known, max(known - begin, 16), len(reversed_text) - period
    while low < limit:
        high = min(low + step, limit)
        if reversed_text[low:high] != reversed_text[low + period : high + period]:
            break
        low, step = high, step * 2
    else:
        return limit
    while high - low > 1:
        middle = (low + high) // 2
        if reversed_text[low:middle] == reversed_text[low + period : middle + period]:
            low = middle
        else:
            high = middle
    return low
