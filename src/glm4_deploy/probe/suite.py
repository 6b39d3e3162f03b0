"""The table of checks, and what runs them: a suite once, or as a soak for hours."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum
from functools import cache, partial
from importlib import import_module
from pkgutil import iter_modules

from glm4_deploy import __version__
from glm4_deploy.errors import DeployError, EngineDied, Judged, Unreachable, UsageError, WrongEngine
from glm4_deploy.probe.answers import FailureKind, Refused, RequestFailure
from glm4_deploy.probe.client import Client, ProbeTarget
from glm4_deploy.probe.hang import counters
from glm4_deploy.probe.probe import Options, Probe
from glm4_deploy.probe.questions import UserQuestion, ask_question
from glm4_deploy.report_model import AnswerSample, Fact, Measure, Suite, SuiteReport
from glm4_deploy.result import WHY, Result, Status, fail, skipped, unknown, verdict
from glm4_deploy.text import BRIEF, did_you_mean, one_line, scrub

# The table. A check is a decorated function in a file of `checks/`; importing the file registers it.

Run = Callable[["Probe"], Awaitable[Result]]


class CheckStage(IntEnum):
    """The order in which checks run: prerequisites of others first, load on the engine last."""

    REACH = 1
    PROTOCOL = 2
    SENSE = 3
    LOOPS = 4
    CONTEXT = 5
    LOAD = 6
    SPEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of `smoke --list`.

    Attributes:
        proves: one sentence.
        suites: the suites that include it.
        needs: checks that must not have failed before it.
        seconds: approximate duration on a healthy GPU engine.
        limit_s: when it is stopped and judged as slow or hung.
    """

    id: str
    stage: CheckStage
    proves: str
    suites: frozenset[Suite]
    needs: tuple[str, ...]
    seconds: float
    limit_s: float
    run: Run


_REGISTERED: dict[str, Check] = {}

GATE = frozenset({Suite.GATE, Suite.QUICK, Suite.FULL})
QUICK = frozenset({Suite.QUICK, Suite.FULL})
FULL = frozenset({Suite.FULL})
SOAK = frozenset({Suite.SOAK})


def check(
    name: str,
    *,
    stage: CheckStage,
    proves: str,
    suites: frozenset[Suite],
    needs: tuple[str, ...] = ("chat",),
    seconds: float,
    limit_s: float = 180.0,
) -> Callable[[Run], Run]:
    """Register a function as a check.

    Raises:
        ValueError: the name is taken.
    """

    def register(run: Run) -> Run:
        if name in _REGISTERED:
            raise ValueError(f"two checks are named {name}")
        _REGISTERED[name] = Check(
            id=name,
            stage=stage,
            proves=proves,
            suites=suites,
            needs=needs,
            seconds=seconds,
            limit_s=limit_s,
            run=run,
        )
        return run

    return register


@cache
def checks() -> Mapping[str, Check]:
    """Every check by name, in the order in which they run. The first call imports all files of `checks/`."""
    from glm4_deploy.probe import checks as room

    for module in iter_modules(room.__path__):
        import_module(f"{room.__name__}.{module.name}")
    return {entry.id: entry for entry in sorted(_REGISTERED.values(), key=lambda entry: entry.stage)}


QUESTION = "question-"


def with_questions(questions: Sequence[UserQuestion]) -> Mapping[str, Check]:
    """The table, followed by a check per question of the user's, in every suite."""
    own = (
        Check(
            id=f"{QUESTION}{one.name}",
            stage=CheckStage.SENSE,
            proves=f"your question {one.name}: {one.expected}",
            suites=frozenset(Suite),
            needs=("chat",),
            seconds=one.max_seconds or 1.0,
            limit_s=(one.max_seconds or 180.0) * one.times,
            run=partial(ask_question, one),
        )
        for one in questions
    )
    return {**checks(), **{entry.id: entry for entry in own}}


# The facts around a verdict: what was checked and what was not, of which engine, with which settings.

MODEL_PATH = "model path"  # as the engine sees it
STARTED = "started"  # the engine's process
NOT_KNOWN = "unknown"
MAX_NAMED = 12  # more skipped checks than this are not named; the table has them all


def covered(results: Sequence[Result], table: Mapping[str, object]) -> str:
    """How many of the checks were judged, those of the table and what else has a row, and what a pass means.

    A row of one of several engines is named ENGINE/CHECK.
    """
    status = {row.check: row.status for row in results}
    skipped = [check for check, one in status.items() if one is Status.SKIPPED]
    unknown = [check for check, one in status.items() if one is Status.UNKNOWN]
    outside = len(table.keys() - {check.rpartition("/")[2] for check in status})
    judged = len(status) - len(skipped) - len(unknown)
    parts = [f"{judged} of {len(status) + outside} checks judged"]
    if skipped:
        names = f" ({', '.join(skipped)})" if len(skipped) <= MAX_NAMED else ""
        parts.append(f"{len(skipped)} skipped{names}")
    if unknown:
        parts.append(f"not judged: {', '.join(unknown)}")
    if outside:
        parts.append(f"{outside} not in this run")
    said = f"{'; '.join(parts)}."
    if Status.FAIL in status.values():
        return said
    return f"{said} A pass means only that no failure was seen in what was asked."


def claims(questions: Sequence[UserQuestion] = ()) -> tuple[Fact, ...]:
    """What each check of the table proves."""
    return tuple(Fact(name=entry.id, value=entry.proves) for entry in with_questions(questions).values())


def engine_facts(probe: Probe) -> tuple[Fact, ...]:
    served = probe.served
    known = (
        ("model", served.model),
        ("vLLM", served.version),
        ("owned by", served.owned_by),
        (MODEL_PATH, served.path),
        (STARTED, moment(served.started) if served.started else None),
        ("context length", f"{served.max_model_len} tokens" if served.max_model_len else None),
    )
    return tuple(Fact(name=name, value=str(value) if value else NOT_KNOWN) for name, value in known)


def moment(seconds: float) -> str:
    """Epoch seconds for people, to the second, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")


def setting_facts(probe: Probe, only: Sequence[str], skip: Sequence[str]) -> tuple[Fact, ...]:
    target = probe.target
    rows = (
        ("suite", str(probe.suite)),
        ("address", target.root),
        ("key", "given" if target.key else "none"),
        ("only", ", ".join(only)),
        ("skip", ", ".join(skip)),
        ("first token within", f"{target.timeout_s:g} s"),
        ("glm4-deploy", __version__),
    )
    return tuple(Fact(name=name, value=value) for name, value in rows if value)


# One run: the checks of a suite one after another, and the verdict. It always ends, whatever the engine does.

OnStart = Callable[[str], None]
OnResult = Callable[[Result], None]
Autopsy = Callable[[], Result | None]
PROGRESS_S = 3.0  # how long the counters are watched before an engine counts as hung
CONFIRM_S = 1.0  # between two looks at /health before an engine counts as dead
DIED = "ENGINE_DIED"  # `code` of the one result that reports it
LOG = "log"  # name of its evidence from the engine's log


async def run_suite(
    target: ProbeTarget,
    *,
    suite: Suite = Suite.QUICK,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    options: Options | None = None,
    on_start: OnStart | None = None,
    on_result: OnResult | None = None,
    autopsy: Autopsy | None = None,
) -> SuiteReport:
    """Run the checks of a suite and judge.

    Args:
        only: names of checks, or patterns such as `needle-*`; the checks that they need run too.
        skip: names or patterns of checks to leave out.
        on_start, on_result: called as each check begins and ends, for progress.
        autopsy: called once if the engine dies: what its log says of that, where a log is at hand.

    Raises:
        UsageError: the address or the key is not valid, or no check is left to run.
    """
    options = options or Options()
    table = with_questions(options.questions)
    chosen = choose_checks(suite, only, skip, table)
    begun = datetime.now(UTC).astimezone()
    clock = time.perf_counter()
    run = _SuiteRun(target, on_start, on_result, autopsy)
    async with Client(target) as client:
        run.probe = Probe(target=target, client=client, suite=suite, options=options)
        for entry in chosen:
            await run.run_check(entry)
    results = tuple(run.results)
    report = SuiteReport(
        suite=suite,
        base_url=target.root,
        model=run.probe.served.model,
        started=begun.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - clock,
        results=results,
        verdict=verdict(results),
        exit_code=run.exit_code(),
        covered=covered(results, table),
        samples=tuple(run.probe.samples),
        engine=engine_facts(run.probe),
        settings=setting_facts(run.probe, only, skip),
        perplexity=tuple(Measure(name=name, value=value) for name, value in run.probe.perplexity.items()),
        proves=claims(options.questions),
    )
    return scrub(report, target.key)


def choose_checks(
    suite: Suite, only: Sequence[str], skip: Sequence[str], table: Mapping[str, Check] | None = None
) -> list[Check]:
    """The checks to run, in order. Raises UsageError for a name that no check has, or if none is left."""
    table = checks() if table is None else table
    wanted = {entry.id for entry in table.values() if suite in entry.suites}
    if only:
        wanted = _match(only, table)
        pending = list(wanted)
        while pending:
            needs = set(table[pending.pop()].needs) - wanted
            wanted |= needs
            pending += needs
    wanted -= _match(skip, table)
    if not wanted:
        raise UsageError("no check is left to run", hint="see `glm4-deploy smoke --list`")
    return [entry for entry in table.values() if entry.id in wanted]


def _match(patterns: Sequence[str], table: Mapping[str, Check]) -> set[str]:
    """The checks that match some names or shell patterns. Raises UsageError for one that matches none."""
    from fnmatch import fnmatchcase

    matched: set[str] = set()
    for pattern in patterns:
        hits = {name for name in table if fnmatchcase(name, pattern)}
        if not hits:
            hint = did_you_mean(pattern, table) or "see `glm4-deploy smoke --list`"
            raise UsageError(f"no check is named {pattern[:60]!r}", hint=hint)
        matched |= hits
    return matched


class _SuiteRun:
    """One pass over the checks: the results so far, and what they mean for the next check."""

    probe: Probe

    def __init__(
        self, target: ProbeTarget, on_start: OnStart | None, on_result: OnResult | None, autopsy: Autopsy | None
    ) -> None:
        self.key = target.key
        self.on_start = on_start
        self.on_result = on_result
        self.autopsy = autopsy
        self.results: list[Result] = []
        self.failed: dict[str, str] = {}  # check → the check whose failure is the root cause
        self.over: str | None = None  # why no further check runs
        self.died = False
        self.error: DeployError | None = None

    async def run_check(self, entry: Check) -> None:
        """Run a check, or skip it with the reason why it could not show anything now."""
        if self.on_start:
            self.on_start(entry.id)
        start = time.perf_counter()
        blocked = [self.failed[need] for need in entry.needs if need in self.failed]
        if self.over:
            result = skipped(self.over)
        elif blocked:
            result = skipped(f"needs {blocked[0]}, which did not pass")
        else:
            result = await self._guarded(entry)
            if how := await self._death(result):
                result = self._engine_died(entry, how, result)
        result = scrub(replace(result, check=entry.id, seconds=time.perf_counter() - start), self.key)
        if result.status in {Status.FAIL, Status.UNKNOWN} or blocked:
            self.failed[entry.id] = blocked[0] if blocked else entry.id
        self.results.append(result)
        if self.on_result:
            self.on_result(result)

    async def _guarded(self, entry: Check) -> Result:
        self.probe.check = entry.id
        try:
            async with asyncio.timeout(entry.limit_s + self.probe.target.timeout_s):
                return await entry.run(self.probe)
        except TimeoutError:
            return await self._stuck(entry, RequestFailure(FailureKind.SLOW, f"not done after {entry.limit_s:.0f} s"))
        except RequestFailure as failure:
            if failure.kind in {FailureKind.HANG, FailureKind.SLOW}:
                return await self._stuck(entry, failure)
            return _failed(failure)
        except Refused as refused:
            return fail(str(refused), "HTTP 200", remedy="read the engine's log at this moment")
        except (Unreachable, WrongEngine) as error:
            self.error = error
            return fail(error.message, "the engine and model expected", remedy=error.hint)
        except Exception as error:  # noqa: BLE001 (an answer that a check cannot cope with must not end the others)
            why = f"a defect of this check: {type(error).__name__}: {one_line(str(error), BRIEF)}"
            return unknown(why, "please report it, with this server's name and version")

    async def _stuck(self, entry: Check, failure: RequestFailure) -> Result:
        """Hung, or just busy? The counters of the engine core show it: in a hung engine they do not move."""
        before = await self.probe.metrics()
        watched_s = min(PROGRESS_S, self.probe.target.timeout_s)
        await asyncio.sleep(watched_s if before else 0)
        after = await self.probe.metrics()
        then, now = (counters(metrics) if metrics else None for metrics in (before, after))
        if then and now and now.moved_since(then):
            load = f"{now.running:.0f} requests running, {now.waiting:.0f} waiting"
            return unknown(
                f"{failure.detail}; the engine is busy, not hung: {load}",
                "try again without the load, or raise --timeout",
            )
        if failure.kind is FailureKind.HANG:
            self.over = f"the engine hung in {entry.id}"
        still = f"; its counters stood still for {watched_s:.3g} s" if then and now else ""
        return _failed(failure, still)

    async def _death(self, result: Result) -> str | None:
        """How the engine died in the check that gave this result, as a phrase; None if it lives.

        Its own words count most, whatever the check made of them. Otherwise /health decides, asked only after a failed
        check, and twice: a proxy may fail for a moment.
        """
        said = self.probe.client.death
        if said is not None:
            return said
        answered = any(row.status.passed for row in self.results)
        if not answered or result.status not in {Status.FAIL, Status.UNKNOWN} or self.over or self.error:
            return None
        if await self._lost():
            await asyncio.sleep(CONFIRM_S)
            return await self._lost()
        return None

    async def _lost(self) -> str | None:
        """What is wrong with /health, or with the start time, of a server that was well before; None for nothing."""
        try:
            status = (await self.probe.client.get("/health")).status
        except RequestFailure as failure:
            gone = failure.kind in {FailureKind.RESET, FailureKind.UNREACHABLE}
            return "nothing answers at its address any more" if gone else None
        if status >= 500:
            return f"/health answers HTTP {status}"
        metrics = await self.probe.metrics() if self.probe.served.started else None
        started = metrics.sum("process_start_time_seconds") if metrics else None
        again = started is not None and started > (self.probe.served.started or started)
        return f"it was started again meanwhile, at {moment(started)}" if started and again else None

    def _engine_died(self, entry: Check, how: str, result: Result) -> Result:
        """The one result for a dead engine, with what its log says. No check after it could show anything."""
        self.over, self.died = f"the engine died in {entry.id}", True
        cause = self.autopsy() if self.autopsy else None
        evidence = [("check", result.observed or result.reason)]
        if cause is not None:
            how = f"{how}; its log: {one_line(cause.observed, BRIEF)}"
            evidence += [(LOG, cause.observed), (WHY, cause.reason)]
        return fail(
            f"{self.over}: {how}",
            "an engine that survives every request",
            *evidence,
            remedy=cause.remedy if cause else "find the cause in its log: `glm4-deploy diagnose`",
            code=DIED,
        )

    def exit_code(self) -> int:
        """0 only for a pass; a check that could not be judged is not a pass (docs/how-to/smoke.md, "Exit codes")."""
        if self.error is not None:
            return self.error.exit_code
        if self.died:
            return EngineDied.exit_code
        return 0 if verdict(self.results) in {Status.OK, Status.WARN} else Judged.exit_code


def _failed(failure: RequestFailure, details: str = "") -> Result:
    partial = (("answer so far", failure.partial),) if failure.partial else ()
    return fail(f"{failure.kind}: {failure.detail}{details}", "a complete answer", *partial, remedy=failure.remedy)


# A soak: round after round, because output can go bad after hours of load while /health stays green.

MAX_DEGENERATE = 100  # degenerate answers kept from all rounds; of sound answers only those of the last round are kept
WORST = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK, Status.SKIPPED)


@dataclass(slots=True, kw_only=True)
class SoakTally:
    """One check over all rounds so far."""

    rounds: int = 0
    bad: int = 0
    worst: Result | None = None
    first: str = ""

    def add(self, result: Result, number: int, after_s: float) -> None:
        self.rounds += result.status is not Status.SKIPPED
        self.bad += result.status in {Status.FAIL, Status.UNKNOWN}
        if self.worst is None or WORST.index(result.status) < WORST.index(self.worst.status):
            self.worst = result
            self.first = f"first in round {number} after {clock(after_s)}"
        elif self.worst.status is result.status and result.status in {Status.OK, Status.SKIPPED}:
            self.worst = result

    def result(self) -> Result:
        assert self.worst is not None  # noqa: S101 (a tally is created for its first result)
        if self.worst.status is Status.SKIPPED:
            return self.worst
        summary = f"{self.rounds} rounds, {self.bad} bad"
        if self.worst.status is not Status.OK:
            summary += f", {self.first}"
        return replace(self.worst, observed=f"{summary}: {self.worst.observed or self.worst.reason}", reason="")


async def soak(
    target: ProbeTarget,
    *,
    seconds: float,
    options: Options | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    on_start: OnStart | None = None,
    on_result: OnResult | None = None,
    on_round: Callable[[int, float, Status], None] | None = None,
    autopsy: Autopsy | None = None,
) -> SuiteReport:
    """Run rounds of Suite.SOAK until `seconds` have passed; the worst result of each check counts.

    A round in which the engine dies, that nothing answers, or that something else answers, is the last one: no
    server is hammered for hours. So is a round after the first that is cancelled (Ctrl-C).

    Args:
        autopsy: as in `run_suite`.
        on_round: called with the number of the round, the seconds so far, and the verdict so far.
    """
    begin = time.monotonic()
    tallies: dict[str, SoakTally] = {}
    degenerate: list[AnswerSample] = []
    number = 0
    report: SuiteReport | None = None
    starts: set[str] = set()
    gone = False
    while report is None or (time.monotonic() - begin < seconds and not gone):
        try:
            latest = await run_suite(
                target,
                suite=Suite.SOAK,
                options=options,
                only=only,
                skip=skip,
                on_start=on_start,
                on_result=on_result,
                autopsy=autopsy,
            )
        except asyncio.CancelledError:
            if report is None:
                raise
            break
        number += 1
        gone = latest.exit_code in (Unreachable.exit_code, WrongEngine.exit_code, EngineDied.exit_code)
        starts |= {fact.value for fact in latest.engine if fact.name == STARTED and fact.value != NOT_KNOWN}
        for result in (*latest.results, *_restarts(starts)):
            tallies.setdefault(result.check, SoakTally()).add(result, number, time.monotonic() - begin)
        degenerate += [sample for sample in latest.samples if sample.finding and sample.finding.degenerate]
        report = _merge(report, latest, tallies, degenerate[:MAX_DEGENERATE], time.monotonic() - begin)
        if on_round:
            on_round(number, report.seconds, report.verdict)
    return replace(report, covered=f"{number} rounds in {clock(report.seconds)}. {report.covered}")


def _restarts(starts: set[str]) -> tuple[Result, ...]:
    """A failure if the engine restarted: it answers soundly again a minute later, and only its start time shows it."""
    if len(starts) < 2:
        return ()
    remedy = "read the log of the engine before its restart: `docker logs`, and `glm4-deploy diagnose`"
    seen = f"the engine started {len(starts)} times: {', '.join(sorted(starts))}"
    return (fail(seen, "one start", remedy=remedy, check="restarts"),)


def _merge(
    before: SuiteReport | None,
    latest: SuiteReport,
    tallies: Mapping[str, SoakTally],
    degenerate: Sequence[AnswerSample],
    seconds: float,
) -> SuiteReport:
    """The latest round, with the worst result of each check and the degenerate answers so far."""
    results = tuple(tally.result() for tally in tallies.values())
    worst = verdict(results)
    judged = 0 if worst in {Status.OK, Status.WARN} else Judged.exit_code
    return replace(
        latest,
        started=before.started if before else latest.started,
        seconds=seconds,
        results=results,
        verdict=worst,
        exit_code=max(judged, latest.exit_code, before.exit_code if before else 0),
        covered=covered(results, {fact.name: fact for fact in latest.proves}),
        samples=(*degenerate, *(sample for sample in latest.samples if sample not in degenerate)),
    )


def clock(seconds: float) -> str:
    """h:mm:ss."""
    total = int(seconds)
    return f"{total // 3600}:{total // 60 % 60:02}:{total % 60:02}"
