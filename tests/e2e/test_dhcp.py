"""Real clients get their configuration from a namespace's DHCP and DHCPv6: dhclient, dhcpcd and udhcpc."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import gpasst
from tests.support.guests import tap_index
from tests.support.lab import FAR4, FAR6, HOST4, HOST6, HOST_LINK_LOCAL, REMOTE4, Remote, bound
from tests.support.need import need
from tests.support.ready import PATIENCE, until

pytestmark = pytest.mark.usefixtures("tun", "remote")

OTHER4, OTHER6 = "192.0.2.77", "2001:db8:5::77"
TOLD: dict[str, Any] = {
    "mtu": 1400,
    "dhcp_dns": True,
    "dns": ("198.51.100.53", "198.51.100.54", "2001:db8::53"),
    "dhcp_search": True,
    "search": ("example.org", "b.example.org"),
    "hostname": "guest",
    "fqdn": "guest.example.org",
}
ROUTER_ADVERTISEMENT = 134


@contextmanager
def guest(**options: Any) -> Iterator[gpasst.Pasta]:
    """A namespace whose tap is up, with a link-local address and nothing else."""
    with gpasst.Pasta(**options) as net:
        # Duplicate address detection would hold the clients back for a second.
        net.run([need("ip"), "link", "set", net.interface, "addrgenmode", "none", "up"], check=True)
        if not options.get("ipv4_only"):
            net.run(["ip", "address", "add", "fe80::77/64", "dev", net.interface, "nodad"], check=True)
        yield net


def recorder(folder: Path) -> tuple[str, Path]:
    """A script for a client to call, and the file in which it leaves what it was told."""
    script, record = folder / "script", folder / "record"
    script.write_text(f'#!/bin/sh\n{{ echo "called=$1"; env; echo done=; }} >>{record}\n', encoding="utf-8")
    script.chmod(0o755)
    record.unlink(missing_ok=True)
    return str(script), record


def recorded(record: Path, called: str) -> dict[str, str]:
    """What the script was told by the last call with a line that matches `called`; empty if there was none."""
    if not record.exists():
        return {}
    calls = re.split(r"^done=\n", record.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = [call for call in calls[:-1] if re.search(f"^{called}$", call, re.MULTILINE)]
    return dict(line.split("=", 1) for line in found[-1].splitlines() if "=" in line) if found else {}


def dhclient(
    net: gpasst.Pasta, family: int, folder: Path, end: str, lease: str = "", config: str = ""
) -> tuple[str, dict[str, str]]:
    """Run dhclient until it prints `end`; give its output, and what it tells its script."""
    script, record = recorder(folder)
    (folder / "config").write_text(config, encoding="utf-8")
    if lease:
        (folder / "leases").write_text(lease, encoding="utf-8")
    command = ["timeout", str(2 * PATIENCE), need("dhclient"), f"-{family}", "-1", "-d", "-v", "-sf", script]
    command += ["-cf", str(folder / "config"), "-lf", str(folder / "leases"), "-pf", str(folder / "pid")]
    output = ""
    with net.popen([*command, net.interface], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as client:
        assert client.stderr is not None
        for line in client.stderr:
            output += line
            if end in line:
                break
        assert end in output, output
        called = "reason=(BOUND|REBOOT)6?"
        until(lambda: recorded(record, called), "script called")
        client.terminate()
    return output, recorded(record, called)


def test_dhclient(tmp_path: Path) -> None:
    with guest(**TOLD) as net:
        _, reported = dhclient(net, 4, tmp_path, "bound to")
        assert reported["new_ip_address"] == HOST4
        assert reported["new_subnet_mask"] == "255.255.255.0"
        assert reported["new_routers"] == REMOTE4
        assert reported["new_domain_name_servers"] == "198.51.100.53 198.51.100.54"
        assert reported["new_domain_search"] == "example.org. b.example.org."
        assert reported["new_interface_mtu"] == "1400"
        assert reported["new_host_name"] == "guest"
        assert reported["new_dhcp_lease_time"] == str(0xFFFFFFFF)
        assert reported["new_dhcp_server_identifier"] == REMOTE4


def test_dhclient_is_told_its_full_name_when_it_asks(tmp_path: Path) -> None:
    config = 'send fqdn.fqdn "old";\nsend fqdn.encoded on;\nsend fqdn.server-update on;\n'
    with guest(**TOLD) as net:
        dhclient(net, 4, tmp_path, "bound to", config=config)
        leases = (tmp_path / "leases").read_text(encoding="utf-8")
        assert 'option fqdn.fqdn "guest.example.org"' in leases, leases
        assert "option fqdn.server-update false" in leases, leases


def test_dhclient_with_a_lease_of_elsewhere(tmp_path: Path) -> None:
    with guest() as net:
        lease = f'lease {{\n interface "{net.interface}";\n fixed-address {OTHER4};\n'
        lease += " option subnet-mask 255.255.255.0;\n option dhcp-lease-time 4294967295;\n"
        lease += " renew never;\n rebind never;\n expire never;\n}\n"
        output, reported = dhclient(net, 4, tmp_path, "bound to", lease)
        assert f"DHCPREQUEST for {OTHER4}" in output
        assert f"DHCPNAK from {REMOTE4}" in output
        assert reported["new_ip_address"] == HOST4


def test_dhclient_again_with_its_lease(tmp_path: Path) -> None:
    with guest() as net:
        dhclient(net, 4, tmp_path, "bound to")
        # The second time it asks for the address that it had.
        output, _ = dhclient(net, 4, tmp_path, "bound to")
        assert "DHCPDISCOVER" not in output
        assert f"DHCPACK of {HOST4} from {REMOTE4}" in output


def test_dhclient6(tmp_path: Path) -> None:
    with guest(**TOLD) as net:
        _, reported = dhclient(net, 6, tmp_path, "Bound to lease")
        assert reported["new_ip6_address"] == HOST6
        assert reported["new_dhcp6_name_servers"] == "2001:db8::53"
        assert reported["new_dhcp6_domain_search"] == "example.org. b.example.org."
        assert reported["new_max_life"] == reported["new_preferred_life"] == str(0xFFFFFFFF)


def test_dhclient6_with_a_lease_of_elsewhere(tmp_path: Path) -> None:
    with guest() as net:
        dhclient(net, 6, tmp_path, "Bound to lease")
        lease = (tmp_path / "leases").read_text(encoding="utf-8").replace(f"iaaddr {HOST6}", f"iaaddr {OTHER6}")
        output, reported = dhclient(net, 6, tmp_path, "Bound to lease", lease)
        assert "Forming Confirm" in output
        assert "Forming Solicit" in output, output
        assert reported["new_ip6_address"] == HOST6


def test_dhclient6_for_information_alone(tmp_path: Path) -> None:
    script, record = recorder(tmp_path)
    command = [need("dhclient"), "-6", "-S", "-1", "-d", "-v", "-sf", script, "-cf", "/dev/null"]
    command += ["-lf", str(tmp_path / "leases"), "-pf", str(tmp_path / "pid")]
    with guest(**TOLD) as net:
        net.run([*command, net.interface], capture_output=True, text=True, timeout=PATIENCE)
    reported = recorded(record, "reason=RENEW6")
    assert reported["new_dhcp6_name_servers"] == "2001:db8::53"
    assert "new_ip6_address" not in reported


@pytest.mark.parametrize(("family", "address", "far"), [(4, HOST4, FAR4), (6, HOST6, FAR6)])
def test_a_guest_configured_by_dhcpcd_reaches_the_network(remote: Remote, family: int, address: str, far: str) -> None:
    number = socket.AF_INET if family == 4 else socket.AF_INET6
    # Its folders are the machine's.
    mounts = "mount -t tmpfs none /var/lib/dhcpcd && mount -t tmpfs none /run && exec "
    client = f"{need('dhcpcd')} -{family} -1 -B -A --nodelay --script /bin/true "
    with guest(**TOLD) as net:
        command = [need("unshare"), "--mount", "sh", "-c", mounts + client + net.interface]
        done = net.run(command, capture_output=True, text=True, timeout=2 * PATIENCE)
        assert done.returncode == 0, done.stderr
        assert "leased for infinity" in done.stderr or f"leased {address} for infinity" in done.stderr, done.stderr
        shown = net.run(["ip", f"-{family}", "address", "show", "dev", net.interface], capture_output=True, text=True)
        assert f"inet{'' if family == 4 else '6'} {address}/" in shown.stdout
        with bound(remote.socket(number), far) as server, net.socket(number) as sock:
            sock.settimeout(PATIENCE)
            sock.sendto(b"question", (far, server.getsockname()[1]))
            data, sender = server.recvfrom(99)
            server.sendto(data[::-1], sender)
            assert sock.recv(99) == b"noitseuq"


@pytest.mark.parametrize("options", [{}, {"no_udp": True}, {"ipv4_only": True}])
def test_udhcpc(tmp_path: Path, options: dict[str, Any]) -> None:
    script, record = recorder(tmp_path)
    command = [need("udhcpc"), "-f", "-q", "-n", "-t", "3", "-T", "1", "-O", "search", "-s", script]
    with guest(**TOLD, **options) as net:
        done = net.run([*command, "-i", net.interface], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
    reported = recorded(record, "called=bound")
    assert (reported["ip"], reported["subnet"], reported["router"]) == (HOST4, "255.255.255.0", REMOTE4)
    assert (reported["dns"], reported["search"]) == ("198.51.100.53 198.51.100.54", "example.org b.example.org")
    assert (reported["hostname"], reported["serverid"], reported["lease"]) == ("guest", REMOTE4, str(0xFFFFFFFF))


def test_udhcpc_asks_for_broadcast(tmp_path: Path) -> None:
    script, record = recorder(tmp_path)
    command = [need("udhcpc"), "-f", "-q", "-n", "-B", "-t", "3", "-T", "1", "-s", script]
    with guest() as net:
        net.run([*command, "-i", net.interface], check=True, capture_output=True, timeout=PATIENCE)
    assert recorded(record, "called=bound")["ip"] == HOST4


def test_a_gateway_outside_the_subnet(tmp_path: Path) -> None:
    script, record = recorder(tmp_path)
    command = [need("udhcpc"), "-f", "-q", "-n", "-t", "3", "-T", "1", "-s", script, "-O", "staticroutes"]
    with guest(address="203.0.113.5/32", gateway=REMOTE4) as net:
        net.run([*command, "-i", net.interface], check=True, capture_output=True, timeout=PATIENCE)
    reported = recorded(record, "called=bound")
    assert (reported["ip"], reported["mask"]) == ("203.0.113.5", "32")
    assert reported["staticroutes"] == f"{REMOTE4}/32 0.0.0.0 0.0.0.0/0 {REMOTE4}"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"no_dhcp": True, "no_dhcpv6": True}, gpasst.Drop.SERVICE),
        ({}, None),
    ],
)
def test_what_is_not_served_is_counted(options: dict[str, Any], reason: gpasst.Drop | None) -> None:
    with gpasst.Pasta(config_net=True, **options) as net:
        with net.socket() as four, net.socket(socket.AF_INET6) as six:
            four.sendto(b"?", (net.gateway4, 67))
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, tap_index(net))
            six.sendto(b"?", ("ff02::1:2", 547))
        if reason:
            until(lambda: net.statistics().ignored.get(reason.value) == 2, "both counted")
        else:
            wanted = {gpasst.Drop.MALFORMED_DHCP.value, gpasst.Drop.MALFORMED_DHCPV6.value}
            until(lambda: wanted <= net.statistics().drops.keys(), "both counted")


def test_the_router_advertises_itself_unasked() -> None:
    with guest() as net, net.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        # Its solicitations are answered to itself alone.
        while True:
            data, control, _, sender = sock.recvmsg(2048, 64)
            ((_, _, info),) = control
            destination, _ = struct.unpack("@16si", info)
            if data[0] == ROUTER_ADVERTISEMENT and destination == socket.inet_pton(socket.AF_INET6, "ff02::1"):
                break
        assert sender[0].partition("%")[0] == HOST_LINK_LOCAL
