"""Making a tap device.

The file of /dev/net/tun belongs to the network namespace it was *opened* in, whoever attaches a device to
it later. Opening asks for permission on the file, attaching for CAP_NET_ADMIN in the namespace: two steps,
which may need two different processes (see `gpasst.helper.namespace`).

The device speaks the 10-byte virtio-net header. What it may leave undone (checksums, segmentation) is
agreed on with TUNSETOFFLOAD; kernels before 6.2 know no UDP segmentation and refuse the whole set, so
smaller sets are tried in turn. TUNSETSNDBUF is not needed: a device starts with no limit on what its owner
writes. Towards the owner the queue is the transmit queue length of the link, which `gpasst.helper.netlink`
sets.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from gpasst.errors import ConfigurationError, PlatformError
from gpasst.linux import (
    IFF_NO_PI,
    IFF_TAP,
    IFF_TUN_EXCL,
    IFF_VNET_HDR,
    IFNAMSIZ,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_F_USO4,
    TUN_F_USO6,
)

TUN_DEVICE = "/dev/net/tun"


VNET_HEADER_SIZE = 10  # struct virtio_net_hdr, without the merged buffer count

# _IOW('T', n, int): a few architectures code the direction differently (asm/ioctl.h).
_WRITE = 0x80000000 if os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha")) else 0x40000000
TUNSETIFF = _WRITE | 0x000454CA
TUNSETOFFLOAD = _WRITE | 0x000454D0
TUNSETVNETHDRSZ = _WRITE | 0x000454D8

OFFLOADS = {"csum": TUN_F_CSUM, "tso4": TUN_F_TSO4, "tso6": TUN_F_TSO6, "uso4": TUN_F_USO4, "uso6": TUN_F_USO6}
OFFLOAD_SETS = (("csum", "tso4", "tso6", "uso4", "uso6"), ("csum", "tso4", "tso6"), ("csum",), ())

_ACCESS_REMEDY = f"make it accessible: chmod 0666 {TUN_DEVICE}"


def open_tun() -> int:
    """Open the tun file for the network namespace of the calling process."""
    try:
        return os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PlatformError(f"{TUN_DEVICE} cannot be opened: {error.strerror}", _ACCESS_REMEDY) from None
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR):
            raise PlatformError(f"{TUN_DEVICE} is missing", "load the tun module: modprobe tun") from None
        raise PlatformError(f"{TUN_DEVICE} cannot be opened: {error.strerror}") from None


def attach(descriptor: int, ifname: str, offload: bool) -> tuple[str, tuple[str, ...]]:
    """Make the device behind an open tun file.

    :return: the name of the device, and what the kernel may leave to us.
    """
    name = ifname.encode()
    if not 0 < len(name) < IFNAMSIZ or b"/" in name or name in (b".", b"..") or b" " in name:
        raise ConfigurationError(
            f"{ifname!r} cannot name a network interface",
            f"use 1 to {IFNAMSIZ - 1} characters without / or blank",
        )
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL
    try:
        answer = fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name, flags))
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EEXIST):
            raise ConfigurationError(
                f"an interface named {ifname} exists already in the namespace",
                "choose another name: --ns-ifname",
            ) from None
        if error.errno in (errno.EPERM, errno.EACCES):
            raise PlatformError(
                f"not permitted to make the tap device {ifname}",
                "name the user namespace the network namespace belongs to with --userns, or run as root",
            ) from None
        raise PlatformError(f"cannot make the tap device {ifname}: {error.strerror}") from None
    fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_SIZE))
    return answer[:IFNAMSIZ].rstrip(b"\0").decode(), _set_offload(descriptor, offload)


def _set_offload(descriptor: int, wanted: bool) -> tuple[str, ...]:
    for names in OFFLOAD_SETS if wanted else OFFLOAD_SETS[-1:]:
        try:
            fcntl.ioctl(descriptor, TUNSETOFFLOAD, sum(OFFLOADS[name] for name in names))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return names
    return ()
