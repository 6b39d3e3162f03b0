"""What the watch publishes: its Prometheus metrics and /healthz, on one port."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest

from glm4_deploy.errors import PortTaken, UsageError
from glm4_deploy.host.gpu import GpuReport
from glm4_deploy.host.system import PortState, port_state
from glm4_deploy.watch.judge import CanaryResult, Judge, State, WatchVerdict


class Exporter:
    """The metrics, and the last verdict for /healthz. stale_s: an older verdict counts as unknown."""

    def __init__(self, *, stale_s: float) -> None:
        self._stale_s = stale_s
        self._status: dict[str, object] = {"state": State.UNKNOWN.value, "why": "nothing seen yet"}
        self.last = WatchVerdict(state=State.UNKNOWN, why="nothing seen yet", since=0.0)
        self.cause: dict[str, str] | None = None  # of the present incident, as far as the log says
        self._published = time.monotonic()
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"glm4_watch_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"glm4_watch_{name}", text, labels, registry=registry)

        self.state = gauge("state", "1 for the state of the engine, 0 for the others", "state")
        self.frozen = gauge("frozen_seconds", "Seconds that the engine has held requests without a counter moving")
        self._reported: dict[str, Gauge] = {}
        self.canaries = counter("canaries", "Canaries by outcome", "said")
        self.tokens = counter("canary_tokens", "Tokens that the engine generated for canaries")
        self.spent = gauge("canary_tokens_last_hour", "Maximum tokens of the canaries sent in the last hour")
        self.budget = gauge("canary_budget_tokens_per_hour", "Tokens that canaries may use per hour")
        self.requests = counter("requests", "HTTP requests to the engine, by kind", "kind")
        self.restarts = counter("restarts", "Restarts of the engine by this watch")
        self.given_up = gauge("restarts_given_up", "1 if the limit of restarts is reached")
        self.rollbacks = counter("rollbacks", "Times that this watch put the last good release back, or tried to")
        self.gpu_used = gauge("gpu_memory_used_bytes", "GPU memory in use, if the driver reports it", "gpu")
        self.gpu_heat = gauge("gpu_temperature_celsius", "GPU temperature, if the driver reports it", "gpu")

    def publish(self, verdict: WatchVerdict, judge: Judge, at: float) -> None:
        for state in State:
            self.state.labels(state.value).set(state is verdict.state)
        self.frozen.set(judge.frozen_s)
        if judge.last is not None:
            self._report("engine_requests_running", "Running requests as reported by the engine", judge.last.running)
            self._report(
                "engine_corrupted_requests", "Requests with NaN logits since the engine's start", judge.last.corrupted
            )
        self._status = {"state": verdict.state.value, "why": verdict.why, "seconds": round(at - verdict.since, 1)}
        self.last, self._published = verdict, time.monotonic()

    def _report(self, name: str, text: str, value: float | None) -> None:
        """Publish what the engine reports. Until it reports a value there is no series, rather than a 0."""
        if value is None:
            return
        if name not in self._reported:
            self._reported[name] = Gauge(f"glm4_watch_{name}", text, registry=self.registry)
        self._reported[name].set(value)

    def guard(self, *, read: bool) -> None:
        """Publish whether the guard's counters could be read; without a guard there is no series."""
        self._report("guard_read", "1 if the guard's counters can be read, 0 if not", float(read))

    def canary(self, canary: CanaryResult) -> None:
        self.canaries.labels(canary.outcome.value).inc()
        self.tokens.inc(canary.tokens or 0)

    def gpus(self, report: GpuReport) -> None:
        """Publish what the driver reports; a value that it does not report has no series, rather than a 0."""
        for gpu in report.gpus:
            if gpu.used_mib is not None:
                self.gpu_used.labels(str(gpu.index)).set(gpu.used_mib * 2**20)
            if gpu.temperature_c is not None:
                self.gpu_heat.labels(str(gpu.index)).set(gpu.temperature_c)

    def health(self) -> tuple[int, bytes]:
        """HTTP status and body of /healthz: 200 if the engine is known to be well (ok, busy), else 503."""
        age = time.monotonic() - self._published
        if age > self._stale_s:
            return 503, json.dumps({"state": "unknown", "why": f"no verdict from the watch for {age:.0f} s"}).encode()
        body = self._status if self.cause is None or self.last.state.good else {**self._status, "cause": self.cause}
        return 200 if self.last.state.good else 503, json.dumps(body, ensure_ascii=False).encode()


class Published(Protocol):
    """What `serve` publishes: of one engine, or of several."""

    registry: CollectorRegistry

    def health(self) -> tuple[int, bytes]: ...


def serve(exporter: Published, listen: str, port: int) -> Callable[[], None]:
    """Serve /metrics and /healthz from a thread; returns a function that stops it.

    Raises:
        PortTaken: the port is taken.
        UsageError: the address is not one of this machine.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._send(200, CONTENT_TYPE_LATEST, generate_latest(exporter.registry))
            elif self.path == "/healthz":
                code, body = exporter.health()
                self._send(code, "application/json", body)
            else:
                self._send(404, "text/plain", b"only /metrics and /healthz exist\n")

        def _send(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Do not log requests: scrapes come every few seconds."""

    try:
        server = ThreadingHTTPServer((listen, port), Handler)
    except OSError as error:
        if port_state(error) is PortState.TAKEN:
            raise PortTaken(f"port {port} is taken on {listen}", hint="choose another with --port") from error
        raise UsageError(f"cannot listen on {listen}:{port}: {error.strerror}", hint="see --listen") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.shutdown
