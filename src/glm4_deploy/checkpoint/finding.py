"""Short ways to write a finding, and to list many names without flooding a terminal."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from glm4_deploy.checkpoint.target import Target
from glm4_deploy.facts.checkpoint import Checkpoint
from glm4_deploy.result import Evidence, Result, Status

Rule: TypeAlias = Callable[[Checkpoint, Target], Result]
SHOWN = 3
REPAIR = "glm4-deploy checkpoint repair DIR --output DIR2"  # a remedy; the report puts in the directory and the engine
WHY = "why"  # the evidence that says what a finding means for this engine


def ok(check: str, observed: str) -> Result:
    return Result(check=check, status=Status.OK, observed=observed)


def skipped(check: str, reason: str) -> Result:
    return Result(check=check, status=Status.SKIPPED, reason=reason)


def unknown(check: str, observed: str, *, reason: str) -> Result:
    return Result(check=check, status=Status.UNKNOWN, observed=observed, reason=reason)


def bad(
    check: str,
    status: Status,
    observed: str,
    *,
    why: str,
    remedy: str = "",
    expected: str = "",
    items: Sequence[str] = (),
) -> Result:
    """A warning or failure. `why` says what it means for this engine; `items` are all the places. Both are evidence."""
    places = (Evidence(name="places", text="\n".join(items)),) if items else ()
    return Result(
        check=check,
        status=status,
        observed=observed,
        expected=expected,
        remedy=remedy,
        evidence=(Evidence(name=WHY, text=why), *places),
    )


def listed(items: Sequence[str]) -> str:
    """The first few, and how many more: "a, b, c and 37 more"."""
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
