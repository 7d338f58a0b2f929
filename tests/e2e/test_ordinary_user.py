"""The end-to-end tests again, as an ordinary user of the same host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import again
from tests.support.lab import Remote
from tests.support.need import ROOT_ONLY, need

USER = f"gpasst-{os.getpid()}"  # what an earlier run may have left behind does not matter
SUITES = (
    "test_udp.py",
    "splice",
    "forwards",
    "test_programs.py",
    "test_modes.py",
    "test_rootlesskit.py",
    "test_service.py",
    "test_sandbox.py",
    "test_served.py",
    "test_dns.py",
    "test_testing.py",
    "test_pytest_plugin.py",
    "test_embedding.py",
    "test_guides.py",
    "test_cli.py",
    "test_dhcp.py",
    "passt",
    # Their streams are those of root's run, and take half of its time.
    "tcp/test_addresses.py",
    "tcp/test_life.py",
    "tcp/test_observed.py",
    "tcp/test_opening.py",
    "tcp/test_programs.py",
    "test_errors.py",
    "test_tos_ttl.py",
    "test_security.py",
    "weather/test_rules.py",
    "network/test_hosts.py",
    "network/test_changes.py",
    "network/test_files.py",
    "network/test_uplink.py",
    "network/test_guests.py",
    "network/test_trunks.py",
)
SUITE_SECONDS = 300
# The first interpreter is started with root's rights still; what it starts is not.
READABLE = (
    "import os, sys, gpasst.api.pasta, pytest, tests.support.lab; sys.exit(not os.access(sys.executable, os.X_OK))"
)


@pytest.fixture
def user() -> Iterator[str]:
    """An ordinary user, made for the test."""
    if os.geteuid() != 0 or Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2] == "1":
        pytest.skip("runs as an ordinary user already")
    subprocess.run([need("useradd"), "--system", "--no-create-home", "--user-group", USER], check=True)
    yield USER
    subprocess.run([need("userdel"), "--force", USER], check=True)


@pytest.mark.parametrize("suite", SUITES)
def test_as_an_ordinary_user(suite: str, user: str, tun: None, remote: Remote) -> None:
    del tun
    become = [need("setpriv"), "--reuid", user, "--regid", user, "--clear-groups", "--inh-caps=-all"]
    folder = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["chown", f"{user}:{user}", folder], check=True)
    environment = again.environment(remote, folder)
    try:
        readable = subprocess.run([*become, sys.executable, "-c", READABLE], env=environment)
        if readable.returncode:
            pytest.skip("needs an interpreter and a checkout that every user can read")
        command = again.command("--basetemp", f"{folder}/tests", str(Path(__file__).parent / suite))
        done = subprocess.run(
            [*become, *command],
            env=environment,
            pass_fds=[remote.channel.fileno()],
            capture_output=True,
            text=True,
            timeout=SUITE_SECONDS,
        )
    finally:
        subprocess.run(["rm", "-r", folder], check=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert [line for line in skipped if ROOT_ONLY not in line] == []
    assert ("skipped" in done.stdout.splitlines()[-1]) == bool(skipped), "each has its reason"
