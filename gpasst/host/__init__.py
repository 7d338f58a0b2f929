"""Calls to the host's kernel: making sockets, receiving, sending, error queues, raw sockets, sock_diag."""
