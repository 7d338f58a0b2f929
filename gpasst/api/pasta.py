"""`Pasta`: a network namespace with the network of an ordinary process.

Theory of operation: opening a `Pasta` asks the helper for the host's facts, lays the options over them, lets the helper
make or join the namespace and its tap, and starts a proxy on the runtime's hub. Closing it undoes all of that.
Programs are run in the namespace by a small program that joins it and then becomes them.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gevent

from gpasst import runtime
from gpasst.api.connection import RESOLVER_FILE, Connection, read_text, report
from gpasst.api.forwards import check_protocol
from gpasst.api.joined import NamespaceWatch, leads
from gpasst.config import Config
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.features import Feature
from gpasst.flow.network import GuestNetwork, build_network
from gpasst.flow.resolver_file import parse_resolver_file
from gpasst.helper.client import OpenRequest, enter_command
from gpasst.helper.kept import Namespace
from gpasst.host.sock_diag import SockDiag
from gpasst.host.sockets import text
from gpasst.hub import wait_read
from gpasst.linux import AF_INET, AF_NETLINK, NETLINK_SOCK_DIAG, SOCK_DGRAM, SOCK_RAW
from gpasst.packet.address import is_link_local
from gpasst.packet.dns_names import encode_text
from gpasst.proxy.patience import patiently
from gpasst.values import check_timeout

if TYPE_CHECKING:
    # Together they take 4 ms to import, and a proxy for a container needs neither.
    import socket
    import subprocess

BOUND_SECONDS = 0.005  # between two looks at bound ports; one takes 0.1 ms
KILL_SECONDS = 0.5  # between SIGTERM and SIGKILL for programs that outlive their namespace
NETNS_FOLDER = "/run/netns"


class Pasta(Connection):
    """A network namespace connected to the host's sockets.

    ::

        with gpasst.Pasta(config_net=True, udp_ports="5000") as net:
            net.run(["dig", "@" + net.gateway4, "example.org"], check=True)

    :param config: the options; or its fields as keywords, which are the long option names with ``_`` for ``-``.
    :param runas: user and group id of the namespace's programs; root only.
    :param record: keep what crosses last, for `expect`, `count` and `save`.
    :raises ConfigurationError: if an option makes no sense.
    """

    mode = "pasta"

    def __init__(
        self,
        config: Config | None = None,
        *,
        runas: tuple[int, int] | None = None,
        record: bool = False,
        **fields: Any,
    ) -> None:
        super().__init__(config, fields, record)
        self._runas = runas
        self._namespace: Namespace | None = None
        self._watch: NamespaceWatch | None = None
        self._programs: list[subprocess.Popen[Any]] = []

    def _open(self, here: runtime.Runtime) -> None:
        config = self.config
        helper = here.helper()
        # A program that is gpasst alone has started the helper early, and imports while the namespace is made.
        facts = helper.facts(wait_read if here.polls else _wait_busily)
        network = build_network(config, facts, parse_resolver_file(read_text(RESOLVER_FILE)))
        namespace = helper.open(_request(config, network, self._runas), _wait_busily)
        report(*network.notes, *namespace.notes)
        network = network.without(namespace.lacking)
        from gpasst.proxy.proxy import Proxy

        try:
            first, last = facts["ephemeral"]
            proxy = Proxy(config, network, namespace, (first, last), here.polls, self._history)
        except BaseException:
            namespace.close()
            raise
        self._proxy, self._namespace = proxy, namespace
        path = _netns_path(config)
        if path and not config.no_netns_quit:
            self._watch = NamespaceWatch(gevent.get_hub().loop, path, namespace.netns, proxy.finished.set)

    def close(self) -> None:
        """End the programs that run in the namespace, stop the proxy, close the namespace. More calls do nothing."""
        programs, self._programs = self._programs, []
        running = [program for program in programs if program.poll() is None]
        if running:
            from subprocess import TimeoutExpired
        for program in running:
            program.terminate()
        for program in running:
            try:
                program.wait(KILL_SECONDS)
            except TimeoutExpired:
                program.kill()
                program.wait()
        super().close()

    def _close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        super()._close()
        namespace, self._namespace = self._namespace, None
        if namespace is not None:
            namespace.close()

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

        command, options = self._command(args, options)
        try:
            done: subprocess.CompletedProcess[Any] = run(command, **options)  # check is the caller's
        except (CalledProcessError, TimeoutExpired) as error:
            error.cmd = args  # what the caller has written, as in all that is reported
            raise
        done.args = args
        return done

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

        self._opened()
        here = self._runtime
        assert here is not None
        reader, writer = os.pipe()
        try:
            command, options = self._command(args, options, init, writer)
            # The program ends with the thread that starts it: that of the proxy, not one of the caller's.
            program: subprocess.Popen[Any] = here.call(lambda: subprocess.Popen(command, **options))
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
        return program

    def _command(
        self,
        args: Sequence[str] | str,
        options: dict[str, Any],
        init: bool = False,
        ready: int | None = None,
    ) -> tuple[list[str], dict[str, Any]]:
        namespace = self._joined()
        options = dict(options)
        argv = [args] if isinstance(args, str) else [os.fspath(arg) for arg in args]
        if options.pop("shell", False):
            argv = ["/bin/sh", "-c", *argv]
        path = (options.get("env") or os.environ).get("PATH", os.defpath)
        if os.sep not in argv[0] and shutil.which(argv[0], path=path) is None:
            number = errno.EACCES if shutil.which(argv[0], os.F_OK, path) else errno.ENOENT
            raise OSError(number, os.strerror(number), argv[0])
        resolver_file = next((found.file for found in reversed(self._resolvers) if found.open), "")
        command, descriptors = enter_command(namespace, argv, init, self._runas, ready, resolver_file)
        options["pass_fds"] = (*options.get("pass_fds", ()), *descriptors)
        return command, options

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

    def exists(self) -> bool:
        """Return whether the file that named a joined namespace still leads to it.

        It counts as existing where this process may not look, and always where the namespace was made.
        """
        namespace, path = self._joined(), _netns_path(self.config)
        return path is None or leads(path, namespace.netns) is not False

    @property
    def interface(self) -> str:
        """Name of the tap in the namespace."""
        return self._joined().name

    @property
    def gateway4(self) -> str:
        """The namespace's IPv4 gateway, which stands for the host by default; empty without IPv4."""
        return text(self.network.ip4.gateway) if self.network.ip4 else ""

    @property
    def gateway6(self) -> str:
        """The namespace's IPv6 gateway, with ``%interface`` if it is link-local; empty without IPv6."""
        if self.network.ip6 is None:
            return ""
        gateway = self.network.ip6.gateway
        return f"{text(gateway)}%{self.interface}" if is_link_local(gateway) else text(gateway)

    def _joined(self) -> Namespace:
        self._opened()
        assert self._namespace is not None
        return self._namespace


def _wait_busily(descriptor: int) -> None:
    """Wait for the helper's answer, and import meanwhile what comes next: its start or a namespace takes as long."""
    importlib.import_module("gpasst.proxy.proxy")
    wait_read(descriptor)


def _socket_inside(namespace: Namespace, family: int, type: int, proto: int) -> int:
    """Return the descriptor of a new socket of a namespace, while others run if that takes long.

    :raises PlatformError: if the namespace does not make it.
    """
    # Without a greenlet switch: the proxy may ask the same process for sockets at any time.
    return patiently(namespace, lambda: namespace.sockets(family, type, proto, 1)[0])


def _await_bound(namespace: Namespace, protocol: str, port: int, timeout: float) -> None:
    """Do what `Pasta.wait_bound` does, on a hub.

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


def _request(config: Config, network: GuestNetwork, runas: tuple[int, int] | None) -> OpenRequest:
    """Return the request to the helper for what the options ask for."""
    netns, userns = _netns_path(config), config.userns
    if config.pid is not None and not userns and not config.netns_only:
        userns = f"/proc/{config.pid}/ns/user"
    return OpenRequest(
        netns=netns,
        userns=userns,
        netns_only=config.netns_only or (netns is not None and userns is None),
        runas=runas,
        ifname=network.interface,
        mac=config.ns_mac_addr,
        mtu=network.mtu,
        offload=Feature.USO in config.features,
        configure=config.config_net and not config.splice_only,
        tap=not config.splice_only,
        addresses=network.addresses,
        routes=network.routes,
        optional=network.optional,
        hostname=encode_text(network.hostname).decode("ascii"),
    )


def _netns_path(config: Config) -> str | None:
    """Return the file of the network namespace to join, None to make one."""
    if config.pid is not None:
        return f"/proc/{config.pid}/ns/net"
    if config.netns and os.sep not in config.netns:
        return os.path.join(NETNS_FOLDER, config.netns)
    return config.netns
