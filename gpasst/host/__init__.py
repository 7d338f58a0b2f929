"""Calls to the host's kernel: sockets made, received from, sent to; error queues, raw sockets, sock_diag."""
