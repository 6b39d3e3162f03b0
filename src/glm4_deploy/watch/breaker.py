"""When memory runs out: what warns, and what stops the engine. Figures and time in, a decision out.

A level alone stops nothing, however low: an engine may rest there for weeks. It must get worse as well.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from glm4_deploy.host.memory import MemoryFacts, Pressure, largest_users

GIB = 2**30
# Of the floor: below it, stop what makes it worse. Hosts froze with about 7 GiB available (vllm-project/vllm#46307)
# while they lost GiBs per second; at rest they work with less, for as long as they like.
CRITICAL = 0.5
CONFIRM_S = 3.0  # so long it must stall or fall
ENDS_S = 5.0  # what would be gone within this does not wait for that: CONFIRM_S, and the engine needs time to end
RATE = 3  # looks that the rate is measured over: seconds would not do, since looks come late on a host that stalls
STEPS = 5  # looks, of which two must be lower than the one before: one large allocation is not a rate
STEP = 0.01  # of the floor: less than this between two looks is noise
SETTLE_S = 2.0  # a load that ends just below half of the floor is not a fall
FALL_S = 10.0  # what a fall is measured over
# Of the floor, in FALL_S: of 8 GiB 25 MB/s, more than programs that start and end beside the engine. What falls more
# slowly takes minutes to the end, and tasks wait for memory long before.
FALL = 0.03
CALM = 1.1  # of the floor: above it, all is well again
STALLED = 20.0  # percent of 10 s in which every task waited for memory: below the floor that is an emergency too
# The same below half of the floor: half a second of ten. A host at rest has 0; a look at swap or at files that the
# kernel had dropped costs a per cent or two.
STALLED_LOW = 5.0
GROUP_FLOOR = 0.1  # of a cgroup's limit, where that is less than the floor of the host


class MemoryState(StrEnum):
    """FINE, LOW (below the floor: a warning), CRITICAL (below half of it and getting worse, or stalling: stop)."""

    UNKNOWN = "unknown"
    FINE = "fine"
    LOW = "low"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRoom:
    """Memory that is left in one place, in bytes. group: '' for the host as a whole."""

    group: str
    left: int
    total: int
    floor: float
    pressure: Pressure | None

    @property
    def low(self) -> bool:
        return self.left < self.floor

    @property
    def deep(self) -> bool:
        """Below half of the floor."""
        return self.left < CRITICAL * self.floor

    @property
    def stalls(self) -> bool:
        """Whether tasks wait for memory, and not for something else: above the floor there is enough."""
        share = self.pressure.full if self.pressure is not None else 0.0
        return self.low and share >= (STALLED_LOW if self.deep else STALLED)

    def __str__(self) -> str:
        where = f"in the cgroup {self.group}" if self.group else "on this host"
        stalls = "" if self.pressure is None else f"; all tasks waited {self.pressure.full:.0f} % of the last 10 s"
        left, total = _size(self.left), _size(self.total)
        return f"{left} of {total} available {where}, {_size(self.floor)} are to stay{stalls}"


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def rooms(facts: MemoryFacts, floor: float) -> Iterator[MemoryRoom]:
    """The host, and each limited cgroup that the engine is in. floor: bytes that are to stay available."""
    if facts.available is not None and facts.total is not None:
        yield MemoryRoom(group="", left=facts.available, total=facts.total, floor=floor, pressure=facts.pressure)
    for group in facts.groups:
        least = min(floor, GROUP_FLOOR * group.limit)
        yield MemoryRoom(group=group.path, left=group.left, total=group.limit, floor=least, pressure=group.pressure)


@dataclass(slots=True, kw_only=True)
class _Course:
    """How one place went. Times are monotonic seconds.

    Attributes:
        above: it was seen at or above half of the floor.
        since: since when it is below that.
        looks: (time, bytes left) since then, of the last FALL_S.
        last: bytes left at the last look.
        steps: for each of the last STEPS looks whether it was lower than the one before.
        worse: since when it stalls or falls.
    """

    above: bool = False
    since: float | None = None
    worse: float | None = None
    looks: deque[tuple[float, int]] = field(default_factory=deque)
    last: int = 0
    steps: deque[bool] = field(default_factory=lambda: deque(maxlen=STEPS))

    def take(self, room: MemoryRoom, at: float) -> bool:
        """Take one look. Returns whether to stop the engine."""
        self.steps.append(self.last - room.left >= STEP * room.floor)
        self.last = room.left
        if room.deep:
            self.since = at if self.since is None else self.since
            self.looks.append((at, room.left))
            while at - self.looks[0][0] > FALL_S:
                self.looks.popleft()
        else:
            self.above, self.since = True, None
            self.looks.clear()
        if room.stalls or self._falls(room, self.since):
            self.worse = at if self.worse is None else self.worse
        else:
            self.worse = None
        return (self.worse is not None and at - self.worse >= CONFIRM_S) or self._ends()

    def _falls(self, room: MemoryRoom, since: float | None) -> bool:
        """Whether it lost more than FALL, after it came from above and had time to settle."""
        if not self.above or since is None:
            return False
        settled = [left for at, left in self.looks if at >= since + SETTLE_S]
        return bool(settled) and max(settled) - room.left >= FALL * room.floor

    def _ends(self) -> bool:
        """Whether at the present rate nothing is left within ENDS_S."""
        if len(self.looks) < 2 or sum(self.steps) < 2:
            return False
        (begin, before), (end, left) = self.looks[-min(RATE, len(self.looks))], self.looks[-1]
        return (before - left) * ENDS_S > left * (end - begin)


class Breaker:
    """Decides from one look after the other. Pure."""

    def __init__(self, floor_gib: float) -> None:
        self.floor = floor_gib * GIB
        self.state = MemoryState.UNKNOWN
        self.room: MemoryRoom | None = None  # the one to stop for, else the tightest one
        self._courses: dict[str, _Course] = {}

    def look(self, facts: MemoryFacts, at: float) -> bool:
        """Take one look. Returns whether to stop the engine. at: monotonic seconds."""
        found = sorted(rooms(facts, self.floor), key=lambda room: room.left / max(room.floor, 1.0))
        self._courses = {room.group: self._courses.get(room.group, _Course()) for room in found}
        bad = [room for room in found if self._courses[room.group].take(room, at)]
        self.room = next(iter(bad or found), None)
        if self.room is None:
            self.state = MemoryState.UNKNOWN
        elif bad:
            self.state = MemoryState.CRITICAL
        else:
            warned = self.state in (MemoryState.LOW, MemoryState.CRITICAL)
            low = self.room.left < (CALM if warned else 1.0) * self.room.floor
            self.state = MemoryState.LOW if low else MemoryState.FINE
        return bool(bad)

    def stopped(self) -> None:
        """An engine was stopped: what it held comes back, and the next one is judged afresh."""
        self._courses = {group: _Course(above=course.above) for group, course in self._courses.items()}


def remedy(room: MemoryRoom, engine: frozenset[int]) -> str:
    """What to change, with the largest other processes by name. engine: the pids of the engine."""
    others = ", ".join(str(one) for one in largest_users(3, without=engine) if one.used >= GIB // 4)
    stop = f"stop what else uses memory: {others}" if others else "no other process holds much main memory"
    if room.group:
        return f"{stop}; or raise the limit of the cgroup (mem_limit); then: glm4-deploy up"
    share = max(0.01, (room.floor - room.left) / room.total)
    return (
        f"{stop}; or give the engine less: gpu_memory_utilization lower by {share:.2f}, or kv_cache_memory_bytes "
        "(glm4-deploy plan); then: glm4-deploy up"
    )
