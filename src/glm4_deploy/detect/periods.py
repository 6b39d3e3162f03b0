"""Periodic tails: the runs that a text ends in.

A text ends in a run of period p and length n when its last n characters satisfy t[i] == t[i - p]. Turned round, the
tail's overlap with itself at distance p is a prefix match, so `str.find` (two-way search, linear in the worst case,
in C) gives the smallest p at which the last m characters recur. Longer periods need a longer needle, and the needle
can jump past every overlap already ruled out: by Fine and Wilf's theorem the search doubles, so that all runs of a
tail cost a constant number of passes over it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from glm4_deploy.detect.limits import GAP, GAPS

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


def runs_before_tail(turned: str, *, reach: int, tails: Iterable[int]) -> Iterator[tuple[Run, int]]:
    """Runs that go through a place so many characters before the end, each with how far before the end it stops."""
    for tail in tails:
        for run in tail_runs(turned[tail:], reach=reach):
            stop = tail
            while stop and turned[stop - 1] == turned[stop - 1 + run.period]:
                stop -= 1
            if stop:
                yield Run(run.period, run.length + tail - stop), stop


def over_breaks(turned: str, run: Run) -> tuple[Run, int]:
    """Follow a run back over breaks as long as they stay few: all that is whole of it, and its length with breaks."""
    needle = turned[: run.period] * -(-FLOOR // run.period)
    whole = end = run.length
    while (at := turned.find(needle, end, end + run.period + GAP + len(needle))) >= 0:
        while at > end and turned[at - 1] == turned[at - 1 + run.period]:
            at -= 1
        length = _overlap(turned, run.period, at, at) + run.period - at
        if at - whole > GAPS * (whole + length):
            break
        whole, end = whole + length, at + length
    return Run(run.period, whole), end


def _overlap(turned: str, period: int, known: int, begin: int = 0) -> int:
    """Where characters from `begin` on stop to equal those at distance `period`; those up to `known` are known to."""
    low, step, most = known, max(known - begin, 16), len(turned) - period
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
