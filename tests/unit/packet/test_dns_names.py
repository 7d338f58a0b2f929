"""Domain names in wire format, with and without compression."""

from __future__ import annotations

import pytest

from gpasst.packet import dns_names


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("example.org", b"\7example\3org\0"),
        ("example.org.", b"\7example\3org\0"),
        ("bücher.example", b"\x0dxn--bcher-kva\7example\0"),
        ("_tcp.example", b"\4_tcp\7example\0"),
        ("x" * 63, b"\x3f" + b"x" * 63 + b"\0"),
        (".", b"\0"),
    ],
)
def test_names_in_wire_format(name: str, encoded: bytes) -> None:
    assert dns_names.encode_name(name) == encoded


def test_names_that_repeat_are_compressed() -> None:
    # RFC 3397 has this example.
    encoded = dns_names.compress_names(["eng.apple.com.", "marketing.apple.com."], 99)
    assert encoded == b"\3eng\5apple\3com\0\x09marketing\xc0\x04"
    assert dns_names.compress_names(["a.example", "example", "b.a.example"], 99) == b"\1a\7example\0\xc0\2\1b\xc0\0"
    assert dns_names.compress_names(["a.example", "b.example"], 14) == b"\1a\7example\0"
    assert dns_names.compress_names(["a.example", "b.test", "c.example"], 15) == b"\1a\7example\0\1c\xc0\2"
    assert dns_names.compress_names(["example"], 8) == b""


def test_pointers_reach_14_bits_only() -> None:
    many = [f"{number:04}{'x' * 50}.example" for number in range(400)] + ["399.test", "a.399.test"]
    encoded = dns_names.compress_names(many, 1 << 16)
    assert len(encoded) > 0x4000
    assert encoded.endswith(b"\x03399\4test\0\1a\x03399\4test\0")
