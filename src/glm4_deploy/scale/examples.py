"""Calibrations that ship with the kit: somebody's engine, never the reader's."""

from functools import cache
from typing import Any

from glm4_deploy.catalog import load
from glm4_deploy.scale.measured import Measured, from_mapping


@cache
def _rows() -> dict[str, Any]:
    rows: dict[str, Any] = load("calibrations")["calibrations"]
    return rows


def examples() -> tuple[str, ...]:
    return tuple(_rows())


def example(name: str) -> Measured:
    """The row of that name. Raises KeyError."""
    return from_mapping(_rows()[name], name, example=True)
