"""Command lines: what they are read as, and the one line that refuses the rest."""

from __future__ import annotations

from typing import Any

import pytest

from gpasst.commands.options import PROCESS_OPTIONS, REFUSED, Invocation, help_text, read, read_demo
from gpasst.config import Config, long_option, options
from gpasst.errors import ConfigurationError

# Every option of each command that takes a value: command, long name, name of the value.
VALUED = [
    (mode, long_option(name), option.metavar) for mode in ("pasta", "passt") for name, option in options(mode).items()
] + [(mode, long, option.metavar) for mode in ("pasta", "passt") for long, option in PROCESS_OPTIONS.values()]
VALUED = [item for item in VALUED if item[2]]
NO_PORTS = "-t", "none", "-u", "none", "-T", "none", "-U", "none"
NONE_FORWARDED: dict[str, Any] = {"tcp_ports": "none", "udp_ports": "none", "tcp_ns": "none", "udp_ns": "none"}


def invoked(*argv: str, mode: str = "pasta") -> Invocation:
    return read(mode, argv)


def refused(*argv: str, mode: str = "pasta") -> str:
    """Return the line that refuses a command line."""
    with pytest.raises(ConfigurationError) as caught:
        invoked(*argv, mode=mode)
    assert str(caught.value).isprintable()
    assert caught.value.remedy
    return str(caught.value)


def test_the_sandbox_can_be_left_out() -> None:
    for mode in ("pasta", "passt"):
        assert invoked("--no-sandbox", mode=mode).process.no_sandbox
        assert not invoked(mode=mode).process.no_sandbox


def test_nothing_given_means_the_defaults() -> None:
    pasta, passt = invoked(), invoked(mode="passt")
    # On the command line alone, ports follow what is bound on the other side.
    assert pasta.config == Config(tcp_ports=("auto",), udp_ports=("auto",), tcp_ns=("auto",), udp_ns=("auto",))
    assert passt.config == Config()
    assert pasta.command == passt.command == ()
    assert (pasta.runs_command, passt.runs_command) == (True, False)
    assert pasta.process == passt.process
    assert not (pasta.process.foreground or pasta.process.verbose or pasta.process.quiet or pasta.process.stats)


def test_podman_is_understood() -> None:
    """All that podman 5.4.2 passes to pasta: --pid is for a bridge, -t and -u for published ports."""
    given = invoked(
        *(
            "--config-net",
            "--pid",
            "/run/pasta.pid",
            "-u",
            "127.0.0.1/5000-5009:7000-7009",
            "--dns-forward",
            "169.254.1.1",
        ),
        *("-t", "8080-8080:80-80", "-T", "none", "-U", "none", "--no-map-gw", "--quiet"),
        *("--netns", "/proc/2031/ns/net"),
        *("--map-guest-addr", "169.254.1.2"),
    )
    config, process = given.config, given.process
    assert config.tcp_ports == ("8080-8080:80-80",)
    assert (config.udp_ports, config.udp_ns) == (("127.0.0.1/5000-5009:7000-7009",), ("none",))
    assert (config.netns, config.config_net, config.no_map_gw) == ("/proc/2031/ns/net", True, True)
    assert (config.dns_forward, config.map_guest_addr) == (("169.254.1.1",), ("169.254.1.2",))
    assert (process.pid_file, process.quiet, process.foreground) == ("/run/pasta.pid", True, False)
    assert not given.runs_command


def test_libvirt_is_understood() -> None:
    """libvirt 11.3.0: an interface with addresses, another interface of the host, a log file and forwarded ports."""
    ports = "127.0.0.1/5000-5009:7000-7009,~5005"
    given = invoked(
        *("--one-off", "--socket", "/run/net0.socket", "--pid", "/run/net0-passt.pid", "--log-file", "/run/passt.log"),
        *("--interface", "up0", "--address", "172.17.2.4", "--netmask", "24", "--address", "2001:db8:ac10:fd01::20"),
        *("--tcp-ports", "2022:22", "--udp-ports", ports),
        mode="passt",
    )
    config, process = given.config, given.process
    assert (config.one_off, config.socket, config.interface) == (True, "/run/net0.socket", "up0")
    assert (config.address, config.netmask) == (("172.17.2.4", "2001:db8:ac10:fd01::20"), "24")
    assert (config.tcp_ports, config.udp_ports) == (("2022:22",), (ports,))
    assert (process.pid_file, process.log_file, process.foreground) == ("/run/net0-passt.pid", "/run/passt.log", False)


def test_rootlesskit_is_understood() -> None:
    """rootlesskit 2.0.2 with --port-driver=implicit and --detach-netns."""
    given = invoked(
        *("--foreground", "--stderr", "--ns-ifname=tap0", "--mtu=65520", "--no-dhcp", "--no-ra"),
        *("--address=10.0.2.100", "--netmask=24", "--gateway=10.0.2.2", "--dns-forward=10.0.2.3", "--ipv4-only"),
        *("--tcp-ports=auto", "--udp-ports=auto", "--userns=/proc/157/ns/user", "--netns=/proc/157/root/tmp/netns"),
    )
    config = given.config
    assert (config.ns_ifname, config.mtu, config.ipv4_only) == ("tap0", 65520, True)
    assert (config.address, config.gateway) == (("10.0.2.100",), ("10.0.2.2",))
    assert (config.userns, config.netns) == ("/proc/157/ns/user", "/proc/157/root/tmp/netns")
    assert (config.tcp_ports, config.udp_ports) == (("auto",), ("auto",))
    assert given.process.foreground and not given.runs_command


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("-u", "5000"), Config(tcp_ports="auto", udp_ports="5000", tcp_ns="auto", udp_ns="auto")),
        (
            ("-t", "5000", "-t", "0:80"),
            Config(tcp_ports=("5000", "0:80"), udp_ports="auto", tcp_ns="auto", udp_ns="auto"),
        ),
        (
            ("-u", "5000", "-u", "6000", "-T", "none", "-U", "none", "-t", "none"),
            Config(tcp_ports="none", udp_ports=("5000", "6000"), tcp_ns="none", udp_ns="none"),
        ),
        (("--no-splice",), Config(tcp_ports="auto", udp_ports="auto", tcp_ns="auto", udp_ns="auto", no_splice=True)),
        (
            ("--splice-only",),
            Config(tcp_ports="auto", udp_ports="auto", tcp_ns="auto", udp_ns="auto", splice_only=True),
        ),
        ((*NO_PORTS, "-4", "-m", "1500"), Config(**NONE_FORWARDED, ipv4_only=True, mtu=1500)),
        ((*NO_PORTS, "12345"), Config(**NONE_FORWARDED, pid=12345)),
    ],
)
def test_options_become_fields(argv: tuple[str, ...], expected: Config) -> None:
    assert invoked(*argv).config == expected


@pytest.mark.parametrize(
    ("argv", "command", "pid"),
    [
        (("--", "ip", "address"), ("ip", "address"), None),
        (("ip", "address", "-4"), ("ip", "address", "-4"), None),
        (("--config-net", "--", "sh", "-c", "exit 3"), ("sh", "-c", "exit 3"), None),
        (("--", "12345"), ("12345",), None),
        (("12345",), (), 12345),
        (("12345", "67"), ("12345", "67"), None),
    ],
)
def test_what_is_a_command_and_what_a_process(argv: tuple[str, ...], command: tuple[str, ...], pid: int | None) -> None:
    invocation = invoked(*argv)
    assert (invocation.command, invocation.config.pid) == (command, pid)
    assert invocation.runs_command == (pid is None)


def test_options_of_the_process() -> None:
    process = invoked("-f", "-P", "/run/pid", "--runas", "1:2", "--trace", "-e", "-l", "log", "--stats", "5").process
    assert (process.foreground, process.pid_file, process.runas, process.verbose) == (True, "/run/pid", "1:2", True)
    assert (process.log_file, process.log_size, process.stats) == ("log", 1 << 20, 5)


@pytest.mark.parametrize(
    ("argv", "mode", "expected"),
    [
        (("-4", "-6"), "pasta", {"ipv4_only": False, "ipv6_only": True}),
        (("-6", "-4"), "pasta", {"ipv4_only": True, "ipv6_only": False}),
        (("--netns", "x", "--userns", "u", "--netns-only"), "pasta", {"userns": None, "netns_only": True}),
        (("--netns", "x", "--netns-only", "--userns", "u"), "pasta", {"userns": "u", "netns_only": False}),
        (("-s", "x", "-F", "5"), "passt", {"socket": None, "fd": 5}),
        (("-F", "5", "--socket-path", "x"), "passt", {"socket": "x", "fd": None}),
        (("-m", "1500", "-m", "1400"), "pasta", {"mtu": 1400}),
    ],
)
def test_the_last_option_counts(argv: tuple[str, ...], mode: str, expected: dict[str, Any]) -> None:
    config = invoked(*argv, mode=mode).config
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_last_word_on_logging_counts() -> None:
    for argv, verbose in ((("-q", "-d"), True), (("--trace", "-q"), False), (("-d", "-q", "--trace"), True)):
        process = invoked(*argv).process
        assert (process.verbose, process.quiet) == (verbose, not verbose)


def test_a_command_needs_a_namespace_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="true cannot be run in a namespace that is joined"):
        invoked("--netns", "blue", "--", "true")


@pytest.mark.parametrize("mode", ["pasta", "passt"])
def test_each_option_of_the_other_command_is_refused_by_its_name(mode: str) -> None:
    other = "passt" if mode == "pasta" else "pasta"
    foreign = {name: option for name, option in options(other).items() if option.mode == other}
    assert foreign
    for name, option in foreign.items():
        names = [long_option(name), *([option.short] if option.short else [])]
        for spelled in names:
            line = refused(spelled, *(["x"] if option.metavar else []), mode=mode)
            assert f"{spelled} is an option of gpasst {other}" in line
            assert refused(spelled, mode=mode) == line


@pytest.mark.parametrize("mode", ["pasta", "passt"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_gpasst_has_not_is_refused_by_name_and_reason(mode: str, name: str) -> None:
    spellings, metavar, (reason, remedy) = REFUSED[name]
    for spelled in spellings:
        for argv in ((spelled,), (spelled, "x"), (spelled, "")):
            assert refused(*(argv if metavar else argv[:1]), mode=mode) == f"{spelled} {reason}; {remedy}"


def test_what_switches_them_off_is_accepted() -> None:
    assert invoked("--repair-path", "none", mode="passt") == invoked(mode="passt")


def test_help_lists_every_option_of_the_command_and_no_other() -> None:
    for mode in ("pasta", "passt"):
        words = help_text(mode).replace(",", " ").split()
        for name, option in options().items():
            for spelled in option.spellings(long_option(name)):
                if spelled.startswith("--"):
                    assert (spelled in words) == (option.mode in ("", mode)), spelled
        for long, option in PROCESS_OPTIONS.values():
            assert (long in words) == (option.mode in ("", mode)), long
        assert not {"--conf-path", "--vhost-user"} & set(words)


@pytest.mark.parametrize("argv", [("--help",), ("-h",), ("--version",), ("-4", "--hel", "--nosuch"), ("--vers",)])
def test_help_and_version_end_the_process(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        invoked(*argv)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(("usage: gpasst pasta", "gpasst "))


@pytest.mark.parametrize(
    ("argv", "mode", "name", "value"),
    [
        (("--addr", "192.0.2.2"), "pasta", "address", ("192.0.2.2",)),
        (("--netm=24",), "pasta", "netmask", "24"),
        (("--conf",), "pasta", "config_net", None),
        (("--config",), "pasta", "config_net", True),
        (("--dns", "none"), "pasta", "dns", ("none",)),
        (("--soc", "x"), "passt", "socket", "x"),
        (("--no-dhcp",), "pasta", "no_dhcp", True),
    ],
)
def test_long_options_can_be_abbreviated(argv: tuple[str, ...], mode: str, name: str, value: Any) -> None:
    if value is None:
        assert refused(*argv, mode=mode) == "--conf is ambiguous; write one of --conf-path, --config-net"
    else:
        assert getattr(invoked(*argv, mode=mode).config, name) == value


def test_an_abbreviation_of_the_other_commands_option_is_refused_by_its_name() -> None:
    assert "--one-off is an option of gpasst passt" in refused("--one")


def test_other_names_of_an_option() -> None:
    assert invoked("-H", "guest").config.hostname == "guest"
    assert invoked("--socket-path", "/run/vm", mode="passt").config.socket == "/run/vm"


def test_options_of_passt_without_meaning_here() -> None:
    assert invoked("--chroot-fallback", "-e") == invoked()
    assert invoked("--chroot-fallback", "-e", mode="passt") == invoked(mode="passt")


def test_the_pid_namespace_of_the_command() -> None:
    assert invoked("--no-pidns", "--", "true").process.no_pidns
    assert not invoked("--", "true").process.no_pidns
    for argv in (("--netns", "x"), ("1",)):
        assert "--no-pidns is about COMMAND" in refused("--no-pidns", *argv)
    assert "--no-pidns is an option of gpasst pasta" in refused("--no-pidns", mode="passt")


def test_the_demo() -> None:
    assert read_demo([]) is False
    assert read_demo(["--json"]) is True


@pytest.mark.parametrize(("mode", "option", "metavar"), VALUED)
def test_an_empty_value_is_refused(mode: str, option: str, metavar: str) -> None:
    for argv in ((option, ""), (f"{option}=",)):
        with pytest.raises(ConfigurationError) as caught:
            invoked(*argv, mode=mode)
        assert str(caught.value) == f"{option} '' is empty; give {metavar}, or leave {option} out"


@pytest.mark.parametrize(("mode", "option", "metavar"), VALUED)
def test_a_missing_value_is_named(mode: str, option: str, metavar: str) -> None:
    """As when the variable behind an option is empty and not quoted."""
    for argv in ((option,), (option, "--quiet"), (option, "--", "true")):
        line = refused(*argv, mode=mode)
        assert line.startswith(f"{option} lacks its value; write {option} {metavar}, or ")


@pytest.mark.parametrize(("mode", "option", "metavar"), VALUED)
@pytest.mark.parametrize("value", ["\udcff\udcfe", "a\nb", "\u0665", "1" * 5000, "-1", "none"])
def test_any_value_is_read_or_refused_in_one_line(mode: str, option: str, metavar: str, value: str) -> None:
    try:
        invoked(f"{option}={value}", mode=mode)
    except ConfigurationError as error:
        assert str(error).isprintable()
        assert error.remedy


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (("--stats", "1", "--netns", "x"), "--stats 1 prints on standard error"),
        (("--stats=-1",), "--stats -1 is out of range"),
        (("--stats", "5s"), "--stats 5s is not a whole number"),
        (("--log-size", "65536"), "--log-size 65536 is the size of a log file, and there is none"),
        (("--log-size", "40959", "-l", "log"), "--log-size 40959 is out of range"),
        (("--userns", "/nonexistent"), "--userns /nonexistent is of no use"),
        (("-m", "x"), "--mtu x is not a whole number"),
        (("9" * 5000,), f"PID {'9' * 5000} is not a whole number"),
        (("",), "COMMAND is empty"),
        (("", "12345"), "COMMAND is empty"),
        (("--", "", "-x"), "COMMAND is empty"),
        (("--",), "COMMAND is missing behind --"),
        (("-4", "--"), "COMMAND is missing behind --"),
    ],
)
def test_void_values_are_refused(argv: tuple[str, ...], fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        invoked(*argv)
    assert caught.value.message.startswith(fault)
    assert caught.value.remedy


def test_a_descriptor_is_not_negative() -> None:
    with pytest.raises(ConfigurationError, match="--fd -1 is out of range; give at least 0"):
        invoked("--fd=-1", mode="passt")
    assert invoked("--fd", "0", mode="passt").config.fd == 0


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (("--config-net=yes",), "--config-net takes no value; write --config-net alone"),
        (("-4x",), "-x is not an option or argument of gpasst pasta; leave it out"),
    ],
)
def test_a_switch_takes_no_value(argv: tuple[str, ...], fault: str) -> None:
    assert refused(*argv) == fault


def test_statistics_in_the_foreground() -> None:
    assert invoked("--stats", "1", "--netns", "x", "-f").process.stats == 1
    assert invoked("--stats", "1").process.stats == 1
    assert invoked("--stats", "0", "--netns", "x").process.stats == 0
