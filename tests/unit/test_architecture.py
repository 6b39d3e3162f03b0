"""docs/architecture.md describes the code as it is: rooms, what they import, and the glossary."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts.reference import PACKAGE, ROOT, Room, all_rooms

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ROOMS = all_rooms()
NAMES = [room.name for room in ROOMS]
EVERYWHERE = {"result", "text", "files", "errors"}


def nodes_of(*paths: Path) -> Iterator[ast.AST]:
    for path in paths:
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def imports_of(room: Room) -> set[str]:
    """The other rooms that a room imports, at the top of a file or inside a function."""
    paths = room.path.parent.rglob("*.py") if room.path.name == "__init__.py" else [room.path]
    found = set()
    for node in nodes_of(*paths):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    rooms = {name.split(".")[1] for name in found if name.startswith("glm4_deploy.")}
    return rooms & set(NAMES) - {room.name}


def named_by(room: Room) -> set[str]:
    return set(re.findall(r"`(\w+)`", room.may_import))


def test_every_room_is_in_the_contract() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__", "_version"} == set(NAMES)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_imports_what_its_docstring_says(room: Room) -> None:
    below = set(NAMES[NAMES.index(room.name) + 1 :])
    if room.may_import.startswith("every room"):
        assert imports_of(room) <= below - named_by(room)
    else:
        assert named_by(room) <= below
        assert imports_of(room) - EVERYWHERE == named_by(room)


def test_the_glossary_names_classes_that_exist() -> None:
    glossary = PAGE.split("\n## Glossary\n")[1].split("\n## ")[0]
    cells = [line.split("|")[3] for line in glossary.splitlines() if line.startswith("|")]
    named = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert len(named) > 15
    assert not named - {node.name for node in nodes_of(*PACKAGE.rglob("*.py")) if isinstance(node, ast.ClassDef)}


def test_no_class_name_has_two_meanings() -> None:
    names = [node.name for node in nodes_of(*PACKAGE.rglob("*.py")) if isinstance(node, ast.ClassDef)]
    assert sorted(names) == sorted(set(names))
