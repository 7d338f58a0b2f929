"""Programs and sockets in a namespace, for whatever has one.

Theory of operation: programs are run in the namespace by a small program that joins it and then becomes them; sockets
are made there by the process that keeps the namespace. What a program finds in /etc/resolv.conf and /etc/hosts is the
business of the class that has the namespace.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import gevent

from gpasst import runtime
from gpasst.api.forwards import check_protocol
from gpasst.api.limits import limited
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.helper.client import enter_command
from gpasst.helper.enter import STATUS_FAILED
from gpasst.helper.kept import Namespace
from gpasst.host.sock_diag import SockDiag
from gpasst.hub import wait_read
from gpasst.linux import AF_INET, AF_NETLINK, NETLINK_SOCK_DIAG, SOCK_DGRAM, SOCK_RAW
from gpasst.proxy.patience import patiently
from gpasst.values import check_timeout

if TYPE_CHECKING:
    # Together they take 4 ms to import, and a proxy for a container needs neither.
    import socket
    import subprocess

BOUND_SECONDS = 0.005  # between two looks at bound ports; one takes 0.1 ms
KILL_SECONDS = 0.5  # between SIGTERM and SIGKILL for programs that outlive their namespace


class Inhabited:
    """The base of what has a namespace that programs run in.

    :param runas: user and group id of the programs; those that the namespace was opened with.
    """

    _runtime: runtime.Runtime | None

    def __init__(self, runas: tuple[int, int] | None = None) -> None:
        self._runas = runas
        self._programs: list[subprocess.Popen[Any]] = []
        self._asked: float | None = None  # when they were asked to end

    def _joined(self) -> Namespace:
        """Return the namespace.

        :raises ConfigurationError: if it is not open.
        """
        raise NotImplementedError

    def _resolver_file(self) -> str:
        """Return the text that programs find in /etc/resolv.conf, empty for the host's file."""
        return ""

    def _live_files(self) -> Mapping[str, str]:
        """Return the paths of files that programs see change, by what they find them as."""
        return {}

    @limited()
    def run(self, args: Sequence[str] | str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program in the namespace and wait for it, as `subprocess.run` does; it ends with the calling thread.

        :raises FileNotFoundError: if there is no such program.
        :raises PermissionError: if none of its name may be executed.
        """
        here = runtime.current()
        if here.polls and here is self._runtime:
            # The proxy runs on this thread's hub, so nothing here may block it.
            from gevent.subprocess import run
        else:
            from subprocess import run
        from subprocess import CalledProcessError, TimeoutExpired

        try:
            with self._command(args, options) as (command, complete):
                done: subprocess.CompletedProcess[Any] = run(command, **complete)  # check is the caller's
        except (CalledProcessError, TimeoutExpired) as error:
            error.cmd = args  # what the caller has written, as in all that is reported
            if isinstance(error, CalledProcessError) and error.returncode == STATUS_FAILED:
                self._joined()
            raise
        if done.returncode == STATUS_FAILED:
            self._joined()  # it may have been closed before the program was in it
        done.args = args
        return done

    @limited()
    def popen(self, args: Sequence[str] | str, *, init: bool = False, **options: Any) -> subprocess.Popen[Any]:
        """Start a program in the namespace, as `subprocess.Popen` does; closing the namespace ends it.

        So does the end of this process, even by SIGKILL, unless the program has executed another one with set-user-ID
        or file capabilities (prctl(2), PR_SET_PDEATHSIG).
        When this returns the program has been executed, so its process ID leads to the namespace.

        :param args: the program and its arguments; or a shell's command line, with ``shell=True``.
        :param init: make it process 1 of a PID namespace of its own, so that whatever it starts ends with it.
        :raises FileNotFoundError: if there is no such program.
        :raises PermissionError: if none of its name may be executed.
        """
        import subprocess

        self._joined()
        here = self._runtime
        assert here is not None
        reader, writer = os.pipe()
        try:
            with self._command(args, options, init, writer) as (command, complete):
                # The program ends with the thread that starts it: that of the proxy, not one of the caller's.
                program: subprocess.Popen[Any] = here.call(lambda: subprocess.Popen(command, **complete))
            program.args = args
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._programs = [other for other in self._programs if other.poll() is None]
        self._programs.append(program)
        try:
            runtime.current().wait_end(reader)
        finally:
            os.close(reader)
        if self._runtime is None:
            # Whoever has closed it meanwhile may have found no program.
            self._end_programs()
            self._joined()
        return program

    @contextmanager
    def _command(
        self,
        args: Sequence[str] | str,
        options: dict[str, Any],
        init: bool = False,
        ready: int | None = None,
    ) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """Yield the command line of a program in the namespace, and the options to start it with.

        :raises ConfigurationError: if the namespace is not open.
        """
        namespace = self._joined()
        options = dict(options)
        argv = [args] if isinstance(args, str) else [os.fspath(arg) for arg in args]
        if options.pop("shell", False):
            argv = ["/bin/sh", "-c", *argv]
        path = (options.get("env") or os.environ).get("PATH", os.defpath)
        if os.sep not in argv[0] and shutil.which(argv[0], path=path) is None:
            number = errno.EACCES if shutil.which(argv[0], os.F_OK, path) else errno.ENOENT
            raise OSError(number, os.strerror(number), argv[0])
        resolver_file, live_files = self._resolver_file(), self._live_files()
        try:
            copies = namespace.copies()
        except PlatformError:
            self._joined()
            raise
        try:
            command, descriptors = enter_command(copies, argv, init, self._runas, ready, resolver_file, live_files)
            options["pass_fds"] = (*options.get("pass_fds", ()), *descriptors)
            yield command, options
        finally:
            copies.close()

    @property
    def nsenter(self) -> list[str]:
        """The command line of nsenter(1) that runs what is put behind it, or a shell, in the namespace.

        Any process of this user may run it while the namespace is open. Other than with `run`, the program finds the
        host's /etc/hosts and /etc/resolv.conf, and outlives the namespace.
        """
        namespace = self._joined()
        options = [
            f"--{option}=/proc/{os.getpid()}/fd/{descriptor}"
            for option, descriptor in (
                ("user", namespace.userns),
                ("net", namespace.netns),
                ("uts", namespace.uts),
                ("ipc", namespace.ipc),
            )
            if descriptor is not None
        ]
        return ["nsenter", "--preserve-credentials", *options]

    @limited()
    def socket(
        self,
        family: int = AF_INET,
        type: int = SOCK_DGRAM,
        proto: int = 0,
    ) -> socket.socket:
        """Make a socket in the namespace; it stays there, whatever thread or process uses it.

        :param family: address family, as of `socket.socket`.
        :param type: socket type, likewise.
        :param proto: protocol number, likewise.
        :raises PlatformError: if the namespace does not make it.
        """
        import socket

        namespace = self._joined()
        assert self._runtime is not None
        descriptor = self._runtime.call(lambda: _socket_inside(namespace, family, type, proto))
        return socket.socket(family, type, proto, descriptor)

    @limited()
    def wait_bound(self, protocol: str, port: int, timeout: float = 5.0) -> None:
        """Wait until a program in the namespace has bound a port; of TCP, until it listens.

        The kernel's list of sockets is looked at, so the program itself sees nothing of it.

        :param protocol: ``"tcp"`` or ``"udp"``.
        :param port: the port.
        :param timeout: seconds.
        :raises ConfigurationError: if it is another protocol, or the timeout is no number.
        :raises PlatformError: if none has bound it by then, naming the ports that are bound; or if the kernel does not
            list sockets.
        """
        check_protocol(protocol)
        check_timeout(timeout)
        namespace = self._joined()
        assert self._runtime is not None
        self._runtime.call(lambda: _await_bound(namespace, protocol, port, timeout))

    def confine_keeper(self) -> None:
        """Have the process that keeps the namespace do less from now on, since this one enters a sandbox.

        It names no further files that it deletes, and makes no sockets of families that are not carried. When there is
        no other namespace to keep, it enters a sandbox as well.

        :raises LateError: if it does not answer in time.
        :raises PlatformError: if it has ended.
        """
        namespace = self._joined()
        patiently(namespace, lambda: namespace.confine(wait_read))

    def ask_programs(self) -> None:
        """Ask the programs that were started to end, and return at once; closing ends them."""
        if self._asked is None:
            self._asked = time.monotonic()
            for program in self._programs:
                if program.poll() is None:
                    # In the sandbox of the command line, one that has become another user is out of reach.
                    with suppress(PermissionError):
                        program.terminate()

    def _end_programs(self) -> None:
        """End the programs that were started, by force if they do not end when asked to."""
        self.ask_programs()
        programs, self._programs = self._programs, []
        asked, self._asked = self._asked, None
        running = [program for program in programs if program.poll() is None]
        if not running or asked is None:
            return
        from subprocess import TimeoutExpired

        for program in running:
            try:
                program.wait(max(0.0, asked + KILL_SECONDS - time.monotonic()))
            except TimeoutExpired:
                with suppress(PermissionError):
                    program.kill()
                    program.wait()


def _socket_inside(namespace: Namespace, family: int, type: int, proto: int) -> int:
    """Return the descriptor of a new socket of a namespace, while others run if that takes long.

    :raises PlatformError: if the namespace does not make it.
    """
    # Without a greenlet switch: the proxy may ask the same process for sockets at any time.
    return patiently(namespace, lambda: namespace.sockets(family, type, proto, 1)[0])


def _await_bound(namespace: Namespace, protocol: str, port: int, timeout: float) -> None:
    """Do what `Inhabited.wait_bound` does, on a hub.

    :raises ConfigurationError: if the namespace is closed meanwhile.
    :raises PlatformError: as that says.
    """
    until = time.monotonic() + timeout
    scanner = SockDiag(_socket_inside(namespace, AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG), protocol)
    try:
        while True:
            bound = {sock.port for sock in scanner.scan(wait_read).values()}
            if port in bound:
                return
            if namespace.fileno() < 0:
                raise ConfigurationError("the namespace was closed meanwhile", "wait before that")
            if time.monotonic() >= until:
                listed = ", ".join(map(str, sorted(bound))) or "none"
                raise PlatformError(
                    f"no program in the namespace has bound {protocol} port {port} within {timeout} s",
                    f"see whether it has started; bound ports of {protocol}: {listed}",
                )
            gevent.sleep(BOUND_SECONDS)
    finally:
        scanner.close()
