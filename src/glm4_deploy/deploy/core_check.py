"""Whether the engine's core can answer: one token, asked now.

/health and the list of models are answered by the API server alone: both stay green while the core hangs
(vllm-project/vllm#39863). A queue may be longer than our patience, so an answer that does not come counts only if no
counter of the core moved meanwhile.
"""

import time
from dataclasses import dataclass
from typing import Any

import httpx

from glm4_deploy.probe.endpoints import read_metrics
from glm4_deploy.probe.hang import Counters, counters
from glm4_deploy.text import one_line

PATIENCE_S = 15.0
COLD_S = 300.0  # after its start an engine may compile for its first requests, and no counter moves meanwhile
MOST = 1 << 16  # bytes of an answer of one token


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreAnswer:
    """What became of one small request. detail: in words, with what was seen instead of an answer."""

    good: bool
    detail: str
    seconds: float


def ask_core(base_url: str, model: str, key: str | None, *, patience_s: float = PATIENCE_S) -> CoreAnswer:
    """Ask for one token. Does not raise."""
    before, begin = _counters(base_url), time.monotonic()
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    late, status, text = False, 0, ""
    try:
        with httpx.Client(timeout=patience_s, trust_env=False) as client:
            status, text = _post(client, f"{base_url}/v1/chat/completions", body, headers, begin + patience_s)
    except httpx.TimeoutException:
        late = True
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        text = type(error).__name__
    seconds = time.monotonic() - begin
    if late:
        good, detail = _waited(before, _counters(base_url), seconds)
    elif status == httpx.codes.OK:
        good, detail = '"choices"' in text, f"one token in {seconds:.1f} s"
        detail = detail if good else f"an answer without a text: {one_line(text, 120)}"
    else:
        good, detail = (
            False,
            f"a request for one token gives {f'HTTP {status}: ' if status else ''}{one_line(text, 120)}",
        )
    return CoreAnswer(good=good, detail=detail, seconds=round(seconds, 2))


def _post(
    client: httpx.Client, url: str, body: dict[str, Any], headers: dict[str, str], deadline: float
) -> tuple[int, str]:
    """HTTP status and the beginning of the body; raises ReadTimeout at the deadline, however slowly it drips."""
    read = bytearray()
    with client.stream("POST", url, json=body, headers=headers) as answer:
        for chunk in answer.iter_bytes():
            read += chunk
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer does not end")
            if len(read) > MOST:
                break
        return answer.status_code, read.decode("utf-8", errors="replace")


def _counters(base_url: str) -> Counters | None:
    metrics = read_metrics(base_url, timeout=5)
    return counters(metrics) if metrics else None


def _waited(before: Counters | None, after: Counters | None, seconds: float) -> tuple[bool, str]:
    late = f"no token within {seconds:.0f} s"
    if before is None or after is None:
        return False, f"{late}, and its counters cannot be read"
    load = f"{after.running:.0f} running, {after.waiting:.0f} waiting"
    if after.moved_since(before):
        return True, f"{late}, but its counters move: busy ({load})"
    still = f"{late}, and no counter of the core moved ({load})"
    age = time.time() - after.started if after.started is not None else COLD_S
    if age < COLD_S:
        return False, f"{still}; it started {age:.0f} s ago and may still compile: ask again"
    return False, f"{still}: it hangs, or one step of it takes longer"
