"""Watch the engines behind a router: a sick one leaves it, is restarted alone, and comes back once it passes its gate.

The last engine that serves is never taken out. What this watch took out is on disk, so that the next one puts it back;
what somebody else took out (`up` during an update) is left to them.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric

from glm4_deploy.deploy.docker import ContainerState
from glm4_deploy.deploy.replicas import RouterClient
from glm4_deploy.errors import DeployError
from glm4_deploy.files import write_text
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report_model import Suite
from glm4_deploy.watch.cause import Cause, CauseFinder, LogEnd
from glm4_deploy.watch.exporter import Exporter
from glm4_deploy.watch.judge import Judge, Limits, State, WatchVerdict
from glm4_deploy.watch.loop import EventWriter, Schedule, judge_engine, run_watch
from glm4_deploy.watch.notify import Notifier
from glm4_deploy.watch.restart import Keeper, Policy

# From bad to good: the state of several engines is that of the worst.
WORST_FIRST = (
    State.HUNG, State.BABBLING, State.WRONG_ENGINE, State.UNREACHABLE, State.UNKNOWN, State.BUSY, State.OK,
)  # fmt: skip
LEAVES = frozenset(WORST_FIRST[:4])
GATE_AGAIN_S = 120.0  # after a gate that it did not pass
FILE = "watch/out.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedEngine:
    """One engine. routed: its address in the router. address: where this watch reaches it now; may raise DeployError.

    target: how to ask it, but for the address. policy, keeper: None where this watch does not restart.
    tail: the end of its log, as `EngineLog.tail`; None where this watch may not read it.
    """

    name: str
    routed: str
    address: Callable[[], str]
    target: ProbeTarget
    policy: Policy | None = None
    keeper: Keeper | None = None
    tail: Callable[[float | None], LogEnd] | None = None


class ReplicaExporter(Exporter):
    """One engine's metrics, and what its restarts cost."""

    def __init__(self, *, stale_s: float) -> None:
        super().__init__(stale_s=stale_s)
        self.lost = Counter(
            "glm4_watch_requests_lost", "Requests that the engine held when it was last asked before a restart",
            registry=self.registry,
        )  # fmt: skip
        self.routed = Gauge("glm4_watch_routed", "1 if the router sends it requests", registry=self.registry)
        self.held = 0.0
        self._starts = 0

    def publish(self, verdict: WatchVerdict, judge: Judge, at: float) -> None:
        if judge.starts != self._starts:
            self.lost.inc(self.held)
            self._starts = judge.starts
        self.held = judge.last.held if judge.last else 0.0
        super().publish(verdict, judge, at)


class Together:
    """The exporters of all engines as one: each series with the label `replica`, and the worst verdict."""

    def __init__(self, exporters: Mapping[str, ReplicaExporter]) -> None:
        self.exporters = exporters
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for name, exporter in self.exporters.items():
            for family in exporter.registry.collect():
                if family.name.startswith("process_"):  # of this process, whichever engine
                    families.setdefault(family.name, family)
                    continue
                into = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                rows = (sample._replace(labels={"replica": name, **sample.labels}) for sample in family.samples)
                into.samples.extend(rows)
        yield from families.values()

    @property
    def worst(self) -> str:
        """The name of the engine in the worst state."""
        return min(self.exporters, key=lambda name: WORST_FIRST.index(self.exporters[name].last.state))

    @property
    def last(self) -> WatchVerdict:
        """The worst state, and why, with the engine's name."""
        worst = self.worst
        verdict = self.exporters[worst].last
        return replace(verdict, why=f"{worst}: {verdict.why}")

    def health(self) -> tuple[int, bytes]:
        """As `Exporter.health`: 200 only if every engine is known to be well."""
        answers = {name: one.health() for name, one in self.exporters.items()}
        body = {"replicas": {name: json.loads(text) for name, (_, text) in answers.items()}}
        return max(code for code, _ in answers.values()), json.dumps(
            {"state": self.last.state.value, "why": self.last.why, **body}, ensure_ascii=False
        ).encode()


class Causes:
    """What finds the root cause of each engine's fault, where its log can be read."""

    def __init__(self, replicas: Iterable[RoutedEngine], together: Together, emit: EventWriter) -> None:
        self._together = together
        self.finders = {
            one.name: CauseFinder(one.tail, together.exporters[one.name], partial(emit, replica=one.name))
            for one in replicas
            if one.tail
        }

    def wait(self, wait_s: float | None = None) -> Cause | None:
        """As `CauseFinder.wait`, of the engine in the worst state, with its name."""
        name = self._together.worst
        found = self.finders[name].wait(wait_s) if name in self.finders else None
        return found and replace(found, why=f"{name}: {found.why}")


@dataclass(slots=True)
class _Seen:
    """What is known of one engine: its last state, the gate under way, and when to try again."""

    state: State = State.UNKNOWN
    gate: "asyncio.Task[str] | None" = None
    again: float = 0.0
    said: str = ""


@dataclass(slots=True, kw_only=True)
class Rotation:
    """Which engines the router uses. One decision at a time, each by the router's own list."""

    router: RouterClient
    replicas: tuple[RoutedEngine, ...]
    directory: Path
    emit: EventWriter
    out: set[str] = field(default_factory=set)
    """Those that this watch took out."""
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._seen = {one.name: _Seen() for one in self.replicas}
        with suppress(OSError, ValueError, TypeError):
            self.out = self._seen.keys() & set(json.loads((self.directory / FILE).read_bytes()))

    async def see(self, one: RoutedEngine, verdict: WatchVerdict, exporter: ReplicaExporter) -> None:
        """Act on a verdict. What the router or the disk refuses is tried again at the next one."""
        seen = self._seen[one.name]
        seen.state = verdict.state
        try:
            async with self._lock:
                workers = await asyncio.to_thread(self.router.workers)
                exporter.routed.set(workers.get(one.routed, False))
                if verdict.state in LEAVES and one.routed in workers:
                    await self._take_out(one, workers, verdict.why, exporter.held)
                elif verdict.state.good and one.name in self.out:
                    await self._gated(one)
                elif verdict.state.good:
                    seen.said = ""
        except DeployError as error:
            self._say(one, "router-failed", error.message)

    def only(self, one: RoutedEngine) -> bool:
        """Whether no other engine is known to be well and was left in the router by this watch."""
        others = (name for name in self._seen if name != one.name and name not in self.out)
        return not any(self._seen[name].state.good for name in others)

    async def _take_out(self, one: RoutedEngine, workers: Mapping[str, bool], why: str, held: float) -> None:
        seen = self._seen[one.name]
        others = (other for other in self.replicas if other is not one and workers.get(other.routed))
        if not any(self._seen[other.name].state.good for other in others):
            self._say(one, "kept-in", f"no other engine is known to be well: {why}")
            return
        if seen.gate:
            seen.gate.cancel()
            seen.gate = None
        # First on disk: a watch that is killed in between finds it there, and puts back what never left.
        self._save(self.out | {one.name})
        await asyncio.to_thread(self.router.remove, one.routed)
        self._say(one, "taken-out", why, held=held)

    async def _gated(self, one: RoutedEngine) -> None:
        """Start its gate, or put it back once that has passed."""
        seen = self._seen[one.name]
        if seen.gate is None:
            if time.monotonic() >= seen.again:
                seen.gate = asyncio.create_task(_gate(one))
            return
        if not seen.gate.done():
            return
        failure, seen.gate = seen.gate.result(), None
        if failure:
            seen.again = time.monotonic() + GATE_AGAIN_S
            self._say(one, "gate-failed", failure)
            return
        await asyncio.to_thread(self.router.add, one.routed)
        self._save(self.out - {one.name})
        self._say(one, "put-back", "its gate passed")

    def _save(self, out: Iterable[str]) -> None:
        write_text(self.directory / FILE, json.dumps(sorted(out)), mode=0o600)
        self.out = set(out)

    def _say(self, one: RoutedEngine, event: str, why: str, **fields: Any) -> None:
        """Once for each event in a row."""
        seen = self._seen[one.name]
        if seen.said != event:
            self.emit(event, replica=one.name, why=why, **fields)
        seen.said = event


async def _gate(one: RoutedEngine) -> str:
    """Ask it the suite of the gate of `up` at its own address; '' if it passes, else what did not."""
    try:
        target = replace(one.target, base_url=await asyncio.to_thread(one.address))
        report = await run_suite(target, suite=Suite.GATE, skip=("tools-*",))
    except DeployError as error:
        return error.message
    bad = [f"{row.check} ({row.status})" for row in report.results if not row.status.passed]
    return "" if report.exit_code == 0 else f"its gate did not pass: {', '.join(bad)[:300] or report.verdict}"


class OneAtATime:
    """The policy of one of several engines: the last one that serves is not restarted for its answers."""

    def __init__(self, policy: Policy, rotation: Rotation, one: RoutedEngine) -> None:
        self._policy, self._rotation, self._one = policy, rotation, one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def why_not(
        self, state: State, at: float, container: ContainerState | None, *, up_s: float | None, since_s: float
    ) -> str | None:
        if state is State.BABBLING and self._rotation.only(self._one):
            return "it is the last engine that serves"
        return self._policy.why_not(state, at, container, up_s=up_s, since_s=since_s)


async def watch_replicas(
    rotation: Rotation,
    together: Together,
    limits: Limits,
    schedule: Callable[[Exporter], Schedule | None],
    emit: EventWriter,
    causes: Causes | None = None,
    notifier: Notifier | None = None,
) -> None:
    """Watch all engines of the rotation, forever; the notifier gets the worst verdict after each one.

    schedule: makes the schedule of an engine's canaries.
    """

    async def verdicts(one: RoutedEngine, exporter: ReplicaExporter, tell: EventWriter) -> AsyncIterator[WatchVerdict]:
        finder = causes.finders.get(one.name) if causes else None
        async for verdict in _followed(one, exporter, limits, schedule(exporter), tell):
            if finder:  # first: the router may keep the next step waiting, and the notifier waits for the cause
                finder.see(verdict, time.monotonic())
            await rotation.see(one, verdict, exporter)
            if notifier:
                notifier.see(together.last, time.monotonic())
            yield verdict

    async def run(one: RoutedEngine) -> None:
        exporter = together.exporters[one.name]

        def tell(event: str, /, **fields: Any) -> None:
            emit(event, **{"replica": one.name, **fields})

        policy: Any = one.policy and OneAtATime(one.policy, rotation, one)
        await run_watch(
            verdicts(one, exporter, tell), exporter=exporter, emit=tell, policy=policy, keeper=one.keeper
        )  # fmt: skip

    async with asyncio.TaskGroup() as group:
        for one in rotation.replicas:
            group.create_task(run(one))


async def _followed(
    one: RoutedEngine, exporter: ReplicaExporter, limits: Limits, schedule: Schedule | None, emit: EventWriter
) -> AsyncIterator[WatchVerdict]:
    """Its verdicts. A container may have another address after a restart."""
    base_url = one.target.base_url
    while True:
        with suppress(DeployError):
            base_url = await asyncio.to_thread(one.address)
        target = replace(one.target, base_url=base_url)
        verdicts = judge_engine(target, limits, schedule, exporter, emit)
        async with aclosing(cast("AsyncGenerator[WatchVerdict, None]", verdicts)) as following:
            async for verdict in following:
                yield verdict
                if not verdict.state.good and await _moved(one, base_url):
                    break


async def _moved(one: RoutedEngine, base_url: str) -> bool:
    with suppress(DeployError):
        return await asyncio.to_thread(one.address) != base_url
    return False
