"""``gpasst network``: networks of a file, with their commands, weather, and ends. Takes 13 seconds."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpasst.topology.addresses import places
from gpasst.topology.read import read
from tests.support import pages
from tests.support.cli import GPASST, cli
from tests.support.need import need
from tests.support.programs import started
from tests.support.ready import until

pytestmark = pytest.mark.usefixtures("tun", "remote")

PAGE = "network-files.md"
PICTURE = "homes"
PATIENCE = 10.0  # seconds; for what takes milliseconds

TWO = """\
[network.lan]
[network.dmz]
subnet6 = "none"
[host.a]
networks = "lan"
[host.b]
networks = ["lan", "dmz"]
forwarding = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lab.toml"


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@contextmanager
def up(file: Path) -> Iterator[tuple[subprocess.Popen[str], Iterator[dict[str, Any]]]]:
    """A network that runs, and its events as they come."""
    command = [*GPASST, "network", str(file), "--json"]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with started(command, text=True, **options) as program:
        assert program.stdout is not None
        yield program, map(json.loads, program.stdout)


def test_the_page(tmp_path: Path) -> None:
    need("ping")
    counted = 0
    for arguments, patterns in pages.runs(PAGE, tmp_path, "gpasst"):
        done = cli(*arguments, cwd=tmp_path)
        output = done.stdout + done.stderr
        assert [pattern for pattern in patterns if not re.search(pattern, output)] == [], output
        counted += 1
    assert counted


def test_the_picture_of_the_page(tmp_path: Path) -> None:
    """`gpasst network homes.toml --draw homes.svg` makes it anew."""
    (drawn,) = (block for block in pages.blocks(PAGE) if block.file == f"{PICTURE}.toml")
    (tmp_path / drawn.file).write_text(drawn.text, encoding="utf-8")
    done = cli("network", drawn.file, "--draw", f"{PICTURE}.svg", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / f"{PICTURE}.svg").read_bytes() == (pages.DOCS / f"{PICTURE}.svg").read_bytes()


def test_the_addresses_are_those_of_the_picture(file: Path) -> None:
    file.write_text(TWO + '[host.c]\nnetworks = ["dmz"]\nrun = "true"\n', encoding="utf-8")
    done = cli("network", str(file), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    up, ended = events(done.stdout)
    assert ended == {"event": "ended", "host": "c", "command": "true", "status": 0}
    drawn = places(read(file.read_text(encoding="utf-8")))
    found = {(name, on): tuple(own) for name, host in up["hosts"].items() for on, own in host["addresses"].items()}
    assert found == drawn
    assert up["networks"]["dmz"] == {"subnet4": "10.77.1.0/24", "subnet6": "", "mtu": 1500}


def test_a_command_waits_for_the_ports_of_those_before_it(file: Path) -> None:
    server = "import socket, time; time.sleep(0.3); s = socket.create_server(('', 7)); s.accept()[0].sendall(b'hello')"
    client = "import socket; print(socket.create_connection(('a', 7), 5).recv(9).decode())"
    file.write_text(
        f'[network.lan]\n[host.a]\nrun = ["python3", "-c", "{server}"]\nwait_bound = "tcp 7"\n'
        f'[host.b]\nrun = ["python3", "-c", "{client}"]\n',
        encoding="utf-8",
    )
    done = cli("network", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "b | hello\n" in done.stdout


def test_the_status_is_that_of_the_first_command_that_failed(file: Path) -> None:
    file.write_text(
        '[network.lan]\n[host.a]\nrun = [["true"], ["sh", "-c", "sleep 0.5; exit 4"], ["sh", "-c", "exit 3"]]\n',
        encoding="utf-8",
    )
    done = cli("network", str(file), "--json")
    assert done.returncode == 3
    assert sorted(event["status"] for event in events(done.stdout) if event["event"] == "ended") == [0, 3, 4]


@pytest.mark.parametrize(
    ("table", "status", "message"),
    [
        ('run = ["nosuch"]', 127, "gpasst: [host.a] run: nosuch: command not found; check its name and PATH\n"),
        ("run = 7", 2, ": line 3: [host.a] run = 7: is no command; write it like"),
    ],
)
def test_what_cannot_run_is_one_line(file: Path, table: str, status: int, message: str) -> None:
    file.write_text(f"[network.lan]\n[host.a]\n{table}\n", encoding="utf-8")
    done = cli("network", str(file))
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert message in done.stderr


def test_a_port_that_nobody_will_bind_is_not_waited_for(file: Path) -> None:
    file.write_text('[network.lan]\n[host.a]\nrun = "echo sorry"\nwait_bound = "udp 7"\n', encoding="utf-8")
    done = cli("network", str(file))
    assert (done.returncode, "a | sorry\n" in done.stdout) == (1, True)
    assert done.stderr == "gpasst: [host.a] ended before udp 7 was bound; see what its commands wrote\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True], ids=["alone", "with its group"])
def test_a_signal_ends_all(
    file: Path, number: signal.Signals, group: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    file.write_text(TWO + 'run = "echo $$; exec sleep 1000"\n', encoding="utf-8")
    with up(file) as (program, event):
        assert next(event)["event"] == "up"
        assert next(event) == {"event": "output", "host": "b", "line": "1"}
        assert list(temporary.iterdir()), "the files of names are elsewhere"
        (os.killpg if group else os.kill)(program.pid, number)
        assert next(event)["event"] == "ended"
        assert program.wait(PATIENCE) == 128 + number
        assert program.stderr is not None
        assert program.stderr.read() == ""
        until(lambda: not list(temporary.iterdir()), "the end of the files of names")


def test_without_commands_a_signal_is_the_ordinary_end(file: Path) -> None:
    file.write_text(TWO, encoding="utf-8")
    with up(file) as (program, event):
        (addresses,) = next(event)["hosts"]["a"]["addresses"].values()
        assert addresses == ["10.77.0.2", "fd77::2"]
        program.send_signal(signal.SIGTERM)
        assert program.wait(PATIENCE) == 0


@pytest.mark.parametrize("table", [TWO, "[network.dmz]\n[host.b]\n"], ids=["two hosts", "one"])
def test_a_shell_from_elsewhere(file: Path, table: str) -> None:
    """Also in the sandbox, in which nobody else of the user may look at the descriptors of the program."""
    need("nsenter")
    need("ip")
    file.write_text(table, encoding="utf-8")
    with up(file) as (program, event):
        command = next(event)["hosts"]["b"]["nsenter"]
        (keeper,) = {int(option.split("/")[2]) for option in command if "/proc/" in option}
        until(lambda: filtered(program.pid), "the sandbox")
        if table != TWO:
            until(lambda: filtered(keeper), "the sandbox of the process that keeps the only host")
        done = subprocess.run(
            [*command, "ip", "-o", "-4", "addr", "show", "dev", "dmz"], capture_output=True, text=True, check=True
        )
        assert "dmz    inet 10.77." in done.stdout
        program.send_signal(signal.SIGTERM)


def filtered(pid: int) -> bool:
    """Return whether the system calls of a process are filtered, which is the last step into a sandbox."""
    return "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text(encoding="ascii")


def test_a_forward_leads_to_a_host(file: Path) -> None:
    server = (
        "import socket; s = socket.create_server(('', 7)); print(flush=True); c = s.accept()[0]; c.sendall(b'hello'); "
        "assert c.recv(9) == b''"
    )
    file.write_text(
        f'[network.lan]\nuplink = true\n[host.a]\nforward = "tcp 0:7"\nrun = ["python3", "-c", "{server}"]\n',
        encoding="utf-8",
    )
    with up(file) as (program, event):
        (forward,) = next(event)["hosts"]["a"]["forwards"]
        assert forward["forward"] == "tcp 0:7"
        assert next(event)["line"] == "", "it listens"
        with socket.create_connection(("127.0.0.1", forward["port"]), PATIENCE) as client:
            assert client.recv(9) == b"hello"
        assert program.wait(PATIENCE) == 0


def test_weather_comes_and_goes(file: Path) -> None:
    need("ping")
    file.write_text(
        '[network.lan]\n[host.a]\nrun = "while ping -c1 -W1 b; do sleep 0.05; done; until ping -c1 -W1 b; do :; done"\n'
        '[host.b]\n[[weather]]\nbetween = ["a", "b"]\nrule = "loss 100%"\none_way = true\nfrom = 0.3\nuntil = 0.6\n',
        encoding="utf-8",
    )
    done = cli("network", str(file), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = [event for event in events(done.stdout) if event["event"] != "output"]
    assert [event["event"] for event in found] == ["up", "weather", "weather", "ended"]
    assert [event["begins"] for event in found[1:3]] == [True, False]
    assert found[1]["between"] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("weather", "message"),
    [
        ('between = ["a", "b"]\nrule = "udp: rebind"', "[[weather]] a ↔ b rebind: a network translates no addresses"),
        ('link = "b"\nfrom = 100\nrule = "udp: rebind"', "[[weather]] b rebind: a network translates no addresses"),
    ],
)
def test_weather_that_cannot_be_shows_at_once(file: Path, weather: str, message: str) -> None:
    file.write_text(f"[network.lan]\n[host.a]\n[host.b]\n[[weather]]\n{weather}\n", encoding="utf-8")
    done = cli("network", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_a_capture_has_what_crossed(file: Path, tmp_path: Path) -> None:
    need("ping")
    file.write_text(
        '[network.lan]\ncapture = "lan.pcapng"\n[host.a]\nrun = ["ping", "-c1", "b"]\n[host.b]\n', encoding="utf-8"
    )
    assert cli("network", str(file), cwd=tmp_path).returncode == 0
    assert (tmp_path / "lan.pcapng").stat().st_size > 0


def test_the_command_of_a_shell_has_the_output_for_itself(file: Path) -> None:
    file.write_text('[network.lan]\n[host.a]\nrun = "echo mine; exec sleep 1000"\n[host.b]\n', encoding="utf-8")
    done = cli("network", str(file), "--shell", "b", "--", "sh", "-c", "hostname; sleep 0.3; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "b\n", "a | mine\n")


def test_output_that_nobody_takes_ends_it(file: Path) -> None:
    file.write_text('[network.lan]\n[host.a]\nrun = "exec sleep 1000"\n', encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    with started([*GPASST, "network", str(file)], stdout=writer, stderr=subprocess.PIPE, text=True) as program:
        os.close(writer)
        assert program.stderr is not None
        assert program.stderr.read() == "gpasst: output: Broken pipe; lead it to where it can be written\n"
    assert program.returncode == 1
