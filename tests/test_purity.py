"""What importing the package loads, and what its pure modules cannot reach."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

PURE = [
    "gpasst.formats",
    "gpasst.checksum",
    "gpasst.codec",
    "gpasst.portspec",
    "gpasst.config",
    "gpasst.network",
    "gpasst.counters",
    "gpasst.errors",
    "gpasst.features",
    "gpasst.udp",
    "gpasst.udp.activity",
    "gpasst.udp.addresses",
    "gpasst.udp.forwards",
    "gpasst.udp.guest",
    "gpasst.udp.headers",
    "gpasst.udp.mappings",
    "gpasst.udp.splice",
    "gpasst.link.packets",
    "gpasst.link.fragments",
    "gpasst.link.superframes",
    "gpasst.services",
    "gpasst.services.arp",
    "gpasst.services.dhcp",
    "gpasst.services.dhcp_formats",
    "gpasst.services.dhcpv6",
    "gpasst.services.echo",
    "gpasst.services.icmp_errors",
    "gpasst.services.names",
    "gpasst.services.ndp",
    "gpasst.services.tcp",
    "gpasst.services.wrap",
]
EFFECTS = ["asyncio", "os", "random", "select", "selectors", "socket", "subprocess", "threading", "time", "_socket"]

# Gives the modules that an import loads, and per module of the package those that its globals come from.
PROBE = """
import importlib, json, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
loaded = sorted(set(sys.modules) - before)
reached = {}
for name in loaded:
    if name.split(".")[0] == "gpasst":
        found = set()
        for value in vars(sys.modules[name]).values():
            if isinstance(value, type(sys)):
                found.add(value.__name__)
            elif getattr(value, "__module__", None):
                found.add(value.__module__)
        reached[name] = sorted(found)
print(json.dumps({"loaded": loaded, "reached": reached}))
"""


def imported(*names: str) -> dict[str, Any]:
    """Import modules in a fresh interpreter."""
    result = subprocess.run([sys.executable, "-c", PROBE, *names], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def roots(names: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    loaded = imported("gpasst")["loaded"]
    assert "gpasst" in loaded
    assert [name for name in loaded if name.startswith("gpasst.")] == []
    assert not roots(loaded) & {"gevent", "greenlet", "construct", "pyroute2", "socket", "_socket", "ssl"}


def test_pure_modules_load_no_event_loop() -> None:
    loaded = imported(*PURE)["loaded"]
    assert set(PURE) <= set(loaded)
    assert not roots(loaded) & {"gevent", "greenlet", "pyroute2"}
    others = {name for name in loaded if name.startswith("gpasst")}
    assert others - set(PURE) <= {"gpasst", "gpasst.link", "gpasst.helper", "gpasst.helper.request"}


def test_pure_modules_load_sockets_only_where_construct_does() -> None:
    ours, its = imported(*PURE)["loaded"], imported("construct")["loaded"]
    assert (set(ours) - set(its)) & {"socket", "_socket", "select", "selectors", "subprocess"} == set()


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_reach_nothing_that_has_effects(name: str) -> None:
    reached = imported(name)["reached"]
    assert name in reached
    for module, found in reached.items():
        assert not roots(found) & set(EFFECTS), f"{module} reaches {found}"


def test_the_probe_sees_what_it_looks_for() -> None:
    found = imported("gpasst.sockets")
    assert "_socket" in roots(found["reached"]["gpasst.sockets"])
    assert "os" in found["reached"]["gpasst.batch"]


def test_public_names_come_when_they_are_used() -> None:
    probe = (
        "import sys, gpasst\n"
        "assert gpasst.Config and gpasst.Drop and gpasst.PacketError\n"
        "assert 'gevent' not in sys.modules\n"
        "assert sorted(gpasst.__all__) == gpasst.__all__\n"
        "assert all(hasattr(gpasst, name) for name in gpasst.__all__)\n"
        "assert not hasattr(gpasst, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)
