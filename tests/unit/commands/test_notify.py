"""Notifying a service manager, with a socket in its place."""

from __future__ import annotations

import logging
import secrets
import socket
from pathlib import Path

import pytest

from gpasst.commands.notify import Manager


def test_states_reach_a_path(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": address, "PATH": "/bin"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        manager = Manager(environment)
        manager.notify("READY=1")
        manager.notify("STOPPING=1")
        manager.close()
        manager.close()
        assert [listener.recv(100) for _ in range(2)] == [b"READY=1", b"STOPPING=1"]
    assert environment == {"PATH": "/bin"}


def test_an_at_sign_is_an_abstract_name() -> None:
    name = f"gpasst-test-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        manager = Manager({"NOTIFY_SOCKET": f"@{name}"})
        manager.notify("READY=1")
        manager.close()
        assert listener.recv(100) == b"READY=1"


def test_without_a_manager_nothing_is_sent_or_said(caplog: pytest.LogCaptureFixture) -> None:
    manager = Manager({})
    manager.notify("READY=1")
    manager.close()
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "reason"), [("absent", "No such file"), ("", "Connection refused|file"), ("x" * 200, "too long")]
)
def test_an_unreachable_manager_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, reason: str
) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / name)}
    with caplog.at_level(logging.WARNING, "gpasst"):
        manager = Manager(environment)
        manager.notify("READY=1")
    (record,) = caplog.records
    assert "NOTIFY_SOCKET" in record.getMessage() and "notified" in record.getMessage()
    assert any(each in record.getMessage() for each in reason.split("|"))
    assert not environment


def test_a_manager_that_went_away_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        manager = Manager({"NOTIFY_SOCKET": address})
    with caplog.at_level(logging.WARNING, "gpasst"):
        manager.notify("STOPPING=1")
    manager.close()
    (record,) = caplog.records
    assert "STOPPING=1: Connection refused" in record.getMessage()
