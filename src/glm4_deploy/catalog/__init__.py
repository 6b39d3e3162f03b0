"""What is known, as data: each YAML file here is a table with a source for every row, and a typed loader."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def load(name: str) -> Any:
    """The parsed content of `catalog/NAME.yaml`. Cached: treat it as read-only, and build frozen rows from it."""
    text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(text, Loader=loader)  # noqa: S506 (a safe loader, in C where there is one)
