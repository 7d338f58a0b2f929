"""The process that stays in a namespace and makes sockets there.

Theory of operation: whoever set the namespace up executes this file (`python -I -S PATH FD`), so that the
namespace is kept by a process of about 10 MB instead of one that has all of netlink loaded. A socket
belongs to the namespace it was made in for good, wherever it is bound, connected and used; so all that has
to happen here is `socket()`, and the descriptors travel to the proxy as SCM_RIGHTS, up to 64 a message.

Packets look like those of `gpasst.helper.channel`, which is not imported: the file must run without the
package, and the identity it runs under may not be able to read it. The process ends at end of file on its
channel.
"""

from __future__ import annotations

import _socket
import json
import os
import sys
from array import array

MAX_COUNT = 64
REQUEST_SIZE = 4096
LAST = b"."


def make_sockets(family: int, kind: int, proto: int, count: int) -> list[_socket.socket]:
    """Make sockets in the namespace of this process."""
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"between 1 and {MAX_COUNT} sockets can be asked for, not {count}")
    return [_socket.socket(family, kind, proto) for _ in range(count)]


def answer(channel: _socket.socket, request: dict[str, int]) -> None:
    """Answer one request, with sockets or with an error."""
    reply: dict[str, object] = {"seq": request.get("seq")}
    sockets: list[_socket.socket] = []
    try:
        sockets = make_sockets(request["family"], request["type"], request["proto"], request["count"])
    except (OSError, ValueError, KeyError) as error:
        text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        message = f"cannot make a socket in the namespace: {text}"
        reply["error"] = {"kind": "platform", "message": message, "remedy": ""}
    rights = array("i", [sock.fileno() for sock in sockets])
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if sockets else []
    try:
        channel.sendmsg([LAST, json.dumps(reply).encode()], ancillary, _socket.MSG_NOSIGNAL)
    finally:
        for sock in sockets:
            sock.close()


def serve(descriptor: int) -> None:
    """Answer requests on the channel until its end of file."""
    channel = _socket.socket(fileno=descriptor)
    try:
        while packet := channel.recv(REQUEST_SIZE):
            answer(channel, json.loads(packet[1:]))
    except (BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    serve(int(sys.argv[1]))
    os._exit(0)
