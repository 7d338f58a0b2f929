"""WireGuard between two namespaces: the tunnel survives a partition of five seconds.

    apt install wireguard-go wireguard-tools iproute2
    pip install gpasst pytest
    pytest test_wireguard.py

The two namespaces are two machines that know nothing of each other. The left one is reached by a port of this machine,
as if it stood behind a router; the right one finds it by its gateway, which leads to this machine. Both run WireGuard
in user space, so no kernel module and no root is needed.
"""

import socket
import subprocess
import time

WIREGUARD = 51820  # the port of the left one
LEFT, RIGHT = "10.99.0.1", "10.99.0.2"  # in the tunnel
PARTITION = 5.0  # seconds

# Runs WireGuard in the foreground. It wants a folder of its own in /run, which only this program sees.
SCRIPT = """
mount -t tmpfs none /run && mkdir /run/wireguard && wireguard-go wg0 >/dev/null 2>&1 &&
wg set wg0 "$@" && ip address add "$ADDRESS/24" dev wg0 && ip link set wg0 mtu 1420 up && echo ready && exec sleep 600
"""


def keys():
    """Return a private key, and the public one that belongs to it."""
    private = subprocess.run(["wg", "genkey"], stdout=subprocess.PIPE, text=True, check=True).stdout
    public = subprocess.run(["wg", "pubkey"], input=private, stdout=subprocess.PIPE, text=True, check=True).stdout
    return private, public.strip()


def start(net, key, address, private, settings):
    """Start WireGuard in a namespace; it ends with that."""
    key.write_text(private)
    tunnel = net.popen(
        ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", "private-key", str(key), *settings],
        # Whatever the script starts ends with it.
        init=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "ADDRESS": address},
        stdout=subprocess.PIPE,
        text=True,
    )
    with tunnel.stdout as lines:
        assert lines.readline() == "ready\n"


def test_the_tunnel_survives_a_partition(gpasst_factory, tmp_path):
    left = gpasst_factory(udp_ports=f"0:{WIREGUARD}")
    right = gpasst_factory()
    endpoint = f"{right.gateway4}:{left.port('udp', WIREGUARD)}"
    (left_key, left_name), (right_key, right_name) = keys(), keys()
    settings = ["listen-port", str(WIREGUARD), "peer", right_name, "allowed-ips", RIGHT]
    start(left, tmp_path / "left", LEFT, left_key, settings)
    settings = ["peer", left_name, "endpoint", endpoint, "allowed-ips", LEFT]
    start(right, tmp_path / "right", RIGHT, right_key, settings)

    # A connection through the tunnel, between sockets that were made in the two namespaces.
    with left.socket(type=socket.SOCK_STREAM) as server, right.socket(type=socket.SOCK_STREAM) as client:
        server.bind((LEFT, 0))
        server.listen()
        client.settimeout(20)
        client.connect(server.getsockname())
        stream, _ = server.accept()
        with stream:
            stream.settimeout(20)
            client.sendall(b"before")
            assert stream.recv(100) == b"before"

            # Nothing passes the interface of the right one, in neither direction.
            with right.impair(partition=True) as partition:
                client.sendall(b"meanwhile")
                time.sleep(PARTITION)
                stream.setblocking(False)
                try:
                    raise AssertionError(stream.recv(100))
                except BlockingIOError:
                    stream.settimeout(20)
            assert partition.hits

            # Nobody has to do anything: what was sent meanwhile arrives.
            assert stream.recv(100) == b"meanwhile"
            stream.sendall(b"after")
            assert client.recv(100) == b"after"
