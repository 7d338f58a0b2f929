"""Forwards that come and go while a namespace or a virtual machine's network is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpasst.config import Config, PortSide, parse_ports
from gpasst.errors import ConfigurationError
from gpasst.records import dataclass

if TYPE_CHECKING:
    from gpasst.flow.record import Forward
    from gpasst.portspec import ForwardRule
    from gpasst.proxy.forwarder import Added
    from gpasst.proxy.proxy import Proxy

CALL = "add_forward"
PROTOCOLS = ("tcp", "udp")


@dataclass(frozen=True, slots=True, eq=False)
class AddedForward:
    """What one call of `add_forward` has opened, to be given to `remove_forward`.

    :ivar protocol: ``"tcp"`` or ``"udp"``.
    :ivar specification: the ports, as they were given.
    :ivar inside: whether they listen in the namespace and lead to the host.
    :ivar forwards: each listener; of a port that the kernel chose one for each family, with the same number.
    :ivar port: the port of the first listener.
    :ivar added: what the proxy knows it by.
    """

    protocol: str
    specification: str
    inside: bool
    forwards: tuple[Forward, ...]
    port: int
    added: Added


def check_protocol(protocol: str) -> None:
    """Refuse what has no ports.

    :raises ConfigurationError: if it is neither ``"tcp"`` nor ``"udp"``.
    """
    if protocol not in PROTOCOLS:
        raise ConfigurationError(f"{protocol} is no protocol with ports", f"name one of {', '.join(PROTOCOLS)}")


def parse_forward(
    config: Config, mode: str, protocol: str, specification: str, inside: bool
) -> tuple[PortSide, tuple[ForwardRule, ...]]:
    """Return the side and the rules of what `add_forward` was given.

    :param config: the options of the connection.
    :param mode: its mode, ``"pasta"`` or ``"passt"``.
    :raises ConfigurationError: naming what is wrong with it.
    """
    check_protocol(protocol)
    if not isinstance(specification, str):
        raise ConfigurationError(f"{CALL} takes text, not {specification!r}", "write ports as in '8080:80'")
    if getattr(config, f"no_{protocol}"):
        raise ConfigurationError(f"{CALL} {protocol}: --no-{protocol} switches it off", "leave that option out")
    if inside and mode != "pasta":
        raise ConfigurationError(f"{CALL} inside: a virtual machine has no loopback to listen on", "leave it out")
    side = PortSide(protocol, inside)
    rules = parse_ports(CALL, [specification], side)
    if not rules:
        raise ConfigurationError(f"{CALL} {specification}: no port", "name the ports that are to be forwarded")
    if any(rule.auto for rule in rules):
        raise ConfigurationError(
            f"{CALL} {specification}: automatic forwards are chosen when the namespace opens",
            f"name the ports, or open it with {protocol}_{'ns' if inside else 'ports'}={specification!r}",
        )
    return side, rules


def add_forward(proxy: Proxy, side: PortSide, rules: tuple[ForwardRule, ...]) -> AddedForward:
    """Open the listeners of rules; called on the proxy's hub.

    :raises GpasstError: if a port cannot be had; none of them is open then.
    """
    added = proxy.add_forward(side, rules)
    first = added.forwards[0]
    return AddedForward(side.protocol, rules[0].text, side.inside, added.forwards, first.port, added)
