"""The formats of capture files as bytes, and the records that they are made of. Takes a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.capture.pcap import Pcap
from gpasst.capture.pcapng import Pcapng
from gpasst.capture.record import Encoder, Record
from gpasst.formats import PCAPNG_END, PCAPNG_FLAGS, PCAPNG_OPTION, PCAPNG_PACKET, PCAPNG_SECTION, VIRTIO_NET_BLANK
from tests.support.captures import Packet, packets, records
from tests.support.families import FAMILIES
from tests.support.headers import header

NOW = 1_700_000_000_123_456_789  # nanoseconds
FRAME = bytes(range(60))


def record(frame: bytes = FRAME, to_guest: bool = True, time_ns: int = NOW, comment: str = "") -> Record:
    return Record(time_ns, to_guest, VIRTIO_NET_BLANK + frame, comment)


def superframe(family: int) -> Record:
    payload = bytes(range(250)) * 10
    return Record(NOW, True, bytes(header(family).fill(len(payload), 1000)) + payload, "")


def file(path: Path, encoder: Encoder, names: Sequence[str], *written: tuple[int, Record]) -> Path:
    blocks = [block for number, item in written for block in encoder.blocks(item, number)]
    path.write_bytes(b"".join([encoder.head(), *map(encoder.interface, names), *blocks]))
    return path


def test_pcap_has_frames_and_their_time(tmp_path: Path) -> None:
    path = file(tmp_path / "x", Pcap(), ["eth0"], (0, record()), (0, record(b"", False, NOW + 876_543_211)))
    assert records(path) == [(1_700_000_000, 123_456, FRAME), (1_700_000_001, 0, b"")]


def test_pcap_leaves_out_what_did_not_reach_the_guest(tmp_path: Path) -> None:
    written = [
        record(bytes((i,)), to_guest, comment=text)
        for i, (to_guest, text) in enumerate([(True, ""), (True, "lost"), (False, ""), (False, "lost")])
    ]
    path = file(tmp_path / "x", Pcap(), ["eth0"], *((0, item) for item in written))
    assert [frame for _, _, frame in records(path)] == [b"\0", b"\2", b"\3"]


def test_pcapng_has_all_that_is_known(tmp_path: Path) -> None:
    written = [
        (0, record()),
        (1, record(FRAME[:59], False, NOW + 1, "lost")),
        (0, record(FRAME[:58], True, NOW + 2, "tap queue full")),
        (1, record(FRAME[:57], False, (1 << 64) - 1)),
    ]
    path = file(tmp_path / "x", Pcapng(), ["eth0", "größer"], *written)
    assert packets(path) == [
        Packet("eth0", NOW, FRAME, 1, ""),
        Packet("größer", NOW + 1, FRAME[:59], 2, "lost"),
        Packet("eth0", NOW + 2, FRAME[:58], 1, "tap queue full"),
        Packet("größer", (1 << 64) - 1, FRAME[:57], 2, ""),
    ]


@given(
    frame=st.binary(max_size=70),
    to_guest=st.booleans(),
    time_ns=st.integers(0, (1 << 64) - 1),
    comment=st.text(max_size=20).filter(lambda text: text.isprintable()),
)
def test_the_fast_form_of_a_packet_is_that_of_its_declaration(
    frame: bytes, to_guest: bool, time_ns: int, comment: str
) -> None:
    (block,) = Pcapng().blocks(record(frame, to_guest, time_ns, comment), 3)
    text = comment.encode()
    options = PCAPNG_OPTION.build({"code": 1, "length": len(text)}) + text + bytes(-len(text) % 4) if text else b""
    options += PCAPNG_FLAGS.build({"direction": 1 if to_guest else 2}) + bytes(4)
    body = frame + bytes(-len(frame) % 4) + options
    length = PCAPNG_PACKET.sizeof() + len(body) + PCAPNG_END.sizeof()
    fields = {"time_high": time_ns >> 32, "time_low": time_ns & 0xFFFFFFFF, "captured": len(frame)}
    head = PCAPNG_PACKET.build({"length": length, "interface": 3, "original": len(frame), **fields})
    assert block == head + body + PCAPNG_END.build({"length": length})
    assert Pcapng().head() == PCAPNG_SECTION.build({})


def test_a_long_comment_is_cut_between_characters(tmp_path: Path) -> None:
    path = file(tmp_path / "x", Pcapng(), ["eth0"], (0, record(comment="x" + "ö" * 40_000)))
    assert packets(path)[0].comment == "x" + "ö" * 32_759


@FAMILIES
@pytest.mark.parametrize("encoder", [Pcap(), Pcapng()], ids=["pcap", "pcapng"])
def test_a_superframe_is_as_many_frames(tmp_path: Path, encoder: Encoder, family: int) -> None:
    item = superframe(family)
    path = file(tmp_path / "x", encoder, ["eth0"], (0, item))
    frames = [frame for *_, frame in records(path)] if isinstance(encoder, Pcap) else [p.frame for p in packets(path)]
    assert frames == list(item.frames())
    assert len(frames) == item.count == 3


@FAMILIES
def test_the_frames_of_a_record_are_parsed(family: int) -> None:
    item = superframe(family)
    assert [len(frame.payload) for frame in item.parsed()] == [1000, 1000, 500]
    (frame,) = record(to_guest=False, comment="lost").parsed()
    assert (frame.data, frame.to, frame.time_ns, frame.fate) == (FRAME, "host", NOW, "lost")


@pytest.mark.parametrize("data", [b"", VIRTIO_NET_BLANK[:-1], b"\1" + bytes(9)])
def test_a_record_of_any_bytes_counts_as_one(data: bytes) -> None:
    item = Record(0, True, data, "")
    assert item.count == 1
    assert len(list(item.frames())) <= 1


def test_what_crossed() -> None:
    found = [record(to_guest=to_guest, comment=text).crossed for to_guest in (True, False) for text in ("", "lost")]
    assert found == [True, False, True, True]
