"""JSON from strangers: bounded, without duplicate keys, and with one kind of failure."""

import json
from typing import Any

from pydantic import BaseModel, ValidationError

MAX_DEPTH = 64  # config.json has 5 levels; what copies and writes a document goes a frame or two deeper a level


class MalformedJsonError(ValueError):
    """Why a text is not the JSON object that was expected, in one phrase."""


def parse_object(data: bytes, *, unique: bool = True) -> dict[str, Any]:
    """Parse a JSON object. The caller bounds the size of `data`.

    Args:
        unique: refuse duplicate keys and deep nesting too.

    Raises:
        MalformedJsonError: not UTF-8, not JSON, nested too deep, a number too long, a duplicate key, not an object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique if unique else None)
    except MalformedJsonError:
        raise
    except UnicodeDecodeError as error:
        raise MalformedJsonError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise MalformedJsonError(f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise MalformedJsonError("nested too deep") from None
    except ValueError:
        # CPython refuses integers of more than 4300 digits; its words speak of sys.set_int_max_str_digits.
        raise MalformedJsonError("has an integer of thousands of digits") from None
    if not isinstance(value, dict):
        raise MalformedJsonError(f"holds a {type(value).__name__}, not an object")
    if unique and _deep(value):
        raise MalformedJsonError(f"nested too deep (limit {MAX_DEPTH})")
    return value


class _Tokenizer(BaseModel):
    added_tokens: Any = None


def parse_tokenizer(data: bytes) -> dict[str, Any]:
    """Check the whole of a tokenizer.json, but keep `added_tokens` alone (None where there is none).

    pydantic's parser makes no Python object of what it leaves out: for 20 MB of words a quarter of the time and half
    of the memory. What it refuses is parsed again by `parse_object`, which decides and has the words for it.

    Raises:
        MalformedJsonError: as `parse_object` with `unique` off: the file is only read.
    """
    try:
        tokens = _Tokenizer.model_validate_json(data).added_tokens
    except ValidationError:
        tokens = parse_object(data, unique=False).get("added_tokens")
    return {"added_tokens": tokens}


def _deep(value: Any) -> bool:
    """Nested deeper than MAX_DEPTH; level by level, so that no depth can exhaust the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise MalformedJsonError(f"names {key[:80]!r} twice")
            seen.add(key)
    return value
