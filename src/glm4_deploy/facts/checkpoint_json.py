"""JSON from strangers: bounded, without duplicate keys, and with one kind of failure."""

import gc
import json
from typing import Any

MAX_DEPTH = 64  # config.json has 5 levels; what copies and writes a document goes a frame or two deeper a level


class MalformedJsonError(ValueError):
    """Why a text is not the JSON object that was expected, in one phrase."""


def parse_object(data: bytes, *, unique: bool = True) -> dict[str, Any]:
    """Parse a JSON object. The caller bounds the size of `data`.

    Args:
        unique: refuse duplicate keys and deep nesting (slower: off for the large tokenizer.json, which is only read).

    Raises:
        MalformedJsonError: not UTF-8, not JSON, nested too deep, a number too long, a duplicate key, not an object.
    """
    try:
        value = _loads(data.decode("utf-8"), unique=unique)
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


def _loads(text: str, *, unique: bool) -> Any:
    """The garbage collector would walk all lists of a large document again and again: a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    finally:
        if collecting:
            gc.enable()


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
