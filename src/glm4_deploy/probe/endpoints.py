"""What a server reports about itself: its counters (/metrics) and its models (/v1/models).

Checks and the watch send requests through `probe.client`; `deploy` uses the plain calls here, which never raise.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from glm4_deploy.text import BRIEF, one_line

MAX_BODY = 8 << 20  # bytes
MAX_METRICS = 1 << 20  # characters: an engine's /metrics has about 100 kB, and parsing takes a second for each million
MAX_LINE = 4096  # characters: the parser's time grows with the square of a line
MODELS = "/v1/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Samples by name: ((labels, value), …). Counters end in _total."""

    rows: Mapping[str, tuple[tuple[Mapping[str, str], float], ...]]

    def sum(self, name: str, **labels: str) -> float | None:
        """The sum over all series with that name and labels (each engine has its own); None if there is none."""
        values = [
            value
            for row, value in self.rows.get(name, ())
            if all(row.get(key) == wanted for key, wanted in labels.items()) and math.isfinite(value)
        ]
        return sum(values) if values else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums of one name, by the value of one label."""
        sums: dict[str, float] = {}
        for labels, value in self.rows.get(name, ()):
            if not math.isfinite(value):
                continue
            key = labels.get(label, "")
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def label(self, name: str, label: str) -> str | None:
        """A label of an info series, such as block_size of vllm:cache_config_info."""
        rows = self.rows.get(name, ())
        return rows[0][0].get(label) if rows else None


def parse_metrics(text: str) -> Metrics:
    """Prometheus exposition text, up to MAX_METRICS characters.

    The parser stops at the first line that it cannot read, so it gets one line at a time: a line that is not a sample
    is skipped and the others count. A counter keeps the name on its line.
    """
    from prometheus_client.parser import text_string_to_metric_families  # imported here because it takes 0.2 s

    rows: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for line in text[:MAX_METRICS].split("\n"):
        if not line or line.startswith("#") or len(line) > MAX_LINE:
            continue
        try:
            samples = [sample for family in text_string_to_metric_families(line) for sample in family.samples]
            for sample in samples:
                rows.setdefault(sample.name, []).append((sample.labels, float(sample.value)))
        except (ValueError, IndexError, OverflowError):
            continue
    return Metrics(rows={name: tuple(samples) for name, samples in rows.items()})


def model_rows(body: Any) -> list[dict[str, Any]] | None:
    """The models in an answer to /v1/models that have an id; None if it is not a list of models."""
    rows = body.get("data") if isinstance(body, dict) else None
    if not isinstance(rows, list):
        return None
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str) and row["id"]]


def read_metrics(base_url: str, *, timeout: float = 10) -> Metrics | None:
    """GET /metrics; None if nothing answers."""
    body = _get(f"{base_url}/metrics", None, timeout)
    return None if body is None else parse_metrics(body.decode("utf-8", errors="replace"))


def read_health(base_url: str) -> int | None:
    """HTTP status of /health: 503 if the engine behind the server has died; None if nothing answers."""
    try:
        with httpx.stream("GET", f"{base_url}/health", timeout=5, trust_env=False) as answer:
            return answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL):
        return None


def read_models(base_url: str, *, key: str | None = None, timeout: float = 5) -> tuple[str, ...] | None:
    """The names listed by /v1/models, safe to show; None if the answer is not a list of models."""
    return ask_models(base_url, key=key, timeout=timeout)[0]


def ask_models(base_url: str, *, key: str | None = None, timeout: float = 5) -> tuple[tuple[str, ...] | None, str]:
    """The names as `read_models` gives them, and the answer if it is not a list of models; both are safe to show."""
    body = _get(f"{base_url}{MODELS}", key, timeout)
    if body is None:
        return None, ""
    try:
        rows = model_rows(json.loads(body))
    except (ValueError, RecursionError):
        rows = None
    if rows is None:
        return None, one_line(body.decode(errors="replace"), BRIEF) or "an empty body"
    return tuple(one_line(str(row["id"]), 200) for row in rows), ""


def _get(url: str, key: str | None, timeout: float) -> bytes | None:
    """The body, whatever the status; None if it does not arrive in time or exceeds MAX_BODY.

    Read without compression, so that a few bytes cannot become gigabytes.
    """
    headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {})
    end = time.monotonic() + timeout
    body = bytearray()
    try:
        with httpx.stream("GET", url, headers=headers, timeout=timeout, trust_env=False) as answer:
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > MAX_BODY or time.monotonic() > end:
                    return None
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    return bytes(body)
