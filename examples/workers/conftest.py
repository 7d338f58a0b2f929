"""One network for all workers of pytest-xdist.

The process that starts the workers has the first part of the network, with a server that all tests use. Each worker has
a part of its own, with hosts for its tests, and is joined with the first by a trunk.
"""

import sys
import tempfile
from contextlib import ExitStack

import pytest

import gpasst

OFFICE = """
import itertools, socketserver

tickets = itertools.count(1)

class Office(socketserver.StreamRequestHandler):
    def handle(self):
        name = self.rfile.readline().strip()
        self.wfile.write(b"%s has number %d\\n" % (name, next(tickets)))

socketserver.TCPServer(("0.0.0.0", 7000), Office).serve_forever()
"""
OPEN, TRUNK = pytest.StashKey(), pytest.StashKey()


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        return  # this is a worker
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        lan = stack.enter_context(gpasst.Network("lan", part=0))
        office = lan.host("office")
        office.popen([sys.executable, "-c", OFFICE])
        office.wait_bound("tcp", 7000)
        # Workers on other machines need a TCP trunk: lan.trunk(listen="192.0.2.1:4000", secret=...)
        config.stash[TRUNK] = lan.trunk(listen=f"{folder}/trunk").address
        config.stash[OPEN] = stack.pop_all()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Tell a worker of pytest-xdist what it cannot know."""
    node.workerinput["trunk"] = node.config.stash[TRUNK]
    node.workerinput["part"] = int(node.workerinput["workerid"].removeprefix("gw")) + 1


def pytest_unconfigure(config):
    if OPEN in config.stash:
        config.stash[OPEN].close()


@pytest.fixture(scope="session")
def lan(pytestconfig):
    """This worker's part of the network; without workers there is one beside the first."""
    own = getattr(pytestconfig, "workerinput", None) or {"part": 1, "trunk": pytestconfig.stash[TRUNK]}
    with gpasst.Network("lan", part=own["part"]) as lan:
        lan.trunk(connect=own["trunk"])
        lan.wait_host("office")
        yield lan
