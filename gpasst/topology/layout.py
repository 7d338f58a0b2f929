"""Where the parts of a picture stand: networks as rows, hosts and routers in columns between them.

Theory of operation: a network is a horizontal line, and its *row* is its number from the top. A box stands in the space
below the topmost of its networks, and is joined to each of them by a vertical line in its own column. Boxes are placed
one by one, each in the leftmost column where neither a box nor a line is in the spaces that it and its line take up.
The uplink of a network is a box above it, joined to that network alone.

Rows are in the order in which networks are reached from the first one (`gpasst.topology.tree.roots`), so that lines are
short. Nothing depends on chance or on sizes, so one topology has one layout.
"""

from __future__ import annotations

from typing import Final

from gpasst.records import dataclass
from gpasst.topology.records import Node, Topology
from gpasst.topology.tree import roots

ABOVE: Final = -1  # the space before the first row


@dataclass(frozen=True, slots=True)
class Box:
    """A host, a router or an uplink.

    :ivar node: the host or router, None for an uplink.
    :ivar column: its column, from 0.
    :ivar space: the row below which it stands, `ABOVE` for none.
    :ivar rows: the rows of its networks, from the top.
    """

    node: Node | None
    column: int
    space: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of all parts.

    :ivar rows: the networks by name, from the top.
    :ivar boxes: the boxes, in the order in which they were placed.
    """

    rows: tuple[str, ...]
    boxes: tuple[Box, ...]

    @property
    def columns(self) -> int:
        """How many columns there are, at least one."""
        return max((box.column + 1 for box in self.boxes), default=1)


def lay_out(topology: Topology) -> Layout:
    """Return the places of the parts of a topology."""
    rows = _rows(topology)
    number = {name: row for row, name in enumerate(rows)}
    taken: dict[int, set[int]] = {}
    boxes = []
    wanted: list[tuple[int, tuple[int, ...], Node | None]] = [
        (number[network.name] - 1, (number[network.name],), None) for network in topology.networks if network.uplink
    ]
    for node in topology.nodes():
        own = tuple(sorted(number[name] for name in node.networks))
        wanted.append((own[0], own, node))
    # Long lines first, so that they stand beside each other at the left.
    for space, own, placed in sorted(wanted, key=lambda item: (item[1][0] - item[1][-1], item[0])):
        spaces = set(range(space, max(space + 1, own[-1])))
        column = 0
        while taken.setdefault(column, set()) & spaces:
            column += 1
        taken[column] |= spaces
        boxes.append(Box(placed, column, space, own))
    return Layout(rows, tuple(boxes))


def _rows(topology: Topology) -> tuple[str, ...]:
    """Return the networks, each as near as can be behind one that it is joined to."""
    rows: dict[str, None] = {}
    for root in roots(topology):
        waiting = [root]
        while waiting:
            name = waiting.pop(0)
            if name not in rows:
                rows[name] = None
                waiting += [other for node in topology.nodes() if name in node.networks for other in node.networks]
    return tuple(rows)
