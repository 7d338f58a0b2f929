"""The fast forms of wire structures: parsing and building at the speed of `struct`.

Theory of operation: each structure is a construct declaration that both parses and builds. That takes about 30 us for
the headers of a datagram, and importing construct 15 ms. So the layout of each structure, derived from its declaration
by `gpasst.declare`, stands in `gpasst.layouts`, and a `Codec` makes a `struct.Struct`, offsets and bit masks of it.

What the other end of the wire sent is parsed by the fast forms alone, `Codec` and `Options`: construct takes about 10
us for each element of a list, and the sender chooses how many there are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.layouts import LAYOUTS, Row
from gpasst.records import dataclass

# --- The fast form ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """Place of a field in a declaration; an integer's value is ``(unit & mask) >> shift``.

    :ivar name: its name, dotted within nested structures ("ip.total_length").
    :ivar offset: bytes from the start of the declaration to the unit that contains it.
    :ivar size: bytes of that unit, which is the field itself unless it is a bit field.
    :ivar mask: its bits, in place; 0 for raw bytes.
    :ivar shift: bits to the right of it.
    :ivar format: the unit in the notation of `struct`, without byte order ("H", "6s").
    :ivar order: byte order of the unit in the notation of `struct`, ">" or "<".
    """

    name: str
    offset: int
    size: int
    mask: int
    shift: int
    format: str
    order: str

    @property
    def is_bytes(self) -> bool:
        """Whether the value is raw bytes rather than an integer."""
        return self.format.endswith("s")


class Codec:
    """The fast form of a declaration of fixed size: same names, values and defaults, at the speed of `struct`.

    :param name: name of the declaration.
    :param rows: its layout; None for that in `gpasst.layouts`.
    :raises KeyError: if there is none.
    :ivar name: name of the declaration.
    :ivar size: bytes.
    :ivar fields: every `Field` by its dotted name, in order of offset.
    :ivar layout: the `struct.Struct` of all units in order; the bit fields of one integer are one unit.
    """

    __slots__ = (
        "_cuts",
        "_defaults",
        "_swapped",
        "_units",
        "_whole",
        "fields",
        "layout",
        "name",
        "size",
    )

    def __init__(self, name: str, rows: tuple[Row, ...] | None = None) -> None:
        self.name = name
        self.fields: dict[str, Field] = {}
        self._defaults: dict[str, int | bytes] = {}
        for path, at, size, mask, shift, form, order, default in LAYOUTS[name] if rows is None else rows:
            self.fields[path] = Field(path, at, size, mask, shift, form, order)
            if default is not None:
                self._defaults[path] = default

        by_offset: dict[int, list[Field]] = {}
        for field in self.fields.values():
            by_offset.setdefault(field.offset, []).append(field)
        self._units = list(by_offset.values())
        orders = {field.order for field in self.fields.values() if field.size > 1 and not field.is_bytes}
        order = orders.pop() if len(orders) == 1 else ">"
        self.layout = struct.Struct(order + "".join(unit[0].format for unit in self._units))
        self.size = self.layout.size

        # zip() over the units is wrong for two kinds: bit fields, and integers against the order of the others.
        self._whole = [unit[0].name for unit in self._units]
        self._cuts = [(index, field) for index, unit in enumerate(self._units) for field in unit if len(unit) > 1]
        self._swapped = [
            field for field in self.fields.values() if field.size > 1 and not field.is_bytes and field.order != order
        ]

    def offset(self, name: str) -> int:
        """Return the bytes from the start to field `name`; for a bit field, to the integer that contains it.

        :raises KeyError: if there is no such field.
        """
        return self.fields[name].offset

    def unpack_from(self, buffer: bytes | bytearray | memoryview, offset: int = 0) -> dict[str, Any]:
        """Return the values (int or bytes) of the structure at `offset`, by dotted name.

        :raises struct.error: if the buffer is too short.
        """
        units = self.layout.unpack_from(buffer, offset)
        values = dict(zip(self._whole, units, strict=True))
        for index, field in self._cuts:
            values[field.name] = (units[index] & field.mask) >> field.shift
        for field in self._swapped:
            values[field.name] = _swap(values[field.name], field.size)
        return values

    def parse(self, data: bytes | bytearray | memoryview, reason: Drop) -> dict[str, Any]:
        """Return the values of the structure at the start of bytes from the other end of the wire.

        :param data: the bytes; those behind the structure are ignored.
        :param reason: the drop to report if `data` is too short.
        :raises PacketError: in that case; no other exception leaves.
        """
        if len(data) < self.size:
            raise PacketError(reason)
        return self.unpack_from(data)

    def pack(self, **values: int | bytes) -> bytes:
        """Build the structure; dotted names are passed as ``pack(**{"ip.ttl": 64})``.

        :raises KeyError: if a name is unknown, or missing and without default.
        :raises ValueError: if a value does not fit its bits or bytes.
        :raises struct.error: if an integer does not fit its bytes.
        """
        return self.layout.pack(*self._arguments(values))

    def picker(self, *names: str) -> struct.Struct:
        """Return a big-endian `struct.Struct` that reads only these fields, from the start of the structure on.

        It skips the bytes between them and ends with the last one. The name of a bit field picks the whole integer
        that contains it: the picker of "ip.version" returns version and header length in one byte.

        :param names: in order of offset.
        :raises ValueError: if they are not in order, or one is a little-endian integer.
        :raises KeyError: if there is no such field.
        """
        parts = [">"]
        position = 0
        for name in names:
            field = self.fields[name]
            if field.offset < position:
                raise ValueError(f"{name}: fields must be picked in order, each unit once")
            if field.order == "<" and field.size > 1:
                raise ValueError(f"{name}: little-endian fields cannot be picked")
            gap = field.offset - position
            parts.append(f"{gap}x{field.format}" if gap else field.format)
            position = field.offset + field.size
        return struct.Struct("".join(parts))

    def _arguments(self, given: Mapping[str, Any]) -> list[Any]:
        """Return the arguments of `layout`, one per unit; errors as in `pack`."""
        if not given.keys() <= self.fields.keys():
            raise KeyError(f"{self.name} has no field {', '.join(sorted(given.keys() - self.fields.keys()))}")
        values = {**self._defaults, **given}
        for field in self._swapped:
            values[field.name] = _swap(values[field.name], field.size)
        arguments = []
        for unit in self._units:
            if len(unit) == 1:
                (field,) = unit
                value = values[field.name]
                # struct would truncate or pad without an error.
                if field.is_bytes and len(value) != field.size:
                    raise ValueError(f"{field.name}: {len(value)} bytes instead of {field.size}")
                arguments.append(value)
                continue
            word = 0
            for field in unit:
                value = values[field.name]
                if not 0 <= value <= field.mask >> field.shift:
                    raise ValueError(f"{field.name}: {value} does not fit its bits")
                word |= value << field.shift
            arguments.append(word)
        return arguments


def _swap(value: int, size: int) -> int:
    """Return the integer with the `size` bytes of `value` in reverse order.

    :raises ValueError: if `value` does not fit `size` bytes.
    """
    try:
        return int.from_bytes(value.to_bytes(size, "big"), "little")
    except OverflowError as error:
        raise ValueError(f"{value} does not fit {size} bytes") from error


# --- Lists of options ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Allowance:
    """How many options one message may have, those within other options included.

    :ivar options: how many more are parsed.
    """

    options: int


class Options:
    """The fast form of a list of options, each a code, the length of its data, and the data.

    :param head: declaration of an option's `code` and `length`, and nothing else.
    :param pad: one-byte code of an option without length and data, which fills gaps; None if there is none.
    :param end: one-byte code of the option without length and data that ends a list; None if the data's end does.
    """

    __slots__ = ("_end", "_head", "_pad")

    def __init__(self, head: Codec, pad: int | None = None, end: int | None = None) -> None:
        self._head = head.layout
        self._pad = pad
        self._end = end

    def parse(self, data: bytes | memoryview, allowance: Allowance, reason: Drop) -> list[tuple[int, bytes]]:
        """Return code and data of each option, without padding.

        :param data: the list, from the other end of the wire.
        :param allowance: is lowered by each option.
        :param reason: the drop to report if an option ends beyond the data.
        :raises PacketError: in that case, and `Drop.EXCESSIVE` if there are more options than allowed.
        """
        data, pad, ending = bytes(data), self._pad, self._end
        unpack, size = self._head.unpack_from, self._head.size
        found: list[tuple[int, bytes]] = []
        at, end = 0, len(data)
        while at < end:
            if data[at] == pad:
                at += 1
                continue
            if data[at] == ending:
                break
            if not allowance.options:
                raise PacketError(Drop.EXCESSIVE)
            allowance.options -= 1
            start = at + size
            if start > end:
                raise PacketError(reason)
            code, length = unpack(data, at)
            at = start + length
            if at > end:
                raise PacketError(reason)
            found.append((code, data[start:at]))
        return found

    def build(self, options: Iterable[tuple[int, bytes]]) -> bytes:
        """Build a list from code and data of each option, and its end if it has one.

        :raises struct.error: if data are longer than a length can say.
        """
        pack = self._head.pack
        built = b"".join(pack(code, len(data)) + data for code, data in options)
        return built if self._end is None else built + bytes((self._end,))
