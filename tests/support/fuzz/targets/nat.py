"""UDP's NAT: the guest, remote senders and time in any order; every peer has its keys, and every socket an owner."""

from __future__ import annotations

from gpasst.errors import PacketError
from gpasst.udp.mapping import Listener
from tests.support.addresses import GATEWAY4, GATEWAY6, GUEST4, GUEST6, GUEST_LINK_LOCAL, RESOLVER4, SERVER4, SERVER6
from tests.support.fuzz.choices import Choices
from tests.support.nat import Host

PORTS = (0, 53, 5000, 5001, 40000, 65535)
ADDRESSES = (
    (GUEST4, SERVER4, GATEWAY4, RESOLVER4, "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.77"),
    (GUEST6, GUEST_LINK_LOCAL, SERVER6, GATEWAY6, "::1", "::", "ff02::1", "fe80::9", "::ffff:7f00:1"),
)
FAMILIES = (4, 6)
TIMEOUT = 180
LISTENERS = 4


def take(data: bytes) -> None:
    """Carry datagrams and let time pass; then end everything."""
    choices = Choices(data)
    host = Host(taken=(5001,), filtered=choices.flag())
    listeners: list[Listener] = []
    now = 1000
    while choices.more:
        kind, family = choices.number(8), choices.number(2)
        addresses, port, other = ADDRESSES[family], choices.pick(PORTS), choices.pick(PORTS)
        one, two = choices.pick(addresses), choices.pick(addresses)
        try:
            if kind < 3:
                peer = host.down(port, two, other, guest=one)
                assert host.answer(peer) is peer
            elif kind < 5 and (known := [each for each in host.open if each.family == FAMILIES[family]]):
                peer = host.up(choices.pick(known), one, port, two, choices.number(2))
                assert host.answer(peer) is peer
            elif kind == 5 and len(listeners) < LISTENERS:
                own = ADDRESSES[family][0] if choices.flag() else ""
                listeners.append(host.listen(port or 1, other or 1, FAMILIES[family], choices.flag(), own))
            elif kind == 6:
                now += choices.pick((0, 1, TIMEOUT, 2 * TIMEOUT))
                for _ in host.path.scan(now, TIMEOUT):
                    pass
            elif choices.flag():
                host.path.let_go()
            elif listeners:
                listener = listeners.pop()
                for _ in host.path.retire(listener):
                    pass
                host.open.remove(listener)
        except PacketError:
            pass
        _check(host, listeners)
    host.path.close()
    assert host.open == list(listeners)
    for table in host.path.tables.values():
        assert not table.down
        assert not table.mappings


def _check(host: Host, listeners: list[Listener]) -> None:
    """Check that tables and sockets agree."""
    for table in host.path.tables.values():
        for key, peer in table.down.items():
            assert peer.down_key == key
            assert peer.udp_socket in host.open
            assert table.mappings[peer.mapping.end] is peer.mapping
    for udp_socket in host.open:
        mapping = udp_socket.mapping
        assert udp_socket in listeners or (mapping is not None and mapping.peers), "a socket that nobody needs"
