"""The line that a refusal names."""

from __future__ import annotations

import pytest

from gpasst.errors import ConfigurationError
from gpasst.topology.source import Source, Table

TEXT = '''\
[host.a]
run = """
[host.b]
key = 1
"""
key = 2
[ host . "b" ] # b
 "key" = 3
inline.key = 4
list = [
  "key = 5"
]
[[many]]
key = 6
[host.'c.d']
[[many]]
other = 7
key = 8
'''


@pytest.mark.parametrize(
    ("path", "number", "key", "line"),
    [
        (("host", "a"), 0, "", 1),
        (("host", "a"), 0, "key", 6),
        (("host", "a"), 0, "absent", 1),
        (("host", "b"), 0, "", 7),
        (("host", "b"), 0, "key", 8),
        (("host", "b"), 0, "list", 10),
        (("host", "c.d"), 0, "key", 15),
        (("many",), 0, "key", 14),
        (("many",), 1, "", 16),
        (("many",), 1, "key", 18),
        (("many",), 2, "key", 0),
        (("host", "absent"), 0, "key", 0),
    ],
)
def test_tables_and_keys_have_lines(path: tuple[str, ...], number: int, key: str, line: int) -> None:
    assert Source(TEXT).line(path, number, key) == line


def test_a_table_without_a_header_is_named_without_a_line() -> None:
    source = Source("host = { a = { key = 1 } }")
    table = Table(source, ("host", "a"), source.values["host"]["a"])
    with pytest.raises(ConfigurationError) as caught:
        table.end()
    assert str(caught.value).startswith("[host.a] key is no key of it")
