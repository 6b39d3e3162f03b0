"""The table of checks. A check is one decorated function in one file of `checks/`; importing the file enters it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from glm4_deploy.result import Result
from glm4_deploy.samples import Suite

if TYPE_CHECKING:
    from glm4_deploy.probe.probe import Probe

Run = Callable[["Probe"], Awaitable[Result]]


class Stage(IntEnum):
    """The order in which checks run: what others rest on comes first, what loads the engine comes last."""

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

    proves: one sentence. suites: those that include it. needs: checks that must not have failed before it.
    seconds: about how long on a healthy GPU engine. limit_s: when it is ended and judged as it stands.
    """

    id: str
    stage: Stage
    proves: str
    suites: frozenset[Suite]
    needs: tuple[str, ...]
    seconds: float
    limit_s: float
    run: Run


CHECKS: dict[str, Check] = {}

GATE = frozenset({Suite.GATE, Suite.QUICK, Suite.FULL})
QUICK = frozenset({Suite.QUICK, Suite.FULL})
FULL = frozenset({Suite.FULL})
SOAK = frozenset({Suite.SOAK})


def check(
    name: str,
    *,
    stage: Stage,
    proves: str,
    suites: frozenset[Suite],
    needs: tuple[str, ...] = ("chat",),
    seconds: float,
    limit_s: float = 180.0,
) -> Callable[[Run], Run]:
    """Enter a function as a check.

    Raises:
        ValueError: the name is taken.
    """

    def enter(run: Run) -> Run:
        if name in CHECKS:
            raise ValueError(f"two checks are named {name}")
        CHECKS[name] = Check(
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

    return enter


def load() -> dict[str, Check]:
    """All checks, in the order in which they run."""
    from glm4_deploy.probe import checks

    for module in iter_modules(checks.__path__):
        import_module(f"{checks.__name__}.{module.name}")
    ordered = sorted(CHECKS.values(), key=lambda entry: entry.stage)
    CHECKS.clear()
    CHECKS.update({entry.id: entry for entry in ordered})
    return CHECKS
