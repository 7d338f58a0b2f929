"""The builder of weather, which is loaded with the first rule."""

from __future__ import annotations

from gpasst.link.impaired import Impaired
from gpasst.link.stream import Stream
from gpasst.link.tap import Tap
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.icmp_to_sender import IcmpToSender
from gpasst.path.impairment_answers import ImpairmentAnswers
from gpasst.path.stream_reader import StreamReader
from gpasst.path.tap_reader import TapReader
from gpasst.path.udp_sockets import UdpSockets
from gpasst.proxy.base import Base
from gpasst.proxy.build_tcp import Tcp
from gpasst.proxy.timers import Timers


def build_impaired(
    base: Base,
    link: Tap | Stream,
    reader: TapReader | StreamReader,
    udp: UdpSockets,
    icmp: IcmpToGuest,
    tcp: Tcp | None,
    timers: Timers,
) -> Impaired:
    """Make what stands between a link and everything else while rules are in force."""
    counters, failures = base.counters, base.watchers.failures
    answers = ImpairmentAnswers(
        link,
        base.guest,
        udp.nat,
        icmp,
        IcmpToSender(base.raw, udp.nat.tables, counters),
        (tcp.table, tcp.sockets, tcp.frames) if tcp else None,
        counters,
    )
    return Impaired(
        link,
        reader,
        answers,
        timers.at,
        isinstance(link, Tap),
        counters,
        timers.clock,
        lambda error: failures.caught(error, "internal error of weather; the frame is lost"),
    )
