"""What the package says of itself: its page in an index, and the dependencies that are tested."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

from gpasst import pytest_plugin

ROOT = Path(__file__).parent.parent.parent
BOUND = re.compile(r"(?P<name>\w+) (?:>=|~=) (?P<version>[0-9.]+)")
PIN = re.compile(r"(?P<name>\w+) == (?P<version>[0-9.]+)")


def read(name: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / name, encoding="utf-8")
    return parser


def versions(pattern: re.Pattern[str], requirements: str) -> dict[str, str]:
    """Return the version that each line of `requirements` names, by the name of the package."""
    found = [pattern.match(line) for line in requirements.strip().splitlines()]
    assert all(found), requirements
    return {match["name"]: match["version"] for match in found if match}


def test_the_oldest_dependencies_are_those_that_are_tested() -> None:
    floor = versions(PIN, read("tox.ini")["testenv:floor"]["deps"])
    assert floor == versions(BOUND, read("setup.cfg")["options"]["install_requires"])


def test_pytest_finds_the_plugin() -> None:
    entries = read("setup.cfg")["options.entry_points"]
    assert entries["pytest11"].split() == ["gpasst", "=", pytest_plugin.__name__]


def test_the_page_links_to_nothing_that_an_index_lacks() -> None:
    """A package index shows the page alone, where a link to a file of the repository leads nowhere."""
    targets = re.findall(r"]\(([^)]*)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []
