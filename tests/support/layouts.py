"""The table of `gpasst.layouts`, derived from the declarations; `python -m tests.support.layouts` writes it."""

from __future__ import annotations

from pathlib import Path

from construct import Struct

from gpasst import formats, layouts, wire
from gpasst.declare import rows
from gpasst.host import kernel_formats, kernel_wire
from gpasst.packet import dhcp_formats, dhcp_wire

HEAD = '''"""Layouts of wire structures, from their declarations. `python -m tests.support.layouts` writes this file.

A row is a field: name, offset and size in bytes, mask in place, bits to the right, format and byte order in the
notation of `struct`, default. `gpasst.codec.Field` explains them.
"""

from __future__ import annotations

from typing import Final

Row = tuple[str, int, int, int, int, str, str, "int | bytes | None"]

LAYOUTS: Final[dict[str, tuple[Row, ...]]] = {
'''
DECLARED = {
    name: value
    for module in (formats, kernel_formats, dhcp_formats)
    for name, value in vars(module).items()
    if isinstance(value, Struct) and name[0] != "_"
}


def used() -> list[str]:
    """Return the names of the structures that have a fast form."""
    texts = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (wire, kernel_wire, dhcp_wire)]
    return [name for name in DECLARED if any(f'Codec("{name}")' in text for text in texts)]


def literal(value: object) -> str:
    if isinstance(value, bytes):
        assert not any(value), "only defaults of zeros have been needed"
        return f"bytes({len(value)})"
    return repr(value).replace("'", '"')


def text() -> str:
    """Return the text of the module."""
    lines = [HEAD]
    for name in used():
        found = [f"({', '.join(map(literal, row))})," for row in rows(DECLARED[name])]
        # As `ruff format` has it.
        whole = "".join(f"\n        {row}" for row in found) + "\n    " if len(found) > 1 else found[0]
        lines.append(f'    "{name}": ({whole}),\n')
    return "".join([*lines, "}\n"])


if __name__ == "__main__":
    Path(layouts.__file__).write_text(text(), encoding="utf-8")
