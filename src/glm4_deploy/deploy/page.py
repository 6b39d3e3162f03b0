"""The page of a judged start, kept with its release, and what a deployment's files add to a later report."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from glm4_deploy.deploy.certificate import kept_lines
from glm4_deploy.deploy.outcome import StartResult
from glm4_deploy.deploy.releases import REPORT, Release, Store
from glm4_deploy.deploy.state import load_record
from glm4_deploy.errors import DeployError
from glm4_deploy.files import read_text
from glm4_deploy.logs.facts import EngineFacts
from glm4_deploy.probe.suite import claims, covered
from glm4_deploy.report.html import to_html
from glm4_deploy.report_model import DeploymentNotes, Fact, Measure, ReleaseNote, Suite, SuiteReport
from glm4_deploy.result import Result, Status, fail
from glm4_deploy.text import redact, scrub

PAGE = "report.html"
SHOWN = 12  # releases in a page's history
PROOF = Fact(
    name="this-container",
    value="the engine that was started here is the one that answers: its log shows a one-time request",
)
CAUSES = 3  # of a start that no check judged: findings in its log


def start_page(
    store: Store, release: Release, start: StartResult, asked: Sequence[SuiteReport], secrets: frozenset[str]
) -> str:
    """The page of a start that is about to become this release. asked: the runs of the gate, one per engine."""
    last = asked[-1] if asked else None  # of several engines the router's, which is not asked everything
    proves = tuple({fact.name: fact for one in asked for fact in one.proves}.values()) or claims()
    report = SuiteReport(
        suite=Suite.GATE,
        base_url=start.endpoint.base_url,
        model=start.endpoint.model,
        started=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        seconds=start.seconds,
        results=_rows(start),
        verdict=start.verdict,
        exit_code=start.error.exit_code if start.error else 0,
        covered=covered(start.results, {fact.name: fact for fact in proves}),
        samples=tuple(sample for one in asked for sample in one.samples),
        engine=last.engine if last else (),
        settings=last.settings if last else (),
        proves=(PROOF, *proves),
        deployment=_notes(store, release, start.planned),
    )
    for secret in secrets:
        report = scrub(report, secret)
    return to_html(report)


def notes_on_record(directory: Path, base_url: str) -> DeploymentNotes | None:
    """What the running release of this directory says; None where another engine is asked, or none is on record."""
    record = load_record(directory)
    if record is None or record.endpoint.base_url != base_url:
        return None
    store = Store(directory)
    release = next((one for one in store.releases() if one.id == record.release), None)
    if release is None:
        return None
    return _notes(store, release, _planned(store.root / release.id / REPORT))


def _rows(start: StartResult) -> tuple[Result, ...]:
    """The gate's rows; of a start that ended otherwise, also its error and what its log says."""
    error = start.error
    if error is None or any(row.status in (Status.FAIL, Status.UNKNOWN) for row in start.results):
        return start.results
    causes = [one.result() for one in start.findings if one.status is Status.FAIL][:CAUSES]
    evidence = [("details", "\n".join(error.details))] if error.details else []
    row = fail(error.message, "an engine that starts and answers", *evidence, remedy="; ".join(error.hints))
    return (replace(row, check="start"), *causes, *start.results)


def _notes(store: Store, release: Release, planned: tuple[Result, ...]) -> DeploymentNotes:
    facts = _facts(release.engine)
    others = [one for one in store.releases() if one.id != release.id]
    newest = sorted((*others, release), key=lambda one: -one.number)[:SHOWN]
    return DeploymentNotes(
        kernel=facts.kernel_path if facts.kernel else "",
        native_fp4=facts.native_fp4,
        phases=tuple(Measure(name=name, value=seconds) for name, seconds in release.phases.items()),
        planned=planned,
        releases=tuple(_note(one, this=one.id == release.id) for one in newest),
        certificate=kept_lines(store.root / release.id),
    )


def _note(release: Release, *, this: bool) -> ReleaseNote:
    facts = _facts(release.engine)
    return ReleaseNote(
        id=release.id,
        created_at=release.created_at,
        verdict=release.verdict,
        reason=redact(release.reason),
        vllm=facts.version or "",
        kernel=facts.kernel or "",
        ready_seconds=release.ready_seconds,
        gate_seconds=release.gate_seconds,
        this=this,
    )


def _facts(engine: Mapping[str, Any]) -> EngineFacts:
    """The facts of a release, also of one that another version of the kit wrote."""
    known = {one.name for one in fields(EngineFacts)}
    with suppress(ValidationError):
        return TypeAdapter(EngineFacts).validate_python({name: engine[name] for name in engine if name in known})
    return EngineFacts()


def _planned(path: Path) -> tuple[Result, ...]:
    """The plan's rows from a kept report; none from one of an earlier kit, or a damaged one."""
    with suppress(DeployError, ValidationError):
        kept = TypeAdapter(dict[str, Any]).validate_json(read_text(path))
        return TypeAdapter(tuple[Result, ...]).validate_python(kept.get("planned", ()))
    return ()
