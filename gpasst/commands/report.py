"""What ``gpasst network`` reports while it runs: for people, or as JSON.

Theory of operation: an event is reported when it happens, as one or more whole lines: that all is open, a line of a
command's output, the end of a command. With ``--json`` each is one object with its name as ``event``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Protocol

from gpasst.commands.lines import Lines
from gpasst.commands.network_parts import Parts
from gpasst.topology import tree
from gpasst.topology.addresses import Places
from gpasst.topology.records import CommandPlan, Topology, WeatherPlan


class Report(Protocol):
    """Reports events."""

    def up(self, topology: Topology, parts: Parts) -> None:
        """Report that all is open."""

    def output(self, host: str, lines: Iterable[str]) -> None:
        """Report lines that a command of a host wrote."""

    def ended(self, host: str, command: CommandPlan, status: int) -> None:
        """Report that a command of a host ended, with an exit status as of a shell."""

    def weather(self, plan: WeatherPlan, begins: bool) -> None:
        """Report that weather begins or ends."""


class TextReport:
    """Reports events for people.

    :param lines: where they are written.
    :param width: letters of the longest name of a host.
    :param quiet: report nothing but output.
    """

    def __init__(self, lines: Lines, width: int, quiet: bool = False) -> None:
        self._lines = lines
        self._width = width
        self._quiet = quiet

    def up(self, topology: Topology, parts: Parts) -> None:
        """Report that all is open: as a picture, with a command line for a shell in each host."""
        if self._quiet:
            return
        self._lines.put(f"{tree.draw(topology, parts.places())}\n")
        for name, forwards in parts.ports.items():
            for text, port in forwards:
                self._lines.put(f"{name:<{self._width}} * forward {text} from port {port}")
        if parts.hosts:
            self._lines.put("a shell in a host, from another terminal:")
        for name, host in parts.hosts.items():
            self._lines.put(f"{name:<{self._width}} * {' '.join(host.nsenter)}")
        self._lines.put("")

    def output(self, host: str, lines: Iterable[str]) -> None:
        """Report lines with the host before each."""
        self._lines.put(*(f"{host:<{self._width}} | {line}" for line in lines))

    def ended(self, host: str, command: CommandPlan, status: int) -> None:
        """Report an end."""
        if not self._quiet:
            self._lines.put(f"{host:<{self._width}} * ended with status {status}: {command}")

    def weather(self, plan: WeatherPlan, begins: bool) -> None:
        """Report weather."""
        if not self._quiet:
            effect = "; ".join(plan.rules) or "partition"
            self._lines.put(f"{plan.network} ~ {plan.place}: {effect} {'begins' if begins else 'ends'}")


class JsonReport:
    """Reports events as JSON.

    :param lines: where they are written.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def up(self, topology: Topology, parts: Parts) -> None:
        """Report that all is open: networks, hosts and routers by their names."""
        places = parts.places()
        self._put(
            "up",
            {
                "networks": {
                    name: {"subnet4": network.subnet4, "subnet6": network.subnet6, "mtu": network.mtu}
                    for name, network in parts.networks.items()
                },
                "hosts": {
                    name: {
                        "addresses": _addresses(name, places),
                        "forwards": [{"forward": text, "port": port} for text, port in parts.ports.get(name, ())],
                        "nsenter": host.nsenter,
                    }
                    for name, host in parts.hosts.items()
                },
                "routers": {name: {"addresses": _addresses(name, places)} for name in parts.routers},
            },
        )

    def output(self, host: str, lines: Iterable[str]) -> None:
        """Report lines, each as an event."""
        self._lines.put(*(_event("output", {"host": host, "line": line}) for line in lines))

    def ended(self, host: str, command: CommandPlan, status: int) -> None:
        """Report an end."""
        words = command.argv[0] if command.shell else list(command.argv)
        self._put("ended", {"host": host, "command": words, "status": status})

    def weather(self, plan: WeatherPlan, begins: bool) -> None:
        """Report weather."""
        where = {"network": plan.network, plan.kind: [list(group) for group in plan.groups], "rules": list(plan.rules)}
        self._put("weather", {**where, "begins": begins})

    def _put(self, event: str, fields: Mapping[str, object]) -> None:
        self._lines.put(_event(event, fields))


def _event(name: str, fields: Mapping[str, object]) -> str:
    return json.dumps({"event": name, **fields})


def _addresses(name: str, places: Places) -> dict[str, list[str]]:
    """Return the addresses of a host or router, by network."""
    return {network: list(own) for (node, network), own in places.items() if node == name}
