"""A program of gevent: a hundred greenlets ask a server through bad weather, and ask again.

    pip install gpasst pytest pytest-xdist
    pytest -n 2 test_gevent_program.py test_asyncio_program.py

A test that runs in a greenlet has the proxy on its own event loop, beside its greenlets. Nothing has to be patched, but
a program that is monkey-patched works in the same way.
"""

import functools

import gevent
import gevent.socket

ADDRESS = ("203.0.113.7", 7000)  # exists nowhere
CLIENTS = 100


def in_a_greenlet(test):
    """Let a test run in a greenlet."""

    @functools.wraps(test)
    def run(**fixtures):
        gevent.spawn(test, **fixtures).get()

    return run


def ask(net, number):
    """Ask until there is an answer; return how often that was."""
    made = net.socket()
    # The same socket, for gevent: calls that wait let other greenlets run.
    with gevent.socket.socket(made.family, made.type, made.proto, made.detach()) as sock:
        sock.settimeout(0.1)
        sock.connect(ADDRESS)
        for tries in range(1, 50):
            sock.send(b"%d" % number)
            try:
                assert sock.recv(100) == b"%d" % (2 * number)
            except TimeoutError:
                continue
            return tries
    raise TimeoutError


@in_a_greenlet
def test_everybody_gets_an_answer(gpasst_factory):
    net = gpasst_factory()

    # This function is the server: it is called for each datagram to the address, in a greenlet.
    def double(data, peer):
        return b"%d" % (2 * int(data))

    with net.serve_udp(*ADDRESS, double) as server:
        with net.impair("udp: loss 20% delay 5ms seed 3") as weather:
            clients = [gevent.spawn(ask, net, number) for number in range(CLIENTS)]
            tries = [client.get() for client in clients]
    assert sum(tries) > CLIENTS, "some had to ask again"
    assert server.calls >= CLIENTS
    assert not net.handler_errors
    assert any(fate == "lost" for _, fate in weather.log.fates)
