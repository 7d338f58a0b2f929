"""`Guest`: a virtual machine in a network.

Theory of operation: a guest is a `gpasst.proxy.machine_port.MachinePort` on the network's hub. It has addresses of the
network like a host; whether it uses them is up to its own kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpasst.api.forwarded import Forwarded
from gpasst.api.scratch import Folder
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.proxy.machine_port import MachinePort
from gpasst.values import check_timeout

if TYPE_CHECKING:
    from gpasst.api.network_base import NetworkBase
    from gpasst.runtime import Runtime
    from gpasst.switch.plan import HostAddresses

MTU_STANDARD = 1500  # bytes; what a virtual machine has without being told


class Guest(Forwarded):
    """A virtual machine in a network; `Network.guest` opens its port.

    ::

        with gpasst.Network("lan") as lan:
            vm = lan.guest("vm")
            qemu = subprocess.Popen(["qemu-system-x86_64", *vm.qemu_options, ...])
            vm.wait()

    :ivar name: its name.
    :ivar ip4: the IPv4 address that is kept for it, empty without IPv4.
    :ivar ip6: the IPv6 address, likewise.
    :ivar mac: its MAC address, such as ``02:67:0a:4d:00:02``.
    :ivar path: the UNIX socket that qemu connects to.
    """

    def __init__(self, network: NetworkBase, name: str, path: str | os.PathLike[str] | None) -> None:
        self.name = name
        self.ip4 = self.ip6 = self.mac = ""
        if path is not None and not isinstance(path, str | os.PathLike):
            raise ConfigurationError(
                f"path {path!r} is not the path of a file", "name it as text, or by a pathlib.Path"
            )
        self.path = "" if path is None else os.fspath(path)
        self._network = network
        self._folder: Folder | None = None
        self._runtime: Runtime | None = None
        self._machine: MachinePort | None = None
        self._addresses: HostAddresses | None = None

    def open(self) -> None:
        """Listen.

        :raises ConfigurationError: if the path is none, or the network has no address left.
        :raises PlatformError: if the socket is in use or cannot be made.
        """
        network, addresses = self._network, self._network.allot(configured=False)
        self._addresses = addresses
        self.ip4, self.ip6, self.mac = addresses.ip4, addresses.ip6, addresses.mac.hex(":")
        if not self.path:
            try:
                self._folder = Folder()
            except BaseException:
                self._end()
                raise
            self.path = os.path.join(self._folder.path, self.name)
        self._runtime = network.here()
        try:
            self._machine = network.call(lambda lan: MachinePort(lan, self.name, self.path, addresses.mac))
        except BaseException:
            self._end()
            raise
        network.renamed()

    def __repr__(self) -> str:
        return f"<guest {self.name}>"

    @property
    def qemu_options(self) -> tuple[str, ...]:
        """Options of qemu (7.2 or later) that connect the virtual machine."""
        own = f"gpasst-{self.name}"
        mtu = self._network.mtu
        device = f"virtio-net-pci,netdev={own},mac={self.mac}" + (f",host_mtu={mtu}" if mtu != MTU_STANDARD else "")
        path = self.path.replace(",", ",,")  # a comma ends a value in qemu's options unless it is doubled
        return "-device", device, "-netdev", f"stream,id={own},server=off,addr.type=unix,addr.path={path}"

    @property
    def connected(self) -> bool:
        """Whether a virtual machine is connected."""
        return self._machine is not None and self._machine.connected.is_set()

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until a virtual machine is connected.

        :param timeout: seconds.
        :raises ConfigurationError: if the network is not open.
        :raises PlatformError: if none is by then.
        """
        check_timeout(timeout)
        machine, here = self._machine, self._runtime
        if machine is None or here is None:
            raise ConfigurationError(f"guest {self.name} is not open", "use it while its network is open")
        if not here.call(lambda: machine.connected.wait(timeout)):
            raise PlatformError(
                f"guest {self.name}: nobody connects to {self.path}", f"begin qemu within {timeout:g} s"
            )

    def close(self) -> None:
        """Cut it off; more calls do nothing."""
        machine, self._machine = self._machine, None
        here, self._runtime = self._runtime, None
        if machine is not None and here is not None:
            self._network.leave(self.name)
            here.call(machine.close)
            self._end()
            self._network.renamed()

    def _networks(self) -> Iterable[NetworkBase]:
        return () if self._machine is None else (self._network,)

    def addresses_in(self, network: object) -> tuple[str, ...]:
        """Return the addresses in a network, as text."""
        return tuple(filter(None, (self.ip4, self.ip6))) if network is self._network else ()

    def _end(self) -> None:
        """Give the addresses back, and remove the folder."""
        addresses, self._addresses = self._addresses, None
        if addresses is not None:
            self._network.take_back(addresses)
            self._network.forget(addresses)
        if self._folder is not None:
            self._folder.close()
