"""Where traffic to a loopback address leads, for the splice pairs of every protocol.

Theory of operation: traffic to a loopback address of one side is moved to the other socket to socket, past the link.
From the namespace the address is kept, so that a resolver on 127.0.0.53 is reached. From the host the guest's own
address is the target, so that services meant for the namespace alone are not exposed; where loopback addresses are
kept (``--host-lo-to-ns-lo``), they are so from here too. A rule that names a target address has the last word.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.translation import Addresses
from gpasst.packet.address import is_link_local


class LoopbackTargets:
    """The targets of loopback traffic between a namespace and the host.

    :param addresses: what is known of the guest's addresses, by family.
    :param keep_loopback: whether loopback addresses are kept from the host as well.
    :param scope: interface index of the tap in the namespace.
    :ivar inward: whether what comes to the host's loopback is spliced, too, and not only the namespace's.
    """

    def __init__(
        self, addresses: Mapping[int, Addresses], keep_loopback: bool, scope: int, inward: bool = True
    ) -> None:
        self._addresses = addresses
        self._keep_loopback = keep_loopback
        self._scope = scope
        self.inward = inward

    def of(self, inside: bool, family: int, target_address: bytes, addressed: bytes) -> tuple[bytes, int]:
        """Return the address that traffic leads to, and its interface index, 0 unless it is a link-local one.

        :param inside: whether it was sent in the namespace.
        :param family: 4 or 6.
        :param target_address: the address that the rule names, empty if it names none.
        :param addressed: the loopback address it was sent to, 4 or 16 bytes.
        :raises PacketError: while no address of the guest is known.
        """
        if target_address:
            return target_address, 0
        if inside or self._keep_loopback:
            return addressed, 0
        addresses = self._addresses[family]
        target = addresses.seen or addresses.link_local
        if target is None:
            raise PacketError(Drop.NO_GUEST_ADDRESS)
        return target, self._scope if is_link_local(target) else 0
