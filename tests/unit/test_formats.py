from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from construct import ConstructError, Int8ub, Int16ub, Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst import formats, layouts
from gpasst.codec import Allowance, Codec, Field, Options
from gpasst.counters import Drop
from gpasst.declare import Bits, rows
from gpasst.errors import PacketError
from gpasst.host import kernel_formats, kernel_wire
from gpasst.packet import checksum
from tests.support import layouts as derive
from tests.support.addresses import GUEST_MAC

HOST_MAC = bytes.fromhex("9a559a559a55")
GATEWAY4 = b"\xc0\0\x02\x01"
GUEST4 = b"\xc0\0\x02\x02"
GATEWAY6 = bytes.fromhex("fe800000000000000000000000000001")
GUEST6 = bytes.fromhex("fe80000000000000505400fffe123456")

FRAME_A = bytes.fromhex(
    "525400123456 9a559a559a55 0800 45000021 00000000 ff1137c8 c0000201 c0000202 9c401b58000d0000 68656c6c6f"
)
FRAME_B = bytes.fromhex(
    "525400123456 9a559a559a55 86dd 60000000 000e11ff fe800000000000000000000000000001"
    "fe80000000000000505400fffe123456 9c401388000e8b42 68656c6c6f36"
)
MESSAGE_C = bytes.fromhex(
    "00000055 525400123456 9a559a559a55 0800 45000047 00000000 ff11376e c0000235 c0000202 0035823500330000"
    "1a2b81800001000100000000017407 6578616d706c65 0000010001c00c000100010000003c0004c6336407"
)
FRAME_D = bytes.fromhex(
    "525400123456 9a559a559a55 86dd 60000000 000a11ff fe800000000000000000000000000001"
    "fe80000000000000505400fffe123456 9c401388000affff cf52"
)


def native(layout: str, *values: int) -> str:
    return struct.pack("=" + layout, *values).hex()


SOCKET_ID = {
    "source_port": 53,
    "destination_port": 40000,
    "source": GATEWAY6,
    "destination": GUEST6,
    "interface": 3,
    "cookie": bytes(range(1, 9)),
}
SOCKET_ID_WIRE = f"0035 9c40 {GATEWAY6.hex()} {GUEST6.hex()} {native('I', 3)} 0102030405060708"

# One table for parse and build: declaration, bytes, values.
RING_FIELDS = "submissions", "completions", "flags", "thread_cpu", "thread_idle", "features", "workers"
SUBMISSION_FIELDS = "head", "tail", "mask", "entries", "flags", "dropped", "array", "reserved", "user"
COMPLETION_FIELDS = "head", "tail", "mask", "entries", "overflow", "array", "flags", "reserved", "user"

CASES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "ETHERNET",
        "525400123456 9a559a559a55 0800",
        {"destination": GUEST_MAC, "source": HOST_MAC, "ethertype": formats.ETHERTYPE_IPV4},
    ),
    (
        "ARP",
        "0001 0800 06 04 0002 9a559a559a55 c0000201 525400123456 c0000202",
        {
            "hardware": 1,
            "protocol": 0x0800,
            "hardware_length": 6,
            "protocol_length": 4,
            "operation": formats.ARP_REPLY,
            "sender_mac": HOST_MAC,
            "sender_ip": GATEWAY4,
            "target_mac": GUEST_MAC,
            "target_ip": GUEST4,
        },
    ),
    (
        "VIRTIO_NET",
        "01 05 2a00 7805 2200 0600",
        {
            "flags": formats.VIRTIO_NET_HDR_F_NEEDS_CSUM,
            "gso_type": formats.VIRTIO_NET_HDR_GSO_UDP_L4,
            "header_length": 42,
            "gso_size": 1400,
            "checksum_start": 34,
            "checksum_offset": 6,
        },
    ),
    ("STREAM_LENGTH", "0001000d", {"length": 65549}),
    (
        "IPV4",
        "46b80023 1234 7fff 40 11 abcd c0000201 c0000202",
        {
            "version": 4,
            "ihl": 6,
            "tos": 0xB8,
            "total_length": 35,
            "identification": 0x1234,
            "flags": 3,
            "fragment_offset": 0x1FFF,
            "ttl": 64,
            "protocol": 17,
            "checksum": 0xABCD,
            "source": GATEWAY4,
            "destination": GUEST4,
        },
    ),
    (
        "IPV6",
        "6b812345 0008 3a 40 fe800000000000000000000000000001 fe80000000000000505400fffe123456",
        {
            "version": 6,
            "traffic_class": 0xB8,
            "flow_label": 0x12345,
            "payload_length": 8,
            "next_header": 58,
            "hop_limit": 64,
            "source": GATEWAY6,
            "destination": GUEST6,
        },
    ),
    ("IPV6_EXTENSION", "2c01", {"next_header": 44, "length": 1}),
    (
        "IPV6_FRAGMENT",
        "11 00 0009 01020304",
        {
            "next_header": 17,
            "reserved": 0,
            "offset": 1,
            "reserved_bits": 0,
            "more": 1,
            "identification": 0x01020304,
        },
    ),
    ("UDP", "9c40 1b58 000d 8b42", {"source": 40000, "destination": 7000, "length": 13, "checksum": 0x8B42}),
    (
        "TCP",
        "9c40 0050 01020304 05060708 5f 12 ffff 1234 0001",
        {
            "source": 40000,
            "destination": 80,
            "sequence": 0x01020304,
            "acknowledgement": 0x05060708,
            "data_offset": 5,
            "reserved": 15,
            "flags": formats.TCP_SYN | formats.TCP_ACK,
            "window": 65535,
            "checksum": 0x1234,
            "urgent": 1,
        },
    ),
    (
        "TCP_SYN_OPTIONS",
        "02 04 05b4 01 03 03 08",
        {
            "mss_kind": 2,
            "mss_length": 4,
            "mss": 1460,
            "padding": 1,
            "scale_kind": 3,
            "scale_length": 3,
            "scale": 8,
        },
    ),
    ("ICMP", "03 04 1234", {"type": 3, "code": 4, "checksum": 0x1234}),
    (
        "ECHO",
        "80 00 1234 0007 0008",
        {"type": 128, "code": 0, "checksum": 0x1234, "identifier": 7, "sequence": 8},
    ),
    (
        "ICMP_ERROR",
        "03 04 1234 0000 05dc",
        {"type": 3, "code": 4, "checksum": 0x1234, "unused": 0, "mtu": 1500},
    ),
    ("ICMPV6_ERROR", "02 00 1234 000005dc", {"type": 2, "code": 0, "checksum": 0x1234, "parameter": 1500}),
    (
        "NDP_SOLICITATION",
        "87 00 1234 00000000 fe800000000000000000000000000001",
        {"type": 135, "code": 0, "checksum": 0x1234, "reserved": 0, "target": GATEWAY6},
    ),
    (
        "NDP_ADVERTISEMENT",
        "88 00 1234 e0 000000 fe800000000000000000000000000001",
        {"type": 136, "code": 0, "checksum": 0x1234, "flags": 0xE0, "reserved": bytes(3), "target": GATEWAY6},
    ),
    (
        "NDP_ROUTER_SOLICITATION",
        "85 00 1234 00000000",
        {"type": 133, "code": 0, "checksum": 0x1234, "reserved": 0},
    ),
    (
        "NDP_ROUTER_ADVERTISEMENT",
        "86 00 1234 ff 80 2328 00000001 00000002",
        {
            "type": 134,
            "code": 0,
            "checksum": 0x1234,
            "hop_limit": 255,
            "flags": 0x80,
            "lifetime": 9000,
            "reachable": 1,
            "retransmit": 2,
        },
    ),
    ("NDP_OPTION", "0102", {"type": 1, "length": 2}),
    ("NDP_LINK_ADDRESS", "02 01 9a559a559a55", {"type": 2, "length": 1, "mac": HOST_MAC}),
    (
        "NDP_PREFIX",
        "03 04 40 c0 00000e10 ffffffff 00000000 fe800000000000000000000000000001",
        {
            "type": 3,
            "length": 4,
            "prefix_length": 64,
            "flags": 0xC0,
            "valid": 3600,
            "preferred": formats.NDP_INFINITE,
            "reserved": 0,
            "prefix": GATEWAY6,
        },
    ),
    ("NDP_MTU", "05 01 0000 0000ffdc", {"type": 5, "length": 1, "reserved": 0, "mtu": 65500}),
    (
        "NDP_LIST_HEAD",
        "19 03 0000 ffffffff",
        {"type": 25, "length": 3, "reserved": 0, "lifetime": formats.NDP_INFINITE},
    ),
    (
        "NDP_RDNSS",
        "19 05 0000 0000003c fe800000000000000000000000000001 fe80000000000000505400fffe123456",
        {"type": 25, "length": 5, "reserved": 0, "lifetime": 60, "addresses": [GATEWAY6, GUEST6]},
    ),
    (
        "NDP_DNSSL",
        "1f 02 0000 0000003c 01 61 02 6263 00 0000",
        {"type": 31, "length": 2, "reserved": 0, "lifetime": 60, "labels": b"\1a\2bc\0\0\0"},
    ),
    ("NDP_UNKNOWN", "0e 01 010203040506", {"type": 14, "length": 1, "data": b"\1\2\3\4\5\6"}),
    (
        "PCAP_FILE",
        native("IHHiIII", 0xA1B2C3D4, 2, 4, -3600, 1, 65535, 1),
        {
            "magic": formats.PCAP_MAGIC,
            "version_major": 2,
            "version_minor": 4,
            "zone": -3600,
            "accuracy": 1,
            "snap_length": 65535,
            "link_type": formats.PCAP_LINK_ETHERNET,
        },
    ),
    (
        "PCAP_RECORD",
        native("IIII", 1_700_000_000, 999_999, 60, 1514),
        {"seconds": 1_700_000_000, "microseconds": 999_999, "captured": 60, "length": 1514},
    ),
    ("PCAPNG_END", native("I", 32), {"length": 32}),
    (
        "PCAPNG_SECTION",
        native("IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28),
        {
            "type": formats.PCAPNG_SECTION_TYPE,
            "length": 28,
            "magic": formats.PCAPNG_MAGIC,
            "version_major": 1,
            "version_minor": 0,
            "section_length": -1,
            "end": 28,
        },
    ),
    (
        "PCAPNG_INTERFACE",
        native("IIHHI", 1, 40, 1, 2, 65535),
        {"type": 1, "length": 40, "link_type": 1, "reserved": 2, "snap_length": 65535},
    ),
    (
        "PCAPNG_PACKET",
        native("IIIIIII", 6, 92, 1, 0x17979CFE, 0x12345678, 60, 1514),
        {
            "type": 6,
            "length": 92,
            "interface": 1,
            "time_high": 0x17979CFE,
            "time_low": 0x12345678,
            "captured": 60,
            "original": 1514,
        },
    ),
    ("PCAPNG_OPTION", native("HH", 1, 5), {"code": 1, "length": 5}),
    ("PCAPNG_FLAGS", native("HHI", 2, 4, 6), {"code": 2, "length": 4, "others": 1, "direction": 2}),
    (
        "SOCKADDR_IN",
        f"{native('H', 2)} 0035 c0000201 0000000000000001",
        {"family": 2, "port": 53, "address": GATEWAY4, "padding": bytes(7) + b"\1"},
    ),
    (
        "SOCKADDR_IN6",
        f"{native('H', 10)} 0035 {native('I', 7)} {GATEWAY6.hex()} {native('I', 3)}",
        {"family": 10, "port": 53, "flow": 7, "address": GATEWAY6, "scope": 3},
    ),
    ("IOVEC", native("QQ", 0x7F0012345678, 1472), {"base": 0x7F0012345678, "length": 1472}),
    (
        "MMSGHDR",
        native("QIIQQQQiIII", 0x7F01, 16, 1, 0x7F02, 2, 0x7F03, 112, 0x20, 2, 1400, 3),
        {
            "name": 0x7F01,
            "name_length": 16,
            "name_padding": 1,
            "vectors": 0x7F02,
            "vectors_count": 2,
            "control": 0x7F03,
            "control_length": 112,
            "flags": 0x20,
            "flags_padding": 2,
            "length": 1400,
            "length_padding": 3,
        },
    ),
    ("CMSGHDR", native("Qii", 20, 0, 8), {"length": 20, "level": 0, "type": 8}),
    (
        "IN_PKTINFO",
        f"{native('i', 3)} c0000201 c0000202",
        {"interface": 3, "local": GATEWAY4, "destination": GUEST4},
    ),
    ("IN6_PKTINFO", f"{GUEST6.hex()} {native('I', 3)}", {"address": GUEST6, "interface": 3}),
    (
        "NLMSG",
        native("IHHII", 72, 20, 0x301, 5, 1234),
        {"length": 72, "type": 20, "flags": 0x301, "sequence": 5, "port": 1234},
    ),
    ("NLMSG_STATUS", native("i", -2), {"error": -2}),
    (
        "EXTENDED_ERROR",
        native("IBBBBII", 90, 2, 3, 4, 0, 1280, 0),
        {"errno": 90, "origin": 2, "type": 3, "code": 4, "padding": 0, "info": 1280, "data": 0},
    ),
    ("RTATTR", native("HH", 5, 11), {"length": 5, "type": 11}),
    (
        "INET_DIAG_REQUEST",
        f"0a 11 00 00 {native('I', 128)} {SOCKET_ID_WIRE}",
        {"family": 10, "protocol": 17, "extensions": 0, "padding": 0, "states": 128, **SOCKET_ID},
    ),
    (
        "INET_DIAG",
        f"0a 07 00 00 {SOCKET_ID_WIRE} {native('IIIII', 4, 5, 6, 1000, 0xFFFFFFFF)}",
        {
            "family": 10,
            "state": 7,
            "timer": 0,
            "retransmits": 0,
            **SOCKET_ID,
            "expires": 4,
            "receive_queue": 5,
            "send_queue": 6,
            "uid": 1000,
            "inode": 0xFFFFFFFF,
        },
    ),
    (
        "IO_URING_PARAMS",
        native("7I12x8IQ8IQ", *range(1, 8), *range(11, 20), *range(21, 30)),
        {
            **dict(zip(RING_FIELDS, range(1, 8), strict=True)),
            "reserved": bytes(12),
            **{f"submission_{name}": 11 + at for at, name in enumerate(SUBMISSION_FIELDS)},
            **{f"completion_{name}": 21 + at for at, name in enumerate(COMPLETION_FIELDS)},
        },
    ),
    (
        "IO_URING_SQE",
        native("BBHiQQIIQHHH18x", 26, 64, 1, -1, 0x7F01, 0x7F02, 1472, 0x4040, 63, 2, 3, 16),
        {
            "operation": 26,
            "flags": 64,
            "priority": 1,
            "descriptor": -1,
            "offset": 0x7F01,
            "address": 0x7F02,
            "length": 1472,
            "call_flags": 0x4040,
            "user": 63,
            "buffer": 2,
            "personality": 3,
            "name_length": 16,
            "padding": bytes(18),
        },
    ),
    ("IO_URING_CQE", native("QiI", 63, -11, 1), {"user": 63, "result": -11, "flags": 1}),
    ("IO_URING_RESTRICTION", native("HB13x", 1, 26), {"kind": 1, "value": 26, "padding": bytes(13)}),
]

NAMES = {name: value for module in (formats, kernel_formats, kernel_wire) for name, value in vars(module).items()}
DECLARED = {name: value for name, value in NAMES.items() if isinstance(value, Struct) and name[0] != "_"}
CODECS = {value.name: value for value in NAMES.values() if isinstance(value, Codec)}

every_case = pytest.mark.parametrize(("name", "wire", "values"), CASES, ids=[case[0] for case in CASES])
FIXED = [case for case in CASES if case[0] in CODECS]
every_fixed_case = pytest.mark.parametrize(("name", "wire", "values"), FIXED, ids=[case[0] for case in FIXED])
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def plain(value: Any) -> Any:
    """What construct returned as plain dictionaries and lists, without its private keys."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if not name.startswith("_")}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def dotted(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat.update(dotted(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item})
    return flat


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree


# --- The table ----------------------------------------------------------------------------------------------


def test_the_table_is_complete() -> None:
    listed = {name for name, _, _ in CASES}
    assert DECLARED.keys() == listed | {f"{name}{family}_FRAME" for name in ("TCP", "UDP") for family in (4, 6)}
    assert CODECS.keys() <= DECLARED.keys()


def test_the_layouts_are_those_of_the_declarations() -> None:
    """`python -m tests.support.layouts` writes them."""
    assert derive.text() == Path(layouts.__file__).read_text(encoding="utf-8")


@every_case
def test_parse(name: str, wire: str, values: dict[str, Any]) -> None:
    declaration = DECLARED[name]
    assert plain(declaration.parse(bytes.fromhex(wire))) == values
    assert plain(declaration.parse(bytes.fromhex(wire) + b"payload")) == values


@every_case
def test_build(name: str, wire: str, values: dict[str, Any]) -> None:
    assert DECLARED[name].build(values) == bytes.fromhex(wire)


@every_case
def test_truncation(name: str, wire: str, values: dict[str, Any]) -> None:
    data = bytes.fromhex(wire)
    for length in range(len(data)):
        with pytest.raises(ConstructError):
            DECLARED[name].parse(data[:length])
        if name in CODECS:
            with pytest.raises(PacketError) as caught:
                CODECS[name].parse(data[:length], Drop.FRAME_SHORT)
            assert caught.value.reason is Drop.FRAME_SHORT


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
@every_case
def test_any_buffer_can_be_parsed(name: str, wire: str, values: dict[str, Any], buffer: Any) -> None:
    data = buffer(bytes.fromhex(wire))
    assert plain(DECLARED[name].parse(data)) == values
    if name in CODECS:
        assert CODECS[name].parse(data, Drop.FRAME_SHORT) == CODECS[name].unpack_from(data)


@every_fixed_case
def test_both_speeds_on_the_table(name: str, wire: str, values: dict[str, Any]) -> None:
    codec, data = CODECS[name], bytes.fromhex(wire)
    assert codec.size == len(data)
    assert codec.unpack_from(b"??" + data + b"payload", 2) == values
    assert codec.pack(**values) == data


@pytest.mark.parametrize(
    ("declaration", "given", "wire"),
    [
        (formats.VIRTIO_NET, {}, "00" * 10),
        (
            formats.IPV4,
            {"total_length": 20, "ttl": 1, "protocol": 6, "source": GATEWAY4, "destination": GUEST4},
            "45000014 00000000 01060000 c0000201 c0000202",
        ),
        (
            formats.TCP,
            {"source": 1, "destination": 2, "sequence": 3, "acknowledgement": 4, "flags": 4, "window": 0},
            "0001 0002 00000003 00000004 50 04 0000 0000 0000",
        ),
        (
            formats.PCAP_FILE,
            {},
            native("IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1),
        ),
    ],
)
def test_defaults_of_both_speeds(declaration: Any, given: dict[str, Any], wire: str) -> None:
    assert declaration.build(given) == bytes.fromhex(wire)
    assert Codec("any", rows(declaration)).pack(**given) == bytes.fromhex(wire)


# --- Worked frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "stack"),
    [
        (FRAME_A, formats.UDP4_FRAME),
        (MESSAGE_C[4:], formats.UDP4_FRAME),
        (FRAME_B, formats.UDP6_FRAME),
        (FRAME_D, formats.UDP6_FRAME),
    ],
    ids="ACBD",
)
def test_worked_frames_come_back(frame: bytes, stack: Any) -> None:
    data = bytes(10) + frame
    headers = stack.parse(data)
    codec = formats.UDP4 if stack is formats.UDP4_FRAME else formats.UDP6
    assert stack.build(headers) == data[: codec.size]
    values = codec.unpack_from(data)
    assert values == dotted(plain(headers))
    assert codec.pack(**values) == data[: codec.size]


def test_frame_a() -> None:
    headers = formats.UDP4_FRAME.parse(bytes(10) + FRAME_A)
    assert (headers.ethernet.destination, headers.ethernet.source) == (GUEST_MAC, HOST_MAC)
    assert headers.ethernet.ethertype == formats.ETHERTYPE_IPV4
    assert (headers.ip.version, headers.ip.ihl, headers.ip.total_length) == (4, 5, 33)
    assert (headers.ip.ttl, headers.ip.protocol, headers.ip.checksum) == (255, formats.PROTOCOL_UDP, 0x37C8)
    assert (headers.ip.source, headers.ip.destination) == (GATEWAY4, GUEST4)
    assert (headers.udp.source, headers.udp.destination) == (40000, 7000)
    assert (headers.udp.length, headers.udp.checksum) == (13, 0)


def test_message_c() -> None:
    length = formats.STREAM_LENGTH.parse(MESSAGE_C).length
    assert length == len(MESSAGE_C) - formats.STREAM_LENGTH_BYTES == 85
    headers = formats.UDP4_FRAME.parse(bytes(10) + MESSAGE_C[4:])
    assert (headers.ip.checksum, headers.udp.source, headers.udp.destination) == (0x376E, 53, 33333)


def test_template_makes_frame_a() -> None:
    frame = bytearray(formats.udp4_template(GUEST_MAC, HOST_MAC, GATEWAY4, GUEST4, 40000, 7000))
    assert len(frame) == formats.UDP4.size == 52
    ip = formats.UDP4.offset("ip.version")
    struct.pack_into(">H", frame, formats.UDP4.offset("ip.total_length"), 33)
    struct.pack_into(">H", frame, formats.UDP4.offset("udp.length"), 13)
    header = frame[ip : formats.UDP4.offset("udp.source")]
    struct.pack_into(">H", frame, formats.UDP4.offset("ip.checksum"), checksum.internet(header))
    assert frame + b"hello" == bytes(10) + FRAME_A


@pytest.mark.parametrize(("frame", "payload"), [(FRAME_B, b"hello6"), (FRAME_D, b"\xcf\x52")], ids="BD")
def test_template_makes_frames_b_and_d(frame: bytes, payload: bytes) -> None:
    data = bytearray(formats.udp6_template(GUEST_MAC, HOST_MAC, GATEWAY6, GUEST6, 40000, 5000)) + payload
    assert len(data) - len(payload) == formats.UDP6.size == 72
    udp = formats.UDP6.offset("udp.source")
    for name in ("ip.payload_length", "udp.length"):
        struct.pack_into(">H", data, formats.UDP6.offset(name), 8 + len(payload))
    pseudo = checksum.pseudo_sum(GATEWAY6, GUEST6, formats.PROTOCOL_UDP)
    struct.pack_into(">H", data, formats.UDP6.offset("udp.checksum"), checksum.udp(pseudo, data[udp:]))
    assert data == bytes(10) + frame


# --- Two speeds ---------------------------------------------------------------------------------------------


@every_codec
@given(data=st.data())
@settings(max_examples=50)
def test_both_speeds_parse_the_same(codec: Codec, data: st.DataObject) -> None:
    wire = data.draw(st.binary(min_size=codec.size, max_size=codec.size))
    values = codec.unpack_from(wire)
    assert values == dotted(plain(DECLARED[codec.name].parse(wire)))
    assert values.keys() == codec.fields.keys()
    assert codec.pack(**values) == wire == DECLARED[codec.name].build(nested(values))
    for name, field in codec.fields.items():
        unit = wire[field.offset : field.offset + field.size]
        if field.is_bytes:
            assert values[name] == unit
        else:
            word = int.from_bytes(unit, "little" if field.order == "<" else "big")
            width = (field.mask >> field.shift).bit_length()
            assert values[name] % (1 << width) == (word & field.mask) >> field.shift


def limits(field: Field) -> tuple[int, int]:
    """Smallest and largest value of an integer field."""
    width = (field.mask >> field.shift).bit_length()
    return (-(1 << width - 1), (1 << width - 1) - 1) if field.format.islower() else (0, (1 << width) - 1)


@every_codec
@given(data=st.data())
@settings(max_examples=50)
def test_both_speeds_build_the_same(codec: Codec, data: st.DataObject) -> None:
    values: dict[str, Any] = {
        name: data.draw(
            st.binary(min_size=field.size, max_size=field.size) if field.is_bytes else st.integers(*limits(field)),
            label=name,
        )
        for name, field in codec.fields.items()
    }
    wire = codec.pack(**values)
    assert wire == DECLARED[codec.name].build(nested(values))
    assert codec.unpack_from(wire) == values


@every_codec
def test_both_speeds_refuse_what_does_not_fit(codec: Codec) -> None:
    good = codec.unpack_from(bytes(codec.size))
    for name, field in codec.fields.items():
        wrong: list[Any] = [bytes(field.size - 1), bytes(field.size + 1)]
        if not field.is_bytes:
            lowest, highest = limits(field)
            wrong = [lowest - 1, highest + 1]
        for value in wrong:
            values = {**good, name: value}
            with pytest.raises((ValueError, struct.error)):
                codec.pack(**values)
            with pytest.raises((ConstructError, ValueError)):
                DECLARED[codec.name].build(nested(values))


def test_codec_refuses_wrong_names_and_short_buffers() -> None:
    with pytest.raises(KeyError, match="lenght"):
        formats.UDP_CODEC.pack(source=1, destination=2, length=8, lenght=8)
    with pytest.raises(KeyError, match="length"):
        formats.UDP_CODEC.pack(source=1, destination=2)
    with pytest.raises(struct.error):
        formats.UDP_CODEC.unpack_from(bytes(7))
    with pytest.raises(KeyError):
        formats.UDP_CODEC.offset("port")


def test_codec_needs_a_fixed_shape() -> None:
    with pytest.raises(ConstructError):
        rows(formats.NDP_RDNSS)


@pytest.mark.parametrize(
    ("name", "offset", "size", "mask", "shift"),
    [
        ("virtio.checksum_start", 6, 2, 0xFFFF, 0),
        ("ethernet.ethertype", 22, 2, 0xFFFF, 0),
        ("ip.version", 24, 1, 0xF0, 4),
        ("ip.ihl", 24, 1, 0x0F, 0),
        ("ip.total_length", 26, 2, 0xFFFF, 0),
        ("ip.flags", 30, 2, 0xE000, 13),
        ("ip.fragment_offset", 30, 2, 0x1FFF, 0),
        ("ip.source", 36, 4, 0, 0),
        ("udp.checksum", 50, 2, 0xFFFF, 0),
    ],
)
def test_fields(name: str, offset: int, size: int, mask: int, shift: int) -> None:
    field = formats.UDP4.fields[name]
    assert (field.offset, field.size, field.mask, field.shift) == (offset, size, mask, shift)
    assert formats.UDP4.offset(name) == offset


def test_picker() -> None:
    picker = formats.UDP4.picker("virtio.gso_type", "ethernet.ethertype", "ip.version", "ip.source", "udp.source")
    assert picker.format == ">1xB20xHB11x4s4xH"
    assert picker.unpack_from(bytes(10) + FRAME_A) == (0, 0x0800, 0x45, GATEWAY4, 40000)
    assert picker.size == formats.UDP4.offset("udp.destination")


@pytest.mark.parametrize(
    "names",
    [
        ("udp.source", "ip.source"),
        ("udp.source", "udp.source"),
        ("ip.version", "ip.ihl"),
        ("virtio.gso_size",),
    ],
)
def test_picker_refuses(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"picked"):
        formats.UDP4.picker(*names)


def test_bits_fill_their_unit() -> None:
    with pytest.raises(ValueError, match="leave 3 bits"):
        Bits(Int8ub, ("version", 5))


# --- Neighbour discovery options ----------------------------------------------------------------------------

OPTIONS = [(name, wire, values) for name, wire, values in CASES if name.startswith("NDP_") and "data" in values]
OPTIONS += [
    case for case in CASES if case[0] in {"NDP_LINK_ADDRESS", "NDP_PREFIX", "NDP_MTU", "NDP_RDNSS", "NDP_DNSSL"}
]
ALL_OPTIONS = bytes.fromhex("".join(wire for _, wire, _ in OPTIONS))


def test_options_parse_and_build() -> None:
    values = [values for _, _, values in OPTIONS]
    assert plain(formats.NDP_OPTIONS.parse(ALL_OPTIONS)) == values
    assert formats.NDP_OPTIONS.build(values) == ALL_OPTIONS
    assert formats.NDP_OPTIONS.build(formats.NDP_OPTIONS.parse(ALL_OPTIONS)) == ALL_OPTIONS


def test_options_get_length_and_padding_when_built() -> None:
    options = [
        {"type": 25, "lifetime": 60, "addresses": [GATEWAY6]},
        {"type": 31, "lifetime": 60, "labels": b"\1a\0"},
        {"type": 31, "lifetime": 60, "labels": b"\6abcdef\0"},
        {"type": 14, "data": b"1234567"},
        {"type": 1, "mac": HOST_MAC},
    ]
    built = formats.NDP_OPTIONS.build(options)
    assert [option.length for option in formats.NDP_OPTIONS.parse(built)] == [3, 2, 2, 2, 1]
    assert len(built) == 80


def test_truncated_options() -> None:
    ends = [0]
    for _, wire, _ in OPTIONS:
        ends.append(ends[-1] + len(bytes.fromhex(wire)))
    for length in range(len(ALL_OPTIONS)):
        if length in ends:
            assert len(formats.NDP_OPTIONS.parse(ALL_OPTIONS[:length])) == ends.index(length)
        else:
            with pytest.raises(ConstructError):
                formats.NDP_OPTIONS.parse(ALL_OPTIONS[:length])


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 5, 14, 25, 31, 255])
def test_options_of_length_zero_are_malformed(kind: int) -> None:
    with pytest.raises(ConstructError):
        formats.NDP_OPTIONS.parse(bytes([kind, 0]) + bytes(62))


@pytest.mark.parametrize(("kind", "length"), [(1, 2), (3, 1), (5, 2), (25, 1), (25, 2), (25, 4), (31, 1)])
def test_known_options_of_unusual_length_stay_raw(kind: int, length: int) -> None:
    wire = bytes([kind, length]) + bytes(8 * length - 2)
    (option,) = formats.NDP_OPTIONS.parse(wire)
    assert option.data == wire[2:]
    assert formats.NDP_OPTIONS.build([option]) == wire


def test_half_an_address_is_malformed() -> None:
    with pytest.raises(ConstructError):
        formats.NDP_RDNSS.parse(bytes([25, 4]) + bytes(30))


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 5, 14, 25, 31]), st.integers(0, 6), st.binary(max_size=48)),
        max_size=4,
    )
)
def test_whatever_options_parse_come_back(items: list[tuple[int, int, bytes]]) -> None:
    wire = b"".join(bytes([kind, length]) + body[: max(0, 8 * length - 2)] for kind, length, body in items)
    try:
        options = formats.NDP_OPTIONS.parse(wire)
    except ConstructError:
        return
    assert formats.NDP_OPTIONS.build(options) == wire


# --- Lists of options of the other end ----------------------------------------------------------------------

SHORT, LONG = Struct("code" / Int8ub, "length" / Int8ub), Struct("code" / Int16ub, "length" / Int16ub)
PADDED, PLAIN = Options(Codec("SHORT", rows(SHORT)), pad=0, end=255), Options(Codec("LONG", rows(LONG)))
ITEMS = st.lists(st.tuples(st.integers(1, 254), st.binary(max_size=40)), max_size=8)


@given(ITEMS, st.integers(0, 5), st.binary(max_size=9))
def test_options_come_back_without_padding_and_what_follows_the_end(
    items: list[tuple[int, bytes]], pads: int, behind: bytes
) -> None:
    allowance = Allowance(len(items))
    assert PLAIN.parse(PLAIN.build(items), allowance, Drop.MALFORMED_DHCPV6) == items
    assert allowance.options == 0
    spread = b"".join(PADDED.build([item])[:-1] + bytes(pads) for item in items)
    for data in (spread, spread + b"\xff" + behind, memoryview(PADDED.build(items))):
        assert PADDED.parse(data, Allowance(len(items)), Drop.MALFORMED_DHCP) == items


@given(st.binary(max_size=200), st.integers(0, 5), st.sampled_from([PADDED, PLAIN]))
def test_no_more_options_are_parsed_than_allowed(data: bytes, most: int, options: Options) -> None:
    allowance = Allowance(most)
    try:
        found = options.parse(data, allowance, Drop.MALFORMED_IP)
    except PacketError as error:
        assert error.reason in (Drop.MALFORMED_IP, Drop.EXCESSIVE)
        assert allowance.options == 0 or error.reason is Drop.MALFORMED_IP
    else:
        assert len(found) + allowance.options == most


@pytest.mark.parametrize("data", ["05", "0501", "0000 0502 00", "0500 06"])
def test_an_option_that_ends_beyond_the_data_is_malformed(data: str) -> None:
    with pytest.raises(PacketError) as caught:
        PADDED.parse(bytes.fromhex(data), Allowance(9), Drop.MALFORMED_DHCP)
    assert caught.value.reason is Drop.MALFORMED_DHCP


def test_extension_headers_that_can_be_walked() -> None:
    assert {0, 43, 44, 51, 60, 135, 139, 140, 253, 254} == formats.IPV6_EXTENSIONS
    assert not formats.IPV6_EXTENSIONS & {
        50,
        formats.PROTOCOL_UDP,
        formats.PROTOCOL_TCP,
        formats.PROTOCOL_ICMPV6,
    }


def test_pure_modules_import_no_io() -> None:
    script = (
        "import sys, construct; before = set(sys.modules); import gpasst.formats, gpasst.packet.checksum;"
        "print({'gevent', 'socket'} & (set(sys.modules) - before))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"
