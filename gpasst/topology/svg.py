"""The picture of a topology as SVG, with places from `gpasst.topology.layout`.

Theory of operation: letters are of one width, so that a box is as wide as its longest line. Each piece of weather has a
*lane* of its own below its network, where no box stands: a dashed line between the two hosts that it is about, or a dot
on the line of the one. So no label covers another. Of a host that stands above the network, the line is led on to its
lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from gpasst.switch.plan import GATEWAY_NAME
from gpasst.topology.layout import Box, Layout, lay_out
from gpasst.topology.records import BETWEEN, PARTITION, NetworkPlan, RouterPlan, Topology, WeatherPlan
from gpasst.topology.tree import UPLINK, Places, network_facts, node_facts

FONT: Final = 13  # pixels
LETTER: Final = 7.9  # pixels; the width of a letter of that size
LINE: Final = 17  # pixels; from one line of text to the next
LINE_MAXIMUM: Final = 40  # letters of a line in a box
PADDING: Final = 8  # pixels between the frame of a box and its text
GAP: Final = 24  # pixels between boxes, and between a box and a network
LANE: Final = 24  # pixels; the height of a lane
MARGIN: Final = 20  # pixels around all
DOT: Final = 4  # pixels; the radius of what marks a host on a lane
BASELINE: Final = 4  # pixels; from the middle of a line of text to its baseline

STYLE: Final = f"""
  text {{ font: {FONT}px ui-monospace, "DejaVu Sans Mono", monospace; fill: #1b1f24; }}
  .name {{ font-weight: bold; }}
  .network {{ stroke: #1f6feb; stroke-width: 5; stroke-linecap: round; }}
  .line {{ stroke: #57606a; stroke-width: 1.5; }}
  .host, .router, .uplink {{ stroke: #57606a; stroke-width: 1.5; fill: #f6f8fa; }}
  .router {{ fill: #fff3d6; }}
  .uplink {{ fill: #ddf4e4; }}
  .weather {{ stroke: #b35900; stroke-width: 1.5; stroke-dasharray: 6 4; fill: none; }}
  .dot {{ fill: #b35900; }}
  .effect {{ fill: #b35900; }}
"""


class _Picture:
    """The measures of one picture, and its parts."""

    def __init__(self, topology: Topology, places: Places) -> None:
        self.topology, self.places = topology, places
        self.layout: Layout = lay_out(topology)
        self.networks = {network.name: network for network in topology.networks}
        self.lanes = {name: [item for item in topology.weather if item.network == name] for name in self.layout.rows}
        self.texts = {id(box): self._text(box) for box in self.layout.boxes}
        widths = [0.0] * self.layout.columns
        for box in self.layout.boxes:
            widths[box.column] = max(widths[box.column], self._width(box))
        letters = max(max(map(len, self._title(network))) for network in topology.networks)
        self.left = MARGIN + LETTER * letters + PADDING
        self.lefts = [self.left + GAP + sum(widths[:column]) + GAP * column for column in range(len(widths))]
        self.widths = widths
        heights = dict.fromkeys(range(-1, len(self.layout.rows)), 0)
        for box in self.layout.boxes:
            heights[box.space] = max(heights[box.space], self._height(box) + 2 * GAP)
        self.lines: list[float] = []
        y = float(MARGIN + heights[-1] + LINE)
        for row, name in enumerate(self.layout.rows):
            self.lines.append(y)
            title = LINE * len(self._title(self.networks[name]))
            y += max(LANE * len(self.lanes[name]) + max(heights[row], GAP), title + GAP)
        self.height = y
        labels = [self._lane_start(item) + LETTER * len(_label(item)) + GAP for item in topology.weather]
        self.width = max([self.lefts[-1] + widths[-1] + GAP, *labels]) + MARGIN

    def draw(self) -> Iterator[str]:
        """Yield the elements, those that are covered first."""
        for box in self.layout.boxes:
            yield from self._lines(box)
        for row, name in enumerate(self.layout.rows):
            yield from self._network(row, self.networks[name])
        for box in self.layout.boxes:
            yield from self._box(box)
        for row, name in enumerate(self.layout.rows):
            for lane, item in enumerate(self.lanes[name], 1):
                yield from self._weather(item, self.lines[row] + LANE * lane)

    def _text(self, box: Box) -> list[str]:
        if box.node is None:
            return [UPLINK]
        lines = [box.node.name]
        for network in box.node.networks:
            lines += self.places.get((box.node.name, network), ())
        lines += node_facts(box.node)
        return [line if len(line) <= LINE_MAXIMUM else f"{line[: LINE_MAXIMUM - 1]}…" for line in lines]

    def _width(self, box: Box) -> float:
        return LETTER * max(map(len, self.texts[id(box)])) + 2 * PADDING

    def _height(self, box: Box) -> int:
        return LINE * len(self.texts[id(box)]) + 2 * PADDING

    def _middle(self, box: Box) -> float:
        return self.lefts[box.column] + self.widths[box.column] / 2

    def _top(self, box: Box) -> float:
        if box.space < 0:
            return self.lines[0] - LINE - GAP - self._height(box)
        return self.lines[box.space] + LANE * len(self.lanes[self.layout.rows[box.space]]) + GAP

    def _ends(self, item: WeatherPlan) -> list[Box]:
        """Return the boxes that weather is about, one or two."""
        row = self.layout.rows.index(item.network)
        names = [name for group in item.groups for name in group]
        return [box for box in self.layout.boxes if row in box.rows and _name(box) in names]

    def _title(self, network: NetworkPlan) -> list[str]:
        return [network.name, *network_facts(network)]

    def _lane_start(self, item: WeatherPlan) -> float:
        if item.kind == PARTITION:
            return self.left
        return min(map(self._middle, self._ends(item)))

    def _lines(self, box: Box) -> Iterator[str]:
        """Yield the line from a box to each of its networks, and on to the lanes of those below it."""
        x = self._middle(box)
        top = self._top(box)
        ends = [top, *(self.lines[row] for row in box.rows)]
        yield _line(x, min(ends), x, max(ends), "line")
        for row in box.rows:
            lanes = [
                lane
                for lane, item in enumerate(self.lanes[self.layout.rows[row]], 1)
                if row > box.space and item.kind != PARTITION and box in self._ends(item)
            ]
            if lanes:
                yield _line(x, self.lines[row], x, self.lines[row] + LANE * max(lanes), "line")

    def _network(self, row: int, network: NetworkPlan) -> Iterator[str]:
        y = self.lines[row]
        own = [self._middle(box) for box in self.layout.boxes if row in box.rows]
        yield _line(self.left, y, max([*own, self.lefts[0]]) + GAP, y, "network")
        # A line without a dot passes on to another network.
        for x in own:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{DOT}" fill="#1f6feb"/>'
        for number, text in enumerate(self._title(network)):
            yield _words(MARGIN, y + LINE * number + BASELINE, text, "" if number else "name")

    def _box(self, box: Box) -> Iterator[str]:
        kind = "uplink" if box.node is None else "router" if isinstance(box.node, RouterPlan) else "host"
        width, height, top = self._width(box), self._height(box), self._top(box)
        x = self._middle(box) - width / 2
        yield (
            f'<rect class="{kind}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" '
            f'rx="{height / 2 if kind == "uplink" else PADDING / 2:.1f}"/>'
        )
        for number, text in enumerate(self.texts[id(box)]):
            y = top + PADDING + LINE * (number + 0.5) + BASELINE
            yield _words(x + PADDING, y, text, "" if number else "name")

    def _weather(self, item: WeatherPlan, y: float) -> Iterator[str]:
        start = self._lane_start(item)
        if item.kind != PARTITION:
            ends = sorted(map(self._middle, self._ends(item)))
            yield _line(ends[0], y, ends[-1], y, "weather")
            for x in ends:
                yield f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{DOT}"/>'
        x = start + 2 * DOT
        yield (
            f'<rect x="{x:.1f}" y="{y - LINE - 1:.1f}" width="{LETTER * len(_label(item)):.1f}" height="{LINE - 2}" '
            'fill="#ffffff"/>'
        )
        yield _words(x, y - BASELINE - 1, _label(item), "effect")


def draw(topology: Topology, places: Places | None = None) -> str:
    """Return the picture of a topology, as the text of a file.

    :param places: the addresses, as far as they are known.
    """
    picture = _Picture(topology, places or {})
    size = f'width="{picture.width:.0f}" height="{picture.height:.0f}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {picture.width:.0f} {picture.height:.0f}" '
        f'role="img">\n<title>{escape(", ".join(picture.layout.rows))}</title>\n<style>{STYLE}</style>\n'
        '<rect width="100%" height="100%" fill="#ffffff"/>'
    )
    return "\n".join([head, *picture.draw(), "</svg>\n"])


def _name(box: Box) -> str:
    return GATEWAY_NAME if box.node is None else box.node.name


def _label(item: WeatherPlan) -> str:
    return item.effect if item.kind == BETWEEN and not item.one_way else f"{item.place}: {item.effect}"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _words(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" xml:space="preserve">{escape(text)}</text>'
