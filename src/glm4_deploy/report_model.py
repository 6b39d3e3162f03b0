"""What a command hands to a report: the keys that all share, a suite run, a load test. May import `detect`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from glm4_deploy import __version__
from glm4_deploy.result import Result, Status, exit_code, verdict

if TYPE_CHECKING:  # a name alone: commands that print a report need none of the detector's rules
    from glm4_deploy.detect.finding import LoopFinding

SCHEMA = 1  # of every --json with results; higher where a key that was there is gone or means something else


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the JSON of every command with results begins with. Keys of one kind alone stand after it.

    kind: the command. kit: the version of glm4-deploy. exit_code: that of the command, in agreement with the verdict.
    """

    schema: int = SCHEMA
    kind: str
    kit: str = __version__
    verdict: Status
    exit_code: int
    results: tuple[Result, ...]


def make_report(kind: str, results: Iterable[Result], *, code: int | None = None) -> Report:
    """The verdict over the results, and the exit code that goes with it unless the command has one of its own."""
    rows = tuple(results)
    whole = verdict(rows)
    return Report(kind=kind, verdict=whole, exit_code=exit_code(whole) if code is None else code, results=rows)


class Suite(StrEnum):
    """How much to ask. GATE is what `up` waits for; SOAK repeats its rounds for as long as asked."""

    GATE = "gate"
    QUICK = "quick"
    FULL = "full"
    SOAK = "soak"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One request on the clock, in seconds after it was sent.

    total: until the answer was complete.
    arrivals: when each token-bearing chunk of a stream came, ascending; empty for an answer that was not streamed.
    tokens: completion tokens as the server counts them (usage); None where it does not say.
    """

    total: float
    arrivals: tuple[float, ...] = ()
    tokens: int | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token."""
        return self.arrivals[0] if self.arrivals else None

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first."""
        tokens = self.tokens or len(self.arrivals)
        if len(self.arrivals) < 2 or tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSample:
    """One prompt and its answer. Both are untrusted text: a report caps and escapes them.

    finding: what the detector said of the answer; None where the answer was not judged for loops.
    """

    check: str
    prompt: str
    answer: str
    finish_reason: str | None = None
    finding: "LoopFinding | None" = None
    timing: Timing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line about the engine or the settings of the run."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measured number."""

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteReport:
    """A suite run. `verdict` and `exit_code` are decided where the checks ran; a renderer only shows them.

    started: ISO 8601 with offset. seconds: wall time. covered: one sentence on what was asked and what was not.
    exit_code: 0 passed, 1 failed or could not be judged, 3 not reachable, 4 not the engine or model expected.
    """

    suite: Suite
    base_url: str
    model: str | None
    started: str
    seconds: float
    results: tuple[Result, ...]
    verdict: Status
    exit_code: int
    covered: str
    samples: tuple[AnswerSample, ...] = field(default=())
    engine: tuple[Fact, ...] = field(default=())
    settings: tuple[Fact, ...] = field(default=())
    perplexity: tuple[Measure, ...] = field(default=())


def percentile(values: Sequence[float], share: float) -> float | None:
    """Linear interpolation between closest ranks (NumPy's default); None of nothing. share: 0 to 1."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLevel:
    """One load of `vllm bench serve`. rates are per second; goodput: requests within the SLO a second, None without."""

    concurrency: int
    requests: int
    failed: int
    seconds: float
    ttft: Quantiles
    tpot: Quantiles
    output_tokens_per_s: float
    requests_per_s: float
    goodput: float | None = None
    broken: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """A level for each concurrency. Comparable with another report only where model, lengths and generator agree."""

    base_url: str
    model: str
    started: str
    input_len: int
    output_len: int
    levels: tuple[BenchLevel, ...]
    verdict: Status
    exit_code: int
    engine: tuple[Fact, ...] = field(default=())
