"""A client that prints the answer to one question. Drivers' containers run the text of this file with their own Python.

Arguments: "udp" or "tcp", the address or name, and the port of a server.
"""

import socket
import sys

PATIENCE = 5.0  # seconds until an answer counts as lost


def ask(kind: int, host: str, port: int) -> str:
    """Return the answer."""
    (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=kind)
    with socket.socket(family, kind) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(b"question")
        return client.recv(100).decode()


if __name__ == "__main__":
    KIND, HOST, PORT = sys.argv[1:]
    print(ask(socket.SOCK_STREAM if KIND == "tcp" else socket.SOCK_DGRAM, HOST, int(PORT)))
