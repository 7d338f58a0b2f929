"""The program by which the tap's kernel lets through only a sample of a flood.

Theory of operation: a classic BPF program looks at the headers that `gpasst.path.unknown` looks at, and comes to the
same kinds. A frame of a kind that is to be sampled passes if a random number says so, one of `SAMPLED`; every other
frame passes. UDP and TCP pass whole from the guest's ports that are named, since these may be known flows.

A block is a list of instructions that ends with a return. Jumps lead forward only; `_when` lays one block before
another, and uses the long jump, since conditional ones reach no further than 255 instructions.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from gpasst.linux import (
    BPF_ALL,
    BPF_JUMP,
    BPF_JUMP_EQUAL,
    BPF_JUMP_SET,
    BPF_LD_BYTE,
    BPF_LD_HALF,
    BPF_LD_WORD,
    BPF_RETURN,
    SKF_RANDOM,
)
from gpasst.packet.dhcp_wire import DHCP_SERVER_PORT, DHCPV6_SERVER_PORT
from gpasst.path.unknown import ARP, ARP_TARGET, DHCP, ECHO, FLOW, NDP, NDP_TARGET, OTHER, PART, ROUTER
from gpasst.services.ndp import TYPES as NDP_TYPES
from gpasst.wire import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_FRAGMENT_MASK,
    IPV4_VERSION_IHL,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    UDP4,
    UDP6,
    VIRTIO_NET_CODEC,
)

SAMPLED = 64  # frames of which one passes; a power of two
PORTS_LIMIT = 128  # that may be named: each costs the kernel one comparison a frame

# Code, distances of the jump where the condition holds and where it does not, operand (struct sock_filter).
_Instruction = tuple[int, int, int, int]
_Block = list[_Instruction]

_pack = struct.Struct("=HBBI").pack
_PASS: _Block = [(BPF_RETURN, 0, 0, BPF_ALL)]
_DROP: _Block = [(BPF_RETURN, 0, 0, 0)]


def _when(code: int, operand: int, then: _Block, otherwise: _Block) -> _Block:
    return [(code, 1, 0, operand), (BPF_JUMP, 0, 0, len(then)), *then, *otherwise]


_SAMPLE: _Block = [(BPF_LD_WORD, 0, 0, SKF_RANDOM), *_when(BPF_JUMP_SET, SAMPLED - 1, _DROP, _PASS)]
_VIRTIO = VIRTIO_NET_CODEC.size
_WORD = 4  # bytes


def program(kinds: Collection[int], ports: Collection[int], routers: Collection[bytes]) -> bytes:
    """Return the program, as an array of struct sock_filter.

    :param kinds: what is to be sampled.
    :param ports: ports of the guest whose UDP and TCP passes whole, at most `PORTS_LIMIT`.
    :param routers: addresses of the gateway, 4 or 16 bytes.
    """

    def kind(number: int) -> _Block:
        return _SAMPLE if number in kinds else _PASS

    def flow(source: int) -> _Block:
        named = [step for port in ports for step in ((BPF_JUMP_EQUAL, 0, 1, port), *_PASS)] if FLOW in kinds else []
        return [(BPF_LD_HALF, 0, 0, source), *named, *kind(FLOW)]

    def request(otherwise: _Block, target: slice) -> _Block:
        size = target.stop - target.start
        for router in routers:
            if len(router) == size:
                block = kind(ROUTER)
                for start in range(size - _WORD, -1, -_WORD):
                    word = int.from_bytes(router[start : start + _WORD], "big")
                    block = [
                        (BPF_LD_WORD, 0, 0, target.start + start),
                        *_when(BPF_JUMP_EQUAL, word, block, otherwise),
                    ]
                otherwise = block
        return otherwise

    def transport(protocol: int, target: int, server: int, source: int, otherwise: _Block) -> _Block:
        served = [(BPF_LD_HALF, 0, 0, target), *_when(BPF_JUMP_EQUAL, server, kind(DHCP), flow(source))]
        carried = _when(BPF_JUMP_EQUAL, PROTOCOL_TCP, flow(source), otherwise)
        return [(BPF_LD_BYTE, 0, 0, protocol), *_when(BPF_JUMP_EQUAL, PROTOCOL_UDP, served, carried)]

    def at(name: str) -> int:
        return UDP4.offset(name) - _VIRTIO

    def at6(name: str) -> int:
        return UDP6.offset(name) - _VIRTIO

    echo = _when(BPF_JUMP_EQUAL, PROTOCOL_ICMP, kind(ECHO), kind(OTHER))
    plain4 = transport(at("ip.protocol"), at("udp.destination"), DHCP_SERVER_PORT, at("udp.source"), echo)
    whole4 = [(BPF_LD_HALF, 0, 0, at("ip.flags")), *_when(BPF_JUMP_SET, IPV4_FRAGMENT_MASK, kind(PART), plain4)]
    four = [(BPF_LD_BYTE, 0, 0, at("ip.version")), *_when(BPF_JUMP_EQUAL, IPV4_VERSION_IHL, whole4, kind(PART))]
    icmp6 = kind(ECHO)
    for message in NDP_TYPES:
        icmp6 = _when(BPF_JUMP_EQUAL, message, request(kind(NDP), NDP_TARGET), icmp6)
    icmp6 = [(BPF_LD_BYTE, 0, 0, at6("udp.source")), *icmp6]
    other6 = _when(BPF_JUMP_EQUAL, PROTOCOL_ICMPV6, icmp6, kind(PART))
    six = transport(at6("ip.next_header"), at6("udp.destination"), DHCPV6_SERVER_PORT, at6("udp.source"), other6)
    block = kind(OTHER)
    for ethertype, part in (
        (ETHERTYPE_IPV6, six),
        (ETHERTYPE_IPV4, four),
        (ETHERTYPE_ARP, request(kind(ARP), ARP_TARGET)),
    ):
        block = _when(BPF_JUMP_EQUAL, ethertype, part, block)
    block = [(BPF_LD_HALF, 0, 0, at("ethernet.ethertype")), *block]
    return b"".join(_pack(*instruction) for instruction in block)
