"""Periodic tails: the runs that a text ends in.

A text ends in a run of period p and length n when its last n characters satisfy t[i] == t[i - p]. Turned round, the
tail's overlap with itself at distance p is a prefix match, so `str.find` (two-way search, linear in the worst case,
in C) gives the smallest p at which the last m characters recur. Longer periods need a longer needle, and the needle
can jump past every overlap already ruled out: by Fine and Wilf's theorem the search doubles, so that all runs of a
tail cost a constant number of passes over it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

FLOOR = 6  # characters of overlap below which no run is looked at


@dataclass(frozen=True, slots=True)
class Run:
    """The last `length` characters have this `period` (both in characters)."""

    period: int
    length: int

    @property
    def repeats(self) -> float:
        return self.length / self.period


def tail_runs(turned: str, *, reach: int) -> Iterator[Run]:
    """Every run that the text ends in, of at least three copies and a period up to `reach`, shortest period first.

    turned: the text (or its tail) from its last character to its first.
    """
    period, overlap = 1, FLOOR
    while overlap + period <= len(turned):
        period = turned.find(turned[:overlap], period, reach + overlap)
        if period < 0:
            return
        found = _overlap(turned, period, overlap)
        if found >= 2 * period:
            yield Run(period, found + period)
        # A longer run of three copies needs twice its period, and more than what already failed to go on.
        period += 1
        overlap = max(found + 1, 2 * period)


def _overlap(turned: str, period: int, known: int) -> int:
    """How many leading characters equal those at distance `period`; the first `known` are known to."""
    low, step, most = known, max(known, 16), len(turned) - period
    while low < most:
        high = min(low + step, most)
        if turned[low:high] != turned[low + period : high + period]:
            break
        low, step = high, step * 2
    else:
        return most
    while high - low > 1:
        middle = (low + high) // 2
        if turned[low:middle] == turned[low + period : middle + period]:
            low = middle
        else:
            high = middle
    return low
