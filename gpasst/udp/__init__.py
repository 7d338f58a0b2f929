"""UDP between the guest and the host's sockets. Pure.

* `mapping`: host sockets, mappings and peers, and the tables that find them.
* `nat`: what the first datagram of a flow sets up.
* `header`: the Ethernet, IP and UDP headers of upward frames.
* `pairs`: the rules of splice pairs, which move loopback traffic past the link.
"""
