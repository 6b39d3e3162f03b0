"""The same round of checks again and again: output can go bad after hours of load while /health stays green."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from glm4_deploy.errors import Judged, Unreachable
from glm4_deploy.probe.coverage import NOT_TOLD, STARTED, covered
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.registry import CHECKS
from glm4_deploy.probe.run import run_suite
from glm4_deploy.probe.target import Target
from glm4_deploy.result import Result, Status, verdict
from glm4_deploy.samples import Report, Sample, Suite

KEPT = 100  # degenerate answers, of all rounds; of the others the last round's are kept
WORST = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK, Status.SKIPPED)


@dataclass(slots=True, kw_only=True)
class Tally:
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
        assert self.worst is not None  # noqa: S101 (a tally is made by its first result)
        if self.worst.status is Status.SKIPPED:
            return self.worst
        words = f"{self.rounds} rounds, {self.bad} bad"
        if self.worst.status is not Status.OK:
            words += f", {self.first}"
        return replace(self.worst, observed=f"{words}: {self.worst.observed or self.worst.reason}", reason="")


async def soak(
    target: Target,
    *,
    seconds: float,
    options: Options | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    on_start: Callable[[str], None] | None = None,
    on_result: Callable[[Result], None] | None = None,
    on_round: Callable[[int, float, Status], None] | None = None,
) -> Report:
    """Rounds of Suite.SOAK until `seconds` have passed; each check's worst counts.

    on_round: the number of the round, seconds so far, and the rolling verdict. A target that is gone ends the soak.
    A cancellation (Ctrl-C) after the first round ends it too, with the report so far.
    """
    begin = time.monotonic()
    tallies: dict[str, Tally] = {}
    degenerate: list[Sample] = []
    number = 0
    report: Report | None = None
    starts: set[str] = set()
    while report is None or (time.monotonic() - begin < seconds and report.exit_code != Unreachable.exit_code):
        try:
            latest = await run_suite(
                target,
                suite=Suite.SOAK,
                options=options,
                only=only,
                skip=skip,
                on_start=on_start,
                on_result=on_result,
            )
        except asyncio.CancelledError:
            if report is None:
                raise
            break
        number += 1
        starts |= {fact.value for fact in latest.engine if fact.name == STARTED and fact.value != NOT_TOLD}
        for result in (*latest.results, *_restarts(starts)):
            tallies.setdefault(result.check, Tally()).add(result, number, time.monotonic() - begin)
        degenerate += [sample for sample in latest.samples if sample.finding and sample.finding.degenerate]
        report = _merge(report, latest, tallies, degenerate[:KEPT], time.monotonic() - begin)
        if on_round:
            on_round(number, report.seconds, report.verdict)
    return replace(report, covered=f"{number} rounds in {clock(report.seconds)}. {report.covered}")


def _restarts(starts: set[str]) -> tuple[Result, ...]:
    """An engine that Docker restarts answers soundly again a minute later: only its start tells."""
    if len(starts) < 2:
        return ()
    remedy = "read the log of the engine's last life: `docker logs`, and `glm4-deploy diagnose`"
    seen = f"the engine started {len(starts)} times: {', '.join(sorted(starts))}"
    return (Result(check="restarts", status=Status.FAIL, observed=seen, expected="one start", remedy=remedy),)


def _merge(
    before: Report | None, latest: Report, tallies: Mapping[str, Tally], degenerate: Sequence[Sample], seconds: float
) -> Report:
    """The latest round, with every check's worst so far and every degenerate answer."""
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
        covered=covered(results, CHECKS),
        samples=(*degenerate, *(sample for sample in latest.samples if sample not in degenerate)),
    )


def clock(seconds: float) -> str:
    """h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
