"""One look at the engine: GET /metrics, and /v1/models only where /metrics leaves in doubt who answers."""

import time

from glm4_deploy.engine.watch.judge import Counters, Look, Sample
from glm4_deploy.probe.client import Client, Reply
from glm4_deploy.probe.metrics import Metrics, parse
from glm4_deploy.probe.trouble import Kind, Trouble
from glm4_deploy.probe.words import shorten

LOOK_S = 8.0  # an event loop that is busy with long prompts answers within a second or two
RUNNING = "vllm:num_requests_running"


def counters(metrics: Metrics) -> Counters | None:
    """vLLM's counters, summed over its engines; None where they are not there. Names as in vLLM 0.9 to 0.33."""
    generated, running = metrics.sum("vllm:generation_tokens_total"), metrics.sum(RUNNING)
    if generated is None or running is None:
        return None
    used = metrics.sum("vllm:kv_cache_usage_perc")
    return Counters(
        generation_tokens=generated,
        running=running,
        waiting=metrics.sum("vllm:num_requests_waiting") or 0.0,
        prompt_tokens=metrics.sum("vllm:prompt_tokens_total"),
        iterations=metrics.sum("vllm:iteration_tokens_total_count"),
        preemptions=metrics.sum("vllm:num_preemptions_total"),
        kv_used=metrics.sum("vllm:gpu_cache_usage_perc") if used is None else used,
        queries=metrics.sum("vllm:prefix_cache_queries_total"),
        corrupted=metrics.sum("vllm:corrupted_requests_total"),
        started=metrics.sum("process_start_time_seconds"),
    )


async def look(client: Client, model: str | None, at: float, limit_s: float = LOOK_S) -> Sample:
    """Ask once. model: the name that must be served; None: any. limit_s: seconds until silence is silence."""
    try:
        reply = await client.get("/metrics", timeout_s=limit_s)
    except Trouble as trouble:
        silent = trouble.kind in (Kind.HANG, Kind.SLOW)
        strange = trouble.kind in (Kind.REDIRECT, Kind.ENCODING, Kind.TOO_BIG, Kind.NOT_OPENAI)
        found = Look.SILENT if silent else Look.WRONG if strange else Look.REFUSED
        return Sample(at=at, look=found, why=f"GET /metrics: {trouble.detail}", waited=limit_s if silent else 0.0)
    metrics = parse(reply.text) if reply.status == 200 else None
    read = counters(metrics) if metrics else None
    if metrics and read and model in (None, metrics.label(RUNNING, "model_name")):
        model = metrics.label(RUNNING, "model_name")
        return Sample(at=at, look=Look.ANSWERED, counters=read, model=model, epoch=time.time())
    return await _doubtful(client, model, at, reply, read)


async def _doubtful(client: Client, model: str | None, at: float, reply: Reply, read: Counters | None) -> Sample:
    """/metrics names another model (an engine may serve one under several names), or is no vLLM's."""
    try:
        answer = await client.get("/v1/models", timeout_s=LOOK_S)
    except Trouble as trouble:
        return Sample(at=at, look=Look.SILENT, why=f"GET /v1/models: {trouble.detail}")
    body = answer.json()
    rows = body.get("data") if isinstance(body, dict) else None
    names = [str(row.get("id")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if answer.status in (401, 403):
        why = f"GET /v1/models: HTTP {answer.status}: the key is missing or wrong"
        return Sample(at=at, look=Look.STRANGE, why=why)
    if not names or (model is not None and model not in names):
        served = f"serves {shorten(', '.join(names), 80)}" if names else f"no list of models (HTTP {answer.status})"
        return Sample(at=at, look=Look.WRONG, why=f"{served}, expected {model or 'a model'}")
    if read is None:
        why = f"GET /metrics: HTTP {reply.status} without vLLM's counters: whether it moves is not known"
        return Sample(at=at, look=Look.STRANGE, why=why)
    return Sample(at=at, look=Look.ANSWERED, counters=read, model=model or names[0], epoch=time.time())
