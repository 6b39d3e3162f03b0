"""How a check says what it found: one function a verdict. The runner adds the check's name and its time."""

from collections.abc import Iterable

from glm4_deploy.probe.words import bound
from glm4_deploy.result import Evidence, Result, Status


def _evidence(pairs: Iterable[tuple[str, str]]) -> tuple[Evidence, ...]:
    return tuple(Evidence(name=name, text=bound(text)) for name, text in pairs)


def ok(observed: str, expected: str = "", *evidence: tuple[str, str]) -> Result:
    return Result(check="", status=Status.OK, observed=observed, expected=expected, evidence=_evidence(evidence))


def warn(observed: str, expected: str = "", *evidence: tuple[str, str], remedy: str = "") -> Result:
    return Result(
        check="",
        status=Status.WARN,
        observed=observed,
        expected=expected,
        remedy=remedy,
        evidence=_evidence(evidence),
    )


def fail(observed: str, expected: str = "", *evidence: tuple[str, str], remedy: str = "") -> Result:
    return Result(
        check="",
        status=Status.FAIL,
        observed=observed,
        expected=expected,
        remedy=remedy,
        evidence=_evidence(evidence),
    )


def skipped(reason: str, remedy: str = "") -> Result:
    """It could not apply here: the server does not offer it, or nobody asked for it."""
    return Result(check="", status=Status.SKIPPED, reason=reason, remedy=remedy)


def unknown(reason: str, remedy: str = "") -> Result:
    """It should have been judged and could not be: never a pass."""
    return Result(check="", status=Status.UNKNOWN, reason=reason, remedy=remedy)
