"""The console script: exit statuses, one-line errors, signals, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpasst
from tests.support.cli import AS_ROOT, GPASST, cli, ended
from tests.support.lab import REMOTE4, bound, host_socket
from tests.support.programs import started
from tests.support.ready import sleeper, until

pytestmark = pytest.mark.usefixtures("tun", "remote")

ECHO_ONCE = (
    "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('0.0.0.0', 5000)); "
    "print('bound', flush=True); d, a = s.recvfrom(99); s.sendto(d.upper(), a)"
)


def members(session: int) -> list[int]:
    """The process IDs in a session, whatever became of their parents."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(("command", "status"), [("true", 0), ("false", 1), ("exit 42", 42), ("kill -KILL $$", None)])
def test_the_exit_status_is_passed_on(command: str, status: int | None) -> None:
    # Process 1 of a PID namespace is immune to its own signals, so the last one kills a child.
    text = command if status is not None else "sh -c 'kill -KILL $$'"
    done = cli("pasta", "--config-net", "--", "sh", "-c", text)
    assert done.returncode == (128 + signal.SIGKILL if status is None else status), done.stderr
    assert status is None or done.stderr == "", "only a shell says more, of the child that was killed"


def test_a_command_that_is_process_1_survives_its_own_signals() -> None:
    done = cli(
        "pasta",
        *AS_ROOT,
        "--",
        sys.executable,
        "-c",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    )
    # Unhandled, process 1 ignores it and ends well; this is Linux, not us.
    assert done.returncode == 0


def test_the_command_sees_a_world_of_its_own() -> None:
    script = "echo $$; ls -d /proc/[0-9]* | wc -l; cat /proc/net/dev | tail -n +3 | cut -d: -f1"
    done = cli("pasta", "--config-net", "sh", "-c", script)
    pid, count, *devices = done.stdout.split()
    assert pid == "1"
    assert int(count) < 10
    assert sorted(devices) == ["lo", "up0"]


def test_the_tap_is_ready_when_the_command_starts() -> None:
    with bound(host_socket(socket.AF_INET), "127.0.0.1") as server:
        script = (
            "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(5); "
            f"s.sendto(b'x', ('192.0.2.1', {server.getsockname()[1]})); print(s.recv(9).decode())"
        )
        command = [*GPASST, "pasta", *AS_ROOT, "--config-net", "--", sys.executable, "-c", script]
        with started(command, stdout=subprocess.PIPE, text=True) as program:
            server.settimeout(20)
            _, sender = server.recvfrom(9)
            server.sendto(b"good", sender)
            assert program.stdout is not None
            assert program.stdout.read() == "good\n"
        assert program.returncode == 0


def test_a_forward_reaches_the_command() -> None:
    command = [
        *GPASST,
        "pasta",
        *AS_ROOT,
        "--config-net",
        "-u",
        "5055:5000",
        "--",
        sys.executable,
        "-c",
        ECHO_ONCE,
    ]
    with started(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "bound\n"
        with bound(host_socket(socket.AF_INET), "127.0.0.1") as client:
            client.sendto(b"hello", ("127.0.0.1", 5055))
            assert client.recvfrom(9) == (b"HELLO", ("127.0.0.1", 5055))
    assert program.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_within_a_second(number: signal.Signals) -> None:
    # A shell catches SIGINT until it has executed its command, and forgets it then.
    sleeps = "import signal, time; signal.signal(2, signal.SIG_DFL); print('up', flush=True); time.sleep(1000)"
    command = [*GPASST, "pasta", *AS_ROOT, "--config-net", "--", sys.executable, "-c", sleeps]
    with started(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "up\n"
        assert len(members(program.pid)) >= 3
        began = time.monotonic()
        program.send_signal(number)
        status = program.wait(10)
        until(lambda: not members(program.pid), "all processes gone")
        assert time.monotonic() - began < 1
        assert status == 128 + number


def test_killing_the_proxy_leaves_nothing_behind() -> None:
    command = [*GPASST, "pasta", "--", "sh", "-c", "echo up; exec sleep 1000"]
    with started(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "up\n"
        program.kill()
        program.wait(10)
        until(lambda: not members(program.pid), "all processes gone")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("pasta", "--nosuch"), 2, "--nosuch is not an option or argument"),
        (("pasta", "-u", "70000"), 2, "70000 is not a port"),
        (("pasta", "--udp-p", "70000"), 2, "--udp-ports 70000: 70000 is not a port"),
        (("pasta", "--no-d"), 2, "--no-d is ambiguous; write one of --no-dhcp, --no-dhcp-dns, --no-dhcp-search"),
        (("pasta", "-m", "65522"), 2, "--mtu 65522 is out of range; give 68 to 65521 bytes, or 0"),
        (("pasta", "--no-copy-addrs"), 2, "--no-copy-addrs is about what --config-net copies"),
        (("pasta", "--no-pidns", "--netns", "x"), 2, "--no-pidns is about COMMAND"),
        (("pasta", "--outbound-if4", "nosuch0"), 1, "--outbound-if4 nosuch0 does not exist"),
        (("pasta", "-p", "/nosuch/file", "--", "true"), 1, "--pcap /nosuch/file: No such file or directory"),
        (("pasta", "-p", "/", "--", "true"), 1, "--pcap /: Is a directory; name a file that can be written"),
        (("passt", "--vhost-user", "-s", "/x"), 2, "--vhost-user needs a back-end of shared memory"),
        (("passt", "--print-capabilities"), 2, "--print-capabilities is about a back-end for vhost-user"),
        (("passt", "--migrate-exit"), 2, "--migrate-exit belongs to the migration of vhost-user guests"),
        (("pasta", "--mtu", "12"), 2, "--mtu 12 is out of range"),
        (("pasta", "-m", "x"), 2, "--mtu x is not a whole number"),
        (("pasta", "-T", "192.0.2.1/53"), 2, "--tcp-ns 192.0.2.1/53 is not on the namespace's loopback"),
        (("pasta", "-U", "192.0.2.1/53"), 2, "--udp-ns 192.0.2.1/53 is not on the namespace's loopback"),
        (("pasta", "-U", "%up0/53"), 2, "--udp-ns %up0/53 is not on the namespace's loopback"),
        (("pasta", "--no-splice", "--host-lo-to-ns-lo"), 2, "--no-splice and --host-lo-to-ns-lo exclude each other"),
        (("pasta", "--no-splice", "--splice-only"), 2, "--no-splice and --splice-only exclude each other"),
        (("pasta", "-s", "/x"), 2, "-s is an option of gpasst passt"),
        (("passt", "--config-net"), 2, "--config-net is an option of gpasst pasta"),
        (("passt", "-u", "auto"), 2, "auto needs a namespace"),
        (("passt", "--fd=-2"), 2, "--fd -2 is out of range"),
        (("passt", "-f", "--fd", "999"), 1, "--fd 999: Bad file descriptor"),
        (("passt", "-f", "-s", "/nosuch/x"), 1, "--socket /nosuch/x: No such file or directory"),
        (("passt", "-f", "-s", "/" + 110 * "x"), 1, "longer than 107 bytes"),
        (("pasta", "-u", "auto,auto"), 2, "--udp-ports auto,auto: auto in one list"),
        (("pasta", "-u", "auto,5000,5000"), 2, "port 5000 is given twice"),
        (("pasta", "--runas", "no such user"), 2, "no such user"),
        (("pasta", "--netns", "x", "--", "true"), 2, "cannot be run in a namespace that is joined"),
        (("pasta", "--netns", ""), 2, "--netns '' is empty"),
        (("pasta", "--netns", "--", "true"), 2, "--netns lacks its value"),
        (("pasta", ""), 2, "COMMAND is empty"),
        (("pasta", "--runas", ""), 2, "--runas '' is empty"),
        (("pasta", "--userns", "/nonexistent"), 2, "--userns /nonexistent is of no use"),
        (("pasta", "--splice-only", "-p", "/tmp/pcap"), 2, "--pcap /tmp/pcap would stay empty"),
        (("passt", "--stats", "1"), 2, "--stats 1 prints on standard error"),
        (("passt", "--log-size", "65536"), 2, "--log-size 65536 is the size of a log file"),
        (("demo", "x"), 2, "x is not an option or argument"),
        (("ctl",), 2, "ctl is not available yet"),
        (("nosuch",), 2, "unknown command nosuch"),
        (("pasta", "-i", "nosuch0"), 1, "--interface nosuch0 does not exist"),
        (("pasta", "--", "nosuchprogram"), 127, "nosuchprogram: command not found"),
        (("pasta", "--netns", "/etc/passwd"), 1, "/etc/passwd is not a network namespace; name a running process"),
        (("pasta", "-f", "--netns", "/nosuch"), 1, "/nosuch"),
        (("pasta", "--netns", "/nosuch"), 1, "/nosuch"),
        (("pasta", "-l", "/nosuch/log", "--", "true"), 1, "--log-file /nosuch/log"),
        (("pasta", "-P", "/nosuch/pid", "--", "true"), 1, "--pid /nosuch/pid"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], status: int, message: str) -> None:
    if "--runas" in arguments and "" not in arguments and os.geteuid() != 0:
        message = "--runas needs root"
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("gpasst")


@pytest.mark.parametrize(
    "arguments",
    [
        (b"pasta", b"--netns", b"\xff"),
        (b"pasta", b"--userns", b"\xff", b"--netns", b"/proc/self/ns/net"),
        (b"pasta", b"-p", b"/nosuch/\xff", b"--", b"true"),
        (b"pasta", b"-P", b"/nosuch/\xff", b"--", b"true"),
        (b"pasta", b"-l", b"/nosuch/\xff", b"--", b"true"),
        (b"pasta", b"--", b"\xff"),
        (b"passt", b"-f", b"-s", b"/nosuch/\xff"),
        (b"\xff",),
    ],
)
def test_text_that_is_not_utf_8_is_shown_in_one_line(arguments: tuple[bytes, ...]) -> None:
    done = cli(*(os.fsdecode(argument) for argument in arguments))
    assert done.returncode in (1, 2, 127)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("gpasst")
    assert "\\udcff" in done.stderr


def test_debug_says_what_the_namespace_got() -> None:
    done = cli("pasta", "-d", "-I", "told", "--config-net", "-u", "5057", "--", "true")
    assert done.returncode == 0
    assert " ms tap in the namespace: told\n" in done.stderr
    assert " ms template interface: up0 (IPv4), up0 (IPv6)\n" in done.stderr
    assert " ms UDP ports of the host lead to the guest: 5057\n" in done.stderr


def test_a_shell_that_does_not_exist_is_named() -> None:
    done = cli("pasta", env={**os.environ, "SHELL": "nosuchshell"})
    assert (done.returncode, done.stderr.count("\n")) == (127, 1)
    assert "nosuchshell: command not found; check the variable SHELL" in done.stderr


def test_a_command_that_may_not_be_executed_is_named(tmp_path: Path) -> None:
    (tmp_path / "noprogram").touch(mode=0o644)
    done = cli("pasta", "--", "noprogram", env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (done.returncode, done.stderr.count("\n")) == (126, 1)
    assert "noprogram: permission denied; make it executable" in done.stderr


def test_a_busy_port_is_one_line() -> None:
    with bound(host_socket(socket.AF_INET), "0.0.0.0") as taken:
        done = cli("pasta", "-u", str(taken.getsockname()[1]), "--", "true")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the port is in use" in done.stderr


def test_options_that_switch_off_what_is_not_there_are_accepted() -> None:
    off = ["-t", "none", "-T", "none", "-U", "none", "-u", "none", "--no-dhcp", "--no-dhcpv6", "--no-splice"]
    off += ["--hostname", "guest", "--fqdn", "guest.example.org"]
    assert cli("pasta", *off, "--", "true").returncode == 0


def test_a_new_namespace_has_a_host_name_of_its_own() -> None:
    outside = os.uname().nodename
    assert cli("pasta", "--", "uname", "-n").stdout == f"pasta-{outside}\n"
    assert cli("pasta", "-H", "g\u00e4st", "--", "uname", "-n").stdout == "xn--gst-qla\n"
    assert os.uname().nodename == outside


def test_the_commands_processes_without_a_pid_namespace(tmp_path: Path) -> None:
    script = "test -d /proc/$PPID && sleep 1000 >/dev/null 2>&1 & echo $! $$"
    done = cli("pasta", "--no-pidns", "--config", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    child, shell = map(int, done.stdout.split())
    # It lives on, and is known by its number out here.
    assert shell > 1
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(("options", "count"), [((), 2), (("--no-copy-addrs",), 1)])
def test_how_many_addresses_are_copied(options: tuple[str, ...], count: int) -> None:
    done = cli("pasta", "--config-net", *options, "--", "ip", "-4", "-o", "address", "show", "dev", "up0")
    assert len(done.stdout.splitlines()) == count, done


def test_only_the_default_route_is_copied() -> None:
    done = cli("pasta", "--config-net", "--no-copy-routes", "--", "ip", "-4", "route")
    assert done.stdout.split("dev")[0] == f"default via {REMOTE4} "
    assert [line for line in done.stdout.splitlines() if "proto kernel" not in line] == done.stdout.splitlines()[:1]


def test_help_and_version() -> None:
    for arguments in (("--help",), ("pasta", "--help"), ("demo", "--help")):
        done = cli(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "usage" in done.stdout
    for arguments in (("--version",), ("pasta", "--version")):
        assert cli(*arguments).stdout == f"gpasst {gpasst.__version__}\n"


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("pasta", "--help"), ("demo", "--help")])
def test_what_cannot_be_printed_is_one_line(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*GPASST, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "gpasst: standard output: No space left on device; lead it to where it can be written\n"


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("pasta", "--nonsense")])
def test_an_error_that_cannot_be_printed_keeps_its_status(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        assert subprocess.run([*GPASST, *arguments], stderr=full, check=False).returncode == 2


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "2>&-"])
def test_the_exit_status_is_passed_on_without_standard_descriptors(closed: str) -> None:
    program = [*GPASST, "pasta", *AS_ROOT, "--", "sh", "-c", "exit 42"]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (42, b"", b"")


def test_called_as_pasta(tmp_path: Path) -> None:
    link = tmp_path / "pasta"
    link.write_text(
        f"#!{sys.executable}\nimport sys\nfrom gpasst.cli import main\nsys.exit(main())\n", encoding="utf-8"
    )
    link.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([str(link), "--config-net", "--", "sh", "-c", "exit 9"], timeout=30, env=environment)
    assert done.returncode == 9


@pytest.mark.parametrize("foreground", [False, True])
def test_serving_a_joined_namespace(foreground: bool, tmp_path: Path) -> None:
    pid_file, log_file = tmp_path / "pid", tmp_path / "log"
    options = [*AS_ROOT, "-P", str(pid_file), "-l", str(log_file), "--config-net", "-I", "served"]
    with gpasst.Pasta() as owner, sleeper(owner) as process:
        command = [*GPASST, "pasta", *options, *(["-f"] if foreground else []), str(process.pid)]
        program = subprocess.Popen(command)
        if not foreground:
            assert program.wait(20) == 0, "the parent returns when the tap is ready"
        until(lambda: pid_file.exists() and pid_file.read_text(encoding="ascii").endswith("\n"), "PID file")
        served = int(pid_file.read_text(encoding="ascii"))
        assert pid_file.stat().st_mode & 0o777 == log_file.stat().st_mode & 0o777 == 0o600
        assert (served == program.pid) == foreground
        addresses = owner.run(["cat", "/proc/net/if_inet6"], capture_output=True, text=True).stdout
        assert "served" in addresses
        handle = os.pidfd_open(served)
        process.kill()
        process.wait()
    # The process whose namespace it was is gone, so the proxy goes too.
    until(lambda: ended(handle), "proxy ended")
    os.close(handle)
    if foreground:
        assert program.wait(10) == 0
    text = log_file.read_text(encoding="utf-8")
    assert f"gpasst {gpasst.__version__}" in text and f"process {served}" in text


def test_statistics_on_demand() -> None:
    done = cli("pasta", "--config-net", "--stats", "1", "--", "sleep", "1.5")
    assert "up 0 datagrams 0 bytes, down 0 datagrams 0 bytes, 0 mappings" in done.stderr
    assert "TCP up 0 segments 0 bytes, down 0 segments 0 bytes, 0 connections, " in done.stderr
    assert "spliced 0 datagrams 0 bytes, TCP 0 bytes, 0 pairs, dropped: " in done.stderr


def test_the_demo() -> None:
    done = cli("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    # Nine paths in each family: four ways, one by one and joined, and a port that leads to another; then TCP both ways.
    assert done.stdout.count("intact") == 18 + 4
    assert "All arrived, unchanged." in done.stdout
