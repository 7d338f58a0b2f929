"""The fast forms of the structures that `gpasst.host.kernel_formats` declares; see `gpasst.wire`."""

from __future__ import annotations

from gpasst.codec import Codec

SOCKADDR_IN_CODEC = Codec("SOCKADDR_IN")
SOCKADDR_IN6_CODEC = Codec("SOCKADDR_IN6")
IOVEC_CODEC = Codec("IOVEC")
MMSGHDR_CODEC = Codec("MMSGHDR")
CMSGHDR_CODEC = Codec("CMSGHDR")
IN_PKTINFO_CODEC = Codec("IN_PKTINFO")
IN6_PKTINFO_CODEC = Codec("IN6_PKTINFO")
EXTENDED_ERROR_CODEC = Codec("EXTENDED_ERROR")
NLMSG_CODEC = Codec("NLMSG")
NLMSG_STATUS_CODEC = Codec("NLMSG_STATUS")
RTATTR_CODEC = Codec("RTATTR")
INET_DIAG_REQUEST_CODEC = Codec("INET_DIAG_REQUEST")
INET_DIAG_CODEC = Codec("INET_DIAG")
