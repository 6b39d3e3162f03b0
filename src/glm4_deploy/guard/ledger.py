"""What the guard reports about itself: Prometheus metrics, and one line of JSON per finding."""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import accumulate
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from glm4_deploy.guard.answer import SickText
from glm4_deploy.guard.question import Question

MAX_MODELS = 64  # labels: a client names the model
DELAY = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class Delays(Collector):
    """A histogram for one thread: prometheus_client's takes a lock twice, for each token."""

    def __init__(self) -> None:
        self._counts = [0] * (len(DELAY) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(DELAY, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterable[Metric]:
        bounds = (*map(floatToGoString, DELAY), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        text = "Time from a chunk's arrival until it was passed on"
        yield HistogramMetricFamily("glm4_guard_delay_seconds", text, buckets, self._sum)


class Ledger:
    """Counts, and writes findings. show_text: also write what repeats."""

    def __init__(self, write: Callable[[str], None], *, show_text: bool = False) -> None:
        self._write, self._writing = write, Lock()  # verdicts come from another thread
        self._show_text = show_text
        self._models: set[str] = set()
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"glm4_guard_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"glm4_guard_{name}", text, buckets=buckets, registry=registry)

        self._answers = counter("answers", "Judged answers by outcome: sound, sick, cut, retried", "model", "outcome")
        self._findings = counter("findings", "Findings by the detector's verdict", "model", "verdict")
        self._unjudged = counter("unjudged", "Answers that were passed on without a verdict, by reason", "reason")
        self._engine_ended = counter("engine_ended", "Answers that vLLM's own check for repetition has ended", "model")
        self.tokens_saved = counter("tokens_saved", "Tokens that cut answers had left, of those that had a limit")
        self._refused = counter("refused", "Questions that were refused because the host was short of memory")
        self.refuses = Gauge("glm4_guard_refuses", "1 while new questions are refused for that", registry=registry)
        self.delay = Delays()
        registry.register(self.delay)
        self.cut_at = histogram("cut_characters", "Characters from the first copy until the cut", LENGTHS)
        self.streams = Gauge("glm4_guard_streams", "Answers that are being judged", registry=registry)

    def finding(self, question: Question, sick: SickText, action: str) -> None:
        """Count a finding and write its line."""
        found = sick.finding
        self._findings.labels(self._model(question), found.verdict.value).inc()
        more = {"key": question.key} if question.key else {}
        if self._show_text:
            more |= {"unit": found.unit, "why": found.why}
        self.event(
            "finding", model=self._model(question), api=question.api.value, action=action, choice=sick.choice,
            part=sick.part, verdict=found.verdict.value, unit_characters=found.period, repeats=found.repeats,
            start=found.start, characters=sick.characters, final=sick.final, **more,
        )  # fmt: skip
        if action == "cut" and found.start is not None:
            self.cut_at.observe(sick.characters - found.start)

    def answer(self, question: Question, outcome: str, *, engine_ended: bool = False) -> None:
        self._answers.labels(self._model(question), outcome).inc()
        if engine_ended:
            self._engine_ended.labels(self._model(question)).inc()

    def unjudged(self, reason: str) -> None:
        self._unjudged.labels(reason).inc()

    def refused(self) -> None:
        self._refused.inc()

    def fault(self, error: Exception) -> None:
        """Write that judging has failed."""
        self.event("fault", error=type(error).__name__)

    def event(self, event: str, /, **fields: Any) -> None:
        """Write one line of JSON."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **fields}, ensure_ascii=True)
        with self._writing:
            self._write(line)

    def _model(self, question: Question) -> str:
        name = question.model[:200].encode(errors="replace").decode()  # half a surrogate pair is not a valid label
        if name not in self._models and len(self._models) >= MAX_MODELS:
            return "other"
        self._models.add(name)
        return name
