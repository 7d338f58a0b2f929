"""A counter that three machines keep by the rules of Raft: it survives a partition, and never counts on two sides.

    pip install gpasst pytest
    pytest test_raft_counter.py

Each machine is a host of a network, and runs this file. A leader adds a number when most of the machines have it in
their logs (Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", 2014). What is left out here:
logs on disk, logs that are shortened, and members that come and go.
"""

import contextlib
import json
import random
import socket
import sys
import time
import uuid

PORT = 7000  # UDP, for the members and for clients
HEARTBEAT = 0.1  # seconds between two messages of a leader
ELECTION = 1.0, 2.0  # seconds without a leader until a member wants to be one: by chance, so that one is the first
MAJORITY_SECONDS = 2.0  # that a leader waits for the others before it refuses a client


class Member:
    """One of the machines.

    A log is a list of entries `[term, request, number]`. Its length is the index of the newest one, counted from 1.
    """

    def __init__(self, name, members):
        self.name, self.others = name, [other for other in members if other != name]
        self.majority = len(members) // 2 + 1
        self.term, self.vote, self.leader = 0, None, None
        self.log, self.committed = [], 0
        self.clients = []  # of a leader: the index that an answer waits for, the request, its sender, until when
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("0.0.0.0", PORT))
        self.follow(0, None)

    def run(self):
        while True:
            self.socket.settimeout(max(self.due - time.monotonic(), 0.001))
            with contextlib.suppress(TimeoutError):
                data, sender = self.socket.recvfrom(65536)
                message = json.loads(data)
                getattr(self, f"on_{message.pop('kind')}")(sender, **message)
            if time.monotonic() >= self.due:
                self.tick()

    # Who leads

    def follow(self, term, leader):
        """Take what a leader says, or wait for one."""
        if term > self.term:
            self.term, self.vote = term, None
        for _, request, client, _ in self.clients:
            self.send(client, kind="elsewhere", request=request, leader=leader)
        self.clients = []
        self.leader, self.votes = leader, None
        self.due = time.monotonic() + random.uniform(*ELECTION)

    def tick(self):
        if self.leader == self.name:
            self.refuse_late_clients()
            self.replicate()
            return
        self.follow(self.term + 1, None)
        self.vote, self.votes = self.name, {self.name}
        for other in self.others:
            self.send(other, kind="vote", term=self.term, candidate=self.name, last=self.last())

    def last(self):
        """Return term and index of the newest entry, by which logs are compared."""
        return [self.log[-1][0] if self.log else 0, len(self.log)]

    def on_vote(self, sender, term, candidate, last):
        if term > self.term:
            self.follow(term, None)
        granted = term == self.term and self.vote in {None, candidate} and last >= self.last()
        if granted:
            self.vote = candidate
            self.due = time.monotonic() + random.uniform(*ELECTION)
        self.send(sender, kind="voted", term=self.term, voter=self.name, granted=granted)

    def on_voted(self, sender, term, voter, granted):
        if term > self.term:
            self.follow(term, None)
        elif term == self.term and granted and self.votes is not None:
            self.votes.add(voter)
            if len(self.votes) >= self.majority:
                self.leader, self.votes = self.name, None
                self.known = dict.fromkeys(self.others, 0)  # how much of the log each is known to have
                self.next = dict.fromkeys(self.others, len(self.log) + 1)  # what each is sent next
                # Entries of earlier terms are committed together with one of this term, so there has to be one.
                self.log.append([self.term, "", 0])
                self.replicate()

    # The log

    def replicate(self):
        """Send each other member what it lacks; without an entry it is a heartbeat."""
        self.due = time.monotonic() + HEARTBEAT
        for other in self.others:
            before = self.next[other] - 1
            term = self.log[before - 1][0] if before else 0
            self.send(
                other,
                kind="append",
                term=self.term,
                leader=self.name,
                before=[term, before],
                entries=self.log[before:],
                committed=self.committed,
            )

    def on_append(self, sender, term, leader, before, entries, committed):
        if term >= self.term:
            self.follow(term, leader)
        index = before[1]
        fits = term == self.term and index <= len(self.log) and (not index or self.log[index - 1][0] == before[0])
        known = 0
        if fits:
            known = index + len(entries)
            if self.log[index:known] != entries:
                self.log[index:] = entries
            self.committed = max(self.committed, min(committed, known))
        self.send(sender, kind="appended", term=self.term, member=self.name, fits=fits, known=known, has=len(self.log))

    def on_appended(self, sender, term, member, fits, known, has):
        if term > self.term:
            self.follow(term, None)
        if term != self.term or self.leader != self.name:
            return
        if fits:
            self.known[member] = max(self.known[member], known)
            self.next[member] = self.known[member] + 1
        else:
            self.next[member] = max(self.known[member] + 1, min(self.next[member] - 1, has + 1))
        index = sorted([len(self.log), *self.known.values()])[-self.majority]  # that a majority has
        if index > self.committed and self.log[index - 1][0] == self.term:
            self.committed = index
            waiting, self.clients = self.clients, []
            for wanted, request, client, until in waiting:
                if wanted <= index:
                    self.send(client, kind="counted", request=request, total=self.total(wanted))
                else:
                    self.clients.append((wanted, request, client, until))

    def total(self, index):
        """Return what the counter shows after an entry."""
        return sum(number for _, _, number in self.log[:index])

    # Clients

    def on_add(self, sender, request, number):
        """Add a number; a request that is repeated, since an answer was lost, counts once."""
        if self.leader != self.name:
            self.send(sender, kind="elsewhere", request=request, leader=self.leader)
            return
        known = [index for index, entry in enumerate(self.log, 1) if entry[1] == request]
        if not known:
            self.log.append([self.term, request, number])
            known = [len(self.log)]
        if known[0] <= self.committed:
            self.send(sender, kind="counted", request=request, total=self.total(known[0]))
        elif request not in [waiting[1] for waiting in self.clients]:
            self.clients.append((known[0], request, sender, time.monotonic() + MAJORITY_SECONDS))
            self.replicate()

    def on_show(self, sender, request):
        """Show what this member knows, which may be old."""
        total = self.total(self.committed)
        self.send(sender, kind="shown", request=request, total=total, leader=self.leader, log=len(self.log))

    def refuse_late_clients(self):
        now = time.monotonic()
        for _, request, client, until in self.clients:
            if until <= now:
                self.send(client, kind="refused", request=request, reason=f"{self.name} has no majority")
        self.clients = [waiting for waiting in self.clients if waiting[-1] > now]

    def send(self, to, **message):
        """Send a message to a member by its name, or to the sender of another one."""
        # A network that has gone loses it, as any network may.
        with contextlib.suppress(OSError):
            self.socket.sendto(json.dumps(message).encode(), (to, PORT) if isinstance(to, str) else tuple(to))


class Client:
    """A client on a host of the network, in the process of the test."""

    def __init__(self, sock, members):
        self.socket, self.members = sock, members
        self.socket.settimeout(0.5)

    def ask(self, member, kind, request=None, **fields):
        """Return a member's answer, None if there is none."""
        request = request or str(uuid.uuid4())
        message = {"kind": kind, "request": request, **fields}
        self.socket.sendto(json.dumps(message).encode(), (member.ip4, PORT))
        with contextlib.suppress(TimeoutError):
            while True:
                answer = json.loads(self.socket.recv(65536))
                # One to an earlier request may come late.
                if answer.pop("request") == request:
                    return answer

    def add(self, number, members=None, seconds=30):
        """Add a number; return the total, or why a leader refuses that."""
        request = str(uuid.uuid4())
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for member in members or self.members:
                answer = self.ask(member, "add", request, number=number)
                if answer and answer["kind"] != "elsewhere":
                    return answer.get("total") or answer["reason"]
        raise TimeoutError(f"no answer within {seconds} seconds")

    def total(self, member):
        """Return the total that a member knows."""
        return self.wait([member], bool)[0]["total"]

    def wait(self, members, condition, seconds=30):
        """Return what each of the members shows, as soon as it fulfils a condition."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            shown = [self.ask(member, "show") for member in members]
            if None not in shown and condition(shown):
                return shown
        raise TimeoutError(f"not within {seconds} seconds: {shown}")


def test_no_side_of_a_partition_counts_without_a_majority(gpasst_network):
    lan = gpasst_network  # open for this test
    members = lan.hosts("a", "b", "c")
    for host in members:
        host.popen([sys.executable, __file__, host.name, *(member.name for member in members)])
        host.wait_bound("udp", PORT)
    # One client stays with the leader, the other one with the majority.
    left, right = lan.hosts("left", "right")
    with left.socket() as beside_leader, right.socket() as beside_majority:
        one, other = Client(beside_leader, members), Client(beside_majority, members)
        # One bad line is no trouble.
        with lan.link(members[0]).impair("udp: loss 20% delay 5ms±2ms seed 5"):
            assert [one.add(number) for number in (1, 2, 3)] == [1, 3, 6]

        (name,) = {shown["leader"] for shown in one.wait(members, agreed)}
        leader = next(host for host in members if host.name == name)
        rest = [host for host in members if host is not leader]
        with lan.partition([leader, left], [*rest, right]) as partition:
            # The old leader still takes itself for one, but nobody follows it.
            assert one.add(100, [leader]) == f"{name} has no majority"
            assert one.total(leader) == 6
            # Meanwhile the other two have chosen another one.
            assert other.add(4, rest) == 10
            assert one.total(leader) == 6
        assert partition.hits

        # The old leader takes over what it has missed, and forgets what it could not commit.
        assert other.add(5) == 15
        shown = one.wait(members, lambda shown: agreed(shown) and shown[0]["total"] == 15)
        assert len({member["log"] for member in shown}) == 1


def agreed(shown):
    """Return whether members have the same leader and total."""
    return shown[0]["leader"] and len({(member["leader"], member["total"]) for member in shown}) == 1


if __name__ == "__main__":
    Member(sys.argv[1], sys.argv[2:]).run()
