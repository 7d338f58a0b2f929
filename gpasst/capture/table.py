"""Frames as a table that people read: one line each, as wide as they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from gpasst.impair.facts import ARP, ICMP, NDP, TCP, TO_GUEST
from gpasst.packet.frame import Frame
from gpasst.values import end_text
from gpasst.wire import ARP_REQUEST

ROWS_LIMIT: Final = 30
PAYLOAD_BYTES: Final = 16  # that are shown
GAP: Final = 2  # columns between two

_SECOND: Final = 1_000_000_000  # nanoseconds
_HEADINGS: Final = ("seconds", "to", "protocol", "source", "destination", "bytes", "what", "fate")
_NUMBERS: Final = frozenset((0, 5))  # columns that end in one line


def table(frames: Sequence[Frame], forgotten: int = 0) -> str:
    """Return a table of the latest frames; the time is that since the first one given.

    :param frames: all of them.
    :param forgotten: how many came before, of which no more is known.
    """
    if not frames:
        return f"no frames ({forgotten} that came before are not kept)" if forgotten else "no frames"
    start = frames[0].time_ns
    left_out = max(0, len(frames) - ROWS_LIMIT) + forgotten
    rows = [_HEADINGS, *(_row(frame, start) for frame in frames[-ROWS_LIMIT:])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        (" " * GAP)
        .join(
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        .rstrip()
        for row in rows
    ]
    if left_out:
        lines.insert(1, f"(and {left_out} frame{'s' * (left_out > 1)} before)")
    return "\n".join(lines)


def _row(frame: Frame, start: int) -> tuple[str, ...]:
    return (
        f"{(frame.time_ns - start) / _SECOND:.6f}",
        _direction(frame),
        frame.protocol,
        end_text(frame.src, frame.sport),
        end_text(frame.dst, frame.dport),
        str(frame.size),
        _WHAT.get(frame.protocol, _payload)(frame),
        frame.fate,
    )


def _direction(frame: Frame) -> str:
    """Return where a frame goes; of a network ``> a`` to a host's link, and ``a >`` from it."""
    if not frame.link:
        return frame.to
    return f"> {frame.link}" if frame.to == TO_GUEST else f"{frame.link} >"


def _payload(frame: Frame) -> str:
    if not frame.payload:
        return ""
    text = repr(frame.payload[:PAYLOAD_BYTES])
    more = len(frame.payload) - PAYLOAD_BYTES
    return f"{text}... {len(frame.payload)} B" if more > 0 else text


def _segment(frame: Frame) -> str:
    return f"{frame.flags} {_payload(frame)}".strip()


def _message(frame: Frame) -> str:
    header = frame.icmp
    return f"type {header.type} code {header.code}" if header else ""


def _arp(frame: Frame) -> str:
    packet = frame.arp
    if packet is None:
        return ""
    if packet.operation == ARP_REQUEST:
        return f"who has {'.'.join(map(str, packet.target_ip))}"
    return f"{'.'.join(map(str, packet.sender_ip))} is at {packet.sender_mac.hex(':')}"


_WHAT: Final[dict[str, Callable[[Frame], str]]] = {TCP: _segment, ICMP: _message, NDP: _message, ARP: _arp}
