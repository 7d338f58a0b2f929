"""Where guests connect: which paths are free, what is replaced, and what is left alone."""

from __future__ import annotations

import os
import resource
import socket
import stat
import tempfile
from _socket import socket as RawSocket  # a class
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from gpasst.counters import Counters, Drop
from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.link import listener as listener_module
from gpasst.link.listener import PATH_BYTES, GuestListener, peer_process, peer_user, prepare_guest
from gpasst.link.port import LinkGone
from gpasst.link.stream import Stream
from gpasst.path.tcp_departure import TcpDeparture
from gpasst.proxy import guest_session
from gpasst.proxy.guest_session import GuestSession


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, wherever pytest's own is."""
    with tempfile.TemporaryDirectory(prefix="gpasst-") as name:
        yield Path(name)


@pytest.fixture
def probed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the paths that are tried where none is named."""
    monkeypatch.setattr(listener_module, "PROBED", str(folder / "passt_{}.socket"))
    return folder


@contextmanager
def connected(path: Path | str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(2)
        sock.connect(str(path))
        yield sock


def leave_stale(path: Path) -> None:
    """Leave a socket file behind that nobody listens at."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused(path: Path | str, kind: type[GpasstError], message: str) -> None:
    """Open a listener in vain: one line, and nothing stays open."""
    before = descriptors()
    with pytest.raises(kind, match=message) as caught:
        GuestListener(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert descriptors() == before


def test_a_guest_connects_to_the_path_asked_for(folder: Path) -> None:
    with closing(GuestListener(str(folder / "vm"))) as listener:
        assert listener.path == str(folder / "vm")
        assert listener.accept() is None, "nobody has come yet"
        with connected(listener.path) as guest:
            sock = listener.accept()
            assert sock is not None
            with closing(prepare_guest(sock)):
                guest.send(b"x")
                assert sock.recv(9) == b"x"
                with pytest.raises(BlockingIOError):
                    sock.recv(9)
                assert (peer_process(sock), peer_user(sock)) == (os.getpid(), os.geteuid())
    assert not list(folder.iterdir()), "the file goes with the listener"


def test_a_guest_that_has_left_before_it_is_accepted(folder: Path) -> None:
    with closing(GuestListener(str(folder / "vm"))) as listener:
        with connected(listener.path) as guest:
            guest.send(b"short visit")
        sock = listener.accept()
        assert sock is not None
        with closing(prepare_guest(sock)):
            assert (sock.recv(99), sock.recv(99)) == (b"short visit", b"")


def test_the_first_of_the_usual_paths(probed: Path) -> None:
    with closing(GuestListener("")) as first, closing(GuestListener("")) as second:
        assert first.path == str(probed / "passt_1.socket")
        assert second.path == str(probed / "passt_2.socket"), "the first is in use"
    with closing(GuestListener("")) as again:
        assert again.path == first.path


def test_of_the_usual_paths_stale_sockets_are_taken_and_other_files_left_alone(probed: Path) -> None:
    (probed / "passt_1.socket").write_text("somebody's", encoding="ascii")
    (probed / "passt_2.socket").mkdir()
    (probed / "passt_3.socket").symlink_to(probed / "nowhere")
    leave_stale(probed / "passt_4.socket")
    with closing(GuestListener("")) as listener:
        assert listener.path == str(probed / "passt_4.socket")
        with connected(listener.path):
            pass
    assert (probed / "passt_1.socket").read_text(encoding="ascii") == "somebody's"
    assert (probed / "passt_3.socket").is_symlink()


def test_of_the_usual_paths_stale_sockets_of_others_are_left_alone(
    probed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_stale(probed / "passt_1.socket")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with closing(GuestListener("")) as listener:
        assert listener.path == str(probed / "passt_2.socket")


def test_none_of_the_usual_paths_is_free(probed: Path) -> None:
    for number in range(1, 100):
        (probed / f"passt_{number}.socket").touch()
    refused("", PlatformError, "no free path among /tmp/passt_1.socket to /tmp/passt_99.socket")


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    path = folder / "vm"
    leave_stale(path)
    before = path.lstat().st_ino, path.lstat().st_ctime_ns
    with closing(GuestListener(str(path))) as listener:
        assert (path.lstat().st_ino, path.lstat().st_ctime_ns) != before
        with connected(listener.path):
            pass


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_path_in_use_is_refused(folder: Path, kind: int) -> None:
    path = folder / "vm"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            other.listen()
        refused(path, PlatformError, f"--socket {path} is in use")
        assert path.exists()


def test_a_path_whose_user_is_busy_is_in_use(folder: Path) -> None:
    path = folder / "vm"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        with connected(path):
            # A further connection would have to wait.
            refused(path, PlatformError, "is in use")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_refused_and_left_alone(folder: Path, kind: str) -> None:
    path = folder / "vm"
    if kind == "file":
        path.write_text("precious", encoding="ascii")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    before = path.lstat()
    refused(path, ConfigurationError, f"--socket {path} exists and is no socket")
    after = path.lstat()
    # Looking where a link leads changes the time of its last access.
    assert (after.st_mode, after.st_ino, after.st_ctime_ns) == (before.st_mode, before.st_ino, before.st_ctime_ns)


def test_a_path_of_107_bytes_and_one_of_108(folder: Path) -> None:
    longest = str(folder / ("x" * (PATH_BYTES - len(str(folder)) - 1)))
    with closing(GuestListener(longest)), connected(longest):
        pass
    refused(longest + "x", ConfigurationError, "is longer than 107 bytes")
    wide = longest[:-1] + "é"
    assert len(wide) == PATH_BYTES
    refused(wide, ConfigurationError, "is longer than 107 bytes")


def test_a_path_that_cannot_be(folder: Path) -> None:
    refused(folder / "nosuch" / "vm", PlatformError, "nosuch/vm: No such file or directory")
    (folder / "file").touch()
    refused(folder / "file" / "vm", PlatformError, "--socket .*/file/vm")
    refused("\0abstract", ConfigurationError, "--socket")
    refused(str(folder / "a\0b"), ConfigurationError, "--socket")


def test_closing_removes_only_its_own_file(folder: Path) -> None:
    path = folder / "vm"
    first = GuestListener(str(path))
    path.rename(folder / "moved")
    with closing(GuestListener(str(path))) as second:
        first.close()
        assert stat.S_ISSOCK(path.lstat().st_mode)
        with connected(second.path):
            pass
    assert [entry.name for entry in folder.iterdir()] == ["moved"]


def test_closing_twice_or_without_the_file_is_no_error(folder: Path) -> None:
    listener = GuestListener(str(folder / "vm"))
    os.unlink(listener.path)
    listener.close()
    listener.close()


def socket_pair(kind: int = socket.SOCK_STREAM) -> tuple[RawSocket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    theirs.settimeout(2)
    return RawSocket(fileno=ours.detach()), theirs


def test_a_guests_socket_has_room_and_never_waits() -> None:
    ours, theirs = socket_pair()
    with closing(ours), theirs:
        before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert prepare_guest(ours) is ours
        assert ours.gettimeout() == 0
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before


@pytest.mark.parametrize("kind", ["datagram", "packet", "unconnected", "listening", "pipe"])
def test_what_is_no_connected_stream_socket_is_refused(folder: Path, kind: str) -> None:
    opened: list[Any] = []
    if kind in ("datagram", "packet"):
        opened += socket_pair(socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_SEQPACKET)
    else:
        opened.append(RawSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0))
        if kind == "listening":
            opened[0].bind(str(folder / "vm"))
            opened[0].listen(1)
        elif kind == "pipe":
            opened[0].close()
    try:
        with pytest.raises(ConfigurationError, match="is not a connected stream socket"):
            prepare_guest(opened[0])
    finally:
        for sock in opened:
            sock.close()


class House:
    """Guests with everything around them in sight; watchers are called by hand."""

    def __init__(
        self, source: GuestListener | RawSocket, once: bool = False, departure: TcpDeparture | None = None
    ) -> None:
        self.calls: dict[Any, Any] = {}
        self.greeted = self.ended = 0
        self.idle: list[int] = []
        self.moves: list[Any] = []
        self.counters = Counters()
        self.stream = Stream(self.counters, lambda sock, empty: None, lambda: None)
        self.guests = GuestSession(
            source,
            self.stream,
            self,
            self.calls.__setitem__,
            lambda sock: self.calls.pop(sock, None),
            self.wake,
            self.greet,
            self.let_go,
            self.end,
            once,
            departure,
        )
        self.guests.open()

    def connect(self) -> None:
        """Be the downward path that begins anew."""
        self.moves.append("connect")

    def step(self) -> int:
        """Be the downward path that moves frames."""
        assert self.stream.socket is not None
        try:
            data = self.stream.socket.recv(99)
        except OSError as error:
            raise LinkGone(error.strerror) from error
        if not data:
            raise LinkGone("end of stream")
        self.moves.append(data)
        return 1

    def wake(self) -> None:
        self.guests.step()

    def greet(self) -> None:
        self.greeted += 1
        self.stream.write_frame(bytes(60))

    def let_go(self) -> bool:
        """Close an idle socket."""
        if self.idle:
            os.close(self.idle.pop())
            return True
        return False

    def end(self) -> None:
        self.ended += 1

    def readable(self, sock: Any) -> None:
        self.calls[sock]()


class Departure:
    """The end of a guest's connections, which lasts until a test calls `then`."""

    def __init__(self) -> None:
        self.then: Callable[[], None] | None = None

    def begin(self, then: Callable[[], None]) -> None:
        self.then = then


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes of the guests that connect next, the last one for all others."""
    found = [1]
    monkeypatch.setattr(guest_session, "peer_process", lambda sock: found.pop(0) if found[1:] else found[0])
    return found


def test_another_guest_is_let_in_when_the_connections_of_the_one_before_have_ended(
    folder: Path, processes: list[int]
) -> None:
    listener, departure = GuestListener(str(folder / "vm")), Departure()
    house = House(listener, departure=cast(TcpDeparture, departure))
    for process in (1, 2):
        processes[:] = [process]
        with connected(listener.path) as guest:
            house.readable(listener.socket)
            assert house.stream.socket is None, "it waits"
            with connected(listener.path) as second:
                house.readable(listener.socket)
                assert second.recv(99) == b"", "refused at once"
            assert departure.then
            departure.then()
            assert house.stream.socket is not None
            assert guest.recv(99) == (60).to_bytes(4, "big") + bytes(60)
            departure.then = None
        house.readable(house.stream.socket)
    house.guests.close()


def test_a_guest_that_connects_again_is_let_in_at_once(folder: Path, processes: list[int]) -> None:
    listener, departure = GuestListener(str(folder / "vm")), Departure()
    house = House(listener, departure=cast(TcpDeparture, departure))
    for turn in range(3):
        with connected(listener.path):
            house.readable(listener.socket)
            if not turn:
                assert departure.then
                departure.then()
                departure.then = None
            assert house.stream.socket is not None
            assert departure.then is None
        house.readable(house.stream.socket)
    house.guests.close()


def test_guests_without_a_number_are_different_ones(folder: Path, processes: list[int]) -> None:
    listener, departure = GuestListener(str(folder / "vm")), Departure()
    house = House(listener, departure=cast(TcpDeparture, departure))
    processes[:] = [0]
    for _ in range(2):
        with connected(listener.path):
            house.readable(listener.socket)
            assert departure.then
            departure.then()
            departure.then = None
        house.readable(house.stream.socket)
    house.guests.close()


def test_a_guest_that_waits_when_the_session_ends_is_let_go(folder: Path, processes: list[int]) -> None:
    listener, departure = GuestListener(str(folder / "vm")), Departure()
    house = House(listener, departure=cast(TcpDeparture, departure))
    with connected(listener.path) as guest:
        house.readable(listener.socket)
        house.guests.close()
        assert guest.recv(99) == b""
        assert departure.then
        departure.then()
        assert (house.stream.socket, house.calls) == (None, {})


def test_guests_come_one_at_a_time_and_one_after_the_other(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    listener = GuestListener(str(folder / "vm"))
    house = House(listener)
    house.readable(listener.socket)
    assert house.stream.socket is None, "nobody there, and no harm done"
    for turn in (1, 2):
        with connected(listener.path) as guest:
            house.readable(listener.socket)
            assert guest.recv(99) == (60).to_bytes(4, "big") + bytes(60)
            with connected(listener.path) as second:
                house.readable(listener.socket)
                assert second.recv(99) == b"", "refused at once"
            assert f"a second guest was refused: process {os.getpid()}" in caplog.text
            guest.send(b"last words")
        served = house.stream.socket
        house.readable(served)
        house.readable(served)
        assert house.stream.socket is None
        assert list(house.calls) == [listener.socket]
        assert house.moves == ["connect", b"last words"] * turn
        assert (house.greeted, house.ended) == (turn, 0)
    house.guests.close()
    assert not house.calls
    assert not list(folder.iterdir())


def test_a_guest_that_comes_before_the_last_one_was_missed(folder: Path) -> None:
    listener = GuestListener(str(folder / "vm"))
    house = House(listener)
    with connected(listener.path) as first:
        house.readable(listener.socket)
        first.send(bytes(150))
    served = house.stream.socket
    with connected(listener.path) as second:
        for moves in ([bytes(99)], [bytes(99), bytes(51)], [bytes(99), bytes(51)]):
            house.readable(listener.socket)
            assert house.stream.socket is served, "it waits for the rest, a step of the reader at a time"
            house.readable(served)
            assert house.moves == ["connect", *moves]
        house.readable(listener.socket)
        assert second.recv(99), "greeted"
        assert house.moves == ["connect", bytes(99), bytes(51), "connect"]
        assert house.greeted == 2
    house.guests.close()


def test_a_guest_that_only_stopped_reading_is_still_there(folder: Path) -> None:
    listener = GuestListener(str(folder / "vm"))
    house = House(listener)
    with connected(listener.path) as first:
        house.readable(listener.socket)
        first.shutdown(socket.SHUT_RD)
        first.send(bytes(150))
        with connected(listener.path) as second:
            for _ in range(2):
                house.readable(listener.socket)
                house.readable(house.stream.socket)
            house.readable(listener.socket)
            assert second.recv(99) == b""
        assert house.moves == ["connect", bytes(99), bytes(51)]
    house.guests.close()


def test_after_the_only_guest_nobody_is_let_in(folder: Path) -> None:
    listener = GuestListener(str(folder / "vm"))
    house = House(listener, once=True)
    with connected(listener.path):
        house.readable(listener.socket)
    house.readable(house.stream.socket)
    assert house.ended == 1
    assert not house.calls
    assert not list(folder.iterdir()), "whoever comes now is refused by the kernel"
    house.guests.close()


def test_a_socket_that_was_handed_over_is_served_at_once() -> None:
    ours, theirs = socket_pair()
    house = House(ours, once=True)
    with theirs:
        assert theirs.recv(99) == (60).to_bytes(4, "big") + bytes(60)
        theirs.send(b"x")
        house.readable(ours)
    house.readable(ours)
    assert (house.greeted, house.ended, house.moves) == (1, 1, ["connect", b"x"])
    assert ours.fileno() == -1
    house.guests.close()


def test_letting_go_of_a_guest_tells_it(folder: Path) -> None:
    listener = GuestListener(str(folder / "vm"))
    house = House(listener)
    with connected(listener.path) as guest:
        house.readable(listener.socket)
        house.guests.close()
        assert guest.recv(99) and not guest.recv(99)
    assert not house.counters.drops[Drop.INTERNAL]


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Lower this process's limit of open files to those that are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_guest_that_no_descriptor_is_left_for_waits(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    listener = GuestListener(str(folder / "vm"))
    house = House(listener)
    with connected(listener.path) as guest:
        for _ in range(2):
            with no_descriptor_left():
                house.readable(listener.socket)
                assert not house.calls, "the socket stays readable, so it must not be watched"
            house.guests.scan()
        assert caplog.text.count("a guest has to wait: Too many open files") == 1
        house.readable(listener.socket)
        assert guest.recv(99), "greeted"
    house.guests.close()


def test_an_idle_socket_makes_room_for_a_guest(folder: Path) -> None:
    listener = GuestListener(str(folder / "vm"))
    house = House(listener)
    with connected(listener.path) as guest:
        house.idle.append(os.dup(0))
        with no_descriptor_left():
            house.readable(listener.socket)
            house.readable(listener.socket)
            assert guest.recv(99), "greeted"
    house.guests.close()


def test_a_session_that_ends_while_a_guest_waits_is_over(folder: Path) -> None:
    listener = GuestListener(str(folder / "vm"))
    house = House(listener)
    with connected(listener.path), no_descriptor_left():
        house.readable(listener.socket)
    house.guests.close()
    house.guests.scan()
    assert not house.calls
