"""Quoting: no value can be misread by YAML, systemd, Podman's generator or Kubernetes."""

import json
import re
from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from glm4_deploy.files import TEMPLATES

# The Jinja environment of templates/: undefined names are errors, and every scalar goes through `y`.

PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
# Plain words that YAML 1.1 or 1.2 does not read as text.
NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def scalar(value: object) -> str:
    """A YAML scalar that no value can break: plain if that is safe, else a JSON string.

    A literal `$` is doubled, or Compose would read it as a variable.
    """
    text = str(value).replace("$", "$$")
    if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT:
        return text
    return json.dumps(text, ensure_ascii=False)


@cache
def environment() -> Environment:
    # YAML, not HTML: the filter `y` does the escaping that this format needs.
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
    """A template's text, unrendered."""
    made = environment()
    if made.loader is None:
        raise FileNotFoundError(name)
    return made.loader.get_source(made, name)[0]


_UNSAFE_UNIT = re.compile(r"[^A-Za-z0-9_./:=,@+-]")
_CSV = re.compile(r'[,"\s]')


def text_scalar(value: object) -> str:
    """A YAML scalar that is text, for a file in which `$` has no meaning."""
    return scalar(value).replace("$$", "$")


def kubernetes_literal(value: object) -> str:
    """Text for `args`, `command` and `env`, where Kubernetes expands `$(NAME)` and reads `$$` as `$`."""
    return str(value).replace("$", "$$")


def unit_word(value: object) -> str:
    """A word in a unit (ExecStart=, and the keys that Quadlet splits: Exec=, Environment=, Mount=).

    It is quoted if necessary; specifiers (%) and variables ($) stay literal.
    """
    text = str(value).replace("%", "%%").replace("$", "$$")
    return text if text and not _UNSAFE_UNIT.search(text) else json.dumps(text, ensure_ascii=False)


def quadlet_line(value: object) -> str:
    """The value of a Quadlet key that the generator passes on unchanged, with quotes: PublishPort=, HealthCmd=.

    systemd expands specifiers (%) and variables ($) in the command that the generator makes of it.
    """
    return str(value).replace("%", "%%").replace("$", "$$")


def csv_field(text: str) -> str:
    """A field of `Mount=`, which Podman reads as CSV."""
    return '"' + text.replace('"', '""') + '"' if _CSV.search(text) else text


def render_template(template: str, **values: object) -> str:
    """Render a template of templates/targets, with the functions above as filters."""
    made = environment()
    made.filters.setdefault("k", text_scalar)
    made.filters.setdefault("literal", kubernetes_literal)
    made.filters.setdefault("u", unit_word)
    made.filters.setdefault("line", quadlet_line)
    return made.get_template(f"targets/{template}").render(values)
