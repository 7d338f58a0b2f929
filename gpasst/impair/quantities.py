"""Quantities of rules: their text to whole numbers, and back to the one text that stands for each.

Theory of operation: decimal fractions become whole numbers without floating point, so ``7%`` and ``0.07`` are the same
rule everywhere. The text that `show_...` returns is canonical: it is parsed to the same number, and a number has no
other.

The functions that parse raise `ConfigurationError` with the fault alone; whoever knows the part of the rule puts it
before.
"""

from __future__ import annotations

import re
from typing import Final

from gpasst.errors import ConfigurationError
from gpasst.impair.rule import CERTAIN, SECOND
from gpasst.ranges import Range, merged

# As many digits as Python writes for any float: 1 / 3 has 16 behind the point.
_NUMBER: Final = re.compile(r"([0-9]{1,20})?(?:\.([0-9]{0,20}))?(?:e([+-]?[0-9]{1,3}))?\s*([^0-9.\s]*)", re.ASCII)
_DIGITS: Final = re.compile("[0-9]{1,20}", re.ASCII)

_PERCENT: Final = CERTAIN // 100
_TIMES: Final = {"us": 1, "µs": 1, "ms": 1000, "s": SECOND}
_RATES: Final = {"bit": 1, "kbit": 1000, "mbit": 1_000_000, "gbit": 1_000_000_000}
_SIZES: Final = {"": 1, "B": 1, "kB": 1000, "MB": 1_000_000, "KiB": 1 << 10, "MiB": 1 << 20}

TIME_MAXIMUM: Final = 3600 * SECOND
RATE_MAXIMUM: Final = 1000 * _RATES["gbit"]
SIZE_MAXIMUM: Final = 64 << 20  # bytes; more is never held (`gpasst.impair.engine`)
COUNT_MAXIMUM: Final = (1 << 53) - 1  # frames; what a float can count, for other programs that read a log


def parse_probability(text: str) -> int:
    """Turn ``30%`` or ``0.3`` into billionths.

    :raises ConfigurationError: if it is no probability.
    """
    value = _scaled(text, {"": CERTAIN, "%": _PERCENT})
    if value is None or value > CERTAIN:
        raise ConfigurationError("a probability is 0 to 100 %", "write it like 5% or 0.05")
    return value


def show_probability(value: int) -> str:
    """Return the canonical text of a probability in billionths."""
    return f"{_decimal(value, _PERCENT)}%"


def parse_time(text: str) -> int:
    """Turn ``20ms``, ``250us`` or ``1.5s`` into microseconds.

    :raises ConfigurationError: if it is no time, or longer than an hour.
    """
    value = _scaled(text, _TIMES)
    if value is None or value > TIME_MAXIMUM:
        raise ConfigurationError("a time is 0 to 3600 s, with a unit", "write it like 20ms, 250us or 1.5s")
    return value


def show_time(value: int) -> str:
    """Return the canonical text of a time in microseconds."""
    unit = "s" if value >= SECOND else "ms" if value >= _TIMES["ms"] else "us"
    return f"{_decimal(value, _TIMES[unit])}{unit}"


def parse_rate(text: str) -> int:
    """Turn ``10mbit`` into bits a second.

    :raises ConfigurationError: if it is no rate, or 0, or more than a terabit.
    """
    value = _scaled(text.lower(), _RATES)
    if not value or value > RATE_MAXIMUM:
        raise ConfigurationError("a rate is 1bit to 1000gbit a second, with a unit", "write it like 10mbit or 56kbit")
    return value


def show_rate(value: int) -> str:
    """Return the canonical text of a rate in bits a second."""
    unit = max((factor, name) for name, factor in _RATES.items() if factor <= value)[1]
    return f"{_decimal(value, _RATES[unit])}{unit}"


def parse_size(text: str) -> int:
    """Turn ``1500`` or ``64KiB`` into bytes.

    :raises ConfigurationError: if it is no size, or 0, or more than can be held.
    """
    value = _scaled(text, _SIZES)
    if not value or value > SIZE_MAXIMUM:
        raise ConfigurationError(f"a size is 1 to {SIZE_MAXIMUM >> 20}MiB", "write it like 1500, 64KiB or 1MiB")
    return value


def show_size(value: int) -> str:
    """Return the canonical text of a size in bytes."""
    for unit in ("MiB", "KiB"):
        if not value % _SIZES[unit]:
            return f"{value // _SIZES[unit]}{unit}"
    return str(value)


def parse_count(text: str, lowest: int, highest: int) -> int:
    """Turn the digits of a whole number into the number.

    :raises ConfigurationError: if it is not between `lowest` and `highest`.
    """
    if not _DIGITS.fullmatch(text) or not lowest <= int(text) <= highest:
        limits = f"{lowest} to {highest}" if highest != COUNT_MAXIMUM else f"at least {lowest}"
        raise ConfigurationError(f"a whole number has to be {limits}", f"write it like {max(lowest, min(10, highest))}")
    return int(text)


def parse_ranges(text: str, lowest: int, highest: int) -> tuple[Range, ...]:
    """Turn ``53``, ``1000-2000``, ``1280-`` or several of these with commas between them into ranges, sorted and apart.

    :raises ConfigurationError: if a number is not between `lowest` and `highest`, or a range ends before it begins.
    """
    ranges = []
    for item in text.split(","):
        first, dash, last = (piece.strip() for piece in item.partition("-"))
        low = parse_count(first, lowest, highest)
        high = highest if dash and not last else parse_count(last, lowest, highest) if dash else low
        if high < low:
            raise ConfigurationError("a range ends before it begins", f"write {high}-{low}")
        ranges.append((low, high))
    return tuple(merged(ranges))


def show_ranges(ranges: tuple[Range, ...], highest: int) -> str:
    """Return the canonical text of ranges; `highest` is the number that needs no saying."""
    return ",".join(str(low) if low == high else f"{low}-{'' if high == highest else high}" for low, high in ranges)


def _scaled(text: str, units: dict[str, int]) -> int | None:
    """Return a decimal number times the factor of its unit, rounded half up; None if `text` is none."""
    found = _NUMBER.fullmatch(text.strip())
    if not found or not (found[1] or found[2]) or found[4] not in units:
        return None
    fraction = found[2] or ""
    value = int((found[1] or "") + fraction) * units[found[4]]
    shift = int(found[3] or 0) - len(fraction)
    if shift >= 0:
        return int(value * 10**shift)
    divisor = 10**-shift
    return int((2 * value + divisor) // (2 * divisor))


def _decimal(value: int, unit: int) -> str:
    """Return `value` / `unit` as a decimal fraction, for a unit that is a power of ten."""
    whole, rest = divmod(value, unit)
    return f"{whole}.{str(unit + rest)[1:].rstrip('0')}" if rest else str(whole)
