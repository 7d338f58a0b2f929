"""Which UDP sockets are bound: listed by the real kernel, and malformed replies that no kernel sends."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.errors import PlatformError
from gpasst.formats import PROTOCOL_UDP
from gpasst.helper.client import Helper, OpenRequest
from gpasst.host import sock_diag
from gpasst.host.kernel_wire import (
    INET_DIAG_CODEC,
    INET_DIAG_REQUEST_CODEC,
    NLMSG_CODEC,
    NLMSG_STATUS_CODEC,
    RTATTR_CODEC,
)
from gpasst.host.sock_diag import CHUNK_BYTES, BoundSocket, SockDiag
from gpasst.linux import (
    AF_NETLINK,
    INET_DIAG_SKV6ONLY,
    NETLINK_SOCK_DIAG,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOCK_DIAG_BY_FAMILY,
    SOCK_RAW,
    TCP_CLOSE,
)
from tests.support.addresses import ip
from tests.support.families import FAMILY

MANY = 1000
LOOPBACK_INDEX = 1
UNKNOWN_PROTOCOL = 253  # for experiments (RFC 3692)


def readable(descriptor: int) -> None:
    select.select([descriptor], [], [])


@pytest.fixture
def listing() -> Iterator[SockDiag]:
    """The host's sockets; see `tests.lab`."""
    try:
        here = SockDiag.here("udp")
    except PlatformError as error:
        pytest.skip(f"needs sock_diag: {error}")
    try:
        here.scan(readable)
    except PlatformError as error:
        here.close()
        pytest.skip(f"needs udp_diag: {error}")
    yield here
    here.close()


def udp(address: str, port: int = 0, only6: bool | None = None, device: str = "") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    if only6 is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only6)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.bind((address, port))
    return sock


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def find(listing: SockDiag, sock: socket.socket) -> BoundSocket | None:
    found = [one for one in listing.scan(readable).values() if one.inode == inode(sock)]
    assert len(found) <= 1
    return found[0] if found else None


# --- The kernel's answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "127.1.2.3", "::", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("device", ["", "lo"])
def test_what_is_told_of_a_socket(listing: SockDiag, address: str, device: str) -> None:
    only6 = address in ("::", "::1")
    with udp(address, only6=only6 or None, device=device) as sock:
        assert find(listing, sock) == BoundSocket(
            family=6 if ":" in address else 4,
            address=ip(address),
            port=sock.getsockname()[1],
            only6=only6,
            interface=LOOPBACK_INDEX if device else 0,
            inode=inode(sock),
        )


@pytest.mark.parametrize("only6", [False, True])
def test_dual_stack_is_told_from_ipv6_alone(listing: SockDiag, only6: bool) -> None:
    with udp("::", only6=only6) as sock:
        found = find(listing, sock)
        assert found is not None
        assert found.only6 is only6


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_connected_sockets_are_absent(listing: SockDiag, address: str) -> None:
    with udp(address) as peer, udp(address) as sock:
        assert find(listing, sock)
        sock.connect(peer.getsockname())
        assert find(listing, sock) is None
        assert find(listing, peer)


def test_unbound_and_other_sockets_are_absent(listing: SockDiag) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound, socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        assert find(listing, unbound) is None
        assert find(listing, tcp) is None


@pytest.mark.parametrize(
    ("address", "only6"), [("0.0.0.0", False), ("127.1.2.3", False), ("::", False), ("::", True), ("::1", True)]
)
def test_of_tcp_the_listening_sockets_are_listed(address: str, only6: bool) -> None:
    family = 6 if ":" in address else 4
    listing = SockDiag.here("tcp")
    with socket.socket(FAMILY[family]) as sock:
        if family == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only6)
        sock.bind((address, 0))
        try:
            assert find(listing, sock) is None
            sock.listen()
            port = sock.getsockname()[1]
            expected = BoundSocket(family, ip(address), port, only6, 0, inode(sock))
            assert find(listing, sock) == expected
            # What waits to be accepted changes nothing, and a connection is not listed.
            with socket.create_connection(({4: "127.1.2.3", 6: "::1"}[family], port), 2) as client:
                assert find(listing, sock) == expected
                assert find(listing, client) is None
        except PlatformError as error:
            pytest.skip(f"needs tcp_diag: {error}")
        finally:
            listing.close()


def test_sockets_that_share_a_port_are_told_apart(listing: SockDiag) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        one, other = find(listing, first), find(listing, second)
        assert one is not None
        assert other is not None
        assert (one.address, one.port) == (other.address, other.port)


def test_a_waiting_datagram_changes_nothing(listing: SockDiag) -> None:
    with udp("127.0.0.1") as sock, udp("127.0.0.1") as sender:
        before = listing.scan(readable)
        sender.sendto(b"wait", sock.getsockname())
        assert listing.scan(readable) == before


def test_scans_are_compared_by_their_keys(listing: SockDiag) -> None:
    with udp("127.0.0.1") as stays, udp("::1") as goes:
        before = listing.scan(readable)
        again = listing.scan(readable)
        assert len(before) >= 2
        assert again == before
        assert all(again[key] is before[key] for key in before)
        port = goes.getsockname()[1]
        goes.close()
        with udp("::1", port) as comes:
            after = listing.scan(readable)
            gone = [before[key] for key in before.keys() - after.keys()]
            new = [after[key] for key in after.keys() - before.keys()]
            assert [(one.family, one.port) for one in gone] == [(6, port)]
            assert [(one.port, one.inode) for one in new] == [(port, inode(comes))]
            assert any(one.inode == inode(stays) for one in after.values())
        assert listing.scan(readable).keys() == after.keys() - {key for key in after if after[key] is new[0]}


@contextmanager
def many_sockets() -> Iterator[set[int]]:
    """Bind many sockets of both families; yield their inodes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * MANY:
        pytest.skip(f"needs {2 * MANY} descriptors: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * MANY), hard))
    try:
        with ExitStack() as stack:
            made = [stack.enter_context(udp("::1" if i % 2 else "127.0.0.1")) for i in range(MANY)]
            yield {inode(sock) for sock in made}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_others_run_between_chunks(listing: SockDiag) -> None:
    waits: list[int] = []

    def wait(descriptor: int) -> None:
        waits.append(descriptor)
        readable(descriptor)

    with many_sockets() as inodes:
        for _ in range(2):  # the second knows every chunk
            waits.clear()
            found = listing.scan(wait)
            assert inodes <= {one.inode for one in found.values()}
            # More cannot fit: a socket takes its message, and two families have an end each.
            message = NLMSG_CODEC.size + INET_DIAG_CODEC.size
            assert len(waits) >= MANY * message // CHUNK_BYTES + 2
            assert len(set(waits)) == 1


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_a_scan_can_be_given_up(listing: SockDiag, seen: int) -> None:
    waits = iter(range(seen))

    def wait(descriptor: int) -> None:
        if next(waits, None) is None:
            raise KeyboardInterrupt
        readable(descriptor)

    with many_sockets() as inodes:
        with pytest.raises(KeyboardInterrupt):
            listing.scan(wait)
        assert inodes <= {one.inode for one in listing.scan(readable).values()}


def test_a_socket_lists_the_namespace_it_was_made_in(listing: SockDiag) -> None:
    try:
        helper = Helper.start()
        namespace = helper.open(OpenRequest(tap=False))
    except PlatformError as error:
        pytest.skip(f"needs network namespaces: {error}")
    with helper, namespace, udp("0.0.0.0") as outside:
        (descriptor,) = namespace.sockets(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG)
        theirs = SockDiag(descriptor, "udp")
        assert theirs.scan(readable) == {}
        (descriptor,) = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(fileno=descriptor) as inside:
            inside.bind(("0.0.0.0", outside.getsockname()[1]))
            assert [one.inode for one in theirs.scan(readable).values()] == [inode(inside)]
            assert find(listing, inside) is None
            assert find(listing, outside)
        theirs.close()


def test_a_protocol_that_the_kernel_does_not_list(monkeypatch: pytest.MonkeyPatch, listing: SockDiag) -> None:
    # The answer of a kernel without udp_diag.
    request = bytearray(sock_diag._REQUESTS["udp"][0])  # noqa: SLF001  # but for one byte the kernel's answer is the real one
    at = NLMSG_CODEC.size + INET_DIAG_REQUEST_CODEC.offset("protocol")
    assert request[at] == PROTOCOL_UDP
    request[at] = UNKNOWN_PROTOCOL
    with monkeypatch.context() as patch:
        patch.setitem(sock_diag._REQUESTS, "udp", (bytes(request),))  # noqa: SLF001  # likewise
        with pytest.raises(PlatformError, match="No such file") as caught:
            listing.scan(readable)
        assert "udp_diag" in caught.value.remedy
    assert isinstance(listing.scan(readable), dict)


def test_a_kernel_without_sock_diag(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(sock_diag, "RawSocket", refuse)
    with pytest.raises(PlatformError, match="not supported") as caught:
        SockDiag.here("udp")
    assert caught.value.remedy


def test_closed_descriptors(listing: SockDiag) -> None:
    listing.close()
    listing.close()
    with pytest.raises(PlatformError):
        listing.scan(readable)
    with pytest.raises(OSError, match="Bad file descriptor"):
        SockDiag(1 << 20, "udp")


# --- Made answers -------------------------------------------------------------------------------------------


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    head = NLMSG_CODEC.pack(length=NLMSG_CODEC.size + len(body), type=kind, flags=flags)
    return head + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    head = RTATTR_CODEC.pack(length=RTATTR_CODEC.size + len(value), type=kind)
    return head + value + bytes(-len(value) % 4)


def status(error: int, kind: int = NLMSG_DONE) -> bytes:
    return message(kind, NLMSG_STATUS_CODEC.pack(error=error))


def reported(family: int, port: int, attributes: bytes = b"", flags: int = 0) -> bytes:
    """A socket as the kernel lists it."""
    body = INET_DIAG_CODEC.pack(family=FAMILY[family], state=TCP_CLOSE, source_port=port, inode=port)
    return message(SOCK_DIAG_BY_FAMILY, body + attributes, flags)


@contextmanager
def kernel(*answers: bytes) -> Iterator[tuple[SockDiag, Callable[[int], None]]]:
    """A kernel that sends these chunks, one at each wait, and then ends."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    remaining = iter(answers)

    def wait(_: int) -> None:
        chunk = next(remaining, b"")
        if chunk:
            theirs.send(chunk)
        else:
            theirs.close()

    listing = SockDiag(ours.detach(), "udp")
    try:
        yield listing, wait
    finally:
        listing.close()
        theirs.close()


DONE = status(0)
SHUTDOWN = attribute(8, b"\0")


def test_a_made_answer() -> None:
    dual = reported(6, 3, SHUTDOWN + attribute(INET_DIAG_SKV6ONLY, b"\0"))
    only6 = reported(6, 4, attribute(INET_DIAG_SKV6ONLY, b"\1") + SHUTDOWN)
    with kernel(reported(4, 1) + reported(4, 2, SHUTDOWN), DONE, reported(6, 5) + dual, only6 + DONE) as (
        listing,
        wait,
    ):
        found = listing.scan(wait)
    assert sorted((one.family, one.port, one.only6) for one in found.values()) == [
        (4, 1, False),
        (4, 2, False),
        (6, 3, False),
        (6, 4, True),
        (6, 5, False),
    ]
    assert {len(one.address) for one in found.values() if one.family == 4} == {4}


def test_an_interrupted_list_is_asked_for_once_more() -> None:
    broken = [reported(4, 1, flags=NLM_F_DUMP_INTR), DONE]
    with kernel(*broken, reported(4, 2), DONE, DONE) as (listing, wait):
        assert {one.port for one in listing.scan(wait).values()} == {1, 2}
    with kernel(*broken, *broken, DONE) as (listing, wait):
        assert {one.port for one in listing.scan(wait).values()} == {1}
    with kernel(reported(4, 1), message(NLMSG_DONE, bytes(4), NLM_F_DUMP_INTR), DONE, DONE) as (listing, wait):
        assert {one.port for one in listing.scan(wait).values()} == {1}


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.EBUSY])
@pytest.mark.parametrize("kind", [NLMSG_DONE, NLMSG_ERROR])
def test_errors_have_words_and_a_remedy(number: int, kind: int) -> None:
    with kernel(reported(4, 1), status(-number, kind)) as (listing, wait):
        with pytest.raises(PlatformError) as caught:
            listing.scan(wait)
    assert os.strerror(number) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.EINTR])
def test_after_an_error_of_one_scan_the_next_one_lists(number: int) -> None:
    with kernel(reported(4, 1), status(-number), reported(4, 2), DONE, DONE) as (listing, wait):
        with pytest.raises(PlatformError):
            listing.scan(wait)
        assert {one.port for one in listing.scan(wait).values()} == {2}


@pytest.mark.parametrize(
    "answer",
    [
        status(0, NLMSG_ERROR),  # nobody asked for an acknowledgement
        status(1),
        status(-(1 << 31)),
        status(1, NLMSG_ERROR),
        message(NLMSG_DONE, b""),
        message(SOCK_DIAG_BY_FAMILY, b"\2"),
        reported(6, 1, b"\4"),
        reported(6, 1, bytes(4)),
        reported(6, 1, b"\3\0\0\0"),
        bytes(NLMSG_CODEC.size),
        NLMSG_CODEC.pack(length=NLMSG_CODEC.size - 1, type=NLMSG_DONE, flags=0) + bytes(4),
        NLMSG_CODEC.pack(length=NLMSG_CODEC.size + 5, type=NLMSG_DONE, flags=0) + bytes(4),
        reported(4, 1) + b"\0",
    ],
    ids=range(13),
)
def test_malformed_answers(answer: bytes) -> None:
    with kernel(answer, DONE, DONE) as (listing, wait):
        with pytest.raises(PlatformError, match="cannot be understood"):
            listing.scan(wait)


def test_messages_of_other_kinds_are_skipped() -> None:
    with kernel(message(1, b""), message(99, b"odd") + reported(4, 1), DONE, DONE) as (listing, wait):
        assert {one.port for one in listing.scan(wait).values()} == {1}


def test_an_answer_that_breaks_off() -> None:
    answer = reported(6, 1, SHUTDOWN + attribute(INET_DIAG_SKV6ONLY, b"\1")) + DONE
    for length in range(len(answer)):
        with kernel(answer[:length], DONE, DONE) as (listing, wait):
            if length == len(answer) - len(DONE):
                assert len(listing.scan(wait)) == 1
            else:
                with pytest.raises(PlatformError):
                    listing.scan(wait)


@settings(max_examples=300)
@given(st.data())
def test_bytes_of_any_kind_raise_only_platform_errors(data: st.DataObject) -> None:
    good = [reported(4, 1, SHUTDOWN), reported(6, 2, SHUTDOWN + attribute(INET_DIAG_SKV6ONLY, b"\1")), DONE]
    chunks = data.draw(
        st.lists(st.lists(st.sampled_from(good) | st.binary(max_size=30), min_size=1).map(b"".join), max_size=4)
    )
    spoiled = []
    for chunk in chunks:
        changed = bytearray(chunk)
        for at in data.draw(st.lists(st.integers(0, max(0, len(chunk) - 1)), max_size=3)):
            if chunk:
                changed[at] = data.draw(st.integers(0, 255))
        spoiled.append(bytes(changed))
    with kernel(*spoiled) as (listing, wait):
        try:
            found = listing.scan(wait)
        except PlatformError as error:
            assert str(error)
        else:
            assert all(len(one.address) == {4: 4, 6: 16}[one.family] for one in found.values())
