"""The generated parts of the documentation. `make docs` writes them through cog; a test compares them.

Each function returns Markdown. A page calls it in a cog block:

    <!-- [[[cog import cog; from scripts.reference import settings; cog.out(settings()) ]]] -->
    <!-- [[[end]]] -->
"""

import ast
import io
import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from typer.main import get_command

from glm4_deploy import errors
from glm4_deploy.catalog.rows import MetricRow, metric_rows
from glm4_deploy.catalog.rows import signatures as signature_rows
from glm4_deploy.catalog.rows import symptoms as symptom_rows
from glm4_deploy.cli.app import INTERRUPTED, READER_GONE, app
from glm4_deploy.errors import DeployError
from glm4_deploy.probe.questions import QuestionFile
from glm4_deploy.report.wire import json_schema
from glm4_deploy.settings import Kubernetes, Settings, limits

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/glm4_deploy"
PROGRAM = "glm4-deploy"
COLUMNS = 100


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"\n{text}\n\n"


def tree() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with its path: (), ("render",), ("key",), ("key", "add"), …"""

    def below(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from below((*path, name), inner)

    yield from below((), get_command(app))


def help_of(*path: str) -> str:
    """What `glm4-deploy PATH --help` prints, 100 columns wide."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        app([*path, "--help"], prog_name=PROGRAM, standalone_mode=False, terminal_width=COLUMNS)
    return printed.getvalue()


def commands() -> str:
    parts = []
    for path, _ in tree():
        title = " ".join(path) or PROGRAM
        text = "\n".join(line.rstrip() for line in help_of(*path).strip().splitlines())
        parts.append(f"\n{'###' if len(path) > 1 else '##'} {title}\n\n```text\n{text}\n```\n")
    return "".join(parts) + "\n"


def exit_meanings() -> dict[int, str]:
    classes = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, DeployError)]
    meanings = {
        0: "success",
        INTERRUPTED: "interrupted; the engine is left as it is",
        READER_GONE: "the reader of the output has gone (`… | head`)",
    }
    return dict(sorted((meanings | {item.exit_code: item.meaning for item in classes}).items()))


def exit_codes() -> str:
    return table(("code", "meaning"), ((str(code), meaning) for code, meaning in exit_meanings().items()))


def settings() -> str:
    return table(
        ("key", "what", "range", "default"),
        (
            (f"`{prefix}{name}`", str(field.description), ", ".join(_marked(limits(field))), _default_of(field))
            for model, prefix in ((Settings, ""), (Kubernetes, "kubernetes."))
            for name, field in model.model_fields.items()
        ),
    )


def _marked(words: tuple[str, ...]) -> Iterator[str]:
    """The words of a choice as code; a range stays as it is."""
    return (f"`{word}`" if re.fullmatch(r"[\w-]+", word) else word for word in words)


def _default_of(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value in (None, (), {}) or isinstance(value, Kubernetes):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def signatures() -> str:
    def cells() -> Iterator[tuple[str, ...]]:
        for row in signature_rows():
            cause = f"{row.cause} ({row.where})" if row.where else row.cause
            yield f"`{row.id}`", row.severity, *(text.replace("<", "&lt;") for text in (cause, row.fix, row.source))

    return table(("id", "severity", "cause", "what to do", "seen"), cells())


def symptoms() -> str:
    rows = (row for row in symptom_rows() if row.cause)
    return table(
        ("id", "severity", "people say", "cause", "what to do", "seen"),
        ((f"`{row.id}`", row.severity, "; ".join(row.says), row.cause, row.fix, row.source) for row in rows),
    )


def metrics() -> str:
    def limit(row: MetricRow) -> str:
        below = f"; below it {row.below}" if row.below else ""
        least = f", from {row.least:,.0f} on" if row.least else ""
        return f"{row.value}: {row.limit:g}{least}{below}. {row.why[0].upper()}{row.why[1:]}"

    return table(
        ("id", "severity", "limit, and why", "cause", "what to do", "seen"),
        ((f"`{row.id}`", row.severity, limit(row), row.cause, row.fix, row.source) for row in metric_rows()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A room as the first line of its docstring describes it."""

    name: str
    purpose: str
    may_import: str

    @property
    def path(self) -> Path:
        return path_of(self.name)


def path_of(room: str) -> Path:
    module = PACKAGE / f"{room}.py"
    return module if module.exists() else PACKAGE / room / "__init__.py"


def all_rooms() -> tuple[Room, ...]:
    """From the top down, in the order of the import contract."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return tuple(_room(name) for layer in layers for name in re.findall(r"\w+", layer))


def _room(name: str) -> Room:
    path = path_of(name)
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    found = re.fullmatch(r"(.+)\. May import (.+)\.", line)
    if found is None:
        raise ValueError(f"{path}: the docstring must begin with one line: WHAT IT DOES. May import ROOMS.")
    return Room(name=name, purpose=found[1], may_import=found[2])


def rooms() -> str:
    def cells() -> Iterator[tuple[str, ...]]:
        for room in all_rooms():
            suffix = "/" if room.path.name == "__init__.py" else ".py"
            yield f"`{room.name}{suffix}`", room.purpose, room.may_import

    return table(("room", "what it does", "may import"), cells())


def schemas() -> Iterator[tuple[Path, str]]:
    """The JSON Schemas that the package ships: of reports, and of a file of questions."""
    questions = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | QuestionFile.model_json_schema()
    for name, schema in (("report/report", json_schema()), ("probe/questions", questions)):
        yield PACKAGE / f"{name}.schema.json", json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    from scripts import manual

    for path, text in (*schemas(), (manual.PAGE, manual.manual())):
        path.write_text(text, encoding="utf-8")
