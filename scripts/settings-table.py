#!/usr/bin/env python3
"""Rewrite the table in docs/reference/settings.md from the settings themselves. `--check` reports drift."""

import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from glm4_deploy.settings import Kubernetes, Settings

DOC = Path(__file__).parents[1] / "docs/reference/settings.md"
MARK = "<!-- from settings.py: scripts/settings-table.py -->\n"


def limits(field: FieldInfo) -> str:
    """The range of a number, the words of a choice."""
    schema = Settings.model_json_schema()["properties"]
    name = next((name for name, other in Settings.model_fields.items() if other is field), None)
    found = schema.get(name, {}) if name else {}
    options = found.get("anyOf", [found])
    words = [f"`{word}`" for option in options for word in option.get("enum", [option.get("const")]) if word]
    for option in options:
        low = option.get("minimum", option.get("exclusiveMinimum"))
        if low is not None and "maximum" in option:
            words.insert(0, f"{'above ' if 'exclusiveMinimum' in option else ''}{low} to {option['maximum']}")
    return ", ".join(words)


def shown(value: object) -> str:
    if value in (None, (), {}) or isinstance(value, Kubernetes):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def rows(fields: dict[str, FieldInfo], prefix: str = "") -> list[str]:
    return [
        f"| `{prefix}{name}` | {field.description} | {limits(field)} | "
        f"{shown(field.get_default(call_default_factory=True, validated_data={}))} |"
        for name, field in fields.items()
    ]


def table() -> str:
    head = ["| key | what | range | default |", "|---|---|---|---|"]
    return "\n".join([*head, *rows(Settings.model_fields), *rows(Kubernetes.model_fields, "kubernetes.")]) + "\n"


def main() -> None:
    text = DOC.read_text(encoding="utf-8")
    head, _, _ = text.partition(MARK)
    new = f"{head}{MARK}\n{table()}"
    if "--check" in sys.argv:
        sys.exit(0 if new == text else f"{DOC.name} has drifted: run scripts/settings-table.py")
    DOC.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
