"""Checks that something answers, and that it is this engine with this model."""

import time
from typing import Any

from glm4_deploy.errors import Unreachable, WrongEngine
from glm4_deploy.probe.answers import FailureKind, Refused, RequestFailure
from glm4_deploy.probe.client import Reply
from glm4_deploy.probe.endpoints import model_rows
from glm4_deploy.probe.probe import CHAT, Probe
from glm4_deploy.probe.suite import GATE, NOT_KNOWN, QUICK, SOAK, CheckStage, check
from glm4_deploy.result import Result, fail, ok, skipped, warn
from glm4_deploy.text import one_line

# A process's start time is derived from the boot time and may differ from the wall clock by this much.
CLOCK_SLACK_S = 2.0
DAY_S = 86400.0
MAX_CONTEXT = 1 << 20  # tokens: prompts are made of this length, so a larger number is not believed
REFUSING = frozenset({401, 403})
# vLLM guards only /v1. An open /tokenize answers a GET with 405.
OUTSIDE_V1 = ("/metrics", "/version", "/tokenize")


@check(
    "alive",
    stage=CheckStage.REACH,
    proves="something answers HTTP at the address and reports that it is healthy",
    suites=GATE | SOAK,
    needs=(),
    seconds=0.1,
    limit_s=30,
)
async def alive(probe: Probe) -> Result:
    try:
        health = await probe.client.get("/health")
        version = (await probe.client.get("/version")).json() if health.status == 200 else None
    except RequestFailure as failure:
        if failure.kind is FailureKind.UNREACHABLE:
            raise Unreachable(f"nothing answers at {failure.detail}", hint=failure.remedy) from failure
        if failure.kind in {FailureKind.REDIRECT, FailureKind.ENCODING, FailureKind.TOO_BIG, FailureKind.TLS}:
            raise WrongEngine(f"GET /health: {failure.detail}", hint=failure.remedy) from failure
        return fail(f"GET /health: {failure.detail}", "HTTP 200", remedy=failure.remedy)
    if isinstance(version, dict) and isinstance(version.get("version"), str):
        probe.served.version = version["version"]
    if health.status >= 400 and "text/html" in health.headers.get("content-type", ""):
        raise WrongEngine(
            f"GET /health: HTTP {health.status} with an HTML page: a proxy answers, the engine behind it does not",
            hint="give the engine's own address with --base-url, and check that it is running",
        )
    seen = f"GET /health HTTP {health.status} in {health.seconds * 1000:.0f} ms"
    if health.status == 200:
        return ok(seen, "HTTP 200")
    if health.status in {404, 405, 401, 403}:  # Ollama has no /health; `identity` checks that it is the right server
        return ok(f"{seen}: no /health here, but it answers", "an HTTP answer")
    return fail(f"{seen}: {one_line(health.text, 80)}", "HTTP 200", remedy="read the engine's log")


@check(
    "identity",
    stage=CheckStage.REACH,
    proves="it is the model, the version and the start that were expected, not a stale server on the same port",
    suites=GATE | SOAK,
    needs=("alive",),
    seconds=0.1,
    limit_s=30,
)
async def identity(probe: Probe) -> Result:
    try:
        reply = await probe.client.get("/v1/models")
    except RequestFailure as failure:
        raise WrongEngine(f"GET /v1/models: {failure.detail}", hint=failure.remedy) from failure
    model = _pick(_models(reply), probe.target.model)
    served = probe.served
    served.model = str(model["id"])
    served.owned_by = model.get("owned_by") if isinstance(model.get("owned_by"), str) else None
    served.path = model.get("root") if isinstance(model.get("root"), str) else None
    length = model.get("max_model_len")
    believable = isinstance(length, int) and not isinstance(length, bool) and 0 < length <= MAX_CONTEXT
    served.max_model_len = length if believable else probe.target.max_model_len
    _check_version(served.version, probe.target.vllm_version)
    age = await _started(probe, model)
    context, version = served.max_model_len or NOT_KNOWN, served.version or NOT_KNOWN
    seen = f"model {served.model}, context {context}, vLLM {version}"
    if probe.target.started_at is not None and age is None:
        return warn(
            f"{seen}, start time {NOT_KNOWN}",
            "an engine started with this container",
            remedy="make sure that no older server holds this port",
        )
    return ok(f"{seen}{age or ''}", f"model {probe.target.model or 'any'}")


def _models(reply: Reply) -> list[dict[str, Any]]:
    if reply.status in {401, 403}:
        hint = "give the engine's key with --api-key-file"
        raise WrongEngine(f"GET /v1/models: HTTP {reply.status}: the key is missing or wrong", hint=hint)
    models = model_rows(reply.json()) or []
    if reply.status != 200 or not models:
        kind = reply.headers.get("content-type", "no content type").split(";")[0]
        raise WrongEngine(
            f"GET /v1/models: HTTP {reply.status}, {kind}, no list of models",
            hint="not an OpenAI-compatible server, or a proxy in front of one: give the engine's own address",
        )
    return models


def _pick(models: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    names = [str(row["id"]) for row in models]
    shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    if wanted is None:
        if len(models) > 1:
            raise WrongEngine(f"{len(models)} models are served ({shown})", hint="choose one with --model")
        return models[0]
    if wanted not in names:
        raise WrongEngine(f"serves {shown}, not {wanted}", hint="give the right name with --model, or stop that server")
    return models[names.index(wanted)]


def _check_version(version: str | None, wanted: str | None) -> None:
    if wanted is not None and version is not None and version.split("+")[0] != wanted.split("+")[0]:
        raise WrongEngine(
            f"vLLM {version} answers, expected {wanted}", hint="another container answers on this port: stop it"
        )


async def _started(probe: Probe, model: dict[str, Any]) -> str | None:
    """When the engine started, as a phrase; None if it does not report it.

    vLLM fills `created` with the time of the request (0.32 and earlier), so it proves nothing there; the start of the
    process is in /metrics. An old `created` still proves a stale server.
    """
    after = probe.target.started_at
    metrics = await probe.metrics()
    start = metrics.sum("process_start_time_seconds") if metrics else None
    if start is not None and not 0 < start < time.time() + DAY_S:
        start = None
    probe.served.started = start
    created = model.get("created")
    for name, moment in (("process start", start), ("created", created)):
        if after is not None and isinstance(moment, int | float) and 0 < moment < after - CLOCK_SLACK_S:
            raise WrongEngine(
                f"a stale server answers: its {name} is {after - moment:.0f} s before this container's start",
                hint="stop the other server on this port, then start again",
            )
    if start is None or after is None:
        return None
    return f", started {start - after:.1f} s after its container"


@check(
    "unknown-model",
    stage=CheckStage.PROTOCOL,
    proves="a request for another model is refused, so an answer comes from this model",
    suites=QUICK,
    needs=("identity",),
    seconds=0.1,
)
async def unknown_model(probe: Probe) -> Result:
    body = {"model": "no-such-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    try:
        await probe.client.ask_whole(CHAT, body, limit_s=probe.target.timeout_s)
    except Refused as refused:
        seen = f"HTTP {refused.status}: {one_line(refused.message, 80)}"
        return ok(seen, "HTTP 404") if refused.status in {400, 404} else fail(seen, "HTTP 404")
    if probe.served.is_vllm:
        return fail(
            "HTTP 200 for the model no-such-model", "HTTP 404", remedy="look for a proxy that rewrites model names"
        )
    return skipped("this server answers to any model name")


@check(
    "key",
    stage=CheckStage.PROTOCOL,
    proves="with an API key set, a chat request without it or with a wrong one is refused",
    suites=QUICK,
    needs=("identity",),
    seconds=0.1,
)
async def key(probe: Probe) -> Result:
    if probe.target.key is None:
        return skipped("no key given: the server accepts requests without one")
    body = {"model": probe.served.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    # A chat rather than the list of models: llama.cpp shows that list to everyone and guards the rest.
    without = (await probe.client.post_as(CHAT, body, None)).status
    wrong = (await probe.client.post_as(CHAT, body, "wrong-key")).status
    seen = f"without a key HTTP {without}, with a wrong one HTTP {wrong}"
    if not {without, wrong} <= REFUSING:
        return fail(seen, "401 both times", remedy="start the engine with --api-key, or check keys in the proxy")
    unguarded = [path for path in OUTSIDE_V1 if (await probe.client.get_as(path, None)).status not in {404, *REFUSING}]
    return ok(f"{seen}; open without a key: {', '.join(unguarded) or 'nothing else tried'}", "401 both times")
