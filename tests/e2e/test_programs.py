"""Real programs through a guest's network: dig and dnsmasq, tftp with atftpd, ping, ndisc6 and rdisc6."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

import gpasst
from tests.support.families import FAMILY, LOOPBACK
from tests.support.lab import (
    BEYOND4,
    BEYOND6,
    FAR4,
    FAR6,
    HOST4,
    HOST_LINK_LOCAL,
    REMOTE4,
    REMOTE6,
    UNREACHABLE4,
    UNREACHABLE6,
    Remote,
)
from tests.support.need import need
from tests.support.programs import dnsmasq, service

pytestmark = pytest.mark.usefixtures("tun", "remote")

FORWARDER4, FORWARDER6 = "192.0.2.53", "2001:db8::53"


def dig(net: gpasst.Pasta, *arguments: str) -> str:
    done = net.run(
        [need("dig"), "+tries=1", "+time=2", "+short", *arguments, "t.example"],
        capture_output=True,
        text=True,
    )
    return str(done.stdout).strip()


@pytest.mark.parametrize("resolver", ["127.0.0.53", "127.0.0.1"])
def test_dig_at_the_gateway_and_at_the_forwarder(tun: None, remote: Remote, resolver: str) -> None:
    options: dict[str, Any] = {"config_net": True, "dns_host": resolver, "dns_forward": FORWARDER4}
    with service(dnsmasq(resolver), 53), gpasst.Pasta(**options) as net:
        assert dig(net, f"@{net.gateway4}") == "198.51.100.7"
        assert dig(net, f"@{FORWARDER4}") == "198.51.100.7"
        # One guest port to both names of the resolver: each answer comes from the one that was asked.
        assert dig(net, "-b", "0.0.0.0#5353", f"@{net.gateway4}") == "198.51.100.7"
        assert dig(net, "-b", "0.0.0.0#5353", f"@{FORWARDER4}") == "198.51.100.7"


def test_a_dns_server_on_the_hosts_loopback_is_not_hidden_by_a_resolver_elsewhere(tun: None, remote: Remote) -> None:
    options: dict[str, Any] = {"config_net": True, "dns_host": HOST4, "dns_forward": FORWARDER4}
    with gpasst.Pasta(**options) as net:
        with service(dnsmasq(HOST4), 53):
            assert dig(net, f"@{FORWARDER4}") == "198.51.100.7"
            assert "refused" in dig(net, f"@{net.gateway4}")
        with service(dnsmasq("127.0.0.1"), 53):
            assert dig(net, f"@{net.gateway4}") == "198.51.100.7"


def test_dig_over_ipv6(tun: None, remote: Remote) -> None:
    options: dict[str, Any] = {"config_net": True, "dns_host": "::1", "dns_forward": FORWARDER6}
    with service(dnsmasq("::1"), 53), gpasst.Pasta(**options) as net:
        assert dig(net, f"@{net.gateway6}") == "198.51.100.7"
        assert dig(net, f"@{FORWARDER6}") == "198.51.100.7"


@pytest.mark.parametrize("family", [4, 6])
def test_dig_at_a_closed_port_fails_at_once(tun: None, remote: Remote, family: int) -> None:
    with gpasst.Pasta(config_net=True) as net:
        server = net.gateway4 if family == 4 else net.gateway6
        command = [need("dig"), "+tries=1", "+time=5", f"@{server}", "-p", "9", "t.example"]
        done = net.run(command, capture_output=True, text=True)
        assert "connection refused" in done.stdout, done.stdout + done.stderr
        assert done.returncode == 9, "no reply from server"


def test_a_chosen_loopback_address_is_no_resolver(tun: None, remote: Remote) -> None:
    options: dict[str, Any] = {
        "config_net": True,
        "dns_host": "127.0.0.53",
        "map_host_loopback": "192.0.2.99",
    }
    with service(dnsmasq("127.0.0.1"), 53), gpasst.Pasta(**options) as net:
        assert dig(net, "@192.0.2.99") == "198.51.100.7"


def test_tftp_answers_from_another_port(tun: None, remote: Remote, tmp_path: Path) -> None:
    content = os.urandom(70_001)
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "file").chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    server = [need("atftpd"), "--daemon", "--no-fork", "--port", "6969", "--bind-address", "127.0.0.1"]
    if os.geteuid() == 0:
        server += ["--user", "root", "--group", "root"]
    fetched = tmp_path / "fetched"
    with service([*server, str(tmp_path)], 6969), gpasst.Pasta(config_net=True) as net:
        client = [need("tftp"), "-m", "binary", net.gateway4, "6969", "-c", "get", "file", str(fetched)]
        net.run(client, check=True, timeout=20, stdout=subprocess.DEVNULL)
    assert fetched.read_bytes() == content


@pytest.mark.parametrize("family", [4, 6])
def test_ping(tun: None, remote: Remote, family: int) -> None:
    with gpasst.Pasta(config_net=True) as net:
        gateway = net.gateway4 if family == 4 else net.gateway6
        for target in (gateway, FAR4 if family == 4 else FAR6):
            command = [
                need("ping"),
                f"-{family}",
                "-n",
                "-c",
                "2",
                "-i",
                "0.01",
                "-W",
                "2",
                "-s",
                "1000",
                target,
            ]
            done = net.run(command, capture_output=True, text=True)
            assert "2 packets transmitted, 2 received, 0% packet loss" in done.stdout, done.stdout + done.stderr


def test_ndisc6_finds_the_gateway(tun: None, remote: Remote) -> None:
    with gpasst.Pasta(config_net=True) as net:
        done = net.run([need("ndisc6"), "-1", HOST_LINK_LOCAL, net.interface], capture_output=True, text=True)
        assert "9A:55:9A:55:9A:55" in done.stdout, done.stderr


def test_rdisc6_shows_the_router_advertisement(tun: None, remote: Remote) -> None:
    options: dict[str, Any] = {"mtu": 9000, "dhcp_dns": True, "dns": ("2001:db8::53",)}
    with gpasst.Pasta(dhcp_search=True, search=("example.org",), **options) as net:
        # Duplicate address detection would hold the first solicitation back for a second.
        net.run([need("ip"), "link", "set", net.interface, "addrgenmode", "none", "up"], check=True)
        net.run(["ip", "address", "add", "fe80::77/64", "dev", net.interface, "nodad"], check=True)
        done = net.run([need("rdisc6"), "-1", "-r", "5", "-w", "2000", net.interface], capture_output=True, text=True)
        text = done.stdout
        for line in (
            "Hop limit                 :          255",
            "Stateful address conf.    :          Yes",
            "Router lifetime           :        65535",
            " Prefix                   : 2001:db8::/64",
            " MTU                      :         9000 bytes",
            " Recursive DNS server     : 2001:db8::53",
            " DNS search list          : example.org",
            " Source link-layer address: 9A:55:9A:55:9A:55",
        ):
            assert line in text, text + done.stderr


def test_stream_sockets_of_the_namespace(tun: None, family: int) -> None:
    """They meet each other there, and nobody outside."""
    with gpasst.Pasta(config_net=True) as net, net.socket(FAMILY[family], socket.SOCK_STREAM) as server:
        assert server.type == socket.SOCK_STREAM
        server.bind((LOOPBACK[family], 0))
        server.listen()
        server.settimeout(2)
        port = server.getsockname()[1]
        with net.socket(FAMILY[family], socket.SOCK_STREAM) as client:
            client.settimeout(2)
            client.connect((LOOPBACK[family], port))
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"question")
                assert accepted.recv(9) == b"question"
        with socket.socket(FAMILY[family]) as outside, pytest.raises(ConnectionRefusedError):
            outside.connect((LOOPBACK[family], port))


def test_tcp_is_refused_at_once(tun: None, remote: Remote) -> None:
    with gpasst.Pasta(config_net=True) as net:
        for family, address in ((socket.AF_INET, FAR4), (socket.AF_INET6, FAR6), (socket.AF_INET, REMOTE4)):
            with net.socket(family, socket.SOCK_STREAM) as sock:
                sock.settimeout(2)
                with pytest.raises(ConnectionRefusedError):
                    sock.connect((address, 80))
        assert not net.statistics().drops
        assert not net.flows()


def test_tcp_is_ignored_on_demand(tun: None, remote: Remote) -> None:
    with (
        gpasst.Pasta(config_net=True, no_tcp=True) as net,
        net.socket(socket.AF_INET, socket.SOCK_STREAM) as sock,
    ):
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.connect((FAR4, 80))
        assert net.statistics().drops[gpasst.Drop.PROTOCOL_DISABLED.value] >= 1


def test_the_capture_file_holds_what_crossed(tun: None, remote: Remote, tmp_path: Path) -> None:
    path = tmp_path / "guest.pcap"
    with gpasst.Pasta(config_net=True, pcap=str(path)) as net, net.socket() as guest:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with server:
            server.bind(("127.0.0.1", 0))
            server.settimeout(2)
            guest.settimeout(2)
            control = [(socket.IPPROTO_UDP, 103, (1000).to_bytes(2, "little"))]
            payload = bytes(range(250)) * 10
            guest.sendmsg([payload], control, 0, (net.gateway4, server.getsockname()[1]))
            received = b""
            while len(received) < len(payload):
                data, sender = server.recvfrom(65535)
                received += data
            server.sendto(b"answer", sender)
            assert guest.recv(99) == b"answer"
    assert path.stat().st_mode & 0o777 == 0o600
    command = [need("tshark"), "-r", str(path), "-Y", "udp", "-T", "fields", "-e", "udp.length"]
    command += ["-e", "udp.checksum.status", "-o", "udp.check_checksum:TRUE", "-e", "ip.checksum.status"]
    command += ["-o", "ip.check_checksum:TRUE"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Superframes are split, and every checksum is right (1) or not computed (3).
    assert text.splitlines() == ["1008\t1\t1", "1008\t1\t1", "508\t1\t1", "14\t3\t1"]


@pytest.mark.parametrize("family", [4, 6])
def test_ping_is_told_why_there_is_no_answer(tun: None, remote: Remote, family: int) -> None:
    with gpasst.Pasta(config_net=True) as net:
        command = [need("ping"), f"-{family}", "-n", "-c", "1", "-W", "2"]
        target, router = (BEYOND4, REMOTE4) if family == 4 else (BEYOND6, REMOTE6)
        done = net.run([*command, "-t", "1", target], capture_output=True, text=True)
        assert f"From {router} icmp_seq=1 Time " in done.stdout, done.stdout + done.stderr
        target = UNREACHABLE4 if family == 4 else UNREACHABLE6
        done = net.run([*command, target], capture_output=True, text=True)
        assert f"From {router} icmp_seq=1 Destination " in done.stdout, done.stdout + done.stderr
