"""The host's resolver configuration, resolv.conf(5)."""

from __future__ import annotations

import ipaddress

from gpasst.records import dataclass
from gpasst.values import is_domain


@dataclass(frozen=True, slots=True)
class ResolverFile:
    """The host's resolvers and search domains, from resolv.conf(5).

    :ivar nameservers: addresses in order, without scope.
    :ivar search: domains in order.
    """

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def parse_resolver_file(text: str) -> ResolverFile:
    """Parse the ``nameserver`` and ``search`` lines of resolv.conf(5); malformed lines are passed over."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values:
            try:
                nameservers.append(str(ipaddress.ip_address(values[0].partition("%")[0])))
            except ValueError:
                continue
        elif keyword == "search" and values:
            search = tuple(word for word in values if is_domain(word))
    return ResolverFile(tuple(nameservers), search)
