"""The guest path: what the first datagram between a guest's port and a peer sets up, and what ends it."""

from __future__ import annotations

import socket

import pytest

from gpasst.counters import Drop
from gpasst.flow.activity import COLD_SECONDS
from gpasst.flow.guest import Guest
from gpasst.flow.key import down_key
from gpasst.flow.sender import Sender
from gpasst.formats import STREAM_LENGTH, VIRTIO_NET
from gpasst.host.receive import sender_key
from gpasst.packet.address import BROADCAST_MAC
from gpasst.udp.header import NO_HEADER
from gpasst.udp.mapping import Listener
from gpasst.udp.nat import UdpNat
from tests.support.addresses import (
    FORWARDER4,
    GATEWAY4,
    GATEWAY6,
    GUEST4,
    GUEST6,
    GUEST_LINK_LOCAL,
    RESOLVER4,
    SERVER4,
    SERVER6,
    ip,
)
from tests.support.nat import EPHEMERAL, Host, Opener, ports
from tests.support.networks import INDEX
from tests.support.replies import refused

TIMEOUT = 180
VIRTIO_SIZE = VIRTIO_NET.sizeof()

FRAME_A = bytes.fromhex(
    "525400123456 9a559a559a55 08004500002100000000ff1137c8 c0000201 c00002029c401b58000d0000 68656c6c6f"
)
FRAME_B = bytes.fromhex(
    "525400123456 9a559a559a55 86dd"
    "60000000000e11ff fe800000000000000000000000000001 fe80000000000000505400fffe123456"
    "9c401388000e8b42 68656c6c6f36"
)
FRAME_D = bytes.fromhex(
    "525400123456 9a559a559a55 86dd"
    "60000000000a11ff fe800000000000000000000000000001 fe80000000000000505400fffe123456"
    "9c401388000affff cf52"
)
MESSAGE_C = bytes.fromhex(
    "00000055"
    "525400123456 9a559a559a55 0800"
    "4500004700000000ff11376e c0000235 c0000202"
    "0035823500330000"
    "1a2b81800001000100000000 0174076578616d706c650000010001"
    "c00c000100010000003c0004c6336407"
)


# The worked examples of the specification.


def test_client_on_loopback_reaches_a_forward() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    peer = host.up(listener, "127.0.0.1", 40000, local="127.0.0.1")
    assert host.frame(peer, b"hello") == FRAME_A
    assert bytes(peer.header.fill(5, 5))[VIRTIO_SIZE:] + b"hello" == FRAME_A
    answer = host.down(7000, GATEWAY4, 40000)
    assert answer is peer
    assert answer.udp_socket is listener
    assert answer.remote == (ip("127.0.0.1"), 40000, 0)


def test_guest_reaches_a_remote_server() -> None:
    host = Host()
    peer = host.down(33000, SERVER4, 123)
    assert (peer.udp_socket.family, peer.udp_socket.port) == (4, 33000)
    assert peer.remote == (ip(SERVER4), 123, 0)
    assert host.up(peer.udp_socket, SERVER4, 123) is peer
    assert host.frame(peer, b"")[26:38] == ip(SERVER4) + ip(GUEST4) + ports(123, 33000)
    assert sum(host.path.scan(1180, TIMEOUT)) == 0
    assert sum(host.path.scan(1181, TIMEOUT)) == 1
    assert not host.open


def test_forwarded_query_is_answered_under_the_forwarders_address() -> None:
    host = Host(dns_forward=FORWARDER4, gateway_resolver=RESOLVER4)
    peer = host.down(33333, FORWARDER4, 53)
    assert peer.remote == (ip(RESOLVER4), 53, 0)
    assert host.up(peer.udp_socket, RESOLVER4, 53) is peer
    payload = MESSAGE_C[-43:]
    answer = host.frame(peer, payload)
    assert STREAM_LENGTH.build({"length": len(answer)}) + answer == MESSAGE_C


def test_process_on_the_shared_address_reaches_a_forward() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    peer = host.up(listener, GUEST4, 6000, local=GUEST4)
    assert peer.shown == (ip(GATEWAY4), 6000)
    answer = host.down(7000, GATEWAY4, 6000)
    assert (answer.udp_socket, answer.remote) == (listener, (ip(GUEST4), 6000, 0))


@pytest.mark.parametrize(("payload", "expected"), [(b"hello6", FRAME_B), (b"\xcf\x52", FRAME_D)])
def test_client_on_ipv6_loopback_reaches_a_forward(payload: bytes, expected: bytes) -> None:
    host = Host()
    listener = host.listen(5000, 5000, family=6)
    peer = host.up(listener, "::1", 40000, local="::1")
    assert host.frame(peer, payload) == expected
    answer = host.down(5000, GATEWAY6, 40000, guest=GUEST_LINK_LOCAL)
    assert (answer.udp_socket, answer.remote) == (listener, (ip("::1"), 40000, 0))


# What earlier code got wrong.


def test_a_port_works_again_after_its_mapping_expired() -> None:
    host = Host()
    old = host.down(33000, SERVER4, 123)
    sum(host.path.scan(2000, TIMEOUT))
    assert not host.open
    new = host.down(33000, SERVER4, 123)
    assert new is not old
    assert new.udp_socket is not old.udp_socket
    assert host.open == [new.udp_socket]
    assert host.up(new.udp_socket, SERVER4, 123) is new


def test_two_host_ports_lead_to_one_guest_port() -> None:
    host = Host()
    first, second = host.listen(5000, 80), host.listen(6000, 80)
    peers = [
        host.up(first, SERVER4, 1001, local=GUEST4),
        host.up(second, SERVER4, 1002, local=GUEST4),
        # One client, one port, both listeners: the guest must be able to tell which it answers.
        host.up(second, SERVER4, 1001, local=GUEST4),
    ]
    assert [host.answer(peer).udp_socket for peer in peers] == [first, second, second]
    assert [host.answer(peer).remote[1] for peer in peers] == [1001, 1002, 1001]
    assert len({peer.shown for peer in peers}) == 3


def test_a_sender_whose_port_is_a_forwards_target_does_not_end_the_forward() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    host.up(listener, "127.0.0.1", 7000, local="127.0.0.1")
    assert sum(host.path.scan(1181, TIMEOUT)) == 1
    assert host.open == [listener]
    assert host.up(listener, "127.0.0.1", 7000, local="127.0.0.1").udp_socket is listener


def test_answers_reach_the_guest_address_that_asked() -> None:
    host = Host()
    asked = host.down(33000, SERVER4, 123, guest=GUEST4)
    other = host.down(33000, SERVER4, 123, guest="192.0.2.5")
    assert other.udp_socket is not asked.udp_socket
    for peer, guest in ((asked, GUEST4), (other, "192.0.2.5")):
        assert host.frame(host.up(peer.udp_socket, SERVER4, 123), b"")[30:34] == ip(guest)


def test_a_new_sender_reaches_the_address_seen_last() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    host.down(33000, SERVER4, 123, guest="192.0.2.5")
    assert host.up(listener, SERVER4, 9, local=GUEST4).mapping.guest == ip("192.0.2.5")


def test_the_addressed_local_address_is_kept() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    first = host.up(listener, SERVER4, 9, local="192.0.2.3")
    second = host.up(listener, SERVER4, 9, local=GUEST4)
    assert host.answer(first).local == ip("192.0.2.3")
    assert host.answer(second).local == ip(GUEST4)
    assert first.shown == (ip(SERVER4), 9)
    assert second.shown != first.shown


def test_an_answer_tells_the_local_address_of_what_the_guest_began() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    peer = host.down(7000, SERVER4, 9)
    assert (peer.udp_socket, peer.local) == (listener, b"")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        setattr(peer, "sender", Sender(sock))  # noqa: B010  # a plain assignment would count as its value for good
    assert host.up(listener, SERVER4, 9, local="192.0.2.3") is peer
    assert (peer.local, peer.sender) == (ip("192.0.2.3"), None)
    assert host.up(listener, SERVER4, 9, local="192.0.2.3") is peer
    # From elsewhere it is another peer.
    assert host.up(listener, SERVER4, 9, local=GUEST4) is not peer
    assert peer.local == ip("192.0.2.3")
    sum(host.path.scan(2000, TIMEOUT))
    assert not listener.keys


def test_clients_on_any_loopback_address_are_answered_there() -> None:
    host = Host()
    peer = host.up(host.listen(5000, 7000), "127.0.0.5", 40000, local="127.0.0.1")
    assert peer.shown == (ip(GATEWAY4), 40000)
    assert host.answer(peer).remote == (ip("127.0.0.5"), 40000, 0)


@pytest.mark.parametrize(("family", "source"), [(4, "0.0.0.0"), (6, "::")])
def test_senders_without_address_leave_no_trace(family: int, source: str) -> None:
    host = Host()
    listener = host.listen(5000, 7000, family=family)
    with refused(Drop.UNSPECIFIED_ADDRESS):
        host.up(listener, source, 40000)
    assert not listener.keys
    assert not host.path.tables[family].mappings


def test_two_senders_that_look_alike_are_told_apart() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    senders = ["127.0.0.1", GUEST4, "127.0.0.5"]
    peers = [host.up(listener, sender, 123, local=GUEST4) for sender in senders]
    assert {peer.shown[0] for peer in peers} == {ip(GATEWAY4)}
    assert [peer.shown[1] for peer in peers] == [123, 61000, 61001]
    assert [host.answer(peer).remote for peer in peers] == [(ip(sender), 123, 0) for sender in senders]
    assert host.frame(peers[1], b"")[34:36] == ports(61000)


SIDES = pytest.mark.parametrize(
    ("gateway", "server", "guest"), [(GATEWAY4, SERVER4, GUEST4), (GATEWAY6, SERVER6, GUEST_LINK_LOCAL)]
)


@SIDES
def test_equal_ports_do_not_make_a_socket_hear_itself(gateway: str, server: str, guest: str) -> None:
    host = Host()
    peer = host.down(5353, gateway, 5353, guest=guest)
    assert peer.udp_socket.port != 5353
    # The host's own service may have that port, or take it any time.
    assert host.open == [peer.udp_socket]
    assert host.down(5353, server, 9, guest=guest).udp_socket is peer.udp_socket


@SIDES
def test_a_port_that_already_stands_for_the_sender_is_refused_to_it(gateway: str, server: str, guest: str) -> None:
    host = Host()
    peer = host.down(5353, server, 9, guest=guest)
    assert peer.udp_socket.port == 5353
    with refused(Drop.HAIRPIN):
        host.down(5353, gateway, 5353, guest=guest)
    assert host.open == [peer.udp_socket]
    assert host.up(peer.udp_socket, server, 9) is peer
    # To another of the guest's ports it is a service like any other.
    assert host.down(5354, gateway, 5353, guest=guest).remote[1] == 5353


def test_a_listener_is_refused_to_the_port_that_it_leads_to() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    with refused(Drop.HAIRPIN):
        host.down(7000, GATEWAY4, 5000)
    assert host.open == [listener]
    assert not host.path.tables[4].mappings
    assert host.down(7000, GATEWAY4, 7000).udp_socket is listener


def test_equal_ports_of_a_stranger_are_no_matter() -> None:
    assert Host().down(123, SERVER4, 123).udp_socket.port == 123


def test_a_changed_port_is_no_service_either() -> None:
    host = Host(taken=(33000,))
    assert host.down(33000, SERVER4, 9).udp_socket.port == EPHEMERAL
    with refused(Drop.HAIRPIN):
        host.down(33000, GATEWAY4, EPHEMERAL)


def test_two_names_of_one_remote_have_sockets_of_their_own() -> None:
    host = Host(dns_forward=FORWARDER4, gateway_resolver=RESOLVER4)
    names = [GATEWAY4, FORWARDER4, RESOLVER4]
    peers = [host.down(33333, name, 53) for name in names]
    assert {peer.remote for peer in peers} == {(ip(RESOLVER4), 53, 0)}
    assert len({peer.mapping for peer in peers}) == 1
    assert len({peer.udp_socket for peer in peers}) == 3
    for name, peer in zip(names, peers, strict=True):
        assert host.up(peer.udp_socket, RESOLVER4, 53) is peer
        assert peer.shown == (ip(name), 53)
    assert sum(host.path.scan(2000, TIMEOUT)) == 1
    assert not host.open


@pytest.mark.parametrize(
    ("guest", "destination", "port", "to", "reason"),
    [
        (GUEST4, SERVER4, 0, 9, Drop.SOURCE_PORT_ZERO),
        (GUEST4, SERVER4, 9, 0, Drop.DESTINATION_PORT_ZERO),
        ("0.0.0.0", SERVER4, 9, 9, Drop.UNSPECIFIED_ADDRESS),
        ("127.0.0.1", SERVER4, 9, 9, Drop.LOOPBACK_ADDRESS),
        ("224.0.0.1", SERVER4, 9, 9, Drop.UNSPECIFIED_ADDRESS),
        (GUEST4, "127.0.0.1", 9, 9, Drop.LOOPBACK_ADDRESS),
        (GUEST4, "0.0.0.0", 9, 53, Drop.UNSPECIFIED_ADDRESS),
        ("::", SERVER6, 9, 9, Drop.UNSPECIFIED_ADDRESS),
        ("::1", SERVER6, 9, 9, Drop.LOOPBACK_ADDRESS),
        ("ff02::1", SERVER6, 9, 9, Drop.UNSPECIFIED_ADDRESS),
        (GUEST6, "::1", 9, 9, Drop.LOOPBACK_ADDRESS),
        (GUEST6, "::ffff:127.0.0.1", 9, 9, Drop.LOOPBACK_ADDRESS),
    ],
)
def test_what_is_refused_opens_nothing(guest: str, destination: str, port: int, to: int, reason: Drop) -> None:
    host = Host()
    with refused(reason):
        host.down(port, destination, to, guest=guest)
    assert not host.opened
    assert all(not table.mappings for table in host.path.tables.values())


# Mappings.


def test_a_guest_port_has_one_socket_for_all_it_talks_to() -> None:
    host = Host()
    peers = [host.down(33000, f"198.51.100.{number}", 123) for number in range(1, 20)]
    assert {peer.udp_socket for peer in peers} == set(host.open)
    assert host.opened == 1


def test_anyone_may_answer_a_mapping() -> None:
    host = Host()
    udp_socket = host.down(33000, SERVER4, 69).udp_socket
    peer = host.up(udp_socket, "203.0.113.5", 2000)
    assert peer.shown == (ip("203.0.113.5"), 2000)
    assert (peer.mapping.guest, peer.mapping.port) == (ip(GUEST4), 33000)
    assert host.answer(peer).udp_socket is udp_socket


def test_only_addresses_that_the_guest_sent_to_may_answer_where_filtered() -> None:
    host = Host(filtered=True, gateway_resolver=RESOLVER4)
    udp_socket = host.down(33000, SERVER4, 69).udp_socket
    assert host.up(udp_socket, SERVER4, 2000).shown == (ip(SERVER4), 2000)
    with refused(Drop.FILTERED):
        host.up(udp_socket, "203.0.113.5", 69)
    host.down(33000, "203.0.113.5", 1)
    assert host.up(udp_socket, "203.0.113.5", 69).shown == (ip("203.0.113.5"), 69)
    # What is admitted is the address on the host: the resolver's, not the name the guest used.
    host.down(33000, GATEWAY4, 53)
    assert host.up(udp_socket, RESOLVER4, 5353).shown == (ip(RESOLVER4), 5353)


def test_an_address_is_admitted_as_long_as_it_has_a_peer() -> None:
    host = Host(filtered=True)
    host.path.tables[4].limit = 3
    kept = host.down(33000, SERVER4, 1)
    for last in range(200):
        host.path.tables[4].activity[kept.byte] |= kept.bit
        sum(host.path.scan(1000, TIMEOUT))
        host.down(33000, f"198.51.100.{last}", 1)
    admitted = kept.mapping.admitted
    assert admitted == {ip(SERVER4): 1, ip("198.51.100.198"): 1, ip("198.51.100.199"): 1}
    with refused(Drop.FILTERED):
        host.up(kept.udp_socket, "198.51.100.1", 1)
    assert host.up(kept.udp_socket, SERVER4, 2)


def test_the_nat_lets_go_of_the_longest_idle_mapping() -> None:
    host = Host()
    assert not host.path.let_go()
    first, second = host.down(33000, SERVER4, 1), host.down(33001, SERVER4, 1)
    assert host.path.held() == 2
    assert host.path.let_go()
    assert (host.open, host.path.held()) == ([second.udp_socket], 1)
    assert first.mapping not in host.path.tables[4].mappings.values()


def test_forwards_are_not_filtered() -> None:
    host = Host(filtered=True)
    listener = host.listen(5000, 7000)
    assert host.up(listener, SERVER4, 9, local=GUEST4).udp_socket is listener
    assert host.up(listener, "203.0.113.5", 9, local=GUEST4).udp_socket is listener


def test_what_leaves_a_forwarded_port_leaves_by_its_listener() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    host.listen(5000, 7000, family=6)
    assert host.down(7000, SERVER4, 9).udp_socket is listener
    assert host.down(5000, SERVER4, 9).udp_socket is not listener
    assert host.opened == 1


def test_a_forward_that_names_an_address_is_the_way_out_of_that_address_alone() -> None:
    host = Host()
    one, other = (host.listen(port, 7000, target_address=f"192.0.2.{port - 4990}") for port in (5000, 5001))
    assert host.down(7000, SERVER4, 9, guest="192.0.2.10").udp_socket is one
    assert host.down(7000, SERVER4, 9, guest="192.0.2.11").udp_socket is other
    assert host.down(7000, SERVER4, 9).udp_socket not in (one, other)
    assert list(host.up(one, SERVER4, 10, local=GUEST4).mapping.sockets) == [one]
    for _ in host.path.retire(one):
        pass
    assert host.down(7000, SERVER4, 11, guest="192.0.2.10").udp_socket is not one


def test_a_listener_on_one_address_only_speaks_when_spoken_to() -> None:
    host = Host()
    listener = host.listen(5000, 7000, general=False)
    assert host.down(7000, SERVER4, 9).udp_socket is not listener
    answer = host.answer(host.up(listener, SERVER4, 10, local=GUEST4))
    assert answer.udp_socket is listener


def test_a_busy_port_is_replaced() -> None:
    host = Host(taken=(33000,))
    peer = host.down(33000, SERVER4, 123)
    assert peer.udp_socket.port == EPHEMERAL
    assert host.frame(host.up(peer.udp_socket, SERVER4, 123), b"")[36:38] == ports(33000)


def test_link_local_peers_keep_their_interface() -> None:
    host = Host()
    peer = host.down(33000, "fe80::99", 9, guest=GUEST_LINK_LOCAL)
    assert peer.remote == (ip("fe80::99"), 9, INDEX)
    assert host.up(peer.udp_socket, "fe80::99", 9, scope=INDEX) is peer
    client = host.up(host.listen(5000, 7000, family=6), "fe80::77", 9, scope=3)
    assert host.answer(client).remote == (ip("fe80::77"), 9, 3)


def test_headers_are_made_for_the_first_datagram_upward() -> None:
    host = Host()
    peer = host.down(33000, SERVER4, 123)
    assert peer.header is NO_HEADER
    made = host.path.header(peer, 0xB840)
    assert peer.header is made is not NO_HEADER
    assert made.tos_ttl == 0xB840
    assert host.path.header(peer, 64) is made
    assert (made.tos_ttl, NO_HEADER.tos_ttl) == (64, -1)


def test_an_idle_peer_holds_no_headers() -> None:
    host = Host()
    peer = host.down(33000, SERVER4, 123)
    before = host.frame(peer, b"answer")
    for _ in host.path.scan(1001 + COLD_SECONDS, TIMEOUT):
        pass
    assert (peer.header, peer.sender) == (NO_HEADER, None)
    assert host.frame(peer, b"answer") == before


# Failure and end.


def test_a_port_by_chance_that_of_the_peer_is_given_back() -> None:
    host = Host(taken=(33000,))
    peer = host.down(33000, GATEWAY4, EPHEMERAL)
    assert peer.udp_socket.port == EPHEMERAL + 1
    assert host.open == [peer.udp_socket]
    assert peer.mapping.sockets == [peer.udp_socket]


def test_a_port_by_chance_that_of_the_peer_is_given_back_even_if_there_is_no_other() -> None:
    host = Host(taken=(33000,))
    host.failing = 2
    with refused(Drop.NO_SOCKET):
        host.down(33000, GATEWAY4, EPHEMERAL)
    assert host.opened == 2
    assert not host.open
    assert not host.path.tables[4].mappings


def test_a_mapping_without_socket_is_no_mapping() -> None:
    host = Host()
    host.failing = 1
    with refused(Drop.NO_SOCKET):
        host.down(33000, SERVER4, 123)
    assert not host.path.tables[4].mappings
    assert host.down(33000, SERVER4, 123).udp_socket.port == 33000


def test_a_missing_second_socket_leaves_other_peers_alone() -> None:
    host = Host(gateway_resolver=RESOLVER4)
    peer = host.down(5353, RESOLVER4, 53)
    host.failing = 2
    with refused(Drop.NO_SOCKET):
        host.down(5353, GATEWAY4, 53)
    assert host.open == [peer.udp_socket]
    assert host.up(peer.udp_socket, RESOLVER4, 53) is peer


def test_no_port_left_leaves_nothing_behind() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    peer = host.up(listener, "127.0.0.1", 123, local=GUEST4)
    table = host.path.tables[4]
    key = down_key(ip(GUEST4), ip(GATEWAY4), 7000, 0)[:-2]
    table.down.update((key + ports(port), peer) for port in range(1024, 65536))
    with refused(Drop.PORTS_EXHAUSTED):
        host.up(listener, GUEST4, 123, local=GUEST4)
    assert listener.keys == 1


def test_at_the_limit_a_port_keeps_its_socket() -> None:
    host = Host()
    host.path.tables[4].limit = 1
    host.down(33000, SERVER4, 1)
    peer = host.down(33000, SERVER4, 2)
    assert host.open == [peer.udp_socket]
    assert host.up(peer.udp_socket, SERVER4, 2) is peer
    other = host.down(33001, SERVER4, 1)
    assert host.open == [other.udp_socket]


def test_an_unknown_mac_address_is_everyones() -> None:
    network = Host().guest.network
    host = Host()
    host.path = UdpNat(Guest(network), Opener(host), sender_key)
    assert host.frame(host.down(1, SERVER4, 1), b"")[:6] == BROADCAST_MAC


def test_close_closes_everything_once() -> None:
    host = Host(gateway_resolver=RESOLVER4)
    listener = host.listen(5000, 7000)
    host.listen(5000, 7000, family=6)
    host.up(listener, SERVER4, 1, local=GUEST4)
    host.down(7000, SERVER4, 2)
    host.down(5353, RESOLVER4, 53)
    host.down(5353, GATEWAY4, 53)
    host.down(33000, SERVER6, 1, guest=GUEST6)
    assert len(host.open) == 5
    host.path.close()
    assert all(isinstance(udp_socket, Listener) for udp_socket in host.open), "listeners stay their owner's to close"
    assert len(host.open) == 2
    assert all(not table.mappings and not len(table) for table in host.path.tables.values())
    host.path.close()


def test_scans_count_mappings_of_both_families() -> None:
    host = Host()
    host.down(33000, SERVER4, 1)
    host.down(33000, SERVER4, 2)
    host.down(33000, SERVER6, 1, guest=GUEST6)
    assert sum(host.path.scan(1181, TIMEOUT)) == 2


def test_the_peers_of_a_listener_end_one_by_one() -> None:
    host = Host()
    listener = host.listen(53, 5000)
    for number in range(1, 6):
        host.up(listener, f"203.0.113.{number}", 9)
    own = host.down(6000, "203.0.113.1", 9)
    left = [listener.keys for _ in host.path.retire(listener)]
    assert left == [4, 3, 2, 1, 0]
    assert list(host.path.tables[4]) == [own]


def test_what_comes_while_a_listener_retires_ends_with_it_or_passes_it_by() -> None:
    host = Host()
    listener = host.listen(53, 5000)
    first = host.up(listener, "203.0.113.1", 9)
    other = host.down(5000, "203.0.113.2", 9, guest="192.0.2.99")
    assert first.mapping is not other.mapping
    assert other.udp_socket is listener
    pieces = host.path.retire(listener)
    next(pieces)
    late = host.down(5000, "203.0.113.3", 9, guest="192.0.2.99")
    assert late.udp_socket is listener
    assert len(list(pieces)) == 2
    assert not listener.keys
    assert not len(host.path.tables[4])
    after = host.down(5000, "203.0.113.2", 9)
    assert after.udp_socket is not listener


def test_a_peer_that_has_expired_while_its_listener_retires_is_passed_over() -> None:
    host = Host()
    listener = host.listen(53, 5000)
    for number in range(1, 4):
        host.up(listener, f"203.0.113.{number}", 9)
    pieces = host.path.retire(listener)
    next(pieces)
    sum(host.path.scan(2000, TIMEOUT))
    assert list(pieces) == []


def test_active_ports_are_those_of_forwards_and_of_flows_that_move() -> None:
    host = Host()
    host.listen(5000, 5001)
    for port in (33001, 33002, 33003):
        host.down(port, SERVER4, 53)
    assert host.path.active_ports(10) == [5001, 33001, 33002, 33003], "new ones count as active"
    assert host.path.active_ports(2) == [5001, 33001]
    list(host.path.scan(1010, TIMEOUT))
    assert host.path.active_ports(10) == [5001]
    table = host.path.tables[4]
    peer = host.down(33002, SERVER4, 53)
    table.activity[peer.byte] |= peer.bit
    assert host.path.active_ports(10) == [5001, 33002]


def test_a_rebinding_exchanges_the_socket_under_all_peers() -> None:
    host = Host()
    first, second = host.down(EPHEMERAL, SERVER4, 53), host.down(EPHEMERAL, RESOLVER4, 53)
    old = first.udp_socket
    before, keys = old.port, first.up_keys + second.up_keys
    host.path.rebind(first.mapping)
    new = first.udp_socket
    assert second.udp_socket is new is first.mapping.sockets[0]
    assert new.port != before
    assert (new.keys, [new.find(key) for key in keys]) == (2, [first, second])
    assert (old.keys, old.mapping, old.socket) == (0, None, None)
    assert first.sender is None
    assert host.answer(first) is first


def test_a_forwarded_port_is_not_rebound() -> None:
    host = Host()
    listener = host.listen(5000, 7000)
    peer = host.up(listener, SERVER4, 40000)
    host.path.rebind(peer.mapping)
    assert peer.udp_socket is listener
