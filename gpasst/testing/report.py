"""What a failed test's report says of a namespace, a virtual machine's network, or a network of hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpasst.api.connection import Connection
from gpasst.counters import Statistics
from gpasst.errors import GpasstError
from gpasst.flow.record import Flow, Forward
from gpasst.records import fields

if TYPE_CHECKING:
    from gpasst.api.network import Network

FLOWS_SHOWN = 50
FATES_SHOWN = 20


def describe(connection: Connection, name: str) -> str:
    """Return forwards, counters, flows and last fates of a connection, one a line, and errors of functions that serve.

    :param connection: an open one; of another one the reason is returned.
    :param name: its name in the report.
    """
    try:
        forwards, statistics, flows = connection.forwards, connection.statistics(), connection.flows()
        fates, errors = connection.fates(FATES_SHOWN), connection.handler_errors
    except GpasstError as error:
        return f"{name}: {error}"
    lines = [f"{name}:"]
    lines += [f"  forward {_forward(forward)}" for forward in forwards]
    lines += [f"  {counter} {value}" for counter, value in _counters(statistics)]
    lines += [f"  flow {_flow(flow)}" for flow in flows[:FLOWS_SHOWN]]
    if len(flows) > FLOWS_SHOWN:
        lines.append(f"  and {len(flows) - FLOWS_SHOWN} more flows")
    lines += [f"  fate {fate}" for fate in fates]
    lines += [f"  {line}" for error in errors for line in error.splitlines()]
    return "\n".join(lines)


def describe_network(network: Network) -> str:
    """Return links, drops and last fates of a network, one a line.

    :param network: an open one; of another one the reason is returned.
    """
    name = f"network {network.name}"
    try:
        statistics, fates = network.statistics(), network.fates(FATES_SHOWN)
        subnets = " ".join(filter(None, (network.subnet4, network.subnet6)))
    except GpasstError as error:
        return f"{name}: {error}"
    lines = [f"{name}, {subnets}:"]
    for port, count in statistics.ports.items():
        lines.append(f"  {port}: {count.received} frames from it, {count.sent} to it")
    lines += [f"  drops {count} {reason}" for reason, count in statistics.drops.items()]
    lines += [f"  fate {fate}" for fate in fates]
    return "\n".join(lines)


def _forward(forward: Forward) -> str:
    interface = f"%{forward.interface}" if forward.interface else ""
    sides = ("namespace", "host") if forward.inside else ("host", "guest")
    target = f"{forward.target_address} " if forward.target_address else ""
    return (
        f"{forward.protocol} {sides[0]} {forward.address}{interface} port {forward.port} -> "
        f"{sides[1]} {target}port {forward.target}"
    )


def _flow(flow: Flow) -> str:
    ends = " ".join(f"{address} {port}" for address, port in (flow.guest, flow.shown, flow.remote))
    return f"{flow.protocol} {ends}"


def _counters(statistics: Statistics) -> list[tuple[str, Any]]:
    found = [(item.name, getattr(statistics, item.name)) for item in fields(statistics)]
    return [(name, value) for name, value in found if value]
