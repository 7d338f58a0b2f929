"""Real programs that serve a guest on the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.need import need
from tests.support.ready import udp_port_bound

END_SECONDS = 30  # for a program that ends by itself


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a program that ends by itself; it is killed where the block fails, which would wait for it otherwise."""
    with subprocess.Popen(command, **options) as program:
        try:
            yield program
            program.wait(END_SECONDS)
        finally:
            program.kill()


@contextmanager
def service(command: list[str], port: int) -> Iterator[subprocess.Popen[Any]]:
    """Run a service on the host until it has bound its UDP port, and end it afterwards."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        try:
            udp_port_bound(port, program)
            yield program
        finally:
            program.terminate()
            program.wait()


def dnsmasq(address: str, port: int = 53) -> list[str]:
    """The command line of a resolver that knows one name."""
    return [
        need("dnsmasq"),
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--pid-file=",
        f"--listen-address={address}",
        f"--port={port}",
        "--address=/t.example/198.51.100.7",
        *(["--user=root"] if os.geteuid() == 0 else []),
    ]
