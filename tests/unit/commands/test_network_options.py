"""The command line of ``gpasst network``."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpasst.commands.network_options import USAGE, NetworkInvocation, load, read_network
from gpasst.errors import ConfigurationError, PlatformError


@pytest.mark.parametrize(
    ("line", "invocation"),
    [
        ("x.toml", NetworkInvocation("x.toml")),
        ("x.toml --json", NetworkInvocation("x.toml", as_json=True)),
        ("--json x.toml", NetworkInvocation("x.toml", as_json=True)),
        ("x.toml --draw", NetworkInvocation("x.toml", draws=True)),
        ("--draw x.toml", NetworkInvocation("x.toml", draws=True)),
        ("x.toml --draw y.svg", NetworkInvocation("x.toml", draws=True, picture="y.svg")),
        ("--draw x.toml y.svg", NetworkInvocation("x.toml", draws=True, picture="y.svg")),
        ("x.toml --shell a", NetworkInvocation("x.toml", shell="a")),
        ("x.toml --shell=a --shell b", NetworkInvocation("x.toml", shell="b")),
        ("--shell a x.toml -- ls -l", NetworkInvocation("x.toml", shell="a", command=("ls", "-l"))),
        ("-- -x.toml", NetworkInvocation("-x.toml")),
    ],
)
def test_what_a_line_means(line: str, invocation: NetworkInvocation) -> None:
    assert read_network(line.split()) == invocation


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "FILE is missing; name a network file first"),
        ("x.toml --draw --json", "--draw opens nothing, so --json is about nothing"),
        ("x.toml --draw --shell a", "--draw opens nothing, so --shell is about nothing"),
        ("x.toml --draw y.png", "--draw y.png is no name of a picture; let it end with .svg"),
        ("x.toml --draw y.svg z", "y.svg is not an option or argument of gpasst network; leave it out"),
        ("x.toml y", "y is not an option or argument of gpasst network; leave it out"),
        (
            "x.toml --shell a ls",
            "ls is not an option or argument of gpasst network; to run it in a host, write --shell",
        ),
        ("x.toml -- ls", "ls is not an option or argument of gpasst network; to run it in a host, write --shell HOST"),
        ("x.toml --shell a --", "COMMAND is missing behind --; give a program, or nothing for a shell"),
        ("x.toml --shell", "--shell lacks its value"),
        ("x.toml --shall a", "--shall is not an option or argument of gpasst network; write --shell, or leave it out"),
    ],
)
def test_what_is_wrong_is_one_line(line: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_network(line.split())
    assert message in str(caught.value)


@pytest.mark.parametrize("line", ["--help", "x.toml -h", "x.toml --json --help"])
def test_help_is_printed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_network(line.split())
    assert caught.value.code == 0
    assert capsys.readouterr().out == USAGE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[network.lan]\nmtu = 7\n[host.a]", ": line 2: [network.lan] mtu = 7: is out of range"),
        (b"\xff", ": the file is no UTF-8; save it as UTF-8"),
        (b"[network.lan]\n[host.alpha]", ": there is no host alph; write alpha, or name one of alpha"),
        (b"[network.lan]", ": there is no host alph; add its table to the file"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load(NetworkInvocation(str(file), shell="alph"))
    assert str(caught.value).startswith(f"{file}{message}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlatformError) as caught:
        load(NetworkInvocation(str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}: Is a directory; name a file that can be read"
