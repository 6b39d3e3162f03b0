"""Takes the API key out of whatever leaves the probe: a server's error text may repeat it."""

import dataclasses
from typing import Any, TypeVar, cast

T = TypeVar("T")
MASK = "[key]"


def scrub(value: T, key: str | None) -> T:
    """The same value with the key masked in every text; dataclasses and tuples are walked."""
    return value if key is None else cast("T", _walk(value, key))


def _walk(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return value.replace(key, MASK) if key in value else value
    if isinstance(value, tuple):
        return tuple(_walk(item, key) for item in value) if value and not isinstance(value[0], float) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: _walk(getattr(value, field.name), key) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
