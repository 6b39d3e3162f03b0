"""The words around a verdict: what was asked, what was not, of which engine, with which settings."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from glm4_deploy import __version__
from glm4_deploy.probe.probe import Probe
from glm4_deploy.probe.registry import Check
from glm4_deploy.result import Result, Status
from glm4_deploy.samples import Fact

MODEL_PATH = "model path"  # as the engine sees it
STARTED = "started"  # the engine's process
NOT_TOLD = "not told"
NAMED = 12  # skipped checks are named up to this many; the table has them all


def covered(results: Sequence[Result], table: Mapping[str, Check]) -> str:
    """One sentence: a pass means that no failure was seen in what was asked."""
    judged = [row.check for row in results if row.check in table and row.status not in {Status.SKIPPED, Status.UNKNOWN}]
    skipped = [row.check for row in results if row.status is Status.SKIPPED]
    unknown = [row.check for row in results if row.status is Status.UNKNOWN]
    outside = len(table.keys() - {row.check for row in results})
    parts = [f"{len(judged)} of {len(table)} checks judged"]
    if skipped:
        names = f" ({', '.join(skipped)})" if len(skipped) <= NAMED else ""
        parts.append(f"{len(skipped)} skipped{names}")
    if unknown:
        parts.append(f"not judged {', '.join(unknown)}")
    if outside:
        parts.append(f"{outside} not in this run")
    return f"{'; '.join(parts)}. A pass means that no failure was seen in what was asked, no more."


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
    return tuple(Fact(name=name, value=str(value) if value else NOT_TOLD) for name, value in known)


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
