"""The drawing of the house, held against the imports: docs/architecture.md explains what each room is for."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gpasst

PACKAGE = Path(gpasst.__file__).parent
ROOT = "gpasst"  # the package itself names its public names' homes, and loads them when they are used
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
NAMES_WIDTH = 27  # columns of the drawing, in which the rooms of a floor stand
LONGEST_MODULE = 400  # lines


def drawn() -> list[list[str]]:
    """Return the rooms of each floor, from the highest."""
    drawing = PAGE.read_text(encoding="utf-8").partition("## The house")[2].split("```")[1].removeprefix("text\n")
    return [rooms for line in drawing.splitlines() if (rooms := line[:NAMES_WIDTH].split())]


LEVELS = {room: level for level, rooms in enumerate(reversed(drawn())) for room in rooms}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports(source: str, modules: set[str]) -> set[str]:
    """Return the modules of `modules` that a source text imports: also late, and for type checkers alone.

    A name that is no module, such as a class, stands for the module that it comes from.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide what they lead to"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & modules


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
IMPORTS = {name: imports(source, set(SOURCES)) for name, source in SOURCES.items() if name != ROOT}


def test_every_module_has_a_room_and_every_room_a_module() -> None:
    assert {room_of(name) for name in IMPORTS} == set(LEVELS)


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_imports_lead_to_lower_floors(name: str) -> None:
    room = room_of(name)
    others = {other for other in IMPORTS[name] - {ROOT} if room_of(other) != room}
    assert [other for other in sorted(others) if LEVELS[room_of(other)] >= LEVELS[room]] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({name: others - {ROOT} for name, others in IMPORTS.items()}).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_only_the_version_and_the_place_come_from_the_package_itself(name: str) -> None:
    """Its other names belong to rooms, whose floors count."""
    taken: set[str] = set()
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.ImportFrom) and node.module == ROOT:
            taken |= {alias.name for alias in node.names if f"{ROOT}.{alias.name}" not in SOURCES}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == ROOT:
            taken.add(node.attr)
    assert taken <= {"__version__", "__file__"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import gpasst.path.dispatch", "gpasst.path.dispatch"),
        ("import gpasst.path.dispatch as d, os", "gpasst.path.dispatch"),
        ("from gpasst.path import dispatch", "gpasst.path.dispatch"),
        ("from gpasst.path.dispatch import Dispatch", "gpasst.path.dispatch"),
        ("from gpasst import __version__", "gpasst"),
        ("def late():\n    from gpasst.path import dispatch", "gpasst.path.dispatch"),
        ("if TYPE_CHECKING:\n    from gpasst.path.dispatch import Dispatch", "gpasst.path.dispatch"),
        ("class A:\n    import gpasst.path.dispatch", "gpasst.path.dispatch"),
    ],
)
def test_each_form_of_import_is_seen(source: str, found: str) -> None:
    assert imports(source, {"gpasst", "gpasst.path", "gpasst.path.dispatch"}) == {found}


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"gpasst.formats", "gpasst.layouts"}))
def test_a_module_can_be_read_at_once(name: str) -> None:
    """The wire structures of `formats` are a table, which is looked up, not read, and `layouts` is derived from it."""
    assert len(SOURCES[name].splitlines()) <= LONGEST_MODULE
