"""UDP between the guest and the host's sockets.

* `addresses`: which address stands for which, in both directions.
* `mappings`: what is tracked: mappings, peers, and their activity.
* `headers`: the Ethernet, IP and UDP headers of upward superframes.
* `guest`: the rules that join these: what a datagram seen for the first time sets up.

All of it is pure: it does no I/O, reads no clock and knows no event loop.
"""
