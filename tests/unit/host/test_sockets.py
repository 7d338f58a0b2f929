"""What a user reads when a port cannot be forwarded: one line that names the port, the obstacle and the way past it."""

from __future__ import annotations

import errno
import os

import pytest

from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.flow.listeners import BindAddress
from gpasst.host import sockets
from gpasst.host.sockets import listener_error, ping_socket, supported
from tests.support.lab import Remote

EVERYWHERE = BindAddress(False, 4, "0.0.0.0", "", 5000)
ON_DEVICE = BindAddress(False, 6, "::", "up0", 5000)
INSIDE = BindAddress(True, 4, "127.0.0.53", "", 5300)
PRIVILEGED = BindAddress(False, 4, "192.0.2.2", "", 53)
PRIVILEGED_INSIDE = BindAddress(True, 6, "::", "lo", 53)


@pytest.mark.parametrize(
    ("number", "place", "rule", "kind", "text"),
    [
        (
            errno.EADDRINUSE,
            EVERYWHERE,
            "5000",
            PlatformError,
            "cannot forward udp port 5000 on 0.0.0.0 (rule 5000): the port is in use; choose another, or end its user",
        ),
        (
            errno.EADDRINUSE,
            INSIDE,
            "127.0.0.53/5300:53",
            PlatformError,
            "cannot forward udp port 5300 on 127.0.0.53 in the namespace (rule 127.0.0.53/5300:53): "
            "the port is in use; choose another, or end its user",
        ),
        (
            errno.ENODEV,
            ON_DEVICE,
            "%up0/5000",
            ConfigurationError,
            "cannot forward udp port 5000 on ::%up0 (rule %up0/5000): no such interface; list them with: ip link",
        ),
        (
            errno.EADDRNOTAVAIL,
            PRIVILEGED,
            "192.0.2.2/53",
            ConfigurationError,
            "cannot forward udp port 53 on 192.0.2.2 (rule 192.0.2.2/53): the host does not have that address; "
            "list them with: ip address; or add --freebind",
        ),
        (
            errno.EADDRNOTAVAIL,
            INSIDE,
            "127.0.0.53/5300",
            ConfigurationError,
            "cannot forward udp port 5300 on 127.0.0.53 in the namespace (rule 127.0.0.53/5300): "
            "the namespace does not have that address; list them with: ip address",
        ),
        (
            errno.EACCES,
            PRIVILEGED,
            "192.0.2.2/1-100",
            PlatformError,
            "cannot forward udp port 53 on 192.0.2.2 (rule 192.0.2.2/1-100): a port below 54 is not permitted; "
            "lower the limit: sysctl net.ipv4.ip_unprivileged_port_start=53",
        ),
        (
            errno.EPERM,
            ON_DEVICE,
            "%up0/5000",
            PlatformError,
            "cannot forward udp port 5000 on ::%up0 (rule %up0/5000): binding to up0 is not permitted; "
            "leave the interface out",
        ),
        (
            errno.EMFILE,
            EVERYWHERE,
            "4000-6000",
            PlatformError,
            "cannot forward udp port 5000 on 0.0.0.0 (rule 4000-6000): too many open files; "
            "raise ulimit -n or forward fewer ports",
        ),
        (
            errno.ENFILE,
            EVERYWHERE,
            "all",
            PlatformError,
            "cannot forward udp port 5000 on 0.0.0.0 (rule all): too many open files; "
            "raise ulimit -n or forward fewer ports",
        ),
        (
            errno.ENOMEM,
            EVERYWHERE,
            "5000",
            PlatformError,
            "cannot forward udp port 5000 on 0.0.0.0 (rule 5000): Cannot allocate memory; "
            "look the error up in errno(3)",
        ),
    ],
)
def test_the_whole_line(number: int, place: BindAddress, rule: str, kind: type[GpasstError], text: str) -> None:
    error = listener_error(OSError(number, os.strerror(number)), "udp", place, rule)
    assert type(error) is kind
    assert str(error) == text


@pytest.mark.parametrize("place", [EVERYWHERE, ON_DEVICE, INSIDE, PRIVILEGED, PRIVILEGED_INSIDE])
def test_whatever_the_kernel_says_is_one_line_with_a_remedy(place: BindAddress) -> None:
    for number in errno.errorcode:
        error = listener_error(OSError(number, os.strerror(number)), "tcp", place, "a rule")
        assert error.message.startswith(f"cannot forward tcp {place} (rule a rule): ")
        assert error.remedy
        assert "\n" not in str(error)


def test_without_a_socket_there_is_no_telling_what_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(sockets, "RawSocket", refuse)
    with pytest.raises(PlatformError, match="no socket: Too many open files; raise ulimit -n"):
        supported()


@pytest.mark.parametrize("family", [4, 6])
def test_two_ping_sockets_never_share_an_identifier(remote: Remote, family: int) -> None:
    """The kernel would serve either of them with the replies of both."""
    del remote
    one, other = ping_socket(family, 4321), ping_socket(family, 4321)
    try:
        assert one.getsockname()[1] == 4321
        assert other.getsockname()[1] not in (0, 4321)
    finally:
        one.close()
        other.close()
