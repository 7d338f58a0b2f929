"""Port specifications: what is accepted covers what it says, and lays itself over the ephemeral ports."""

from __future__ import annotations

from gpasst.errors import ConfigurationError
from gpasst.portspec import CHOSEN_PORT, lay, parse, reverse
from tests.support.fuzz.choices import Choices

EPHEMERAL = (32768, 60999)
PORT_MAXIMUM = 65535


def take(data: bytes) -> None:
    """Parse up to three specifications of one option."""
    choices = Choices(data)
    protocol = choices.pick(("tcp", "udp"))
    texts = [choices.piece(64).decode("latin-1") for _ in range(choices.number(3))]
    texts.append(choices.text())
    try:
        rules = parse("--ports", texts, protocol)
    except ConfigurationError as error:
        assert str(error).isprintable()
        return
    for rule in lay(rules, EPHEMERAL):
        assert rule.families
        for port, target in rule.ports():
            assert port == CHOSEN_PORT or 0 < port <= PORT_MAXIMUM
            assert 0 < target <= PORT_MAXIMUM
    reverse(rules)
