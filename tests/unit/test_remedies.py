"""The rule for every error that a user sees: the cause, then the remedy."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpasst

PACKAGE = Path(gpasst.__file__).parent
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
WITH_REMEDY = ("ConfigurationError", "PlatformError", "PeerEndedError")


def without_remedy(source: str) -> Iterator[str]:
    """Yield each call in a source text that makes an error and gives no remedy, or an empty one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WITH_REMEDY:
            remedies = [*node.args[1:], *(keyword.value for keyword in node.keywords if keyword.arg == "remedy")]
            if not remedies or (isinstance(remedies[0], ast.Constant) and not remedies[0].value):
                yield ast.unparse(node)


@pytest.mark.parametrize("file", FILES)
def test_every_error_has_a_remedy(file: str) -> None:
    assert list(without_remedy((PACKAGE / file).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("raise PlatformError('cause')", 1),
        ("raise PlatformError('cause', '')", 1),
        ("error = ConfigurationError(message='cause')", 1),
        ("raise PlatformError('cause', 'remedy')", 0),
        ("raise PlatformError('cause', remedy=REMEDY)", 0),
        ("raise PacketError(Drop.MALFORMED)", 0),
    ],
)
def test_a_missing_remedy_is_seen(source: str, count: int) -> None:
    assert len(list(without_remedy(source))) == count
