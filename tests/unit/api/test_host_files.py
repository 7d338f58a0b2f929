"""The files by which programs of a host find names, as those that run already see them."""

from __future__ import annotations

from pathlib import Path

from gpasst.api.host_files import HOSTS_FILE, LOOPBACK, HostFiles

RESOLVER = "/etc/resolv.conf"


def test_what_files_say_is_replaced_in_place() -> None:
    files = HostFiles(RESOLVER)
    try:
        hosts, resolver = Path(files.paths[HOSTS_FILE]), Path(files.paths[RESOLVER])
        with hosts.open(encoding="ascii") as names, resolver.open(encoding="ascii") as server:
            for found, text in (
                ({"a": ("10.77.0.2", "fd77::2"), "b": ("10.77.0.3",)}, "nameserver 10.77.0.1\nsearch example.org\n"),
                ({"b": ("10.77.0.3",)}, "nameserver 10.77.0.1\n"),
                ({}, ""),
            ):
                files.write(found, text)
                names.seek(0)
                server.seek(0)
                lines = [f"{address} {name}\n" for name, addresses in found.items() for address in addresses]
                assert names.read() == LOOPBACK + "".join(lines)
                assert server.read() == text
        assert {path.stat().st_mode & 0o777 for path in (hosts, resolver)} == {0o644}
    finally:
        files.close()


def test_files_end_with_their_host() -> None:
    files = HostFiles(RESOLVER)
    files.close()
    assert not any(Path(path).exists() for path in files.paths.values())
    files.close()
    other = HostFiles("")
    (path,) = other.paths.values()
    Path(path).unlink()
    other.write({}, "")
    other.close()
