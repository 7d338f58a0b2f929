"""The suite's own house rule: a test module is read alone, so what tests share stands in `tests.support`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
FILES = sorted(str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py"))
SHARED = "tests.support"


def imported(source: str) -> set[str]:
    """Return the modules of `tests` that a source text imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide what they lead to"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "tests"}


def is_shared(name: str) -> bool:
    return f"{name}.".startswith(f"{SHARED}.")


def test_the_files_are_found() -> None:
    assert {"unit/test_suite.py", "e2e/test_udp.py", "support/lab.py", "conftest.py"} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_nothing_imports_a_test_module(file: str) -> None:
    names = imported((TESTS / file).read_text(encoding="utf-8"))
    assert [name for name in sorted(names) if not is_shared(name)] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import tests.e2e.test_udp", "tests.e2e.test_udp"),
        ("from tests import e2e", "tests.e2e"),
        ("from tests.unit import test_suite", "tests.unit.test_suite"),
        ("def late():\n    from tests.unit.test_config import FULL", "tests.unit.test_config.FULL"),
        ("if TYPE_CHECKING:\n    import tests.supporting", "tests.supporting"),
    ],
)
def test_each_form_of_import_is_seen(source: str, found: str) -> None:
    assert imported(source) == {found}
    assert not is_shared(found)
    assert is_shared("tests.support.lab.Remote")
