"""The steps between the link and the host: readers, the fast path, dispatch, and the sockets of each protocol."""
