"""Runs the checks of a suite, one after another, and decides the verdict. It always ends, whatever the engine does."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from glm4_deploy.errors import DeployError, Judged, Unreachable, UsageError, WrongEngine
from glm4_deploy.probe.client import Client
from glm4_deploy.probe.coverage import covered, engine_facts, setting_facts
from glm4_deploy.probe.outcome import fail, skipped, unknown
from glm4_deploy.probe.probe import Options, Probe
from glm4_deploy.probe.registry import CHECKS, Check
from glm4_deploy.probe.scrub import scrub
from glm4_deploy.probe.target import Target
from glm4_deploy.probe.trouble import Kind, Refused, Trouble
from glm4_deploy.result import Result, Status, verdict
from glm4_deploy.samples import Measure, Report, Suite

STARTED = Callable[[str], None]
ENDED = Callable[[Result], None]
PROGRESS_S = 3.0  # how long the token counter is watched before an engine is called hung


async def run_suite(
    target: Target,
    *,
    suite: Suite = Suite.QUICK,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    options: Options | None = None,
    on_start: STARTED | None = None,
    on_result: ENDED | None = None,
) -> Report:
    """Ask every check of the suite and judge.

    only: names of checks (`needle-*` takes several); what they need runs too. skip: names left out.
    on_start, on_result: called as each check begins and ends, for progress.

    Raises:
        UsageError: an address that is none, a key that no header can carry.
    """
    chosen = choose(suite, only, skip)
    begun = datetime.now(UTC).astimezone()
    clock = time.perf_counter()
    run = _Run(target, on_start, on_result)
    async with Client(target) as client:
        run.probe = Probe(target=target, client=client, suite=suite, options=options or Options())
        for entry in chosen:
            await run.one(entry)
    results = tuple(run.results)
    report = Report(
        suite=suite,
        base_url=target.root,
        model=run.probe.served.model,
        started=begun.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - clock,
        results=results,
        verdict=verdict(results),
        exit_code=run.exit_code(),
        covered=covered(results, CHECKS),
        samples=tuple(run.probe.samples),
        engine=engine_facts(run.probe),
        settings=setting_facts(run.probe, only, skip),
        perplexity=tuple(Measure(name=name, value=value) for name, value in run.probe.perplexity.items()),
    )
    return scrub(report, target.key)


def choose(suite: Suite, only: Sequence[str], skip: Sequence[str]) -> list[Check]:
    """The checks to run, in order; names that no check has are a UsageError (see `match`)."""
    wanted = {entry.id for entry in CHECKS.values() if suite in entry.suites}
    if only:
        wanted = match(only)
        pending = list(wanted)
        while pending:
            needs = set(CHECKS[pending.pop()].needs) - wanted
            wanted |= needs
            pending += needs
    wanted -= match(skip)
    if not wanted:
        raise UsageError("no check is left to run", hint="see `glm4-deploy smoke --list`")
    return [entry for entry in CHECKS.values() if entry.id in wanted]


def match(patterns: Sequence[str]) -> set[str]:
    """The checks that some names or shell patterns mean.

    Raises:
        UsageError: one that means none.
    """
    from difflib import get_close_matches
    from fnmatch import fnmatchcase

    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in CHECKS if fnmatchcase(name, pattern)}
        if not hits:
            near = get_close_matches(pattern, CHECKS, n=1)
            hint = f"did you mean {near[0]}?" if near else "see `glm4-deploy smoke --list`"
            raise UsageError(f"no check is named {pattern[:60]!r}", hint=hint)
        found |= hits
    return found


class _Run:
    """One pass over the checks: what has been found so far, and what that means for the next one."""

    probe: Probe

    def __init__(self, target: Target, on_start: STARTED | None, on_result: ENDED | None) -> None:
        self.key = target.key
        self.on_start = on_start
        self.on_result = on_result
        self.results: list[Result] = []
        self.failed: dict[str, str] = {}  # check: the check at the root of it
        self.over: str | None = None  # why nothing more is asked
        self.error: DeployError | None = None

    async def one(self, entry: Check) -> None:
        """Run a check, or skip it with the reason why it cannot say anything now."""
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
            return await self._stuck(entry, Trouble(Kind.SLOW, f"not done after {entry.limit_s:.0f} s"))
        except Trouble as trouble:
            if trouble.kind in {Kind.HANG, Kind.SLOW}:
                return await self._stuck(entry, trouble)
            if trouble.kind in {Kind.RESET, Kind.TRUNCATED, Kind.UNREACHABLE} and await self._gone():
                self.over = f"the engine went away in {entry.id}: nothing answers any more"
            return _failed(trouble)
        except Refused as refused:
            return fail(str(refused), "HTTP 200", remedy="read the engine's log at this moment")
        except (Unreachable, WrongEngine) as error:
            self.error = error
            return fail(error.message, "the engine and model expected", remedy=error.hint)

    async def _stuck(self, entry: Check, trouble: Trouble) -> Result:
        """Hung or only busy? The token counter tells: it stands still while requests run in a hung engine."""
        before = await self.probe.metrics()
        watched_s = min(PROGRESS_S, self.probe.target.timeout_s)
        await asyncio.sleep(watched_s if before else 0)
        after = await self.probe.metrics()
        tokens = [metrics.sum("vllm:generation_tokens_total") if metrics else None for metrics in (before, after)]
        if after is not None and None not in tokens and tokens[0] != tokens[1]:
            running = after.sum("vllm:num_requests_running") or 0
            waiting = after.sum("vllm:num_requests_waiting") or 0
            return unknown(
                f"{trouble.detail}; the engine is busy, not hung: {running:.0f} requests run, {waiting:.0f} wait",
                "try again when the load is gone, or raise --timeout",
            )
        if trouble.kind is Kind.HANG:
            self.over = f"the engine hung in {entry.id}"
        still = f"; its token counter stood still for {watched_s:.3g} s" if None not in tokens else ""
        return _failed(trouble, still)

    async def _gone(self) -> bool:
        """Whether nothing answers any more: one connection may be cut for its own reasons."""
        try:
            await self.probe.client.get("/health")
        except Trouble as trouble:
            return trouble.kind in {Kind.RESET, Kind.UNREACHABLE}
        return False

    def exit_code(self) -> int:
        """0 only for a pass; what could not be judged is no pass (docs/how-to/smoke.md, "Exit codes")."""
        if self.error is not None:
            return self.error.exit_code
        return 0 if verdict(self.results) in {Status.OK, Status.WARN} else Judged.exit_code


def _failed(trouble: Trouble, more: str = "") -> Result:
    partial = (("answer so far", trouble.partial),) if trouble.partial else ()
    return fail(f"{trouble.kind}: {trouble.detail}{more}", "a whole answer", *partial, remedy=trouble.remedy)
