"""Both address families: the mark that runs a test for each, and what sockets need to know of them."""

from __future__ import annotations

import socket

import pytest

FAMILIES = pytest.mark.parametrize("family", [4, 6])
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}  # of socket options and control messages
ANY = {4: "0.0.0.0", 6: "::"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
LARGEST = {4: 65507, 6: 65527}  # payload bytes of one datagram
