"""Frozen dataclasses to JSON, the one way that every `--json` takes."""

import dataclasses
import json
import re
from typing import Any

# C1 controls, direction marks, lone surrogates: none of them stands outside a JSON string.
STEERING = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def to_wire(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists; everything else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_wire(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    return value


def dumps(value: Any, *, indent: int | None = 2) -> str:
    """JSON text that a terminal may show: what would steer it is escaped, other letters stay readable.

    NaN and infinities are refused (they are no JSON): give None for unknown numbers. Half a surrogate pair (a file name
    that is not UTF-8) becomes its JSON escape, which every stream can carry.
    """
    text = json.dumps(to_wire(value), ensure_ascii=False, indent=indent, allow_nan=False)
    return STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)  # JSON itself escapes only up to U+001F
