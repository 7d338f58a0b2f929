"""The small program that keeps one namespace and makes sockets in it.

Theory of operation: a process that will set up no other namespace executes this file (`python -I -S PATH FD`), so that
the namespace is kept by a process of about 10 MB instead of one that has all of netlink loaded. A socket belongs to the
namespace it was made in for good, wherever it is bound, connected and used; so all that has to happen here is
`socket()`, and the descriptors travel to the proxy as SCM_RIGHTS, up to 64 a message. A proxy in its sandbox has no
right to low ports of the namespace any more; so it sends sockets along, which are bound here.

With `--confine` it enters a sandbox of its own first, in which two capabilities are left: to bind to low ports, and to
make raw sockets. For that alone it imports something of the package.

Packets look like those of `gpasst.helper.channel`, which is not imported: the file must run without the package, and
the identity it runs under may not be able to read it. The process ends at end of file on its channel.
"""

from __future__ import annotations

import _socket
import errno
import json
import os
import sys
from array import array

TYPE_CHECKING = False  # as of typing, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Others = Callable[[dict[str, Any]], tuple[dict[str, Any], list[int]]]

MAX_COUNT = 64
REQUEST_SIZE = 32 * 1024 + 1  # bytes; a request for sockets has a few numbers, one for a tap its routes
LAST = b"."
UNCHANGEABLE = "the namespace cannot be changed any more, since the helper process has ended"
TRANSIENT = (errno.ENOBUFS, errno.ENOMEM)
SO_NETNS_COOKIE = 71  # asm-generic/socket.h (Linux 5.14)
COOKIE_BYTES = 8  # of that
FAMILIES = _socket.AF_INET, _socket.AF_INET6, _socket.AF_NETLINK
"""Of the sockets that a caller in a sandbox may have. Some others (AF_VSOCK) know no namespaces."""

wanted: list[bool] = []
"""Whether the caller has asked for a sandbox of the process, and so is in one; filled once."""


def become(descriptor: int) -> None:
    """Turn the process into this program, which serves the channel behind `descriptor`.

    Returns if that cannot be: the identity may be unable to read an interpreter in root's home.
    """
    if all(os.access(path, os.R_OK) for path in (__file__, os.__file__)) and os.access(sys.executable, os.X_OK):
        os.set_inheritable(descriptor, True)
        try:
            options = ["--confine"] if wanted else []
            os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, str(descriptor), *options])
        except OSError:
            return


def make_sockets(family: int, kind: int, proto: int, count: int) -> list[_socket.socket]:
    """Make sockets in the namespace of the calling thread.

    :raises OSError: if the kernel refuses one.
    :raises ValueError: if `count` is not from 1 to 64, or a caller in a sandbox may have none of the family.
    """
    if wanted and family not in FAMILIES:
        raise ValueError(f"family {family} is not carried")
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"between 1 and {MAX_COUNT} sockets can be asked for, not {count}")
    return [_socket.socket(family, kind, proto) for _ in range(count)]


def platform_error(error: Exception) -> dict[str, str]:
    """Return the description of an error, as `gpasst.helper.channel.raise_error` takes it."""
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return {"kind": "platform", "message": f"cannot make a socket in the namespace: {text}", "remedy": ""}


def bind(descriptors: array[int], address: Any) -> dict[str, object]:
    """Bind a socket that came with a request; return the fields of the answer.

    It has to be of this namespace, since the process may have a right to low ports of others, as root of the host.

    :param descriptors: that of the socket, which stays the caller's.
    :param address: as `socket.socket.bind` takes it, as a list.
    """
    try:
        sock = _socket.socket(fileno=descriptors[0])
        try:
            if not _is_inside(sock):
                return {"errno": errno.EACCES}
            sock.bind(tuple(address))
        finally:
            sock.detach()
    except OSError as error:
        return {"errno": error.errno}
    except (ValueError, TypeError, OverflowError, IndexError):
        return {"errno": errno.EINVAL}
    return {}


def _is_inside(sock: _socket.socket) -> bool:
    """Return whether a socket is of the namespace of the calling thread; a kernel before 5.14 does not know it."""
    own = _socket.socket()
    try:
        cookie = own.getsockopt(_socket.SOL_SOCKET, SO_NETNS_COOKIE, COOKIE_BYTES)
    except OSError:
        return True
    finally:
        own.close()
    return sock.getsockopt(_socket.SOL_SOCKET, SO_NETNS_COOKIE, COOKIE_BYTES) == cookie


def answer(
    channel: _socket.socket, request: dict[str, Any], received: array[int], others: Others | None = None
) -> None:
    """Answer one request, with sockets or with an error.

    :param received: descriptors that came with it, which stay open.
    :param others: answers requests for other things, with fields and descriptors that stay open; None if nobody does.
    :raises OSError: if the other end of the channel is closed.
    """
    reply: dict[str, object] = {"seq": request.get("seq")}
    sockets: list[_socket.socket] = []
    rights = array("i")
    if request.get("do") == "sockets":
        try:
            sockets = make_sockets(request["family"], request["type"], request["proto"], request["count"])
            rights.extend(sock.fileno() for sock in sockets)
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            reply["error"] = platform_error(error)
    elif request.get("do") == "bind":
        reply.update(bind(received, request.get("address")))
    elif request.get("do") == "confine":
        wanted[:] = [True]
    elif others is None:
        reply["error"] = {"kind": "platform", "message": UNCHANGEABLE, "remedy": "open another namespace"}
    else:
        fields, descriptors = others(request)
        reply.update(fields)
        rights.extend(descriptors)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
    try:
        channel.sendmsg([LAST, json.dumps(reply).encode()], ancillary, _socket.MSG_NOSIGNAL)
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        # One message more without the sockets: too many may be on their way (ETOOMANYREFS), or too much memory taken.
        reply["error"] = platform_error(error)
        channel.sendmsg([LAST, json.dumps(reply).encode()], (), _socket.MSG_NOSIGNAL)
    finally:
        for sock in sockets:
            sock.close()


def parsed(data: bytes) -> dict[str, Any] | None:
    """Return the request of its bytes, None if it is none."""
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def serve_once(channel: _socket.socket, others: Others | None = None) -> bool:
    """Await one request on the channel and answer it; False at its end of file.

    What is no request is passed over.
    """
    received = array("i")
    try:
        packet, ancillary, _, _ = channel.recvmsg(
            REQUEST_SIZE, _socket.CMSG_SPACE(received.itemsize), _socket.MSG_CMSG_CLOEXEC
        )
        for _, _, rights in ancillary:
            received.frombytes(rights)
        request = parsed(packet[1:])
        if request is not None:
            answer(channel, request, received, others)
    except (BrokenPipeError, ConnectionResetError):
        return False
    except OSError as error:
        if error.errno not in TRANSIENT:
            raise
        return True  # what was lost is the caller's to ask for again
    finally:
        for descriptor in received:
            os.close(descriptor)
    return bool(packet)


def serve(descriptor: int) -> None:
    """Answer requests on the channel until its end of file."""
    channel = _socket.socket(fileno=descriptor)
    while serve_once(channel):
        pass


def confine() -> None:
    """Enter the sandbox, as far as the kernel permits."""
    try:
        from gpasst.linux import CAP_NET_BIND_SERVICE, CAP_NET_RAW
        from gpasst.sandbox.calls import keeper_calls
        from gpasst.sandbox.enter import Report, filter_calls, isolate, renounce
    except ImportError:
        return  # the identity may not read the package
    report = Report()
    # In the user namespace that the namespace belongs to, else these capabilities would mean nothing there.
    isolate(report)
    renounce(report, (CAP_NET_BIND_SERVICE, CAP_NET_RAW))
    filter_calls(report, keeper_calls())


if __name__ == "__main__":
    if "--confine" in sys.argv:
        wanted.append(True)
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
        confine()
    serve(int(sys.argv[1]))
    os._exit(0)
