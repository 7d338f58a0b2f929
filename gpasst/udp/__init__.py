"""UDP between the guest and the host's sockets.

* `addresses`: which address stands for which, in both directions.
* `mappings`: what is tracked: mappings and peers.
* `activity`: who has been active, and when.
* `headers`: the Ethernet, IP and UDP headers of upward superframes.
* `guest`: the rules that join these: what a datagram seen for the first time sets up.
* `splice`: the rules of splice pairs, which move loopback traffic past the link.
* `forwards`: which listeners the forward rules ask for.

All of it is pure: it does no I/O, reads no clock and knows no event loop.
"""
