"""The Python interface: `Pasta`, a network namespace with the network of an ordinary process.

Theory of operation: opening a `Pasta` asks the helper for the host's facts, settles the guest's network, lets the
helper make or join the namespace and its tap, and starts a proxy on the runtime's hub. Closing it undoes all of that.
Programs are run in the namespace by a small program that joins it and then becomes them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from gevent.socket import wait_read

from gpasst import runtime
from gpasst.config import TAP_MTU_MAXIMUM, Config
from gpasst.counters import Statistics
from gpasst.errors import ConfigurationError
from gpasst.features import Feature
from gpasst.forwards import Forward
from gpasst.helper.client import Namespace, OpenRequest, enter_command
from gpasst.network import GuestNetwork, parse_resolver_file, settle
from gpasst.proxy import Flow, Proxy
from gpasst.sockets import text

RESOLVER_FILE = "/etc/resolv.conf"
KILL_SECONDS = 0.5  # between SIGTERM and SIGKILL for programs that outlive their namespace
NETNS_FOLDER = "/run/netns"


class Pasta:
    """A network namespace connected to the host's sockets.

    ::

        with gpasst.Pasta(config_net=True, udp_ports="5000") as net:
            net.run(["dig", "@" + net.gateway4, "example.org"], check=True)

    :param config: what to do; or its fields as keywords, which are the long option names with ``_`` for ``-``.
    :param runas: user and group id that the namespace's programs get; root only.
    :raises ConfigurationError: if an option makes no sense, or names what does not exist.
    :raises PlatformError: if the kernel, a permission or a busy port is in the way.
    """

    def __init__(self, config: Config | None = None, *, runas: tuple[int, int] | None = None, **fields: Any) -> None:
        if config is not None and fields:
            raise ConfigurationError("a Config and keywords were given", "give one of them")
        if config is None:
            unknown = sorted(set(fields) - set(Config.__dataclass_fields__))
            if unknown:
                raise ConfigurationError(f"unknown option {unknown[0]}", "see gpasst.Config for their names")
            config = Config(**fields)
        self.config = config
        self._runas = runas
        self._runtime: runtime.Runtime | None = None
        self._namespace: Namespace | None = None
        self._proxy: Proxy | None = None
        self._network: GuestNetwork | None = None
        self._programs: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Pasta:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Make or join the namespace and start the proxy; the tap is ready when this returns."""
        if self._proxy is not None:
            raise ConfigurationError("this namespace is open already", "make another Pasta")
        self._runtime = runtime.current()
        self._runtime.call(self._open)

    def _open(self) -> None:
        assert self._runtime is not None
        config = self.config
        with self._runtime.lock:
            helper = self._runtime.helper()
            facts = helper.facts(wait_read)
            network = settle(config, facts, parse_resolver_file(_read(RESOLVER_FILE)))
            namespace = helper.open(_request(config, network, self._runas), wait_read)
        try:
            first, last = facts["ephemeral"]
            self._proxy = Proxy(config, network, namespace, (first, last), polls=self._runtime.polls)
        except BaseException:
            namespace.close()
            raise
        self._namespace, self._network = namespace, network

    def close(self) -> None:
        """End programs that still run in it, stop the proxy, let go of the namespace. More calls do nothing."""
        programs, self._programs = self._programs, []
        running = [program for program in programs if program.poll() is None]
        for program in running:
            program.terminate()
        for program in running:
            try:
                program.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        if self._runtime is not None:
            self._runtime.call(self._close)

    def _close(self) -> None:
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.close()
        namespace, self._namespace = self._namespace, None
        if namespace is not None:
            namespace.close()

    def run(self, args: Sequence[str] | str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program in the namespace and wait for it, as `subprocess.run` does."""
        command, options = self._command(args, options)
        return subprocess.run(command, **options)  # check is the caller's

    def popen(
        self, args: Sequence[str] | str, *, init: bool = False, tied: bool = False, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a program in the namespace, as `subprocess.Popen` does; closing the namespace ends it.

        When this returns the program has been executed, so its process ID leads to the namespace.

        :param args: the program and its arguments; or a shell's command line, with ``shell=True``.
        :param init: make it process 1 of a PID namespace of its own, so that whatever it starts ends with it.
        :param tied: with `init`, kill it when the thread that calls this ends, even by SIGKILL.
        """
        self._opened()
        reader, writer = os.pipe()
        try:
            command, options = self._command(args, options, init, tied, writer)
            program = subprocess.Popen(command, **options)
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
        tied: bool = False,
        ready: int | None = None,
    ) -> tuple[list[str], dict[str, Any]]:
        namespace = self._opened()[1]
        options = dict(options)
        argv = [args] if isinstance(args, str) else [os.fspath(arg) for arg in args]
        if options.pop("shell", False):
            argv = ["/bin/sh", "-c", *argv]
        path = (options.get("env") or os.environ).get("PATH", os.defpath)
        if os.sep not in argv[0] and shutil.which(argv[0], path=path) is None:
            raise FileNotFoundError(2, "No such file or directory", argv[0])
        command, descriptors = enter_command(namespace, argv, init, self._runas, tied, ready)
        options["pass_fds"] = (*options.get("pass_fds", ()), *descriptors)
        return command, options

    def socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_DGRAM,
        proto: int = 0,
    ) -> socket.socket:
        """Make a socket that lives in the namespace, of the class that `socket.socket` is to the caller."""
        namespace = self._opened()[1]
        assert self._runtime is not None
        # Without a greenlet switch: the proxy asks the same process for sockets, at any time.
        descriptor = self._runtime.call(lambda: namespace.sockets(family, type, proto, 1)[0])
        return socket.socket(family, type, proto, descriptor)

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The listeners that are open."""
        return self._opened()[0].forwards

    def statistics(self) -> Statistics:
        """Count what has passed and what was dropped."""
        proxy = self._opened()[0]
        assert self._runtime is not None
        return self._runtime.call(proxy.statistics)

    def flows(self) -> tuple[Flow, ...]:
        """List what is tracked."""
        proxy = self._opened()[0]
        assert self._runtime is not None
        return self._runtime.call(proxy.flows)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the tap has gone, for example because a joined namespace ended.

        :param timeout: seconds, None for ever.
        :return: whether it has.
        """
        proxy = self._opened()[0]
        assert self._runtime is not None
        return bool(self._runtime.call(lambda: proxy.finished.wait(timeout)))

    def exists(self) -> bool:
        """Tell whether the file that named a joined namespace still does; always true of one that was made."""
        namespace, path = self._opened()[1], _netns_path(self.config)
        if path is None:
            return True
        try:
            return os.path.samestat(os.stat(path), os.fstat(namespace.netns))
        except OSError:
            return False

    @property
    def network(self) -> GuestNetwork:
        """What the namespace's network is."""
        self._opened()
        assert self._network is not None
        return self._network

    @property
    def interface(self) -> str:
        """Name of the tap in the namespace."""
        return self._opened()[1].name

    @property
    def gateway4(self) -> str:
        """The namespace's IPv4 gateway, which stands for the host unless told otherwise; empty without IPv4."""
        return text(self.network.ip4.gateway) if self.network.ip4 else ""

    @property
    def gateway6(self) -> str:
        """The namespace's IPv6 gateway, with ``%interface`` if it is link-local; empty without IPv6."""
        if self.network.ip6 is None:
            return ""
        gateway = text(self.network.ip6.gateway)
        return f"{gateway}%{self.interface}" if gateway.startswith("fe80:") else gateway

    def _opened(self) -> tuple[Proxy, Namespace]:
        if self._proxy is None or self._namespace is None:
            raise ConfigurationError("this namespace is not open", "use it inside its with statement")
        return self._proxy, self._namespace


def _request(config: Config, network: GuestNetwork, runas: tuple[int, int] | None) -> OpenRequest:
    """Say what the helper has to make."""
    netns, userns = _netns_path(config), config.userns or None
    if config.pid is not None and not userns and not config.netns_only:
        userns = f"/proc/{config.pid}/ns/user"
    return OpenRequest(
        netns=netns,
        userns=userns,
        netns_only=config.netns_only or (netns is not None and userns is None),
        runas=runas,
        ifname=network.interface,
        mac=config.ns_mac_addr or None,
        mtu=min(network.mtu, TAP_MTU_MAXIMUM),
        offload=Feature.USO in config.features,
        configure=config.config_net and not config.splice_only,
        tap=not config.splice_only,
        addresses=network.addresses,
        routes=network.routes,
    )


def _netns_path(config: Config) -> str | None:
    """Give the file of the network namespace to join, None to make one."""
    if config.pid is not None:
        return f"/proc/{config.pid}/ns/net"
    if config.netns and os.sep not in config.netns:
        return os.path.join(NETNS_FOLDER, config.netns)
    return config.netns or None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
