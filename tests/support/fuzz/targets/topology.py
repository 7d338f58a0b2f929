"""Network files: any text is a topology with addresses and pictures, or one line that says what is wrong."""

from __future__ import annotations

from xml.etree import ElementTree

from gpasst.errors import ConfigurationError
from gpasst.topology import svg, tree
from gpasst.topology.addresses import places
from gpasst.topology.read import read
from tests.support.fuzz.choices import Choices

PARTS = (
    "[network.lan]\n",
    "[network.wan]\nmtu = 1400\n",
    'subnet4 = "10.9.0.0/16"\n',
    'subnet6 = ""\n',
    "uplink = true\n",
    'capture = "x.pcapng"\n',
    "[host.a]\n",
    '[host.b]\nnetworks = ["lan", "wan"]\nforwarding = true\n',
    'run = "true"\n',
    'forward = ["tcp 8080"]\n',
    'wait_bound = "udp 53"\n',
    '[router.r]\ninside = "lan"\noutside = "wan"\n',
    'nat = "home"\n',
    'firewall = ["allow out udp 53"]\n',
    "timeout = 30\n",
    '[[weather]]\nlink = "a"\n',
    'between = ["a", "b"]\n',
    'partition = [["a"], ["b"]]\n',
    'rule = "loss 5%"\n',
    'network = "lan"\n',
    "one_way = true\n",
    'from = "1s"\nuntil = "2s"\n',
    "seed = 7\n",
)
PIECES = 16


def take(data: bytes) -> None:
    """Read a file of lines that network files have, and of any others."""
    choices = Choices(data)
    text = "".join(choices.pick(PARTS) for _ in range(choices.number(PIECES))) + choices.text()
    try:
        topology = read(text)
    except ConfigurationError as error:
        assert str(error).isprintable()
        return
    try:
        found = places(topology)
    except ConfigurationError as error:
        assert str(error).isprintable()
        return
    assert tree.draw(topology, found)
    ElementTree.fromstring(svg.draw(topology, found))
