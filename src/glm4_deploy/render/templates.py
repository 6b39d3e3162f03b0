"""The Jinja environment of templates/: what is undefined is an error, and every scalar goes through `y`."""

import json
import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# The wheel carries the templates inside the package; a source tree keeps them at its top.
TEMPLATES = (Path(__file__).parents[1] / "templates", Path(__file__).parents[3] / "templates")
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
# Plain words that YAML 1.1 or 1.2 would read as something else than text.
NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def scalar(value: object) -> str:
    """A YAML scalar that no value can break: plain where that is safe, else a JSON string.

    A literal `$` is doubled: Compose would take it for a variable.
    """
    text = str(value).replace("$", "$$")
    if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT:
        return text
    return json.dumps(text, ensure_ascii=False)


@cache
def environment() -> Environment:
    # YAML, not HTML: every scalar goes through `y`, which is the escaping that this format needs.
    made = Environment(  # noqa: S701
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["y"] = scalar
    return made


def source(name: str) -> str:
    """A template's own text, not rendered."""
    made = environment()
    if made.loader is None:
        raise FileNotFoundError(name)
    return made.loader.get_source(made, name)[0]
