"""A server of UDP and TCP that returns what comes. Drivers' containers run the text of this file with their own Python.

Arguments: the port, and "attended" if the server shall end with its standard input.
"""

import selectors
import signal
import socket
import sys


def serve(port: int, attended: bool) -> None:
    """Serve one end after the other on all addresses, once "ready" is printed."""
    waiting = selectors.DefaultSelector()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams, socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for sock in (datagrams, listener):
            sock.bind(("::", port))
            waiting.register(sock, selectors.EVENT_READ)
        listener.listen()
        if attended:
            waiting.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is datagrams:
                    data, sender = datagrams.recvfrom(65536)
                    datagrams.sendto(data, sender)
                elif key.fileobj is listener:
                    answer(listener.accept()[0])
                else:
                    return


def answer(client: socket.socket) -> None:
    """Return what a client sends until it ends."""
    with client:
        while data := client.recv(65536):
            client.sendall(data)


if __name__ == "__main__":
    # A process number 1 has no default action for SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve(int(sys.argv[1]), "attended" in sys.argv)
