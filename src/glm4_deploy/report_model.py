"""What a command hands to a report: the keys that all share, a suite run, a load test. May import `detect`."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from glm4_deploy import __version__
from glm4_deploy.result import Result, Status, exit_code, verdict

if TYPE_CHECKING:  # a name alone: commands that print a report need none of the detector's rules
    from glm4_deploy.detect.finding import LoopFinding

SCHEMA = 1  # of every --json with results; raised when an existing key is removed or changes its meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The keys that begin the JSON of every command with results. A command's own keys follow them.

    Attributes:
        kind: the command.
        kit: version of glm4-deploy.
        exit_code: exit code of the command, consistent with the verdict.
    """

    schema: int = SCHEMA
    kind: str
    kit: str = __version__
    verdict: Status
    exit_code: int
    results: tuple[Result, ...]


def make_report(kind: str, results: Iterable[Result], *, code: int | None = None) -> Report:
    """The results with their verdict, and its exit code unless the command passes another."""
    rows = tuple(results)
    status = verdict(rows)
    return Report(kind=kind, verdict=status, exit_code=exit_code(status) if code is None else code, results=rows)


class Suite(StrEnum):
    """How much to check. GATE is what `up` waits for; SOAK repeats its rounds for the requested time."""

    GATE = "gate"
    QUICK = "quick"
    FULL = "full"
    SOAK = "soak"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Timing of one request, in seconds after it was sent.

    Attributes:
        total: until the answer was complete.
        arrivals: arrival of each chunk with tokens, ascending; empty for an answer that was not streamed.
        chars: characters of the answer that had come with each chunk of `arrivals`.
        tokens: completion tokens as the server reports them (usage); None where it does not.
    """

    total: float
    arrivals: tuple[float, ...] = ()
    chars: tuple[int, ...] = ()
    tokens: int | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token."""
        return self.arrivals[0] if self.arrivals else None

    def arrival_of(self, offset: int) -> float | None:
        """When the character at this offset of the answer came; None if that is not known."""
        place = bisect_right(self.chars, offset)
        return self.arrivals[place] if place < min(len(self.chars), len(self.arrivals)) else None

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

    Attributes:
        finding: the detector's verdict on the answer; None where the answer was not checked for loops.
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
class ReleaseNote:
    """One judged start in a deployment's history.

    Attributes:
        created_at: ISO 8601, UTC.
        reason: why it is not good; '' for a good one.
        kernel: the NVFP4 kernel, and whether it computes in FP4.
        ready_seconds: from the start to /health.
        gate_seconds: from /health to the verdict.
        this: whether the report is about this one.
    """

    id: str
    created_at: str
    verdict: Status
    reason: str
    vllm: str
    kernel: str
    ready_seconds: float | None
    gate_seconds: float | None
    this: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentNotes:
    """What a deployment's own files and its engine's log say of the engine that was asked.

    Attributes:
        kernel: the NVFP4 kernel, and whether it computes in FP4; '' if the log names none.
        native_fp4: whether it does; None if not known.
        phases: seconds from the start to each phase, in order.
        planned: the memory plan compared with the log.
        releases: newest first.
        certificate: what the last certificate of this release says; () without one.
    """

    kernel: str
    native_fp4: bool | None
    phases: tuple[Measure, ...]
    planned: tuple[Result, ...]
    releases: tuple[ReleaseNote, ...]
    certificate: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteReport:
    """A suite run. `verdict` and `exit_code` are decided where the checks ran; a renderer only shows them.

    Attributes:
        started: ISO 8601 with offset.
        seconds: wall time.
        covered: one sentence on what was checked and what was not.
        exit_code: 0 passed, 1 failed or undecided, 3 unreachable, 4 not the expected engine or model, 11 the engine
            died.
        proves: what each check of the table proves, run or not.
        deployment: None for an endpoint that this directory did not bring up.
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
    proves: tuple[Fact, ...] = field(default=())
    deployment: DeploymentNotes | None = None


def percentile(values: Sequence[float], share: float) -> float | None:
    """Percentile by linear interpolation (NumPy's default), `share` from 0 to 1; None for no values."""
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
    """One load of `vllm bench serve`.

    Attributes:
        failed: number of failed requests.
        goodput: requests per second that met the SLO; None without an SLO.
        broken: the limits that this load exceeded, one phrase each.
    """

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
    """One level per concurrency. Comparable with another report only if model, lengths and generator are the same."""

    base_url: str
    model: str
    started: str
    input_len: int
    output_len: int
    levels: tuple[BenchLevel, ...]
    verdict: Status
    exit_code: int
    engine: tuple[Fact, ...] = field(default=())
