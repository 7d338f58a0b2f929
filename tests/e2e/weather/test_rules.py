"""Rules of weather as users give them: by the methods of a connection, and on the command line (2 s)."""

from __future__ import annotations

import gc
import socket
import subprocess
import weakref
from collections.abc import Iterator

import pytest

import gpasst
from gpasst.weather import CLEAR
from tests.support.cli import AS_ROOT, cli
from tests.support.guests import proxy_of
from tests.support.lab import FAR4, REMOTE4, Remote

pytestmark = pytest.mark.usefixtures("tun", "remote")


@pytest.fixture(scope="module")
def net(tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    del tun, remote
    with gpasst.Pasta(config_net=True) as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss 130%", r"loss 130%: a probability is 0 to 100 %"),
        ("udp dst 127.0.0.53: loss 30%", r"dst 127.0.0.53: loopback traffic is spliced.*no_splice=True"),
        ("src ::1: partition", r"src ::1: loopback traffic is spliced.*no_splice=True"),
        ("nothing", "nothing is no effect"),
    ],
)
def test_a_bad_rule_is_refused_in_one_line(net: gpasst.Pasta, text: str, message: str) -> None:
    with pytest.raises(gpasst.ConfigurationError, match=message) as caught:
        net.impair(text)
    assert "\n" not in str(caught.value)
    assert net.fates() == []


def test_keywords_and_text_are_one_rule(net: gpasst.Pasta) -> None:
    with (
        net.impair("to guest udp sport 53: loss 30% seed 7") as text,
        net.impair(to="guest", protocol="udp", sport=53, loss=0.3, seed=7) as keywords,
        net.impair("to guest udp sport 53: loss 30%", seed=7) as beside,
    ):
        assert text.rules == keywords.rules == beside.rules
        assert (text.seed, keywords.seed) == (7, 7)


def test_a_seed_is_chosen_and_shown(net: gpasst.Pasta) -> None:
    with net.impair(loss=0.5) as rule:
        assert rule.rules == (f"loss 50% seed {rule.seed}",)


def test_weather_is_given_once(net: gpasst.Pasta) -> None:
    with pytest.raises(gpasst.ConfigurationError, match="both as rules and as keywords"):
        net.impair("partition", loss=0.3)
    with pytest.raises(gpasst.ConfigurationError, match="is no rule"):
        net.impair([3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], "no weather"),
        ([(1, "partition"), (1, "partition")], "in order"),
        ([(-1, "partition")], "seconds"),
        (["partition"], "takes pairs"),
        ("loss 5%", "takes pairs, not 'loss 5%'; "),
        ([(0, "loss 2")], "loss 2"),
    ],
)
def test_a_bad_schedule_is_refused(net: gpasst.Pasta, schedule: list[tuple[float, str]], message: str) -> None:
    with pytest.raises(gpasst.ConfigurationError, match=message):
        net.weather(schedule)


def test_a_connection_that_is_closed_has_no_weather(net: gpasst.Pasta) -> None:
    closed = gpasst.Pasta()
    with pytest.raises(gpasst.ConfigurationError, match="not open"):
        closed.impair("partition")
    with gpasst.Pasta(config_net=True) as opened:
        rule = opened.impair("to host udp: delay 3600s")
        with opened.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"?", (REMOTE4, 9))
    rule.remove()
    assert list(rule.log) is not None
    with pytest.raises(gpasst.ConfigurationError, match="--splice-only"):
        gpasst.Pasta(splice_only=True, impair="partition")
    with gpasst.Pasta(splice_only=True) as spliced, pytest.raises(gpasst.ConfigurationError, match="splice-only"):
        spliced.impair("partition")


def test_a_closed_connection_leaves_nothing_of_its_weather() -> None:
    gc.collect()
    gc.disable()
    try:
        with gpasst.Pasta(config_net=True) as opened:
            rule = opened.impair("delay 3600s")
            schedule = opened.weather([(0, "to host udp: delay 3600s"), (3600, CLEAR)])
            with opened.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"?", (REMOTE4, 9))
            for _ in range(2000):
                if rule.hits:
                    break
                opened.statistics()
            proxy = weakref.ref(proxy_of(opened))
        assert proxy() is None, "freed at once, without the garbage collector"
        assert rule.hits
        assert schedule.hits == 0, "the first rule decides"
    finally:
        gc.enable()


def test_a_predicate_sees_frames_and_its_error_is_raised(net: gpasst.Pasta) -> None:
    with net.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with net.impair(to="host", loss=1, when=lambda frame: frame.payload == b"yes") as rule:
            for data in (b"yes", b"no", b"yes"):
                sock.sendto(data, (FAR4, 9))
            assert wait_for(net, 2)
        assert rule.hits == 2
        with pytest.raises(ZeroDivisionError), net.impair(to="host", protocol="udp", loss=1, when=lambda frame: 1 / 0):
            sock.sendto(b"?", (FAR4, 9))
            net.run(["ping", "-c", "1", "-W", "1", FAR4], check=True, stdout=subprocess.DEVNULL)


def wait_for(net: gpasst.Pasta, count: int) -> bool:
    """Wait until rules have logged so many frames."""
    for _ in range(2000):
        if len(net.fates(count)) == count:
            return True
        net.statistics()
    return False


def test_fates_of_ended_rules_are_shown_last(net: gpasst.Pasta) -> None:
    with net.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((FAR4, 9))
        with net.impair("to host udp dport 9 size 142: loss 100% seed 3") as rule:
            sock.send(bytes(100))
            for _ in range(2000):
                if rule.hits:
                    break
                net.statistics()
    assert repr(rule) == "<Impairment to host udp dport 9 size 142: loss 100% seed 3>"
    (line,) = net.fates(1)
    assert "loss 100% seed 3" in line
    assert "142 bytes" in line
    assert str(rule.log).endswith("142 bytes")


def test_rules_of_the_command_line(tun: None) -> None:
    del tun
    rule = ("--impair", "to host icmp: loss 100%")
    done = cli("pasta", "--config-net", *AS_ROOT, "--debug", *rule, "--", "ping", "-c", "1", "-W", "0.1", FAR4)
    assert done.returncode == 1
    assert "100% packet loss" in done.stdout
    assert "impairment: to host icmp: loss 100% seed " in done.stderr
    wrong = cli("pasta", "--impair", "loss 130%", "--", "true")
    assert wrong.returncode
    assert "--impair loss 130% is no rule: loss 130%: a probability is 0 to 100 %" in wrong.stderr


def test_a_capture_shows_what_weather_took(net: gpasst.Pasta) -> None:
    with (
        net.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        net.capture(filter="udp dport 9") as capture,
        net.impair("to host udp dport 9 nth 2: loss 100%"),
    ):
        for data in (b"one", b"two", b"three"):
            sock.sendto(data, (FAR4, 9))
        capture.wait_for(lambda frame: frame.payload == b"three", timeout=5)
        assert [(frame.payload, frame.fate) for frame in capture.udp] == [
            (b"one", ""),
            (b"two", "lost"),
            (b"three", ""),
        ]


def test_rules_of_the_options_are_in_force_from_the_start() -> None:
    with gpasst.Pasta(config_net=True, impair=("udp dport 9: loss 100% seed 3", "DIAL_UP")) as opened:
        with opened.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"?", (FAR4, 9))
        assert wait_for(opened, 1)
        assert "udp dport 9: loss 100% seed 3 [to the host]: 1 lost" in opened.fates(1)[0]
