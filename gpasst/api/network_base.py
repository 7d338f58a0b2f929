"""What a network is before it has hosts: its addresses, its switch on the hub, and what ends with it.

Theory of operation: a network is a `gpasst.proxy.lan.Lan` on the hub of the runtime, and everything that is asked of it
crosses over to that hub. What is opened on a network is its *member*, by a name, and is closed before it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from gpasst import runtime
from gpasst.api.handle import Handle
from gpasst.api.lifetime import Lifetime
from gpasst.api.member import Member
from gpasst.api.names import Names
from gpasst.api.routing import Routing
from gpasst.errors import ConfigurationError
from gpasst.linux import IPV6_MIN_MTU
from gpasst.switch.plan import GATEWAY, GATEWAY_NAME, LOCAL_NAMES, SUBNETS, HostAddresses, Plan, chosen, shared
from gpasst.values import check_flag, check_host_name, check_interface, check_seed, shown

if TYPE_CHECKING:
    from gpasst.api.captures import Observable
    from gpasst.api.uplink import Uplink
    from gpasst.capture.history import History
    from gpasst.helper.request import Route
    from gpasst.proxy.lan import Lan
    from gpasst.proxy.trunk_end import Trunks

T = TypeVar("T")

MTU_DEFAULT = 1500  # bytes; of Ethernet (RFC 894)
MTU_LOWEST, MTU_HIGHEST = 68, 65520  # bytes (RFC 791, section 3.2); the second as of `gpasst pasta`

# Numbers of networks of this process that named no prefix, see `gpasst.switch.plan.chosen`.
_taken: set[int] = set()
_taken_lock = threading.Lock()


class NetworkBase(Lifetime):
    """The base of `gpasst.api.network.Network`; the parameters are explained there.

    :ivar unconfigured: MAC addresses of hosts that have to ask for their addresses.
    :ivar outside: the network beyond the router that is its gateway, None without one.
    """

    def __init__(
        self,
        name: str,
        subnet4: str | None,
        subnet6: str | None,
        mtu: int,
        part: int | None,
        seed: int | None,
        record: bool,
        uplink: bool,
    ) -> None:
        try:
            check_interface(name)
        except ConfigurationError as error:
            raise ConfigurationError(f"network {shown(name)} {error.message}", error.remedy) from None
        if not isinstance(mtu, int) or not MTU_LOWEST <= mtu <= MTU_HIGHEST:
            raise ConfigurationError(f"mtu {mtu!r}", f"give {MTU_LOWEST} to {MTU_HIGHEST} bytes")
        if mtu < IPV6_MIN_MTU:
            if subnet6:
                raise ConfigurationError(
                    f"mtu {mtu} is too small for IPv6", f"give {IPV6_MIN_MTU} or more, or no subnet6"
                )
            subnet6 = ""
        check_seed(seed)
        check_flag("record", record)
        check_flag("uplink", uplink)
        self.name = name
        self.mtu = mtu
        self.seed = seed
        self._record = record
        self._history: History | None = None
        self._subnets = subnet4, subnet6
        self._lan: Lan | None = None
        self._with_uplink = uplink
        self._uplink: Uplink | None = None
        self.outside: NetworkBase | None = None
        self.unconfigured: set[bytes] = set()
        self._addresses: Plan | None = None
        self._next = 0
        self._closing = ExitStack()
        self._members: dict[str, Handle] = {}
        self.names = Names(self, self._members)
        self.routing = Routing(self, self._members, lambda: self._ending)
        self._ending = False
        self._left: deque[HostAddresses] = deque()
        self._allotting = threading.Lock()  # threads may open hosts at once
        self._trunks: Trunks | None = None
        self._part = part
        if part is not None:
            self._subnets = shared(subnet4, subnet6)
        if None not in self._subnets:
            Plan(*self._subnets, part)

    def __repr__(self) -> str:
        return f"<network {self.name}>"

    @property
    def subnet4(self) -> str:
        """The prefix of IPv4, empty without it."""
        return str(self._plan().ip4 or "")

    @property
    def subnet6(self) -> str:
        """The prefix of IPv6, empty without it."""
        return str(self._plan().ip6 or "")

    @property
    def gateway4(self) -> str:
        """The IPv4 address of the gateway: of the uplink, or of a router that is put there; empty without IPv4."""
        return self.gateway.ip4

    @property
    def gateway6(self) -> str:
        """The IPv6 address of the gateway, likewise."""
        return self.gateway.ip6

    @property
    def uplink(self) -> Uplink:
        """The way of its hosts to the outside.

        :raises ConfigurationError: if the network has none, or is not open.
        """
        self.here()
        if self._uplink is None:
            raise ConfigurationError(f"network {self.name} has no uplink", "open it with uplink=True")
        return self._uplink

    @property
    def has_uplink(self) -> bool:
        """Whether it has one."""
        return self._uplink is not None

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes of its hosts beside those of their addresses."""
        return (*(self._uplink.routes if self._uplink is not None else ()), *self.routing.routes)

    @property
    def gateway(self) -> HostAddresses:
        """The addresses of its gateway, if it has one."""
        return self._plan().host(GATEWAY)

    @property
    def resolver_file(self) -> str:
        """The text of /etc/resolv.conf for programs in its hosts, empty for this machine's own.

        Behind a router it is that of the router's outside.
        """
        network: NetworkBase | None = self
        passed: set[NetworkBase] = set()
        while network is not None and network not in passed:
            if network.has_uplink:
                return network.uplink.resolver_file
            passed.add(network)
            network = network.outside
        return ""

    def allot(self, configured: bool = True) -> HostAddresses:
        """Return the addresses of the next host, which its uplink knows from then on.

        :param configured: whether the host is given them otherwise than by DHCP and router advertisements.
        :raises ConfigurationError: if there are none left.
        """
        addresses = self._next_addresses()
        if not configured:
            self.unconfigured.add(addresses.mac)
        if self._uplink is not None:
            # One that has moved away may have had them.
            self._uplink.forget(addresses)
            self._uplink.place(addresses, configured)
        return addresses

    def _next_addresses(self) -> HostAddresses:
        plan = self._plan()
        with self._allotting:
            if self._next <= plan.last:
                self._next += 1
                return plan.host(self._next - 1)
            if self._left:
                return self._left.popleft()
        raise ConfigurationError(f"network {self.name} has no address left", "give a shorter prefix as subnet4")

    def take_back(self, addresses: HostAddresses) -> None:
        """Let another host have the addresses of one that has left, when there are no others any more."""
        self.unconfigured.discard(addresses.mac)
        self._left.append(addresses)

    def forget(self, addresses: HostAddresses) -> None:
        """End the ways to the outside of a host that has ended."""
        if self._uplink is not None and not self._ending:
            self._uplink.forget(addresses)

    def enter(self, name: str, member: Handle) -> None:
        """Let something be a member.

        :raises ConfigurationError: if the name is no host's name, that of the loopback interface, or taken.
        """
        try:
            check_host_name(name)
        except ConfigurationError as error:
            raise ConfigurationError(f"host {shown(name)} {error.message}", error.remedy) from None
        if name in LOCAL_NAMES:
            raise ConfigurationError(f"host {name} has a name that each host has for itself", "choose another one")
        if self._ending:
            raise ConfigurationError(f"network {self.name} was closed meanwhile", "open hosts before that")
        if self._with_uplink and name == GATEWAY_NAME:
            raise ConfigurationError(f"the name {name} is the uplink's in network {self.name}", "choose another one")
        # In one step, for the same reason as in `allot`.
        if self._members.setdefault(name, member) is not member:
            raise ConfigurationError(f"the name {name} is taken in network {self.name}", "choose another one")

    def leave(self, name: str) -> None:
        """Take note that a member has ended; more calls do nothing."""
        self._members.pop(name, None)

    def renamed(self) -> None:
        """Let running programs know the names of hosts anew."""
        if self._runtime is not None and not self._ending:
            self._runtime.call(self._rename)

    def look_beyond(self, other: NetworkBase) -> Callable[[], None]:
        """Let the hosts here find the names of another network, too, such as that on the far side of a router.

        :return: ends that.
        """
        undo = self.names.look_beyond(other.names)
        self.renamed()

        def end() -> None:
            undo()
            self.renamed()

        return end

    def _begin(self, here: runtime.Runtime) -> None:
        here.helper()
        from gpasst.proxy.lan import Lan

        subnet4, subnet6 = self._subnets
        if subnet4 is None or subnet6 is None:
            number = _take_number()
            self._closing.callback(_taken.discard, number)
            own4, own6 = chosen(number)
            subnet4, subnet6 = own4 if subnet4 is None else subnet4, own6 if subnet6 is None else subnet6
        self._addresses = Plan(subnet4, subnet6, self._part)
        self._next = self._addresses.first
        if self._record:
            from gpasst.capture.history import History

            self._history = History()
        self._lan = Lan(self.name, self._history)
        self._closing.callback(self._lan.close)
        if self._with_uplink:
            from gpasst.api.uplink import Uplink

            self._uplink = Uplink(self._addresses, self._next_addresses, self.mtu, self._lan, here, self.renamed)
            self._closing.callback(self._uplink.close)

    def close(self) -> None:
        """Close the network, its hosts, and all that was opened on it. More calls do nothing."""
        self._ending = True  # nobody needs to know names of what ends now
        try:
            members = list(reversed(self._members.values()))
            for member in members:
                if isinstance(member, Member):
                    member.ask_programs()
            for member in members:
                member.close()
        finally:
            super().close()
            self._ending = False

    def _close(self) -> None:
        self._closing.close()
        self._lan = self._uplink = None
        self._left.clear()

    def here(self) -> runtime.Runtime:
        """Return the runtime.

        :raises ConfigurationError: if the network is not open.
        """
        if self._runtime is None or self._lan is None:
            raise ConfigurationError(f"network {self.name} is not open", "use it inside its with statement")
        return self._runtime

    def observable(self, name: str = "") -> Observable:
        """Return what crosses here, to be observed.

        :param name: of the host whose link is meant; empty for all.
        """
        raise NotImplementedError

    def _plan(self) -> Plan:
        self.here()
        assert self._addresses is not None
        return self._addresses

    def call(self, function: Callable[[Lan], T]) -> T:
        """Call `function` with the network's parts, on their hub.

        :raises ConfigurationError: if the network is not open.
        """
        here, lan = self.here(), self._lan
        assert lan is not None
        return here.call(lambda: function(lan))

    def call_open(self, function: Callable[[Lan], T]) -> T | None:
        """Call `function` likewise, if the network is open."""
        here, lan = self._runtime, self._lan  # it may be closed by another thread meanwhile
        return here.call(lambda: function(lan)) if here is not None and lan is not None else None

    def trunks(self, lan: Lan) -> Trunks:
        """Return what knows the trunks of this network; called on its hub."""
        from gpasst.proxy.trunk_end import Trunks

        if self._trunks is None or self._trunks.lan is not lan:
            gateway = self.gateway
            trunks = Trunks(
                lan,
                self.names.members,
                tuple(filter(None, (self.subnet4, self.subnet6))),
                frozenset((gateway.ip4, gateway.ip6)),
                lambda: self.names.join(trunks.beyond()),
            )
            self._trunks = trunks
        return self._trunks

    def _rename(self) -> None:
        if self._trunks is not None:
            self._trunks.announce_hosts()
        self.names.show()


def check_network(value: object) -> None:
    """Check that a value is a network.

    :raises ConfigurationError: if it is not.
    """
    if not isinstance(value, NetworkBase):
        raise ConfigurationError(f"{shown(value)} is no network", "pass what gpasst.Network(...) has returned")


def _take_number() -> int:
    """Return the lowest number that no open network has.

    :raises ConfigurationError: if there is none.
    """
    with _taken_lock:
        number = next((number for number in range(SUBNETS) if number not in _taken), None)
        if number is None:
            raise ConfigurationError(f"there are {SUBNETS} networks already", "give subnet4 and subnet6")
        _taken.add(number)
        return number
