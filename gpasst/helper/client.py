"""The caller's side of the helper process.

    helper = Helper.start()                      # returns at once; the process goes on importing
    facts = helper.facts()
    namespace = helper.open(OpenRequest(configure=True, addresses=(("192.0.2.2", 24),)))
    descriptors = namespace.sockets(AF_INET, SOCK_DGRAM, 0, 16)
    argv, pass_fds = enter_command(namespace, ["ip", "address"])
    subprocess.run(argv, pass_fds=pass_fds)

Theory of operation: the caller may be monkey-patched by gevent or not, may have threads, and may watch children or not.
So nothing here depends on what gevent replaces: sockets are those of the C module, the process is made with posix_spawn
and awaited with waitpid of the `posix` module (gevent replaces the names in `os`), and no callback on a child's end is
used at all. Where an answer must be awaited, the caller says how with `wait`, a function that returns when a descriptor
is readable (`gevent.socket.wait_read` in a greenlet); without it the thread blocks.

Any number of threads and greenlets may use one `Helper` at once: each request makes a pair of sockets and sends one of
them to the helper, which is one atomic system call, and awaits its answer on the other. That connection is the channel
of the namespace afterwards.

NOTE: a child forked by the caller without exec holds the channels open too, and the helper with them.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import posix
import signal
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import gpasst
from gpasst.errors import PlatformError
from gpasst.helper.channel import LIMIT_REMEDY, Channel, Message, PeerEndedError, Wait, close_all, pair
from gpasst.helper.kept import Copies, Namespace
from gpasst.helper.request import OpenRequest, Route, to_message
from gpasst.records import replace

if TYPE_CHECKING:
    from gpasst.helper.facts import HostFacts

Confined = tuple[tuple[str, ...], tuple[str, ...]]

__all__ = ["Helper", "Namespace", "OpenRequest", "Route", "Wait", "enter_command"]

CHANNEL_FD = 3  # the helper's, after standard input, output and error
ABOVE_CHANNEL = 10  # where our copy goes, so that it never *is* the number it shall get
START_REMEDY = "see that this user may run the interpreter, and that no limit of processes or files is reached"
END_SECONDS = 2.0  # a helper that is busy with a request takes some milliseconds
BLOCKED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
DEFAULTED = (signal.SIGCHLD, signal.SIGPIPE)
# Threads that come and go would each leave behind an allocator's arena that has grown.
HELPER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
BOOTSTRAP = "import sys; sys.path += {path!r}; from gpasst.helper.server import main; main({descriptor})"


class Helper:
    """The helper process of a program, for all its threads and greenlets. Its namespaces live on when it is closed.

    It is closed as well when nothing refers to it any more.
    """

    def __init__(self, channel: Channel, pid: int) -> None:
        self._channel = channel
        self._owner = os.getpid()
        self.pid = pid
        self._finalizer = weakref.finalize(self, _abandon, channel, pid)

    @classmethod
    def start(cls, forks: bool = False) -> Helper:
        """Start the process and return without waiting for it.

        :param forks: make it of a fork of this process, which has most of its modules, instead of a new interpreter;
            only for a program that has no threads and no event loop yet.
        :raises PlatformError: if it cannot be started.
        """
        _reap()
        try:
            ours, theirs = pair()
            try:
                pid = (_fork if forks else _spawn)(theirs.fileno())
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
        except OSError as error:
            raise PlatformError(
                f"cannot start the helper process {sys.executable}: {error.strerror}", START_REMEDY
            ) from None
        return cls(Channel(ours), pid)

    @property
    def alive(self) -> bool:
        """Whether requests reach the process: it was neither closed nor killed."""
        return self._channel.fileno() >= 0 and self._channel.connected()

    def facts(self, wait: Wait | None = None) -> HostFacts:
        """Return links, addresses, routes and ephemeral ports of the namespace that the helper was started in.

        :raises PlatformError: if the helper has ended, or netlink refuses to list them.
        """
        reply, received, connection = self._call({"do": "facts"}, wait)
        close_all(received)
        connection.close()
        facts: HostFacts = reply["facts"]
        return facts

    def open(self, request: OpenRequest, wait: Wait | None = None) -> Namespace:
        """Create or join a namespace and make the tap device in it.

        :raises ConfigurationError: if the request names what does not exist, or what the kernel refuses.
        :raises PlatformError: if a permission or a limit is in the way, or the helper has ended.
        """
        if request.netns:
            request = _absolute(request)
        reply, received, connection = self._call({"do": "open", "request": to_message(request)}, wait)
        return Namespace(reply, dict(zip(reply["descriptors"], received, strict=True)), connection)

    def remove_at_end(self, path: str, runas: tuple[int, int] | None, wait: Wait | None = None) -> Confined:
        """Have the process do one thing more: remove a file when this process has ended, however that happens.

        It enters a sandbox for that, and answers no other requests.

        :param path: of the file; another file that is there then stays.
        :param runas: user and group id to take on first.
        :return: what is in force in the sandbox, and a line for each part that is not.
        :raises PlatformError: if the helper has ended.
        """
        reply, received, connection = self._call({"do": "remove", "path": path, "runas": runas}, wait)
        close_all(received)
        connection.close()
        return tuple(reply["held"]), tuple(reply["missing"])

    def close(self, wait: Wait | None = None) -> None:
        """End the process and wait until it is gone; more calls do nothing.

        In a child that was forked since, which shares the connection, this closes the child's copy only.
        """
        if self._finalizer.detach() is None:
            return
        if self._owner != os.getpid():
            self._channel.close()
            return
        ended = self._channel.finish(END_SECONDS, wait)
        self._channel.close()
        try:
            if not ended:
                os.kill(self.pid, signal.SIGKILL)
            # Its end of the channel is closed, so it is a matter of microseconds.
            posix.waitpid(self.pid, 0)
        except OSError:
            return  # an event loop that watches children has reaped it, or a sandbox permits no signal

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, message: Message, wait: Wait | None) -> tuple[Message, list[int], Channel]:
        """Make a request over a connection of its own, which is the caller's from now on.

        :raises GpasstError: the error that the helper reports.
        :raises PlatformError: if the helper has ended, or there are too many open files.
        """
        if self._channel.fileno() < 0:
            raise PlatformError("the helper process was closed", "open another Pasta or Passt")
        try:
            ours, theirs = pair()
        except OSError as error:
            raise PlatformError(f"cannot connect to the helper process: {error.strerror}", LIMIT_REMEDY) from None
        connection = Channel(ours)
        try:
            self._send_end(theirs)
            reply, received = connection.call(message, wait)
        except PeerEndedError:
            connection.close()
            if self.alive:
                raise PlatformError(
                    "a process of the helper was killed", "see whether memory or process limits are reached"
                ) from None
            raise
        except BaseException:
            connection.close()
            raise
        return reply, received, connection

    def _send_end(self, sock: _socket.socket) -> None:
        """Send the helper its end of a connection, and close it here; the call over it notices if that fails."""
        try:
            self._channel.send({}, [sock.fileno()])
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            sock.close()


def enter_command(
    namespace: Namespace | Copies,
    argv: Sequence[str],
    init: bool = False,
    runas: tuple[int, int] | None = None,
    ready: int | None = None,
    resolver_file: str = "",
    live_files: Mapping[str, str] | None = None,
) -> tuple[list[str], tuple[int, ...]]:
    """Return the command line that runs `argv` in the namespace, and the descriptors to inherit (`pass_fds`).

    This process has to start it. The command is killed when the thread that did ends, however that happens.

    :param init: run it as process 1 of new PID and mount namespaces.
    :param runas: user and group id to take on first; those the namespace was opened with.
    :param ready: writing end of a pipe, whose reading end ends when the command has been executed.
    :param resolver_file: what the command finds in /etc/resolv.conf, empty for what everybody does.
    :param live_files: paths of files that cover others for the command, which sees them change, by what they cover; the
        command's user must be able to reach them.
    :raises PlatformError: if there is no interpreter to run it with.
    """
    command = [*_interpreter(), os.path.join(os.path.dirname(__file__), "enter.py"), "--tied", str(os.getpid())]
    inherited: list[int] = []
    for option in ("userns", "netns", "uts", "ipc"):
        descriptor: int | None = getattr(namespace, option)
        if descriptor is not None:
            command += [f"--{option}", str(descriptor)]
            inherited.append(descriptor)
    if runas:
        command += ["--runas", f"{runas[0]}:{runas[1]}"]
    if init:
        command.append("--init")
    if resolver_file:
        command += ["--resolver-file", resolver_file]
    for target, path in (live_files or {}).items():
        command += ["--live-file", target, path]
    if ready is not None:
        command += ["--ready", str(ready)]
        inherited.append(ready)
    return [*command, "--", *argv], tuple(inherited)


def _absolute(request: OpenRequest) -> OpenRequest:
    # The helper has left the caller's directory.
    return replace(
        request,
        netns=os.path.abspath(request.netns) if request.netns else None,
        userns=os.path.abspath(request.userns) if request.userns else None,
    )


# Processes of helpers that ended with the last reference to them, and are to be awaited.
_abandoned: list[int] = []


def _abandon(channel: Channel, pid: int) -> None:
    # May run at any time in any thread, wherever the collector does: no lock, no wait.
    channel.close()
    _abandoned.append(pid)


def _reap() -> None:
    for _ in range(len(_abandoned)):
        try:
            pid = _abandoned.pop()
        except IndexError:
            return  # another thread was faster
        try:
            if posix.waitpid(pid, posix.WNOHANG)[0] == 0:
                _abandoned.insert(0, pid)
        except ChildProcessError:
            continue  # an event loop that watches children has reaped it, or it is the parent's


def _interpreter() -> list[str]:
    if not sys.executable:
        raise PlatformError("the Python interpreter has no name", "run in an ordinary interpreter, not an embedded one")
    return [sys.executable, "-I", "-S", *(["-B"] if sys.dont_write_bytecode else [])]


def _fork(channel: int) -> int:
    """Return the process that serves a channel: a child of this program."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        pid = posix.fork()
        if pid == 0:
            _serve(channel)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _serve(channel: int) -> NoReturn:
    try:
        from gpasst.helper.server import main

        for number in DEFAULTED:
            signal.signal(number, signal.SIG_DFL)
        main(channel)
    finally:
        os._exit(1)


def _spawn(channel: int) -> int:
    package = os.path.dirname(os.path.abspath(gpasst.__file__))
    # Where the caller found the package, then what it searches itself. Running site would take longer.
    path = [os.path.dirname(package), *(os.path.abspath(entry) for entry in sys.path)]
    code = BOOTSTRAP.format(path=path, descriptor=CHANNEL_FD)
    moved = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, ABOVE_CHANNEL)
    try:
        return posix.posix_spawn(
            sys.executable,
            [*_interpreter(), "-c", code],
            {**os.environ, **HELPER_ENVIRONMENT},
            file_actions=[
                (posix.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (posix.POSIX_SPAWN_DUP2, 0, 1),
                (posix.POSIX_SPAWN_DUP2, moved, CHANNEL_FD),
            ],
            setsigmask=BLOCKED,
            setsigdef=DEFAULTED,
        )
    finally:
        close_all([moved])
