"""Declarations of wire structures with construct, and the layouts that are derived from them.

Theory of operation: each structure is a construct declaration that both parses and builds. `Bits` splits one integer
into fields, and `Header` (a Struct) presents these beside its other fields: ``IPV4.parse(data).ihl``, not a nested
container. Construct's own BitStruct works bit by bit and takes twice the time. `rows` walks a declaration and derives
offsets, bit masks and defaults, so that no offset is written by hand; `gpasst.codec` makes the fast form of them.

NOTE: construct's compile() is not used: every import would pay for it, and a `Codec` is faster still.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from construct import (
    Adapter,
    Bytes,
    Construct,
    Container,
    Default,
    FormatField,
    Renamed,
    Struct,
)

from gpasst.layouts import Row

# --- Bit fields ---------------------------------------------------------------------------------------------


class Bits(Adapter):  # type: ignore[misc]  # construct ships no types
    """One unsigned integer that is split into bit fields, the most significant first.

    :param unit: the integer's declaration, for example Int16ub.
    :param fields: (name, width in bits) or (name, width in bits, default).
    :raises ValueError: if the widths do not add up to the integer's.
    """

    def __init__(self, unit: Any, *fields: tuple[str, int] | tuple[str, int, int]) -> None:
        super().__init__(unit)
        shift = 8 * unit.sizeof()
        self.layout: dict[str, tuple[int, int]] = {}  # name: (mask in place, shift)
        self.defaults: dict[str, int] = {}
        for name, width, *default in fields:
            shift -= width
            self.layout[name] = ((1 << width) - 1) << shift, shift
            self.defaults.update((name, value) for value in default)
        if shift:
            raise ValueError(f"bit fields leave {shift} bits of their unit over")

    def split(self, word: int) -> dict[str, int]:
        """Split `word` into the values of the fields."""
        return {name: (word & mask) >> shift for name, (mask, shift) in self.layout.items()}

    def join(self, values: Mapping[str, Any]) -> int:
        """Join the values or defaults of the fields into the integer.

        :raises ValueError: if a value does not fit its field.
        """
        word = 0
        for name, (mask, shift) in self.layout.items():
            value = values[name] if name in values else self.defaults[name]
            if not 0 <= value <= mask >> shift:
                raise ValueError(f"{name}: {value} does not fit its bits")
            word |= value << shift
        return word

    def _decode(self, obj: int, context: Any, path: str) -> Any:
        return Container(self.split(obj))

    def _encode(self, obj: Mapping[str, Any], context: Any, path: str) -> int:
        return self.join(obj)


def _is_bits(member: Any) -> bool:
    return isinstance(member, Renamed) and isinstance(member.subcon, Bits)


class Header(Struct):  # type: ignore[misc]  # construct ships no types
    """A Struct whose `Bits` members need no name: their fields appear among its own, both ways."""

    def __init__(self, *members: Any) -> None:
        named = ["+".join(member.layout) / member if isinstance(member, Bits) else member for member in members]
        super().__init__(*named)
        self.bit_units = frozenset(member.name for member in named if _is_bits(member))

    def _parse(self, stream: Any, context: Any, path: str) -> Any:
        flat = Container()
        for name, value in super()._parse(stream, context, path).items():
            if name in self.bit_units:
                flat.update(value)
            else:
                flat[name] = value
        return flat

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        values = dict(obj or {})
        return super()._build({**values, **dict.fromkeys(self.bit_units, values)}, stream, context, path)


# --- Layouts ------------------------------------------------------------------------------------------------


def rows(declaration: Construct) -> tuple[Row, ...]:
    """Return the layout of a declaration, for `gpasst.codec.Codec`.

    :raises TypeError: if the declaration has a part without a fast form.
    :raises construct.SizeofError: if its size is not fixed.
    """
    declaration.sizeof()
    return tuple(_rows(declaration, "", 0))


def _rows(declaration: Any, name: str, offset: int) -> Iterator[Row]:
    """Walk a declaration of fixed size; yield each field."""
    default = None
    while isinstance(declaration, (Renamed, Default)):
        if isinstance(declaration, Default):
            default = declaration.value
        declaration = declaration.subcon
    if isinstance(declaration, Struct):
        for member in declaration.subcons:
            # The generated name of a bit unit is not part of its fields' names.
            yield from _rows(member, name if _is_bits(member) else f"{name}.{member.name}".lstrip("."), offset)
            offset += member.sizeof()
    elif isinstance(declaration, Bits):
        ((_, _, size, _, _, form, order, _),) = _rows(declaration.subcon, name, offset)
        for part, (mask, shift) in declaration.layout.items():
            path = f"{name}.{part}".lstrip(".")
            yield path, offset, size, mask, shift, form, order, declaration.defaults.get(part)
    elif isinstance(declaration, FormatField):
        order, form = declaration.fmtstr
        if order == "=":
            order = "<" if sys.byteorder == "little" else ">"
        yield name, offset, declaration.length, (1 << 8 * declaration.length) - 1, 0, form, order, default
    elif isinstance(declaration, Bytes):
        yield name, offset, declaration.length, 0, 0, f"{declaration.length}s", ">", default
    else:
        raise TypeError(f"{name}: no fast form of {declaration!r}")
