"""What the processes of a command have given up once it serves, and what goes on working. Takes 8 seconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import gpasst
from gpasst.testing import free_port
from tests.support.cli import AS_ROOT, GPASST, cli, ended
from tests.support.lab import bound, host_socket
from tests.support.need import ROOT_ONLY
from tests.support.programs import started
from tests.support.ready import sleeper, unix_listening, until

pytestmark = pytest.mark.usefixtures("tun", "remote")

FILTERED = 2  # SECCOMP_MODE_FILTER
KEPT = 1 << 10 | 1 << 13  # CAP_NET_BIND_SERVICE and CAP_NET_RAW (linux/capability.h)
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
LOW, HIGH = 77, 5077  # ports
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason=f"{ROOT_ONLY} leave out a user namespace, or mount")
# Asks the services of the host, once the namespace has their ports.
ASK = f"""
import socket, time
def again(ask):
    while True:
        try:
            return ask()
        except OSError:
            time.sleep(0.02)
def udp():
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        s.settimeout(5)  # a port that is not there yet is refused at once
        s.connect(("127.0.0.1", {LOW}))
        s.send(b"ask")
        print(s.recv(9).decode())
def tcp():
    with socket.create_connection(("127.0.0.1", {HIGH}), 5) as s:
        print(s.recv(9).decode())
again(udp)
again(tcp)
"""


def status(process: int) -> dict[str, int]:
    """The rights of a process (proc_pid_status(5))."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        **{name: int(fields[name], 16) for name in CAPABILITIES},
        **{name: int(fields[name]) for name in ("NoNewPrivs", "Seccomp")},
    }


CONFINED = {**dict.fromkeys(CAPABILITIES, 0), "NoNewPrivs": 1, "Seccomp": FILTERED}


def filtered(process: int) -> bool:
    try:
        return status(process)["Seccomp"] == FILTERED
    except (FileNotFoundError, ProcessLookupError):
        return False  # the helper process has ended meanwhile


def relatives(process: int) -> list[int]:
    """The other processes of the session of one, whatever became of their parents."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != process:
            try:
                fields = (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == process and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_the_process_and_the_keeper_of_the_namespace_give_their_rights_up(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    command = [*GPASST, "pasta", *AS_ROOT, "--config-net", "-d", "-l", str(log_file), "--", "sleep", "1000"]
    with started(command, start_new_session=True) as program:
        until(lambda: filtered(program.pid), "the process is in its sandbox")
        assert status(program.pid) == CONFINED
        if os.geteuid() == 0:
            assert os.listdir(f"/proc/{program.pid}/root/") == []
            assert os.readlink(f"/proc/{program.pid}/cwd") == "/"
            for name in ("user", "mnt", "ipc", "uts"):
                assert os.readlink(f"/proc/{program.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        else:
            with pytest.raises(PermissionError):
                os.listdir(f"/proc/{program.pid}/fd")
        until(lambda: any(filtered(other) for other in relatives(program.pid)), "the keeper is in its sandbox")
        (keeper,) = [other for other in relatives(program.pid) if filtered(other)]
        kept = {"CapPrm": KEPT, "CapEff": KEPT, "CapBnd": KEPT}
        assert status(keeper) == {**CONFINED, **kept}
        program.terminate()
        assert program.wait(10) == 128 + signal.SIGTERM
    lines = [line for line in log_file.read_text(encoding="utf-8").splitlines() if "sandbox: " in line]
    assert len(lines) == 1
    for part in ("user namespace", "empty root", "no capabilities", "no new privileges", "not dumpable", "filtered"):
        assert part in lines[0]


def test_it_can_be_left_out() -> None:
    script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/$PPID/status"
    # The parent of the command is gpasst's own process there.
    done = cli("pasta", *AS_ROOT, "--no-sandbox", "--no-pidns", "-d", "--", "sh", "-c", f"sleep 0.3; {script}")
    assert done.stdout.split() == ["NoNewPrivs:", "0", "Seccomp:", "0"]
    assert "sandbox" not in done.stderr


def test_a_program_that_embeds_gpasst_keeps_its_rights() -> None:
    before = status(os.getpid())
    with gpasst.Pasta(config_net=True) as net:
        net.run(["true"], check=True)
        assert status(os.getpid()) == before


# Becomes root of a user namespace that knows all users and permits no further one, and executes a command there.
NO_USER_NAMESPACES = """
import ctypes, os, sys
ready, made = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER
    os.write(made[1], b"x")
    os.read(ready[0], 1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    os.execvp(sys.argv[1], sys.argv[1:])
os.read(made[0], 1)
for kind in ("uid", "gid"):
    with open(f"/proc/{pid}/{kind}_map", "w") as file:
        file.write("0 0 65536")
os.write(ready[1], b"x")
os.waitpid(pid, 0)
"""
FULL = "unshare: No space left on device"


@ONLY_ROOT
def test_root_has_all_but_a_user_namespace_where_these_are_forbidden(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    options = ["passt", "-f", "-d", "--runas", "65534", "-l", str(log_file), "--socket", str(tmp_path / "socket")]
    with started([sys.executable, "-c", NO_USER_NAMESPACES, *GPASST, *options], start_new_session=True) as program:
        until(lambda: log_file.exists() and "sandbox: no" in log_file.read_text(encoding="utf-8"), "the lines")
        os.killpg(program.pid, signal.SIGTERM)
        program.wait(10)
    lines = [line for line in log_file.read_text(encoding="utf-8").splitlines() if " sandbox: " in line]
    assert [line.partition("sandbox: ")[2] for line in lines[1:]] == ["no user namespace: " + FULL]
    assert "mount namespace, empty root, no capabilities" in lines[0]


@ONLY_ROOT
def test_without_a_user_namespace_the_others_are_its_own() -> None:
    with started([*GPASST, "pasta", *AS_ROOT, "--netns-only", "--config-net", "--", "sleep", "1000"]) as program:
        until(lambda: filtered(program.pid), "the process is in its sandbox")
        assert status(program.pid) == CONFINED
        assert os.listdir(f"/proc/{program.pid}/root/") == []
        same = {
            name: os.readlink(f"/proc/{program.pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
            for name in ("user", "mnt", "ipc", "uts")
        }
        assert same == {"user": True, "mnt": False, "ipc": False, "uts": False}
        program.terminate()


@ONLY_ROOT
def test_ports_that_are_bound_later_are_followed_low_ones_too() -> None:
    """The namespace's port below 1024 takes a right that the proxy has not any more."""
    command = [*GPASST, "pasta", *AS_ROOT, "-U", "auto", "-T", "auto", "--", sys.executable, "-c", ASK]
    with started(command, stdout=subprocess.PIPE, text=True) as program:
        until(lambda: filtered(program.pid), "the process is in its sandbox")
        with (
            bound(host_socket(socket.AF_INET), "127.0.0.1", LOW) as service,
            host_socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
        ):
            listener.bind(("127.0.0.1", HIGH))
            listener.listen()
            listener.settimeout(10)
            service.settimeout(10)
            _, client = service.recvfrom(9)
            service.sendto(b"udp", client)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"tcp")
            assert program.communicate(timeout=10)[0].split() == ["udp", "tcp"]
        assert program.returncode == 0


@pytest.mark.parametrize("how", ["umount", "cover"])
@ONLY_ROOT
def test_the_end_of_a_joined_namespace_is_seen_without_files(tmp_path: Path, how: str) -> None:
    file, pid_file = tmp_path / "netns", tmp_path / "pid"
    file.touch()
    with gpasst.Pasta() as owner, sleeper(owner) as process:
        subprocess.run(["mount", "--bind", f"/proc/{process.pid}/ns/net", str(file)], check=True)
        try:
            options = [
                *AS_ROOT,
                "-P",
                str(pid_file),
                "-I",
                "joined",
                "--netns",
                str(file),
                "--userns",
                f"/proc/{process.pid}/ns/user",
            ]
            subprocess.run([*GPASST, "pasta", *options], check=True, timeout=20)
            served = int(pid_file.read_text(encoding="ascii"))
            handle = os.pidfd_open(served)
            assert status(served) == CONFINED
            assert not ended(handle)
            if how == "cover":
                subprocess.run(["mount", "--bind", "/proc/self/ns/net", str(file)], check=True)
            else:
                subprocess.run(["umount", "--lazy", str(file)], check=True)  # as ip-netns(8) does
            until(lambda: ended(handle), "the proxy ended")
            os.close(handle)
        finally:
            while subprocess.run(["umount", "--lazy", str(file)], stderr=subprocess.DEVNULL).returncode == 0:
                pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_guests_socket_is_removed_however_the_proxy_ends(tmp_path: Path, number: signal.Signals) -> None:
    path, port = tmp_path / "guest", free_port("udp")
    command = [*GPASST, "passt", *AS_ROOT, "-f", "-s", str(path), "-u", str(port)]
    with started(command, start_new_session=True, stderr=subprocess.DEVNULL) as program:
        until(lambda: unix_listening(path) and filtered(program.pid), "the process is in its sandbox")
        assert status(program.pid) == CONFINED
        (remover,) = relatives(program.pid)
        assert status(remover) == CONFINED
        handle = os.pidfd_open(remover)
        program.send_signal(number)
        program.wait(10)
        until(lambda: ended(handle), "the process that removes the socket has ended")
        os.close(handle)
    assert not path.exists()


def test_another_file_in_the_place_of_the_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    with started([*GPASST, "passt", *AS_ROOT, "-f", "-s", str(path)], stderr=subprocess.DEVNULL) as program:
        until(lambda: unix_listening(path) and filtered(program.pid), "the process is in its sandbox")
        path.unlink()
        path.write_text("another", encoding="ascii")
        program.terminate()
        program.wait(10)
    assert path.read_text(encoding="ascii") == "another"


def test_a_network_of_a_file_enters_it_when_its_commands_run(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('[network.lan]\n[host.a]\nnetworks = "lan"\nrun = "sleep 1000"\n', encoding="ascii")
    command = [*GPASST, "network", str(file), "--json"]
    with started(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert json.loads(program.stdout.readline())
        until(lambda: filtered(program.pid), "the process is in its sandbox")
        assert status(program.pid) == CONFINED
        program.terminate()
        # Its command is ended, and says so.
        assert "ended" in program.stdout.read()
        program.wait(10)
