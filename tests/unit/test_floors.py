"""What importing the package loads, and what its pure modules cannot reach."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gpasst

PACKAGE = Path(gpasst.__file__).parent
PURE_FOLDERS = ("packet", "capture", "switch", "flow", "udp", "tcp", "services", "router", "topology", "impair")
PURE = sorted(
    [
        f"gpasst.{name}"
        for name in (
            "formats",
            "codec",
            "declare",
            "dns",
            "layouts",
            "wire",
            "portspec",
            "ranges",
            "option",
            "config",
            "counters",
            "errors",
            "features",
            "linux",
            "records",
            "sandbox",
            "sandbox.calls",
            "sandbox.numbers",
            "sandbox.program",
            "values",
            "weather",
        )
    ]
    + [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for folder in PURE_FOLDERS
        for path in (PACKAGE / folder).glob("*.py")
    ]
)
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


def test_a_start_loads_nothing_that_is_slow_and_not_needed() -> None:
    """Each of these takes 5 to 100 ms; `records`, `codec`, `hub` and `helper.rtnetlink` say what replaces it."""
    loaded = set(imported("gpasst.cli", "gpasst.commands.serve", "gpasst.helper.server")["loaded"])
    slow = {"construct", "dataclasses", "inspect", "pyroute2", "asyncio", "gevent.monkey", "gevent.socket", "ssl"}
    assert loaded & slow == set()


def test_pure_modules_load_no_event_loop() -> None:
    loaded = imported(*PURE)["loaded"]
    assert set(PURE) <= set(loaded)
    assert not roots(loaded) & {"gevent", "greenlet", "pyroute2"}
    others = {name for name in loaded if name.startswith("gpasst")}
    assert others - set(PURE) <= {"gpasst", "gpasst.helper", "gpasst.helper.request"}


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
    found = imported("gpasst.host.sockets", "gpasst.host.receive")
    assert "_socket" in roots(found["reached"]["gpasst.host.sockets"])
    assert "os" in found["reached"]["gpasst.host.receive"]


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
