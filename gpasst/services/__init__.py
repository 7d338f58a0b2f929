"""Services of the guest's network: ARP, neighbour discovery, DHCP, DHCPv6 and echo.

Each service is a pure function: guest packet and settings in, reply frame out. Frames are complete Ethernet frames with
computed checksums, without virtio-net header.
"""
