"""Making a tap device.

The file of /dev/net/tun belongs to the network namespace it was *opened* in, not to that of a process which attaches a
device to it later. Opening asks for permission on the file, attaching for CAP_NET_ADMIN in the namespace: two
steps, which may need two different processes (see `gpasst.helper.namespace`).

The device speaks the 10-byte virtio-net header. TUNSETOFFLOAD declares the work that the kernel may leave to the owner
(checksums, segmentation); kernels before 6.2 know no UDP segmentation and refuse the whole set, so smaller sets are
tried in turn. TUNSETSNDBUF is not needed: a device starts with no limit on what its owner writes. Towards the owner the
queue is the transmit queue length of the link, which `gpasst.helper.netlink` sets.

A device may be there already: rootlesskit makes a persistent one before it starts the proxy. It is taken if it is a tap
with one queue and without owner, and stays when the proxy ends.
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
    TUNSETIFF,
    TUNSETOFFLOAD,
    TUNSETVNETHDRSZ,
)
from gpasst.records import dataclass
from gpasst.values import check_interface, shown

TUN_DEVICE = "/dev/net/tun"
# struct virtio_net_hdr without its merged buffer count; bytes.
VNET_HEADER_SIZE = 10

# What _IOW adds: a few architectures code the direction differently (asm/ioctl.h).
IOC_WRITE = 0x80000000 if os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha")) else 0x40000000

OFFLOADS = {"csum": TUN_F_CSUM, "tso4": TUN_F_TSO4, "tso6": TUN_F_TSO6, "uso4": TUN_F_USO4, "uso6": TUN_F_USO6}
OFFLOAD_SETS = (("csum", "tso4", "tso6", "uso4", "uso6"), ("csum", "tso4", "tso6"), ("csum",), ())

IFREQ = struct.Struct("16sH22x")  # struct ifreq with flags (linux/if.h)
_LIMIT_REMEDY = "see the kernel's log, dmesg, and whether memory or open files are short"
_ACCESS_REMEDY = f"make it accessible: chmod 0666 {TUN_DEVICE}"


def open_tun() -> int:
    """Open the tun file for the network namespace of the calling thread.

    :raises PlatformError: if there is no such file, or a permission or a limit is in the way.
    """
    try:
        return os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PlatformError(f"{TUN_DEVICE} cannot be opened: {error.strerror}", _ACCESS_REMEDY) from None
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR):
            raise PlatformError(f"{TUN_DEVICE} is missing", "load the tun module: modprobe tun") from None
        raise PlatformError(f"{TUN_DEVICE} cannot be opened: {error.strerror}", _LIMIT_REMEDY) from None


@dataclass(frozen=True, slots=True)
class Attached:
    """A tap device and its owner's part.

    :ivar name: of the device.
    :ivar offloads: the work that the kernel may leave to the owner, as `OFFLOADS` names it.
    :ivar reused: whether the device was there before.
    """

    name: str
    offloads: tuple[str, ...]
    reused: bool


def attach(descriptor: int, ifname: str, offload: bool) -> Attached:
    """Make the device behind an open tun file, or take the one of that name if it is a tap device that nobody uses.

    :raises ConfigurationError: if the name is no interface name, or taken.
    :raises PlatformError: if a permission is in the way.
    """
    try:
        check_interface(ifname)
    except ConfigurationError as error:
        raise ConfigurationError(f"{shown(ifname)} {error.message}", error.remedy) from None
    reused = False
    try:
        try:
            answer = _set_device(descriptor, ifname, IFF_TUN_EXCL)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EEXIST):
                raise
            reused = True
            answer = _set_device(descriptor, ifname, 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ConfigurationError(
                f"the tap device {ifname} is in use, perhaps by another gpasst or pasta on this namespace",
                "end that one, or choose another name: --ns-ifname",
            ) from None
        if error.errno == errno.EINVAL and reused:
            raise ConfigurationError(
                f"an interface named {ifname} exists already in the namespace, and is no tap device for one owner",
                "choose another name: --ns-ifname",
            ) from None
        if error.errno in (errno.EPERM, errno.EACCES):
            raise PlatformError(
                f"not permitted to make the tap device {ifname}",
                "name the user namespace the network namespace belongs to with --userns, or run as root",
            ) from None
        raise PlatformError(f"cannot make the tap device {ifname}: {error.strerror}", _LIMIT_REMEDY) from None
    fcntl.ioctl(descriptor, IOC_WRITE | TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_SIZE))
    name = answer[:IFNAMSIZ].rstrip(b"\0").decode()
    return Attached(name, _set_offload(descriptor, offload), reused)


def _set_device(descriptor: int, ifname: str, exclusive: int) -> bytes:
    """Attach a tun file to a device; `exclusive` is IFF_TUN_EXCL to make a new one, 0 to take one that exists too.

    :raises OSError: EBUSY if the name is taken, or the device in use; EINVAL if it is of another kind.
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | exclusive
    return fcntl.ioctl(descriptor, IOC_WRITE | TUNSETIFF, IFREQ.pack(ifname.encode(), flags))


def _set_offload(descriptor: int, wanted: bool) -> tuple[str, ...]:
    for names in OFFLOAD_SETS if wanted else OFFLOAD_SETS[-1:]:
        try:
            fcntl.ioctl(descriptor, IOC_WRITE | TUNSETOFFLOAD, sum(OFFLOADS[name] for name in names))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return names
    return ()
