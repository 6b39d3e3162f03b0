"""What runs now, seen from outside: the container or process, /health, the served model, and the engine's own log."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path

import httpx

from glm4_deploy.engine import keyfile
from glm4_deploy.engine.journal import in_words
from glm4_deploy.engine.replicas import ReplicaSet
from glm4_deploy.engine.router import RouterClient, address_of
from glm4_deploy.engine.runner import Runner
from glm4_deploy.engine.state import Record
from glm4_deploy.errors import Unreachable
from glm4_deploy.facts.enginelog import EngineFacts, LogReader


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSeen:
    """One of several engines. routed: whether the router sends it requests; None: the router does not answer."""

    service: str
    running: bool
    detail: str
    health: str | None
    restarts: int
    routed: bool | None

    @property
    def why(self) -> str:
        """What keeps it from serving; '' where nothing does."""
        if not self.running:
            return f"{self.service}: {self.detail}"
        if self.routed is None:
            return "the router does not answer"
        return "" if self.routed else f"{self.service}: the router sends it nothing"

    @property
    def words(self) -> str:
        state = {True: "the router sends it requests", False: "left out by the router", None: "the router is silent"}
        return (
            f"{self.detail}, {self.health or 'no health check'}, restarted {self.restarts} times; {state[self.routed]}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look. `models` is None where /v1/models did not answer; `why` says what keeps it from being up.

    deployment: an `up` or `rollback` that is at work or was cut off, in one sentence; '' for none.
    """

    up: bool
    why: str
    runner: str
    profile: str
    detail: str
    container_health: str | None
    restarts: int
    started: str | None
    base_url: str
    models: tuple[str, ...] | None
    expected_model: str
    last_verdict: str
    release: str
    deployment: str
    engine: EngineFacts
    replicas: tuple[ReplicaSeen, ...] = ()

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and value, for people."""
        yield "up", "yes" if self.up else f"no: {self.why}"
        yield "engine", self.detail
        for one in self.replicas:
            yield one.service[-17:], one.words
        yield "started", self.started or "-"
        health = f"{self.container_health or 'no health check'}, restarted {self.restarts} times"
        yield "health", health if self.started else "-"
        yield "address", f"{self.base_url}/v1"
        yield "models", ", ".join(self.models) if self.models else "no answer"
        yield "last gate", self.last_verdict
        yield "release", self.release or "-"
        if self.deployment:
            yield "deployment", self.deployment
        facts = self.engine
        native = {True: "native FP4", False: "not native FP4", None: "native FP4 unknown"}[facts.native_fp4]
        yield "vLLM", facts.version or "unknown"
        yield "kernel", f"{facts.kernel or 'unknown'} ({native})"
        yield "KV cache", f"{facts.kv_cache_tokens or 'unknown'} tokens, {facts.kv_cache_dtype or 'type unknown'}"


def look(record: Record, runner: Runner, directory: Path) -> Seen:
    """Take one look; never starts or changes anything. What a killed deployment left unjudged is not up."""
    state = runner.state()
    models = _models(record) if state.running else None
    replicas = tuple(_replicas(record, runner)) if isinstance(runner, ReplicaSet) else ()
    reader = LogReader()
    if state.started is not None:
        for line in log_tail(runner.engines[0] if isinstance(runner, ReplicaSet) else runner, None, follow=False):
            reader.feed(line)
    why = next((one.why for one in replicas if one.why), "")
    if not state.running:
        why = state.detail
    elif models is None:
        why = f"no answer at {record.base_url}/v1/models (phase {reader.facts.phase})"
    elif why:
        pass
    elif record.model not in models:
        why = f"{record.base_url} serves {', '.join(models)}, not {record.model}"
    elif state.health == "unhealthy":
        why = "its health check fails"
    deployment, unjudged = in_words(directory)
    if unjudged:
        why = f"{deployment} ({why})" if why else deployment
    return Seen(
        up=not why,
        why=why,
        runner=record.runner,
        profile=record.profile,
        detail=state.detail,
        container_health=state.health,
        restarts=state.restarts,
        started=datetime.fromtimestamp(state.started.started_at, UTC).isoformat(timespec="seconds")
        if state.started
        else None,
        base_url=record.base_url,
        models=models,
        expected_model=record.model,
        last_verdict=record.verdict,
        release=record.release,
        deployment=deployment,
        engine=reader.facts,
        replicas=replicas,
    )


def _replicas(record: Record, runner: ReplicaSet) -> Iterator[ReplicaSeen]:
    try:
        routed = RouterClient(base_url=record.base_url).workers()
    except Unreachable:
        routed = None
    for name, engine in zip(runner.services, runner.engines, strict=True):
        state = engine.state()
        yield ReplicaSeen(
            service=name,
            running=state.running,
            detail=state.detail,
            health=state.health,
            restarts=state.restarts,
            routed=None if routed is None else routed.get(address_of(name), False),
        )


def log_tail(runner: Runner, count: int | None, *, follow: bool) -> Iterator[str]:
    """The last `count` lines (None: all) of the present start, and those that come where it is to be followed.

    Of several engines, which stand one after the other: the last of each, or the router's would be all that is seen.
    """
    state = runner.state()
    if state.started is None:
        return iter(())
    lines = runner.lines(state.started.started_at, follow=follow)
    if follow or count is None:
        return lines
    if isinstance(runner, ReplicaSet):
        services = groupby(lines, key=lambda line: line.partition(" | ")[0])
        return chain.from_iterable(deque(of_one, maxlen=count) for _, of_one in services)
    return iter(deque(lines, maxlen=count))


def _models(record: Record) -> tuple[str, ...] | None:
    headers = {"authorization": f"Bearer {keyfile.read(Path(record.api_key_file))}"} if record.api_key_file else {}
    try:
        answer = httpx.get(f"{record.base_url}/v1/models", headers=headers, timeout=5, trust_env=False).json()
        return tuple(str(row["id"])[:200] for row in answer["data"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
