"""What the counters of a live engine say: one reading of /metrics becomes findings of the shape of a log's.

The names are those of vLLM 0.9 to 0.33 (v1/metrics/loggers.py of each). Counters count since the engine started, so
they are judged as shares of the requests that have finished; gauges are judged as they are. An engine that holds
requests is read again until a counter moves, because a hang shows in nothing else.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from glm4_deploy.catalog.rows import metric_rows
from glm4_deploy.errors import EngineDied, Unreachable, WrongEngine
from glm4_deploy.logs.finding import LEVELS, LogFinding, in_order
from glm4_deploy.plan.engine_rules import HELD_REQUESTS, STALL_SECONDS
from glm4_deploy.probe.endpoints import Metrics, read_health, read_metrics
from glm4_deploy.probe.hang import counters
from glm4_deploy.result import Result, unknown
from glm4_deploy.text import one_line

RUNNING, WAITING = HELD_REQUESTS
# Where vLLM renamed a metric, the new name is first; 0.9 to 0.11 have the old one.
KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
PREEMPTIONS = "vllm:num_preemptions_total"
FINISHED = "vllm:request_success_total"  # by finished_reason; `error` from 0.13, `repetition` from 0.17
CORRUPTED = "vllm:corrupted_requests_total"  # from 0.11, and only with VLLM_COMPUTE_NANS_IN_LOGITS=1
AWAKE = "vllm:engine_sleep_state"  # from 0.11; sleep_state="awake" is 0 while the engine sleeps

PAUSE = 1.0  # seconds between two readings of an engine that holds requests: longer than most steps of an engine


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """One reading, summed over the engines behind the address; None is not reported.

    Attributes:
        running, waiting: requests now.
        kv_usage: share of the KV cache in use, 0 to 1, of the fullest engine.
        preemptions, corrupted: since the start.
        finished: requests since the start by their finish reason.
        prefix_queries: prompt tokens looked up in the prefix cache since the start.
        prefix_hit_rate: share of them that it had; None as well if none was looked up.
        awake: False while any engine sleeps.
        stalled_s: seconds for which it held requests and no counter moved; 0 if one moved or it is idle.
    """

    model: str | None
    running: float | None
    waiting: float | None
    kv_usage: float | None
    preemptions: float | None
    finished: Mapping[str, float] | None
    prefix_queries: float | None
    prefix_hit_rate: float | None
    corrupted: float | None
    awake: bool | None
    stalled_s: float | None = None

    @property
    def total(self) -> float:
        return sum((self.finished or {}).values())

    def ended(self, reason: str) -> float:
        """Finished requests with that reason."""
        return (self.finished or {}).get(reason, 0.0)


def read_engine(
    base_url: str, *, timeout: float = 10, stall: float = STALL_SECONDS, waiting: Callable[[], None] = lambda: None
) -> EngineMetrics:
    """GET /metrics of a live engine, again if it holds requests.

    Args:
        timeout: seconds for one answer.
        stall: seconds without progress after which it counts as stalled.
        waiting: called once if no counter moved at first.

    Raises:
        Unreachable: no answer in time.
        WrongEngine: an answer without vLLM's counters.
        EngineDied: the server answers, and its engine has died.
    """
    metrics = _read(base_url, timeout)
    if (read_health(base_url) or 0) >= 500:
        raise EngineDied(
            f"{base_url} answers, but its engine has died: /health reports an error, and the counters are its last",
            hint="glm4-deploy diagnose reads its log, which says why; then restart it",
        )
    first, began, stalled = counters(metrics), time.monotonic(), 0.0
    now = first
    while first is not None and now is not None and now.held and stalled < stall:
        time.sleep(PAUSE)
        metrics = _read(base_url, timeout)
        now = counters(metrics)
        if now is not None and not now.stuck_since(first):
            stalled = 0.0
            break
        if not stalled:
            waiting()
        stalled = time.monotonic() - began
    return replace(engine_metrics(metrics), stalled_s=None if now is None else stalled)


def _read(base_url: str, timeout: float) -> Metrics:
    metrics = read_metrics(base_url, timeout=timeout)
    if metrics is None:
        raise Unreachable(
            f"nothing answers at {base_url}/metrics",
            hint=(
                "is the engine up, and is this its address? glm4-deploy status",
                "glm4-deploy diagnose reads its log",
            ),
        )
    if metrics.sum(RUNNING) is None and metrics.sum(FINISHED) is None:
        raise WrongEngine(
            f"{base_url}/metrics has no counters of vLLM",
            hint="give the engine's own address, not a router's or gateway's; --disable-log-stats removes the counters",
        )
    return metrics


def engine_metrics(metrics: Metrics) -> EngineMetrics:
    """The figures that are judged."""
    used = [value for name in KV_USAGE for value in metrics.by(name, "engine").values() if math.isfinite(value)]
    asked, hits = _first(metrics, QUERIES), _first(metrics, HITS)
    reasons = {key for labels, _ in metrics.rows.get(FINISHED, ()) if (key := labels.get("finished_reason"))}
    awake = metrics.sum(AWAKE, sleep_state="awake")
    model = metrics.label(RUNNING, "model_name")
    return EngineMetrics(
        model=None if model is None else one_line(model),
        running=metrics.sum(RUNNING),
        waiting=metrics.sum(WAITING),
        kv_usage=max(used, default=None),
        preemptions=metrics.sum(PREEMPTIONS),
        finished={one_line(key): metrics.sum(FINISHED, finished_reason=key) or 0.0 for key in sorted(reasons)} or None,
        prefix_queries=asked,
        prefix_hit_rate=hits / asked if asked and hits is not None else None,
        corrupted=metrics.sum(CORRUPTED),
        awake=None if awake is None else awake >= len(metrics.by(AWAKE, "engine")),
    )


def _first(metrics: Metrics, names: tuple[str, ...]) -> float | None:
    return next((found for name in names if (found := metrics.sum(name)) is not None), None)


def judge_metrics(seen: EngineMetrics) -> tuple[LogFinding, ...]:
    """What the reading says by the limits of metrics.yaml, the worst first."""
    values = dict(_values(seen))
    return in_order(
        LogFinding(
            id=row.id,
            severity=LEVELS[row.level(values[row.id].value)],
            line=values[row.id].line,
            cause=row.cause,
            fix=row.fix,
            source=row.source,
        )
        for row in metric_rows()
        if row.id in values and values[row.id].number >= row.least and row.level(values[row.id].value)
    )


def unjudged(seen: EngineMetrics) -> tuple[Result, ...]:
    """What every engine of vLLM reports and this one does not: it is not fine, it is not known.

    The counter of corrupted requests is not among them, because an engine counts them only if configured to.
    """
    figures = {
        "running": (RUNNING, seen.running),
        "waiting": (WAITING, seen.waiting),
        "kv-cache": (KV_USAGE[0], seen.kv_usage),
        "preemptions": (PREEMPTIONS, seen.preemptions),
        "progress": ("vllm:generation_tokens_total", seen.stalled_s),
        "finished": (FINISHED, seen.finished),
        "prefix-cache": (QUERIES[0], seen.prefix_queries),
    }
    missing = {check: name for check, (name, value) in figures.items() if value is None}
    return tuple(
        unknown(f"{name} is not reported", "curl URL/metrics shows what is", check=check)
        for check, name in missing.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """The value that a row of metrics.yaml judges. line: what was read. number: of observations behind it."""

    value: float
    line: str
    number: float = math.inf


def _values(seen: EngineMetrics) -> Iterator[tuple[str, _Value]]:
    """By the id of their row; none for what was not reported."""
    yield from _of_answers(seen)
    yield from _of_load(seen)
    if seen.finished is not None and not seen.total:
        yield "nothing-finished", _Value(value=1, line=f"{FINISHED} 0")
    if seen.corrupted is None:
        yield "corruption-not-counted", _Value(value=1, line=f"{CORRUPTED} is not reported")


def _of_answers(seen: EngineMetrics) -> Iterator[tuple[str, _Value]]:
    def ended(reason: str) -> str:
        return f'{FINISHED}{{finished_reason="{reason}"}} {seen.ended(reason):.0f} of {seen.total:.0f}'

    total = max(seen.total, 1.0)
    if seen.corrupted is not None:
        yield "corrupted-requests", _Value(value=seen.corrupted, line=f"{CORRUPTED} {seen.corrupted:.0f}")
    yield "requests-failed", _Value(value=seen.ended("error"), line=ended("error"))
    looped = seen.ended("repetition") / total
    yield "answers-cut-for-repetition", _Value(value=looped, line=ended("repetition"))
    at_limit = seen.ended("length") / total
    yield "answers-run-to-limit", _Value(value=at_limit, line=ended("length"), number=seen.total)


def _of_load(seen: EngineMetrics) -> Iterator[tuple[str, _Value]]:
    if seen.stalled_s:
        held = (seen.running or 0.0) + (seen.waiting or 0.0)
        line = f"{held:.0f} requests in the engine, and no counter moved for {seen.stalled_s:.0f} s"
        # An engine that has not answered yet may still compile, which looks the same.
        yield "no-progress", _Value(value=1.0 if seen.total else 0.5, line=line)
    if seen.awake is False:
        yield "engine-asleep", _Value(value=1, line=f'{AWAKE}{{sleep_state="awake"}} 0')
    if seen.kv_usage is not None:
        yield "kv-cache-full", _Value(value=seen.kv_usage, line=f"{KV_USAGE[0]} {seen.kv_usage:.3f}")
    if seen.preemptions is not None:
        line = f"{PREEMPTIONS} {seen.preemptions:.0f}, with {seen.total:.0f} requests finished"
        yield "requests-preempted", _Value(value=seen.preemptions / max(seen.total, 1.0), line=line)
    if seen.waiting is not None and seen.running is not None:
        name = "queue-long" if seen.running else "waiting-with-none-running"
        line = f"{WAITING} {seen.waiting:.0f}, {RUNNING} {seen.running:.0f}"
        yield name, _Value(value=seen.waiting / max(seen.running, 1.0), line=line)
    if seen.prefix_hit_rate is not None and seen.prefix_queries is not None:
        line = f"{HITS[0]} / {QUERIES[0]} {seen.prefix_hit_rate:.3f}"
        yield "prefix-cache-misses", _Value(value=1 - seen.prefix_hit_rate, line=line, number=seen.prefix_queries)
