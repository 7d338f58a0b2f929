"""Every kernel constant that gpasst uses, once, with its origin.

The values are those of the generic Linux ABI (asm-generic), which x86, Arm, RISC-V and s390x share. They are not read
from `socket`, because it lacks constants that the C library of the interpreter's build did not define.

NOTE: `helper/enter.py` and `helper/pool.py` are executed as files and import nothing of gpasst, so they repeat those
that they need (CLONE_*, PR_*, MS_*).
"""

from __future__ import annotations

TYPE_CHECKING = False  # as of typing, which takes long to import
if TYPE_CHECKING:
    from typing import Final

# Address families and socket types (linux/socket.h, linux/net.h).
AF_UNIX: Final = 1
AF_INET: Final = 2
AF_INET6: Final = 10
AF_NETLINK: Final = 16
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3
SOCK_NONBLOCK: Final = 0o4000  # asm-generic/fcntl.h; Linux 2.6.27

# Levels of socket options and control messages (linux/in.h, linux/in6.h, linux/socket.h).
SOL_SOCKET: Final = 1
IPPROTO_IP: Final = 0
IPPROTO_ICMP: Final = 1
IPPROTO_TCP: Final = 6
SOL_UDP: Final = 17
IPPROTO_IPV6: Final = 41
IPPROTO_ICMPV6: Final = 58
SOL_RAW: Final = 255

# Options of level SOL_SOCKET (asm-generic/socket.h).
SO_REUSEADDR: Final = 2
SO_ERROR: Final = 4
SO_SNDBUF: Final = 7
SO_RCVBUF: Final = 8
SO_KEEPALIVE: Final = 9
SO_OOBINLINE: Final = 10
SO_LINGER: Final = 13
SO_REUSEPORT: Final = 15  # Linux 3.9
SO_PEERCRED: Final = 17
SO_BINDTODEVICE: Final = 25
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_PEEK_OFF: Final = 42  # Linux 3.4; for TCP 6.9

# Options and control messages of level IPPROTO_IP (linux/in.h).
IP_TOS: Final = 1
IP_TTL: Final = 2
IP_PKTINFO: Final = 8
IP_RECVERR: Final = 11
IP_RECVTTL: Final = 12
IP_RECVTOS: Final = 13
IP_FREEBIND: Final = 15
IP_MULTICAST_LOOP: Final = 34

# Options and control messages of level IPPROTO_IPV6 (linux/in6.h).
IPV6_UNICAST_HOPS: Final = 16
IPV6_MULTICAST_LOOP: Final = 19
IPV6_RECVERR: Final = 25
IPV6_V6ONLY: Final = 26
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
IPV6_RECVHOPLIMIT: Final = 51
IPV6_HOPLIMIT: Final = 52
IPV6_RECVTCLASS: Final = 66
IPV6_TCLASS: Final = 67
IPV6_FREEBIND: Final = 78

# Options and control messages of level SOL_UDP (linux/udp.h).
UDP_SEGMENT: Final = 103  # Linux 4.18
UDP_GRO: Final = 104  # Linux 5.0

# Options of level IPPROTO_TCP (linux/tcp.h).
TCP_NODELAY: Final = 1
TCP_KEEPIDLE: Final = 4
TCP_KEEPINTVL: Final = 5
TCP_USER_TIMEOUT: Final = 18  # Linux 2.6.37

# Options of raw ICMP sockets: a set bit filters a type out.
ICMP_FILTER: Final = 1  # linux/icmp.h, level SOL_RAW
ICMPV6_FILTER: Final = 1  # RFC 3542, section 3.2; level IPPROTO_ICMPV6

# Flags of send and receive (linux/socket.h).
MSG_PEEK: Final = 0x2
MSG_TRUNC: Final = 0x20
MSG_DONTWAIT: Final = 0x40
MSG_ERRQUEUE: Final = 0x2000
MSG_NOSIGNAL: Final = 0x4000

# Origins of an error in a socket's error queue (linux/errqueue.h).
SO_EE_ORIGIN_LOCAL: Final = 1
SO_EE_ORIGIN_ICMP: Final = 2
SO_EE_ORIGIN_ICMP6: Final = 3

# netlink (linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h).
NETLINK_ROUTE: Final = 0
NETLINK_SOCK_DIAG: Final = 4
SOL_NETLINK: Final = 270  # include/linux/socket.h
NETLINK_ADD_MEMBERSHIP: Final = 1
RTNLGRP_IPV6_IFADDR: Final = 9  # linux/rtnetlink.h
NETLINK_GET_STRICT_CHK: Final = 12
NLA_TYPE_MASK: Final = 0x3FFF
SOCK_DIAG_BY_FAMILY: Final = 20
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 0x001
NLM_F_ACK: Final = 0x004
NLM_F_DUMP_INTR: Final = 0x010
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_DUMP: Final = 0x300
SOCK_DESTROY: Final = 21  # Linux 4.5, with CONFIG_INET_DIAG_DESTROY
INET_DIAG_SKV6ONLY: Final = 11
TCP_CLOSE: Final = 7  # include/net/tcp_states.h; the state of an unconnected UDP socket
TCP_LISTEN: Final = 10  # include/net/tcp_states.h
MAX_ERRNO: Final = 4095  # linux/err.h

# Links, addresses and routes (linux/if.h, linux/if_addr.h, linux/if_link.h, linux/rtnetlink.h).
IFNAMSIZ: Final = 16  # bytes of an interface name, its final zero included
IPV6_MIN_MTU: Final = 1280  # bytes (linux/ipv6.h; RFC 8200, section 5); a link below it has no IPv6
IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_TXQLEN: Final = 13
IFLA_AF_SPEC: Final = 26
IFLA_INET6_ADDR_GEN_MODE: Final = 8
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_FLAGS: Final = 8
IFA_F_NODAD: Final = 0x02
IFA_F_DADFAILED: Final = 0x08
IFA_F_TENTATIVE: Final = 0x40
IN6_ADDR_GEN_MODE_NONE: Final = 1
RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
RTA_PREFSRC: Final = 7
RTA_MULTIPATH: Final = 9
RTA_TABLE: Final = 15
RTA_VIA: Final = 18
RTNH_F_ONLINK: Final = 4
RTN_UNICAST: Final = 1
RT_TABLE_MAIN: Final = 254
RT_TABLE_LOCAL: Final = 255
RT_SCOPE_UNIVERSE: Final = 0
RT_SCOPE_LINK: Final = 253
RTPROT_KERNEL: Final = 2
RTPROT_STATIC: Final = 4

# The tap driver (linux/if_tun.h).
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFF_TUN_EXCL: Final = 0x8000  # refuse a name that exists instead of attaching to it
TUNSETIFF: Final = 0x000454CA  # _IOW('T', 202, int) without the bits of the direction, which architectures choose
TUNSETOFFLOAD: Final = 0x000454D0  # _IOW('T', 208, unsigned int), likewise
TUNATTACHFILTER: Final = 0x001054D5  # _IOW('T', 213, struct sock_fprog), likewise; Linux 2.6.34
TUNDETACHFILTER: Final = 0x001054D6  # _IOW('T', 214, struct sock_fprog), likewise
TUNSETVNETHDRSZ: Final = 0x000454D8  # _IOW('T', 216, int), likewise
TUNSETCARRIER: Final = 0x000454E2  # _IOW('T', 226, int), likewise; Linux 5.0
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_USO4: Final = 0x20  # Linux 6.2
TUN_F_USO6: Final = 0x40  # Linux 6.2

# Classic BPF (linux/filter.h, linux/bpf_common.h): instruction codes, and places beyond the packet.
BPF_LD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
BPF_LD_HALF: Final = 0x28  # BPF_LD | BPF_H | BPF_ABS
BPF_LD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
BPF_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
BPF_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
BPF_JUMP_SET: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
BPF_RETURN: Final = 0x06  # BPF_RET | BPF_K
BPF_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
BPF_ALL: Final = 0xFFFFFFFF  # bytes of a packet that passes
SKF_RANDOM: Final = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM; Linux 3.16
BPF_MAXINSNS: Final = 4096

# Directions of shutdown (linux/net.h).
SHUT_WR: Final = 1

# epoll (linux/eventpoll.h).
EPOLLIN: Final = 0x001
EPOLLPRI: Final = 0x002
EPOLLOUT: Final = 0x004
EPOLLERR: Final = 0x008
EPOLLHUP: Final = 0x010
EPOLLRDHUP: Final = 0x2000  # Linux 2.6.17
EPOLLET: Final = 1 << 31

# Pipes (linux/splice.h, asm-generic/fcntl.h, linux/fcntl.h).
SPLICE_F_MOVE: Final = 0x1
SPLICE_F_NONBLOCK: Final = 0x2
F_SETPIPE_SZ: Final = 1031  # Linux 2.6.35
F_GETPIPE_SZ: Final = 1032
O_NONBLOCK: Final = 0o4000
O_CLOEXEC: Final = 0o2000000

# Rings of system calls (linux/io_uring.h, asm-generic/unistd.h; Linux 5.1).
SYS_IO_URING_SETUP: Final = 425
SYS_IO_URING_ENTER: Final = 426
SYS_IO_URING_REGISTER: Final = 427
IORING_SETUP_R_DISABLED: Final = 1 << 6  # Linux 5.10
IORING_SETUP_SUBMIT_ALL: Final = 1 << 7  # Linux 5.18
IORING_SETUP_COOP_TASKRUN: Final = 1 << 8  # Linux 5.19
IORING_SETUP_SINGLE_ISSUER: Final = 1 << 12  # Linux 6.0
IORING_FEAT_SINGLE_MMAP: Final = 1 << 0  # Linux 5.4
IORING_OFF_SQ_RING: Final = 0
IORING_OFF_SQES: Final = 0x10000000
IORING_REGISTER_RESTRICTIONS: Final = 11  # Linux 5.10; so do the following four
IORING_REGISTER_ENABLE_RINGS: Final = 12
IORING_RESTRICTION_SQE_OP: Final = 1
IORING_RESTRICTION_SQE_FLAGS_ALLOWED: Final = 2
IOSQE_CQE_SKIP_SUCCESS: Final = 1 << 6  # Linux 5.17
IORING_OP_SENDMSG: Final = 9  # Linux 5.3
IORING_OP_RECVMSG: Final = 10  # Linux 5.3
IORING_OP_READ: Final = 22  # Linux 5.6
IORING_OP_WRITE: Final = 23  # Linux 5.6
IORING_OP_SEND: Final = 26  # Linux 5.6; to an address 6.1
RWF_NOWAIT: Final = 0x8  # linux/fs.h; Linux 4.14, for a tap 6.4

# Timers (linux/time.h, include/linux/timerfd.h; Linux 2.6.25).
CLOCK_MONOTONIC: Final = 1
TFD_NONBLOCK: Final = 0o4000
TFD_CLOEXEC: Final = 0o2000000

# inotify (linux/inotify.h; Linux 2.6.13).
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_UNMOUNT: Final = 0x2000
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x01000000
IN_NONBLOCK: Final = 0o4000
IN_CLOEXEC: Final = 0o2000000

# Signals (linux/signalfd.h, asm-generic/siginfo.h; Linux 2.6.27).
SFD_NONBLOCK: Final = 0o4000
SFD_CLOEXEC: Final = 0o2000000
SI_KERNEL: Final = 0x80  # si_code of a signal of the kernel's, such as those of a terminal

# Namespaces and mounts (linux/sched.h, linux/mount.h).
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 0x2

# Capabilities and other attributes of a process (linux/capability.h, linux/prctl.h).
CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_RAW: Final = 13
CAPABILITY_VERSION_3: Final = 0x20080522  # two words of each set; Linux 2.6.26
PR_SET_DUMPABLE: Final = 4
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38  # Linux 3.5
PR_CAP_AMBIENT: Final = 47  # Linux 4.3
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# Filters of system calls (linux/seccomp.h, linux/audit.h; Linux 3.5), and arguments that they look at
# (asm-generic/mman-common.h, linux/fcntl.h, linux/sockios.h).
SECCOMP_MODE_FILTER: Final = 2
SECCOMP_RET_KILL_PROCESS: Final = 0x80000000  # Linux 4.14
SECCOMP_RET_ERRNO: Final = 0x00050000  # and the number of the error
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
AUDIT_ARCH_X86_64: Final = 0xC000003E
PROT_EXEC: Final = 0x4
AT_EMPTY_PATH: Final = 0x1000
SIOCGIFINDEX: Final = 0x8933
FIONBIO: Final = 0x5421  # asm-generic/ioctls.h; so does FIOCLEX
FIOCLEX: Final = 0x5451
F_DUPFD: Final = 0  # fcntl(2); so do the following (asm-generic/fcntl.h, linux/fcntl.h)
F_GETFD: Final = 1
F_SETFD: Final = 2
F_GETFL: Final = 3
F_SETFL: Final = 4
F_DUPFD_CLOEXEC: Final = 1030

# Limits of system calls.
UIO_MAXIOV: Final = 1024  # pieces of one readv, writev or sendmsg (linux/uio.h)
UDP_MAX_SEGMENTS: Final = 128  # datagrams that UDP_GRO joins (linux/udp.h since 6.9; 64 before)
UDP_MAX_SEGMENTS_SENT: Final = 64  # datagrams of one UDP_SEGMENT send that every kernel takes (linux/udp.h before 6.9)
SCM_MAX_FD: Final = 253  # descriptors of one message (include/net/scm.h)
UNIX_PATH_MAX: Final = 108  # bytes of sun_path, its final zero included (linux/un.h)
