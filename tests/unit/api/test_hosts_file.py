"""The names of the hosts of a network, as programs that run already find them."""

from __future__ import annotations

from pathlib import Path

from gpasst.api.hosts_file import LOOPBACK, HostsFile


def test_names_are_replaced_in_place() -> None:
    file = HostsFile()
    try:
        with Path(file.path).open(encoding="ascii") as reader:
            assert reader.read() == LOOPBACK
            for entries in ([("10.77.0.2", "a"), ("fd77::2", "a")], [("10.77.0.3", "b")], []):
                file.write(entries)
                reader.seek(0)
                assert reader.read() == LOOPBACK + "".join(f"{address} {name}\n" for address, name in entries)
        assert Path(file.path).stat().st_mode & 0o777 == 0o644
    finally:
        file.close()


def test_the_file_ends_with_it() -> None:
    file = HostsFile()
    file.close()
    assert not Path(file.path).exists()
    file.close()
    other = HostsFile()
    Path(other.path).unlink()
    other.close()
