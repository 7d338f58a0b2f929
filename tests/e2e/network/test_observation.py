"""What a test sees of a network: captures, expectations, statistics. Takes 3 s."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpasst
from tests.support.captures import dissected, packets, records
from tests.support.hosts import DEADLINE

PORT = 4000


@pytest.fixture
def lan() -> Iterator[gpasst.Network]:
    with gpasst.Network("lan", seed=7, record=True) as network:
        network.hosts("a", "b", "c")
        yield network


def send(lan: gpasst.Network, one: str, other: str, data: bytes = b"hello") -> None:
    """Send a datagram that arrives."""
    with lan[one].socket() as sock, lan[other].socket() as receiver:
        receiver.settimeout(DEADLINE)
        receiver.bind((lan[other].ip4, PORT))
        sock.sendto(data, receiver.getsockname())
        assert receiver.recv(65535) == data


def lose(lan: gpasst.Network, one: str, other: str) -> None:
    with lan[one].socket() as sock:
        sock.sendto(b"lost", (lan[other].ip4, PORT))


def test_a_capture_has_each_host_as_an_interface(lan: gpasst.Network, tmp_path: Path) -> None:
    path = tmp_path / "lan.pcapng"
    send(lan, "c", "a")  # a partition cuts off ARP, too
    with lan.capture(path, filter=f"udp dport {PORT}") as capture:
        send(lan, "a", "b")
        with lan.between("a", "b").impair("udp: loss 100%"), lan.partition(["c"]):
            lose(lan, "a", "b")
            capture.wait_for(lambda frame: frame.fate == "lost")
            lose(lan, "c", "a")
            capture.wait_for(lambda frame: frame.fate == "lost: partition")
        lan.host("late")
        send(lan, "late", "c")
    assert [(packet.interface, packet.direction, packet.comment) for packet in packets(path)] == [
        ("a", 2, ""),
        ("b", 1, ""),
        ("a", 2, ""),
        ("b", 1, "lost"),
        ("c", 2, ""),
        ("a", 1, "lost: partition"),
        ("late", 2, ""),
        ("c", 1, ""),
    ]
    assert [(frame.link, frame.to, frame.fate) for frame in capture.udp[:4]] == [
        ("a", "host", ""),
        ("b", "guest", ""),
        ("a", "host", ""),
        ("b", "guest", "lost"),
    ]
    lines = str(capture).splitlines()
    assert [line.split()[1:3] for line in lines[1:3]] == [["a", ">"], [">", "b"]]
    assert [line for line in dissected(path) if "Malformed" in line] == []


def test_the_older_format_has_what_arrived_once(lan: gpasst.Network, tmp_path: Path) -> None:
    path = tmp_path / "lan.pcap"
    with lan.capture(path, filter="udp"):
        send(lan, "a", "b")
    assert len(records(path)) == 1


def test_a_superframe_is_captured_as_its_frames(lan: gpasst.Network, tmp_path: Path) -> None:
    path = tmp_path / "lan.pcapng"
    with lan.capture(path, filter="tcp size 100-"):
        with lan["a"].socket(type=socket.SOCK_STREAM) as listener, lan["b"].socket(type=socket.SOCK_STREAM) as client:
            listener.bind((lan["a"].ip4, 0))
            listener.listen()
            client.settimeout(DEADLINE)
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(DEADLINE)
                client.sendall(bytes(30000))
                got = 0
                while got < 30000:
                    got += len(accepted.recv(65535))
    found = packets(path)
    assert max(len(packet.frame) for packet in found) <= 1514
    for link in "ab":
        assert sum(len(packet.frame) - 66 for packet in found if packet.interface == link) >= 30000
    assert not dissected(path, "-o", "tcp.check_checksum:TRUE", "-Y", "tcp.checksum.status == 0")


def test_frames_are_expected_where_they_arrive(lan: gpasst.Network) -> None:
    send(lan, "a", "b")
    frame = lan.expect("udp", dport=PORT, payload=b"hello")
    assert (frame.link, frame.to, frame.src) == ("b", "guest", lan["a"].ip4)
    assert lan.expect("udp", dport=PORT, to="host").link == "a"
    assert lan.count("udp", dport=PORT) == 1
    assert [lan.link(name).count("udp", dport=PORT) for name in "abc"] == [1, 1, 0]
    assert lan.link("a").expect("udp", dport=PORT).to == "host"
    with pytest.raises(AssertionError, match=r"expected 1 x to guest udp dport 9, found 0 within 0.01 s"):
        lan.expect("udp", dport=9, timeout=0.01)
    with pytest.raises(AssertionError, match="found 0"):
        lan.link("c").expect("udp", dport=PORT, timeout=0.01)


def test_what_never_may_cross_is_seen_where_it_was_sent(lan: gpasst.Network) -> None:
    send(lan, "a", "b")
    with lan.never("udp", dport=PORT), lan.link("b").never("udp"):
        pass
    with lan.link("c").never("udp"):
        send(lan, "a", "b")
    with lan.partition(["a"]), pytest.raises(AssertionError, match=r"a >"), lan.never("udp", dport=PORT):
        lose(lan, "a", "b")


def test_what_was_recorded_is_saved_with_its_interfaces(lan: gpasst.Network, tmp_path: Path) -> None:
    send(lan, "a", "b")
    lan.expect("udp", dport=PORT)
    lan.close()
    assert lan.count("udp", dport=PORT) == 1
    lan.save(tmp_path / "lan.pcapng")
    assert {packet.interface for packet in packets(tmp_path / "lan.pcapng")} >= {"a", "b"}


def test_nothing_is_expected_where_nothing_is_recorded() -> None:
    with gpasst.Network("plain") as lan, pytest.raises(gpasst.ConfigurationError, match="is not recorded"):
        lan.expect("udp")


def test_hosts_have_their_way_again_when_nobody_looks() -> None:
    with gpasst.Network("plain") as lan:
        lan.hosts("a", "b")

        def ways() -> int:
            return lan.call(lambda parts: sum(len(port.ways) for port in parts.switch.ports))

        send(lan, "a", "b")
        assert ways()
        with lan.capture(), lan.partition(["a"]):
            assert not ways()
        with lan.capture():
            send(lan, "a", "b")
            assert not ways()
        send(lan, "a", "b")
        assert ways()


def test_statistics_count_frames_of_each_host(lan: gpasst.Network) -> None:
    send(lan, "a", "b")
    found = lan.statistics()
    assert set(found.ports) == {"a", "b", "c"}
    assert found.ports["a"].received
    assert found.ports["b"].sent
    assert json.dumps(found.drops) == "{}"
