"""Who is there: five machines find each other by multicast, and each notices when another has gone.

    pip install gpasst pytest
    pytest test_gossip_multicast.py

Each machine is a host of a network, and runs this file. It counts, and sends all the counts that it knows to a group;
the highest count of a member is the newest. A member whose count stands still has gone (van Renesse, Minsky and Hayden,
"A Gossip-Style Failure Detection Service", 1998). So a member is known as long as there is a way to it, over others if
need be. Nobody has to be told an address.
"""

import contextlib
import json
import socket
import sys
import time

GROUP, PORT = "239.255.77.7", 7001  # a group that no router passes on (RFC 2365, section 6.1)
INTERVAL = 0.1  # seconds between two counts
GONE = 1.0  # seconds that a count may stand still


class Member:
    """One of the machines.

    :param name: its name.
    :param address: its address, which says on which network it sends and joins the group.
    """

    def __init__(self, name, address):
        self.name = name
        self.counts, self.seen = {name: 0}, {}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        join(self.socket, address)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))

    def run(self):
        due = time.monotonic()
        while True:
            if (now := time.monotonic()) >= due:
                due = now + INTERVAL
                self.counts[self.name] += 1
                self.send(now)
            self.socket.settimeout(max(due - now, 0.001))
            with contextlib.suppress(TimeoutError):
                self.learn(json.loads(self.socket.recv(65536))["counts"], time.monotonic())

    def send(self, now):
        """Send what is known to the group."""
        alive = {name for name, seen in self.seen.items() if now - seen < GONE} | {self.name}
        counts = {name: count for name, count in self.counts.items() if name in alive}
        message = {"name": self.name, "alive": sorted(alive), "counts": counts}
        # A network that has gone loses it, as any network may.
        with contextlib.suppress(OSError):
            self.socket.sendto(json.dumps(message).encode(), (GROUP, PORT))

    def learn(self, counts, now):
        """Take over each count that is newer than what is known."""
        for name, count in counts.items():
            if name != self.name and count > self.counts.get(name, -1):
                self.counts[name], self.seen[name] = count, now


def join(sock, address):
    """Bind a socket to the port, and let it have what is sent to the group."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((GROUP, PORT))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + socket.inet_aton(address))


def heard(host, seconds=30):
    """Yield the messages that come to a host.

    :raises TimeoutError: if what is looked for has not come by then.
    """
    until = time.monotonic() + seconds
    with host.socket() as sock:
        join(sock, host.ip4)
        while True:
            sock.settimeout(max(until - time.monotonic(), 0.001))
            yield json.loads(sock.recv(65536))


def wait(host, members, alive):
    """Listen on a host until each of the members takes exactly these for alive."""
    expected = sorted(member.name for member in alive)
    views = {}
    for message in heard(host):
        views[message["name"]] = message["alive"]
        if all(views.get(member.name) == expected for member in members):
            return


def test_members_find_each_other_and_notice_who_has_gone(gpasst_network):
    lan = gpasst_network  # open for this test
    members = a, b, c, d, e = lan.hosts("a", "b", "c", "d", "e")
    for host in members:
        host.popen([sys.executable, __file__, host.name, host.ip4])
    wait(a, members, members)

    # Two that do not hear each other hear of each other, even if half of what the others say is lost.
    with lan.between(a, b).impair(partition=True) as cut, lan.link(c).impair("udp: loss 50% seed 7"):
        messages = (message for message in heard(d) if message["name"] == "a")
        counts = (message["counts"]["b"] for message in messages if "b" in message["counts"])
        first = next(counts)
        next(count for count in counts if count > first + 2 * GONE / INTERVAL)
    assert cut.hits

    # Each side of a partition takes the other one for gone, until it is back.
    with lan.partition([a, b], [c, d, e]):
        wait(a, [a, b], [a, b])
        wait(c, [c, d, e], [c, d, e])
    wait(a, members, members)

    # A machine without power says no farewell.
    e.kill()
    wait(a, [a, b, c, d], [a, b, c, d])


if __name__ == "__main__":
    Member(*sys.argv[1:]).run()
