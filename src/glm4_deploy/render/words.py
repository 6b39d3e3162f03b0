"""Values written so that neither YAML, systemd, Podman's generator nor Kubernetes takes them for anything else."""

import json
import re

from glm4_deploy.render.templates import environment, scalar

_UNSAFE_UNIT = re.compile(r"[^A-Za-z0-9_./:=,@+-]")
_CSV = re.compile(r'[,"\s]')


def text_scalar(value: object) -> str:
    """A YAML scalar that is text and that neither YAML nor Kubernetes' own `$(NAME)` changes."""
    return scalar(str(value).replace("$(", "$$(")).replace("$$", "$")


def unit_word(value: object) -> str:
    """A word of a unit (ExecStart=, and what Quadlet takes apart: Exec=, Environment=, Mount=).

    It is quoted where it must be; specifiers (%) and variables ($) are taken literally.
    """
    text = str(value).replace("%", "%%").replace("$", "$$")
    return text if text and not _UNSAFE_UNIT.search(text) else json.dumps(text, ensure_ascii=False)


def quadlet_line(value: object) -> str:
    """The value of a Quadlet key that the generator passes on whole, quotes and all: PublishPort=, HealthCmd=."""
    return str(value).replace("%", "%%")


def csv_field(text: str) -> str:
    """A field of `Mount=`, which Podman reads as CSV."""
    return '"' + text.replace('"', '""') + '"' if _CSV.search(text) else text


def render_template(template: str, **values: object) -> str:
    """A template of templates/targets, with these words as filters."""
    made = environment()
    made.filters.setdefault("k", text_scalar)
    made.filters.setdefault("u", unit_word)
    made.filters.setdefault("line", quadlet_line)
    return made.get_template(f"targets/{template}").render(values)
