"""The text of a network file, its tables, and the line that a refusal names.

Theory of operation: the parser of TOML returns values without their places. So where a value is refused, its line is
looked for in the text: first the header of its table, then its key below that. A line that only looks like either,
since it stands within a string of several lines, is known by the text before it, which is no TOML then. Tables without
a header of their own, such as inline ones, are named without a line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

from gpasst.errors import ConfigurationError
from gpasst.values import shown, similar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

FILE_MAXIMUM: Final = 1 << 20  # characters
VALUE_SHOWN: Final = 60  # characters of a value in a message

_NAME: Final = r"""(?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*')"""
_NAMES: Final = re.compile(_NAME)
_HEADER: Final = re.compile(rf"\s*\[\[?\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*\]\]?\s*(?:#.*)?")
_KEY: Final = re.compile(rf"\s*({_NAME})\s*[.=].*")


class Source:
    """The text of a file.

    :param text: the text.
    :ivar values: what it says.
    :raises ConfigurationError: if it is no TOML, with the line.
    """

    def __init__(self, text: str) -> None:
        if len(text) > FILE_MAXIMUM:
            raise ConfigurationError(f"the file has {len(text)} characters", f"{FILE_MAXIMUM} are the most")
        self._text = text
        try:
            self.values: dict[str, Any] = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            # Not only what is no TOML: Python reads no number of more digits than sys.get_int_max_str_digits().
            raise ConfigurationError(
                f"the file is no TOML: {shown(error)}", "see https://toml.io for the form"
            ) from None

    def line(self, path: tuple[str, ...], number: int = 0, key: str = "") -> int:
        """Return the line of a table, or of a key in it; 0 if it is not found.

        :param path: the names of the table's header.
        :param number: how many tables of that header come before it.
        :param key: the key; where it has no line, that of the table is returned.
        """
        found, start = 0, 0
        for count, line in enumerate(self._text.split("\n"), 1):
            before, start = self._text[:start], start + len(line) + 1
            header, named = _HEADER.fullmatch(line.rstrip()), _KEY.fullmatch(line.rstrip())
            if header and _names(header[1]) == path and not found and _whole(before):
                found, number = (0 if number else count), number - 1
            elif header and found and _whole(before):
                return found
            elif named and found and _names(named[1]) == (key,) and _whole(before):
                return count
        return found


class Table:
    """One table, whose keys are taken one by one.

    :param source: the file.
    :param path: the names of its header.
    :param values: what stands in it.
    :param number: of several tables with one header, how many come before it; None of a single one.
    :raises ConfigurationError: if it is no table.
    """

    def __init__(self, source: Source, path: tuple[str, ...], values: object, number: int | None = None) -> None:
        self._source, self._path, self._number = source, path, number
        self._known: list[str] = []
        if not isinstance(values, dict):
            raise self.fault("", f"{_value(values)} is no table", f"write {self}, and keys below it")
        self._left: dict[str, object] = dict(values)

    def __str__(self) -> str:
        name = ".".join(part if re.fullmatch("[A-Za-z0-9_-]+", part) else f'"{shown(part)}"' for part in self._path)
        return f"[{name}]" if self._number is None else f"[[{name}]]"

    def take(self, key: str, read: Callable[[Any], T], default: T) -> T:
        """Return the value of a key, `default` if it is not there.

        :param read: returns the value, or raises `ConfigurationError` with the fault.
        :raises ConfigurationError: with line, table, key and value before the fault.
        """
        self._known.append(key)
        return self._read(key, read) if key in self._left else default

    def need(self, key: str, read: Callable[[Any], T], example: str) -> T:
        """Return the value of a key that has to be there; otherwise as `take`.

        :param example: a value, for the message.
        """
        self._known.append(key)
        if key not in self._left:
            raise self.fault("", f"{key} is missing", f"write it like {key} = {example}")
        return self._read(key, read)

    def has(self, key: str) -> bool:
        """Return whether a key is there and has not been taken."""
        return key in self._left

    def end(self) -> None:
        """Refuse keys that were not taken.

        :raises ConfigurationError: if there are some.
        """
        for key in self._left:
            remedy = f"{similar(key, self._known)}leave it out; known are {', '.join(self._known)}"
            raise self.fault(key, f"{shown(key)} is no key of it", remedy)

    def fault(self, key: str, message: str, remedy: str) -> ConfigurationError:
        """Return the error that refuses the table, or a key of it."""
        line = self._source.line(self._path, self._number or 0, key)
        return ConfigurationError(f"{f'line {line}: ' if line else ''}{self} {message}", remedy)

    def _read(self, key: str, read: Callable[[Any], T]) -> T:
        value = self._left.pop(key)
        try:
            return read(value)
        except ConfigurationError as error:
            raise self.fault(key, f"{key} = {_value(value)}: {error.message}", error.remedy) from None


def _value(value: object) -> str:
    """Return a value as messages show it."""
    try:
        written = f'"{value}"' if isinstance(value, str) else str(value)
    except ValueError:
        # A hexadecimal number may have more digits than Python writes (sys.get_int_max_str_digits).
        return "a number of thousands of digits"
    text = shown(written.lower() if isinstance(value, bool) else written)
    return text if len(text) <= VALUE_SHOWN else f"{text[: VALUE_SHOWN - 1]}…"


def _names(header: str) -> tuple[str, ...]:
    return tuple(name[1:-1] if name[0] in "\"'" else name for name in _NAMES.findall(header))


def _whole(text: str) -> bool:
    """Return whether a text ends outside of all strings and arrays."""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True
