"""Host profiles and the variables that the kit renders, as typed rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from glm4_deploy.catalog import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One row of profiles.yaml. `gpu` is the key of gpus.yaml that it is solved for, None where there is no GPU;
    `also` names further rows that it serves."""

    name: str
    summary: str
    engine: str = "nvcr"
    gpu: str | None = None
    also: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One row of variables.yaml."""

    name: str
    value: str
    read_by: str
    engines: tuple[str, ...] = ("nvcr", "cpu")


@cache
def profiles() -> dict[str, Profile]:
    rows = load("profiles")["profiles"]
    return {name: Profile(name=name, **{**row, "also": tuple(row.get("also", ()))}) for name, row in rows.items()}


@cache
def variables() -> dict[str, Variable]:
    rows = load("variables")["variables"]
    return {
        name: Variable(name=name, **{**row, "engines": tuple(row.get("engines", ("nvcr", "cpu")))})
        for name, row in rows.items()
    }


@cache
def mistaken_variables() -> dict[str, str]:
    """Names that nothing reads, with the name that was meant."""
    return dict(load("variables")["mistaken"])
