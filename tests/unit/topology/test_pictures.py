"""Pictures of topologies: where the parts stand, and what is said of them."""

from __future__ import annotations

from itertools import combinations, pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from gpasst.topology import svg, tree
from gpasst.topology.addresses import places
from gpasst.topology.layout import ABOVE, Box, Layout, lay_out
from gpasst.topology.read import read
from gpasst.topology.records import HostPlan, NetworkPlan, RouterPlan, Topology

FILE = """\
[network.lan]
mtu = 1400
[network.net]
subnet4 = "10.1.0.0/24"
uplink = true
[network.dmz]
subnet4 = "none"
[host.server]
networks = "net"
run = ["python3", "-m", "http.server", "80"]
forward = "tcp 8080:80"
[host.a]
networks = "lan"
[host.b]
networks = ["lan", "dmz"]
forwarding = true
[router.home]
inside = "lan"
outside = "net"
nat = "none"
hairpin = true
[[weather]]
network = "lan"
between = ["a", "b"]
rule = ["delay 20ms", "loss 1%"]
from = "2s"
until = "5s"
[[weather]]
network = "lan"
link = "a"
rule = "rate 10mbit"
[[weather]]
network = "net"
partition = [["server"], ["home"]]
[[weather]]
network = "net"
link = "gateway"
rule = "loss 2%"
"""

PICTURE = """\
uplink
│
net  10.1.0.0/24
║   ~ server | home: partition
║   ~ gateway: loss 2%
║
╟── server  10.1.0.2  fd77:0:0:1::2
║   forward tcp 8080:80
║   $ python3 -m http.server 80
║
╙── home  10.1.0.3  fd77:0:0:1::3
    router to lan
    nat none
    hairpin yes
    │
    lan  mtu 1400
    ║   ~ a ↔ b: delay 20ms; loss 1% from 2s until 5s
    ║
    ╟── a  10.77.0.2  fd77::2
    ║   ~ rate 10mbit
    ║
    ╟── b  10.77.0.3  fd77::3
    ║   forwarding
    ║   │
    ║   dmz
    ║   ║
    ║   ╙── b  fd77:0:0:2::2  see lan above
    ║
    ╙── home  10.77.0.1  fd77::1  see net above"""


def test_the_picture_as_text() -> None:
    topology = read(FILE)
    assert tree.draw(topology, places(topology)) == PICTURE


def test_the_places_of_boxes() -> None:
    layout = lay_out(read(FILE))
    assert layout.rows == ("net", "lan", "dmz")
    placed = {box.node.name if box.node else "": (box.column, box.space, box.rows) for box in layout.boxes}
    assert placed == {
        "": (0, ABOVE, (0,)),
        "home": (0, 0, (0, 1)),
        "server": (1, 0, (0,)),
        "b": (0, 1, (1, 2)),
        "a": (1, 1, (1,)),
    }
    assert layout.columns == 2


def test_the_picture_as_svg_has_all_texts_once() -> None:
    topology = read(FILE)
    root = ElementTree.fromstring(svg.draw(topology, places(topology)))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(map(str, texts)) == sorted(
        [
            *("uplink", "net", "10.1.0.0/24", "lan", "mtu 1400", "dmz"),
            *("server", "10.1.0.2", "fd77:0:0:1::2", "forward tcp 8080:80", "$ python3 -m http.server 80"),
            *("home", "10.1.0.3", "fd77:0:0:1::3", "10.77.0.1", "fd77::1", "router to lan", "nat none", "hairpin yes"),
            *("a", "10.77.0.2", "fd77::2"),
            *("b", "10.77.0.3", "fd77::3", "fd77:0:0:2::2", "forwarding"),
            *("delay 20ms; loss 1% from 2s until 5s", "a: rate 10mbit", "server | home: partition", "gateway: loss 2%"),
        ]
    )


def test_texts_that_would_end_an_element_or_a_line_are_escaped() -> None:
    topology = read('[network.lan]\n[host.a]\nrun = "cat <a >b\\n&& true"\n')
    assert "$ cat <a >b\\n&& true" in tree.draw(topology).splitlines()[3]
    texts = [element.text for element in ElementTree.fromstring(svg.draw(topology)).iter()]
    assert "$ cat <a >b\\n&& true" in texts


def boxes_apart(layout: Layout) -> None:
    """Check that no two boxes or lines of a column share a space."""
    for one, other in combinations(layout.boxes, 2):
        if one.column == other.column:
            assert spaces(one).isdisjoint(spaces(other))


def spaces(box: Box) -> set[int]:
    return set(range(box.space, max(box.space + 1, box.rows[-1])))


NAMES = [f"n{number}" for number in range(6)]
PAIRS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    networks = tuple(NetworkPlan(name, uplink=draw(st.booleans())) for name in NAMES)
    hosts = tuple(HostPlan(f"h{number}", tuple(own)) for number, own in enumerate(draw(st.lists(PAIRS, max_size=8))))
    routers = tuple(
        RouterPlan(f"r{number}", own[0], own[1])
        for number, own in enumerate(draw(st.lists(PAIRS, max_size=4)))
        if len(own) > 1
    )
    return Topology(networks, hosts, routers)


@given(topologies())
def test_any_topology_has_pictures(topology: Topology) -> None:
    layout = lay_out(topology)
    assert sorted(layout.rows) == NAMES
    assert len(layout.boxes) == sum(network.uplink for network in topology.networks) + len(list(topology.nodes()))
    boxes_apart(layout)
    text = tree.draw(topology)
    assert text == tree.draw(topology)
    for node in topology.nodes():
        assert sum(line.lstrip("║ ").startswith((f"╟── {node.name}", f"╙── {node.name}")) for line in text.splitlines())
    ElementTree.fromstring(svg.draw(topology))


def test_a_long_chain_has_a_picture() -> None:
    names = [f"n{number}" for number in range(200)]
    hosts = tuple(HostPlan(f"h{index}", pair) for index, pair in enumerate(pairwise(names)))
    topology = Topology(tuple(map(NetworkPlan, names)), hosts)
    assert tree.draw(topology).count("see ") == 199
    assert lay_out(topology).rows == tuple(names)
