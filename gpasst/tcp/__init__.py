"""TCP between the guest and the host's sockets. Pure.

* `connection`: events of the guest, the socket and the clock in; `work` for the caller out.
* `states`: the states and transitions, as a table.
* `sender`, `receiver`: the two halves of a connection; `window`: what the guest is promised.
* `segment`, `header`: segments of the guest, and the headers of those for it; `isn`: initial sequence numbers.
* `table`, `timers`: all connections of a guest, and their deadlines.
* `reset`: the answer to a segment of no connection.
* `pairs`: splice pairs, which move loopback connections past the link.
* `listener`: the listening socket of a forwarded port.
"""
