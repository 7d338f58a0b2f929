"""What `Pasta` and `Passt` do before they are open, and what is left of them when they are closed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

import gevent
import pytest

from gpasst import Config, ConfigurationError, Drop, Forward, Passt, Pasta, Statistics
from gpasst.api.connection import Connection, read_text
from gpasst.counters import Counters
from gpasst.proxy.proxy import Proxy
from gpasst.runtime import Runtime


class Stub:
    """Stands for a proxy."""

    def __init__(self) -> None:
        self.closed = 0
        self.forwards: tuple[Forward, ...] = ()
        self.counters = Counters()

    def statistics(self) -> Statistics:
        return self.counters.snapshot(0, 0, 0, 0)

    def close(self) -> None:
        self.closed += 1


class Stubbed(Connection):
    """A connection whose proxy is a stub, made on the runtime's hub."""

    mode = "pasta"

    def __init__(self, fails: bool = False, meanwhile: Callable[[], None] | None = None) -> None:
        super().__init__(Config(), {})
        self.fails = fails
        self.meanwhile = meanwhile
        self.made: list[weakref.ref[Stub]] = []
        self.hubs: list[object] = []

    def _open(self, here: Runtime) -> None:
        self.hubs.append(gevent.get_hub())
        if self.fails:
            raise ConfigurationError("no", "mend it")
        if self.meanwhile:
            gevent.spawn(self.meanwhile).get()
        stub = Stub()
        self.made.append(weakref.ref(stub))
        self._proxy = cast(Proxy, stub)


def in_a_thread(function: Callable[[], None]) -> None:
    function()


def in_a_greenlet(function: Callable[[], None]) -> None:
    gevent.spawn(function).get()


EACH_MODE = pytest.mark.parametrize("run", [in_a_thread, in_a_greenlet])


@EACH_MODE
def test_a_closed_connection_keeps_no_proxy(run: Callable[[Callable[[], None]], None]) -> None:
    connection = Stubbed()

    def use() -> None:
        for _ in range(2):
            with connection:
                stub = connection.made[-1]()
                assert stub is not None
                with pytest.raises(ConfigurationError, match="this Stubbed is open already"):
                    connection.open()
            assert stub.closed == 1
            connection.close()
            assert stub.closed == 1
            del stub

    run(use)
    gc.collect()
    assert len(connection.made) == 2
    assert [reference() for reference in connection.made] == [None, None]
    assert connection.hubs[0] is connection.hubs[1]


@EACH_MODE
def test_one_that_could_not_be_opened_may_be_closed(run: Callable[[Callable[[], None]], None]) -> None:
    connection = Stubbed(fails=True)

    def use() -> None:
        with pytest.raises(ConfigurationError, match="no; mend it"):
            connection.open()
        connection.close()
        with pytest.raises(ConfigurationError, match="this Stubbed is not open"):
            connection.statistics()

    run(use)


def test_one_that_is_closed_while_it_is_opened_keeps_no_proxy() -> None:
    connection = Stubbed(meanwhile=lambda: connection.close())

    def use() -> None:
        with pytest.raises(ConfigurationError, match="this Stubbed was closed while it was opened; open it again"):
            connection.open()
        with pytest.raises(ConfigurationError, match="this Stubbed is not open"):
            connection.statistics()
        connection.meanwhile = None
        connection.open()
        connection.close()

    in_a_greenlet(use)
    gc.collect()
    assert [reference() for reference in connection.made] == [None, None]


def test_one_is_not_opened_twice_at_once() -> None:
    refused: list[ConfigurationError] = []

    def again() -> None:
        with pytest.raises(ConfigurationError, match="this Stubbed is open already") as caught:
            connection.open()
        refused.append(caught.value)

    connection = Stubbed(meanwhile=again)
    in_a_greenlet(connection.open)
    in_a_greenlet(connection.close)
    assert len(refused) == len(connection.made) == 1


@pytest.mark.parametrize("kind", [Pasta, Passt])
@pytest.mark.parametrize(
    "use",
    [
        lambda connection: connection.forwards,
        lambda connection: connection.statistics(),
        lambda connection: connection.flows(),
        lambda connection: connection.network,
        lambda connection: connection.wait(0),
    ],
)
def test_what_needs_an_open_connection_says_so(kind: type[Pasta | Passt], use: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigurationError, match=f"this {kind.__name__} is not open; use it inside its with"):
        use(kind())


def test_options_are_checked_before_anything_is_opened() -> None:
    with pytest.raises(ConfigurationError, match="unknown option nosuch"):
        Pasta(nosuch=1)
    with pytest.raises(ConfigurationError, match="option tcp_port; write tcp_ports, or see"):
        Pasta(tcp_port="80")
    with pytest.raises(ConfigurationError, match="unknown option port_rules"):
        Pasta(port_rules={})
    with pytest.raises(ConfigurationError, match="a Config and keywords were given"):
        Pasta(Config(), mtu=1500)
    with pytest.raises(ConfigurationError, match="--socket is not an option of gpasst pasta"):
        Pasta(socket="/x")
    with pytest.raises(ConfigurationError, match="--config-net is not an option of gpasst passt"):
        Passt(config_net=True)
    with pytest.raises(ConfigurationError, match="--udp-ports auto needs a namespace"):
        Passt(udp_ports="auto")
    assert Pasta(pid=1).config == Config(pid=1)


def test_a_file_that_cannot_be_read_is_empty() -> None:
    assert read_text("/nosuch/resolv.conf") == ""


def open_stub() -> tuple[Stubbed, Stub]:
    connection = Stubbed()
    connection.open()
    stub = connection.made[0]()
    assert stub is not None
    return connection, stub


def test_the_port_that_leads_to_one_of_the_guest() -> None:
    connection, stub = open_stub()
    stub.forwards = (
        Forward("tcp", "127.0.0.1", 53, None, 5353, inside=True),
        Forward("udp", "0.0.0.0", 40001, None, 53, chosen=True),
        Forward("tcp", "0.0.0.0", 40002, None, 53, chosen=True),
        Forward("tcp", "::", 40003, None, 53, chosen=True),
    )
    assert connection.port("udp", 53) == 40001
    assert connection.port("tcp", 53) == 40002
    with pytest.raises(ConfigurationError, match="no port of the host leads to tcp 5353") as caught:
        connection.port("tcp", 5353)
    assert caught.value.remedy == "forward it; these are: udp 40001:53, tcp 40002:53, tcp 40003:53"
    stub.forwards = ()
    with pytest.raises(ConfigurationError, match="these are: none"):
        connection.port("udp", 53)
    connection.close()


def test_drops_are_named_with_their_reasons() -> None:
    connection, stub = open_stub()
    stub.counters.drop(Drop.MEMBERSHIP)
    connection.assert_no_drops()
    stub.counters.drop(Drop.TAP_FULL, 2)
    stub.counters.drop(Drop.FILTERED)
    with pytest.raises(AssertionError) as caught:
        connection.assert_no_drops()
    assert str(caught.value) == f"dropped: 1 {Drop.FILTERED.value}, 2 {Drop.TAP_FULL.value}"
    with pytest.raises(AssertionError, match=f"^dropped: 1 {Drop.FILTERED.value}$"):
        connection.assert_no_drops(allow=[Drop.TAP_FULL])
    connection.assert_no_drops(allow=[Drop.TAP_FULL, Drop.FILTERED])
    connection.close()
